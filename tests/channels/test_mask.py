"""The original with channels at zero: same size, and nothing of the channels in any answer."""

from __future__ import annotations

import numpy as np
import pytest
from support import feeds, initializer, model, outputs

from graphopt import channels

SIGMOID = """g (float[N,3,6,6] x) => (float[N,2,6,6] y) <float[4,3,1,1] w1, float[4] b1, float[2,4,1,1] w2>
  { a = Conv(x, w1, b1)  s = Sigmoid(a)  y = Conv(s, w2) }"""


def test_filters_biases_and_what_reads_them_are_zero() -> None:
    found = channels.dependency_groups(model(SIGMOID))
    masked = channels.mask(found, {0: [1, 3]})
    assert not initializer(masked, "w1")[[1, 3]].any()
    assert not initializer(masked, "b1")[[1, 3]].any()
    assert not initializer(masked, "w2")[:, [1, 3]].any()
    for name in ("w1", "b1"):
        np.testing.assert_array_equal(
            initializer(masked, name)[[0, 2]], initializer(found.model, name)[[0, 2]], err_msg=name
        )


def test_an_activation_that_is_not_zero_at_zero_adds_nothing() -> None:
    """The weights that read a channel are zero, too: half a sigmoid is not left over as a bias."""
    found = channels.dependency_groups(model(SIGMOID))
    fed = feeds(found.model)
    once = outputs(channels.mask(found, {0: [0]}), fed)["y"]
    w1, b1, w2 = (initializer(found.model, name) for name in ("w1", "b1", "w2"))
    hidden = np.einsum("oc,nchw->nohw", w1[:, :, 0, 0], fed["x"]) + b1[None, :, None, None]
    wanted = np.einsum("oc,nchw->nohw", w2[:, 1:, 0, 0], 1 / (1 + np.exp(-hidden[:, 1:])))
    np.testing.assert_allclose(once, wanted, rtol=1e-5)


def test_each_block_of_a_grouped_convolution_has_inputs_of_its_own() -> None:
    proto = model(
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y) <float[4,3,1,1] w1, float[6,2,1,1] wg, float[2,6,1,1] w2>
        { a = Conv(x, w1)  d = Conv<group=2>(a, wg)  y = Conv(d, w2) }"""
    )
    found = channels.dependency_groups(proto)
    number = next(group.number for group in found if group.size == 4)
    masked = initializer(channels.mask(found, {number: [0, 3]}), "wg")
    assert not masked[:3, 0].any()
    assert not masked[3:, 1].any()
    assert masked[:3, 1].all()
    assert masked[3:, 0].all()


def test_stored_integers_are_at_their_zero_points() -> None:
    proto = model(
        """g (float[N,3,6,6] x) => (float[N,2,6,6] y)
        <int8[4,3,1,1] w1, float[4] s1, int8[4] z1, float[2,4,1,1] w2>
        { d = DequantizeLinear<axis=0>(w1, s1, z1)  a = Conv(x, d)  y = Conv(a, w2) }""",
        s1=np.full(4, 0.1), z1=np.array([5, 6, 7, 8]),
    )  # fmt: skip
    found = channels.dependency_groups(proto)
    masked = channels.mask(found, {0: [2]})
    assert (initializer(masked, "w1")[2] == 7).all()
    np.testing.assert_array_equal(initializer(masked, "s1"), initializer(proto, "s1"))


@pytest.mark.parametrize("operator", ["Div", "Pow", "Add", "Mul", "Sub"])
def test_no_zero_divides(operator: str) -> None:
    proto = model(
        f"""g (float[N,3,6,6] x) => (float[N,2,6,6] y) <float[4,3,1,1] w1, float[4,1,1] c, float[2,4,1,1] w2>
        {{ a = Conv(x, w1)  r = Relu(a)  d = {operator}(r, c)  y = Conv(d, w2) }}""",
        c=np.array([1, 2, 3, 4]).reshape(4, 1, 1),
    )
    found = channels.dependency_groups(proto)
    fed = feeds(proto)
    masked = outputs(channels.mask(found, {0: [1]}), fed)["y"]
    assert np.isfinite(masked).all()
    np.testing.assert_allclose(masked, outputs(channels.cut(found, {0: [1]}).model, fed)["y"], rtol=1e-4, atol=1e-5)


def test_the_original_is_left_alone_and_nothing_changes_its_size() -> None:
    proto = model(SIGMOID)
    before = proto.SerializeToString(deterministic=True)
    masked = channels.mask(channels.dependency_groups(proto), {0: [0, 2]})
    assert proto.SerializeToString(deterministic=True) == before
    assert [(one.name, list(one.dims)) for one in masked.graph.initializer] == [
        (one.name, list(one.dims)) for one in proto.graph.initializer
    ]
    assert masked.graph.node == proto.graph.node
