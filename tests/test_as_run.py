"""What stands for a model whose runtime rounds by itself."""

from __future__ import annotations

from support import model

from graphopt.as_run import AsRun
from graphopt.targets import load_target

PLAIN = model("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
ROUNDED = model("g (float[1,4] x) => (float[1,4] y) { h = Cast<to = 10>(x)  s = Cast<to = 1>(h)  y = Relu(s) }")
ROUGHER = model("g (float[1,4] x) => (float[1,4] y) { h = Floor(x)  y = Relu(h) }")
OTHER = model("g (float[1,4] x) => (float[1,4] y) { y = Abs(x) }")


def test_a_simulation_answers_for_the_model_and_for_what_is_made_of_it() -> None:
    known = AsRun(PLAIN, load_target("jetson-nano").hardware)
    assert known.answering(PLAIN) is PLAIN
    known.stand_in(PLAIN, ROUNDED, PLAIN)
    known.stand_in(OTHER, ROUGHER, PLAIN)
    assert known.answering(PLAIN) is ROUNDED
    assert known.answering(OTHER) is ROUNDED, "what answers for the model before is rounded more"


def test_what_does_not_hold_is_let_go_of_unless_it_held_before() -> None:
    """A simulation is as large as the model, and many are tried."""
    known = AsRun(PLAIN, load_target("jetson-nano").hardware)
    known.forget(OTHER)
    known.stand_in(OTHER, ROUNDED, PLAIN)
    known.stand_in(OTHER, ROUNDED, PLAIN)
    known.forget(OTHER)
    assert known.answering(OTHER) is ROUNDED
    known.forget(OTHER)
    assert known.answering(OTHER) is OTHER


def test_a_strongly_typed_runtime_is_told_of_no_types() -> None:
    for target, expected in (("jetson-nano", None), ("a10", frozenset())):
        assert AsRun(PLAIN, load_target(target).hardware).weighed(PLAIN, None).float32 == expected
