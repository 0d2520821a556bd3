"""A sample of onnx's own operator tests through all exact passes; ``python -m benchmarks.suite`` takes every one."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.suite import Result, by_passes, exact_passes, examine
from benchmarks.suite_cases import VARIANTS, cases, variants

EVERY = 43


@cache
def results() -> list[Result]:
    optimize = by_passes(exact_passes())
    return [examine(variant, optimize) for case in cases()[7::EVERY] for variant in variants(case)]


def test_every_case_is_right_and_stays_as_it_is() -> None:
    bad = [each for each in results() if each.status not in {"right", "unjudged"} or not each.stable]
    assert bad == []


@pytest.mark.parametrize("kind", VARIANTS)
def test_nearly_all_are_judged(kind: str) -> None:
    here = [each for each in results() if each.variant == kind]
    assert len(here) > 25
    assert sum(each.status == "right" for each in here) > 0.9 * len(here)


def test_frozen_cases_fold_to_constants() -> None:
    frozen = [each for each in results() if each.variant == "all" and each.judge == "ort"]
    assert sum(each.folded for each in frozen) >= 0.92 * len(frozen)
