"""All exact passes together on random graphs: the same outputs, and nothing left to do the second time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import random_feed, random_graph
from support import assert_same, context, outputs

from graphopt.exact import run_exact
from graphopt.graph import verify
from graphopt.passes import PASSES
from graphopt.targets import load_target

EXACT = [PASSES[name] for name in load_target("cpu").recipe if PASSES[name].exact]

# ``GRAPHOPT_EXAMPLES=5000 pytest tests/test_random_graphs.py`` looks further.
EXAMPLES = int(os.environ.get("GRAPHOPT_EXAMPLES", "60"))
further = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@further
@given(data=st.data())
def test_random_graphs_keep_their_outputs_and_are_done_after_one_run(data: st.DataObject) -> None:
    original = random_graph(data.draw, data.draw(st.integers(1, 12), label="layers"))
    verify(original)
    untouched = original.SerializeToString(deterministic=True)
    after, outcomes = run_exact([kind() for kind in EXACT], original, context())
    assert [(one.name, one.failure) for one in outcomes if one.failure] == []
    assert original.SerializeToString(deterministic=True) == untouched
    for batch in (1, 3):
        fed = random_feed(original, batch)
        assert_same(outputs(original, fed), outputs(after, fed), rtol=1e-5)
    again, repeated = run_exact([kind() for kind in EXACT], after, context())
    assert again is after, {one.name: dict(one.report.details) for one in repeated if one.report.changes}
    # Longer names of a few new constants may weigh more than a node that went.
    assert after.ByteSize() <= original.ByteSize() + 500
