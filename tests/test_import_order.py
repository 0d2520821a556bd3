"""Imports go one way, and the sharp edges are each touched in one place only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import graphopt

ROOT = Path(graphopt.__file__).parent

# A module or room may import those of the layers above it in this list, and nothing beside or below it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"_version", "errors"}),
    frozenset({"cache", "graph", "model", "report", "targets"}),
    frozenset({"runtime"}),
    frozenset({"calibration", "channels", "data", "decisions", "equality", "facts", "latency"}),
    frozenset({"recovery", "rules", "validation"}),
    frozenset({"passes"}),
    frozenset({"checking", "deployment", "exact", "inspection", "measured", "options", "speed"}),
    frozenset({"as_run", "stages"}),
    frozenset({"composition"}),
    frozenset({"comparison", "judge", "pipeline", "timing"}),
    frozenset({"result"}),
    frozenset({"optimize"}),
    frozenset({"cli"}),
    frozenset({"__init__", "__main__"}),
)
RANK = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the order"
            module = node.module or ""
            yield from (f"graphopt.{alias.name}" for alias in node.names) if module == "graphopt" else (module,)


@cache
def identifiers(path: Path) -> frozenset[str]:
    tree = parsed(path)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return frozenset(names) | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_room_has_its_layer() -> None:
    assert {room_of(path) for path in FILES} <= RANK.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "graphopt" or len(parts) == 1 or parts[1] == room:
            continue
        assert RANK[parts[1]] < RANK[room], f"{room} must not import {name}"


def test_passes_know_neither_the_pipeline_nor_target_names_nor_the_command_line() -> None:
    forbidden = {"pipeline", "stages", "judge", "optimize", "cli", "options", "validation"}
    for path in (ROOT / "passes").rglob("*.py"):
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("graphopt.")}
        assert not rooms & forbidden, path
        assert "load_target" not in identifiers(path), path


def test_one_module_opens_sessions() -> None:
    assert [path.name for path in FILES if "InferenceSession" in identifiers(path)] == ["runtime.py"]


def test_one_room_knows_the_sharp_edges_of_graphsurgeon() -> None:
    outside = [path for path in FILES if room_of(path) != "graph"]
    for path in outside:
        for name in ("import_onnx", "export_onnx", "cleanup"):
            assert name not in identifiers(path), path
