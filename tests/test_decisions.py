"""Remembered latencies: recalled as they were measured; a damaged or unwritable file never stops a run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from graphopt.decisions import MOST_ENTRIES, Decisions, Measured, cache_path, comparison_key

FASTER = Measured(2.0, 1.0, 2.0, 1.9, 2.1)


def test_what_was_measured_is_recalled_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "latency.json"
    assert Decisions(path).recall("key") is None
    Decisions(path).remember("key", FASTER)
    assert Decisions(path).recall("key") == FASTER
    assert Decisions(path).recall("other") is None
    assert [entry.name for entry in path.parent.iterdir()] == ["latency.json"], "no temporary file stays behind"


def test_the_key_depends_on_everything_given_and_not_on_the_order() -> None:
    assert comparison_key(cpu="a", threads=1) == comparison_key(threads=1, cpu="a")
    assert comparison_key(cpu="a", threads=1) != comparison_key(cpu="a", threads=2)


def test_the_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path))
    assert cache_path() == tmp_path / "latency.json"
    monkeypatch.delenv("GRAPHOPT_CACHE_DIR")
    assert cache_path() == Path.home() / ".cache" / "graphopt" / "latency.json"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="cut short"),
        pytest.param(b"\xff\xfe", id="not text"),
        pytest.param(b"[1, 2]", id="not a table"),
        pytest.param(b'{"format": "other", "entries": {}}', id="other format"),
    ],
)
def test_a_damaged_file_is_told_once_and_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latency.json"
    path.write_bytes(content)
    decisions = Decisions(path)
    assert decisions.recall("key") is None
    assert decisions.recall("key") is None
    (warning,) = decisions.warnings
    assert str(path) in warning
    assert "measured anew" in warning
    decisions.remember("key", FASTER)
    assert Decisions(path).recall("key") == FASTER


@pytest.mark.parametrize("entry", [{}, {**asdict(FASTER), "speedup": "fast"}, {**asdict(FASTER), "speedup": -1}, [2]])
def test_a_damaged_entry_is_measured_anew(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({"format": "graphopt.latency/1", "entries": {"key": entry}}))
    assert Decisions(path).recall("key") is None


def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    decisions = Decisions(tmp_path / "file" / "latency.json")
    decisions.remember("key", FASTER)
    assert "latencies cannot be remembered" in decisions.warnings[-1]


def test_the_oldest_entries_go_first(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    entries = {str(number): asdict(FASTER) for number in range(MOST_ENTRIES)}
    path.write_text(json.dumps({"format": "graphopt.latency/1", "entries": entries}))
    decisions = Decisions(path)
    decisions.remember("new", FASTER)
    assert decisions.recall("new") == FASTER
    assert decisions.recall("0") is None
    assert decisions.recall("1") == FASTER
    assert os.listdir(tmp_path) == ["latency.json"]
