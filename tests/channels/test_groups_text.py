"""Groups as text: what a person reads when he prints them."""

from graphopt import dependency_groups
from tests.support import model


def test_a_group_tells_what_goes_with_it_and_the_rest_why_it_stays() -> None:
    found = dependency_groups(
        model("""g (float[N,3,8,8] x) => (float[N,2,8,8] y) <float[4,3,1,1] w, float[4] b, float[2,4,1,1] v>
            { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }""")
    )

    assert str(found[0]).splitlines() == [
        "group 0: 4 channels of a, at least 1 must stay",
        "  written by w axis 0 of a (Conv)",
        "  written by b axis 0 of a (Conv)",
        "  read by v axis 1 of y (Conv)",
    ]
    assert str(found).splitlines()[-1] == "cannot be cut: 2 channels of y, they are the graph's output 'y'"
    assert len(repr(found)) < 2000
