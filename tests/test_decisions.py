"""Remembered latencies: recalled as they were measured; a damaged or unwritable file never stops a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from graphopt.decisions import Decisions, Measured, comparison_key

FASTER = Measured(2.0, 1.0, 2.0, 1.9, 2.1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_what_was_measured_is_recalled_by_the_next_run(cache: Path) -> None:
    assert Decisions().recall("key") is None
    Decisions().remember("key", FASTER)
    assert Decisions().recall("key") == FASTER
    assert Decisions().recall("other") is None
    assert len(list(cache.iterdir())) == 1, "no temporary file stays behind"


def test_the_key_depends_on_everything_given_and_not_on_the_order() -> None:
    assert comparison_key(model="a", threads=1) == comparison_key(threads=1, model="a")
    assert comparison_key(model="a", threads=1) != comparison_key(model="a", threads=2)


@pytest.mark.parametrize("content", [pytest.param(b"{", id="cut short"), pytest.param(b"\xff\xfe", id="not text")])
def test_a_damaged_file_is_told_and_replaced(cache: Path, content: bytes) -> None:
    Decisions().remember("key", FASTER)
    (path,) = cache.iterdir()
    path.write_bytes(content)
    decisions = Decisions()
    assert decisions.recall("key") is None
    assert str(path) in decisions.warning
    decisions.remember("key", FASTER)
    assert Decisions().recall("key") == FASTER


@pytest.mark.parametrize("entry", [{}, {**asdict(FASTER), "speedup": "fast"}, {**asdict(FASTER), "speedup": -1}, [2]])
def test_a_damaged_entry_is_measured_anew(cache: Path, entry: object) -> None:
    Decisions().remember("key", FASTER)
    (path,) = cache.iterdir()
    path.write_text(json.dumps({"key": entry}))
    assert Decisions().recall("key") is None


def test_an_unwritable_folder_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(cache / "file"))
    decisions = Decisions()
    decisions.remember("key", FASTER)
    assert str(cache / "file") in decisions.warning
