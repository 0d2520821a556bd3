"""The store of measurements: kept from run to run, shared between processes, and never a reason to fail."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from graphopt import cache
from graphopt.cache import Store


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(value: object, machine: str = "cpu") -> Store:
    store = Store("kernels", machine)
    store.put("a", value)
    store.save()
    return store


def test_what_is_saved_is_there_the_next_time(folder: Path) -> None:
    kept([1.5, -1.0])
    again = Store("kernels", "cpu")
    assert again.get("a") == [1.5, -1.0]
    assert again.get("b") is None
    assert again.warning == ""
    assert [path.name for path in folder.iterdir()] == ["kernels-cpu.json"], "no temporary file is left"


def test_nothing_is_written_before_save_nor_without_a_change(folder: Path) -> None:
    store = Store("kernels", "cpu")
    store.put("a", 1)
    assert not folder.exists()
    Store("kernels", "cpu").save()
    assert not folder.exists()


def test_each_kind_and_machine_has_its_file() -> None:
    kept(1)
    assert Store("latency", "cpu").get("a") is None
    assert Store("kernels", "another cpu").get("a") is None
    assert Store("kernels", "cpu").path != Store("kernels", "another cpu").path


def test_any_name_of_a_machine_makes_a_file_name() -> None:
    store = kept(1, "Intel(R) Xeon(R) ../../etc @ 2.5GHz")
    assert store.path.name == "kernels-intel-r-xeon-r-..-..-etc-2.5ghz.json"
    assert store.path.exists()


def test_values_that_another_process_saved_meanwhile_are_kept() -> None:
    mine, other = Store("kernels", "cpu"), Store("kernels", "cpu")
    mine.put("mine", 1)
    other.put("other", 2)
    other.save()
    mine.save()
    assert json.loads(mine.path.read_text()) == {"mine": 1, "other": 2}


@pytest.mark.parametrize("text", ["", "{", "\x00\xff", "[1, 2]", "3"])
def test_a_damaged_file_is_measured_anew_and_replaced(text: str) -> None:
    path = kept(1).path
    path.write_text(text)
    store = Store("kernels", "cpu")
    assert store.get("a") is None
    if text not in ("[1, 2]", "3"):
        assert str(path) in store.warning
    store.put("a", 2)
    store.save()
    assert Store("kernels", "cpu").get("a") == 2


def test_bytes_that_are_not_text_are_measured_anew() -> None:
    path = kept(1).path
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert "taken anew" in Store("kernels", "cpu").warning


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "file"))
    store = Store("kernels", "cpu")
    store.put("a", 1)
    store.save()
    assert "could not be kept" in store.warning
    assert store.get("a") == 1


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(1)
    store = Store("kernels", "cpu")
    store.put("a", 2)

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    store.save()
    assert "No space left on device" in store.warning
    monkeypatch.undo()
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(folder))
    assert Store("kernels", "cpu").get("a") == 1
    assert len(list(folder.iterdir())) == 1


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", "/here")
    assert cache.folder() == Path("/here")
    monkeypatch.delenv("GRAPHOPT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert cache.folder() == Path("/there/graphopt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.folder() == Path("/home/someone/.cache/graphopt")
    assert os.environ.get("GRAPHOPT_CACHE_DIR") is None
