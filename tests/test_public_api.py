"""The public names, and that importing them costs nothing until they are used."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import graphopt

ROOT = Path(graphopt.__file__).parents[1]


def python(code: str) -> str:
    """Run code in a fresh interpreter that sees this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("name", graphopt.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(graphopt, name) is not None
    assert name in dir(graphopt)


def test_the_public_names_are_those_of_the_contract() -> None:
    assert {"optimize", "run", "load", "save", "Result", "Report", "PASSES", "TARGETS"} <= set(graphopt.__all__)
    assert sorted(graphopt.__all__, key=str) == sorted(set(graphopt.__all__), key=str)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'optimise'"):
        graphopt.optimise  # noqa: B018


def test_the_function_is_not_hidden_by_the_module_of_its_name() -> None:
    code = "import graphopt, graphopt.optimize, graphopt.result; print(callable(graphopt.optimize))"
    assert python(code) == "True"


def test_optimize_takes_the_options_of_the_contract() -> None:
    parameters = inspect.signature(graphopt.optimize).parameters
    assert [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD] == ["model"]
    defaults = {name: one.default for name, one in parameters.items()}
    for name, default in {"target": "cpu", "max_drop": 0.01, "min_speedup": 1.0, "metric": "auto", "seed": 0}.items():
        assert defaults[name] == default
    assert list(inspect.signature(graphopt.run).parameters)[:2] == ["model", "passes"]


def test_import_is_fast_and_leaves_the_heavy_ones_out() -> None:
    code = """
import sys, time
started = time.process_time()
import graphopt
print(time.process_time() - started, [name for name in ("onnx", "onnxruntime", "numpy") if name in sys.modules])
"""
    seconds, heavy = python(code).split(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.5


def test_the_package_is_typed() -> None:
    assert (ROOT / "graphopt" / "py.typed").exists()
