"""Budgets: what is counted is held against what is allowed; what cannot be counted is an error, never a zero."""

from __future__ import annotations

import onnx
import pytest
from support import model

from graphopt.checking import check
from graphopt.rules import Finding

NET = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w> { y = Conv(x, w) }"
PARAMETERS = 4 * 3 * 3 * 3
MACS = PARAMETERS * 6 * 6


def found(proto: onnx.ModelProto, **budget: object) -> list[Finding]:
    return list(check(proto, use_config=False, **budget).files[0].findings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "code", "words"),
    [
        ({"max_bytes": 100}, "GO901", "times the budget of 100"),
        ({"max_parameters": PARAMETERS - 1}, "GO902", "108 parameters, 1% over the budget of 107"),
        ({"max_macs": MACS // 2}, "GO903", "3,888 multiply-adds, 2 times the budget of 1,944"),
        ({"max_macs": 2 * MACS - 1, "batch": 2}, "GO903", "just over"),
        ({"max_parameters": 0}, "GO902", "over the budget of 0"),
        ({"max_macs": 1}, "GO903", "3,888 times the budget of 1"),
    ],
)
def test_over_budget(budget: dict[str, int], code: str, words: str) -> None:
    (one,) = found(model(NET), **budget)
    assert (one.code, one.level) == (code, "error")
    assert words in one.message


def test_within_budget() -> None:
    result = check(model(NET), use_config=False, max_bytes=10_000, max_parameters=PARAMETERS, max_macs=MACS)
    assert result.ok
    figures = result.files[0].figures
    assert figures is not None
    assert (figures.parameters, figures.macs) == (PARAMETERS, MACS)


def test_what_is_not_asked_for_is_not_counted() -> None:
    figures = check(model(NET), use_config=False).files[0].figures
    assert figures is not None
    assert (figures.parameters, figures.macs, figures.latency) == (None, None, None)


def test_unknown_sizes_are_an_error_until_they_are_given() -> None:
    proto = model(NET.replace("N,3,8,8", "N,3,H,W").replace("N,4,6,6", "N,4,P,Q"))
    (one,) = found(proto, max_macs=10**9)
    assert one.code == "GO905"
    assert "give input-shapes" in one.message
    assert found(proto, max_macs=MACS, input_shapes={"x": (1, 3, 8, 8)}) == []


def test_shapes_that_contradict_the_model_are_told() -> None:
    (one,) = found(model(NET), max_macs=10**9, input_shapes={"x": (1, 5, 8, 8)})
    assert one.code == "GO905"
    assert "contradicts" in one.message


def test_latency_needs_a_target() -> None:
    (one,) = found(model(NET), max_latency_ms=1.0)
    assert one.code == "GO905"
    assert "needs a target" in one.message


def test_latency_is_an_estimate_with_its_interval() -> None:
    (one,) = found(model(NET), max_latency_ms=1e-6, target="titan-xp", ignore=["GO2", "GO4"])
    assert one.code == "GO904"
    assert one.message.startswith("estimated ")
    assert " to " in one.message
    result = check(model(NET), use_config=False, max_latency_ms=1e6, target="titan-xp", runtime="eager-fp32", batch=2)
    told = result.files[0].to_dict()["latency"]
    assert (told["source"], told["runtime"], told["batch"]) == ("estimated", "eager-fp32", 2)
    assert told["interval"][0] <= told["ms"] <= told["interval"][1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "cpu"}, "measured, not estimated"),
        ({"target": "titan-xp", "runtime": "nonsense"}, "has no runtime 'nonsense'"),
    ],
)
def test_a_latency_that_cannot_be_estimated_is_an_error(settings: dict[str, str], words: str) -> None:
    one = found(model(NET), max_latency_ms=1.0, **settings)[-1]
    assert one.code == "GO905"
    assert words in one.message


@pytest.mark.parametrize(
    ("first", "budget"),
    [
        pytest.param("N", {"batch": 4}, id="asked for"),
        pytest.param("N", {"input_shapes": {"x": (4, 3, 8, 8)}}, id="given as a shape"),
        pytest.param("4", {}, id="fixed by the model"),
    ],
)
def test_latency_is_told_with_the_batch_that_it_is_for(first: str, budget: dict[str, object]) -> None:
    (one,) = found(model(NET.replace("N,", f"{first},")), target="titan-xp@8.6", max_latency_ms=1e-9, **budget)[-1:]
    assert one.code == "GO904"
    assert "for batch 4 " in one.message
