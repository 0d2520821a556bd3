"""docs/targets.md says what the profiles say; ``python tests/test_targets_documentation.py`` rewrites its tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import graphopt
from graphopt.targets import TARGETS, Device, Int8Rules, RuntimeModel, load_target
from graphopt.targets.form import DEVICE, HARDWARE, INT8, PROFILE, RUNTIME
from graphopt.targets.schema import Hardware, PowerMode
from graphopt.targets.source import read_source

PAGE = Path(__file__).parents[1] / "docs" / "targets.md"
BASES = Path(graphopt.__file__).parent / "targets" / "profiles" / "bases"


def device_rows() -> Iterator[str]:
    yield "| target | | releases | float32 | float16 | int8 | GB/s |"
    yield "|---|---|---|---|---|---|---|"
    for name in TARGETS:
        target = load_target(name)
        device = target.hardware.device
        if device is None:
            continue
        doubtful = set(device.unverified)
        peaks = [
            f"{device.peak_tops[precision]:g}" + "?" * bool({"peak_tops", f"peak_tops.{precision}"} & doubtful)
            if precision in device.peak_tops and (precision in target.hardware.precisions or precision == "float32")
            else "-"
            for precision in ("float32", "float16", "int8")
        ]
        releases = ", ".join(f"**{one}**" if one == target.hardware.release else one for one in target.releases)
        bandwidth = f"{device.bandwidth_gb_s:g}" + "?" * ("bandwidth_gb_s" in doubtful)
        yield f"| `{name}` | {target.summary} | {releases} | {' | '.join(peaks)} | {bandwidth} |"


def jetpack_rows() -> Iterator[str]:
    yield "| JetPack | L4T, TensorRT | highest opset |"
    yield "|---|---|---|"
    releases = read_source(BASES / "jetpack.toml").table["releases"]
    opsets = {
        release: load_target(f"{name}@{release}").hardware.opset[1]
        for name in TARGETS
        if name.startswith("jetson")
        for release in load_target(name).releases
    }
    for release, stated in releases.items():
        names = ", ".join((release, *stated.get("also", ())))
        yield f"| {names} | {stated['note']} | {opsets[release]} |"


def version_rows() -> Iterator[str]:
    yield "| TensorRT from | opset | written | types | lacks, besides what none has |"
    yield "|---|---|---|---|---|"
    for version, stated in read_source(BASES / "tensorrt.toml").table["versions"]["tensorrt"].items():
        low, high = stated["opset"]
        types = "the graph's" if stated.get("strongly_typed") else "chosen (`--fp16`)"
        lacks = sorted((*stated.get("refused_operators", ()), *(f"*{one}*" for one in stated.get("written_out", ()))),
                       key=lambda name: name.strip("*"))  # fmt: skip
        yield f"| {version} | {low} to {high} | {stated.get('write_opset', '-')} | {types} | {', '.join(lacks)} |"


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "devices": device_rows,
    "jetpack": jetpack_rows,
    "versions": version_rows,
}


def filled(text: str) -> str:
    """The page with each table as the profiles have it now."""
    for name, rows in TABLES.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        assert re.search(marks, text, re.DOTALL), f"the page has no place for the table '{name}'"
        table = "".join(f"{row}\n" for row in rows())
        text = re.sub(marks, lambda found, table=table: found[1] + table + found[2], text, flags=re.DOTALL)
    return text


def test_tables_are_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == filled(text), "run: python tests/test_targets_documentation.py"


def test_examples_are_profiles(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 3
    for number, text in enumerate(examples):
        path = tmp_path / f"{number}.toml"
        path.write_text(text, encoding="utf-8")
        assert load_target(path).recipe


def test_every_key_is_explained() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for prefix, form in (
        ("", PROFILE),
        ("hardware.", HARDWARE),
        ("hardware.int8.", INT8),
        ("hardware.device.", DEVICE),
    ):
        for key in form:
            assert f"`{prefix}{key}`" in text, f"{prefix}{key}"
    for key in RUNTIME:
        assert f"`hardware.runtimes.NAME.{key}`" in text, key


@pytest.mark.parametrize(
    ("kind", "form", "computed"),
    [
        (Hardware, HARDWARE, {"name", "release"}),
        (Int8Rules, INT8, set()),
        (Device, DEVICE, {"power_mode"}),
        (RuntimeModel, RUNTIME, {"name", "latency"}),
        (PowerMode, {"clock": None, "bandwidth": None}, set()),
    ],
)
def test_every_fact_can_be_stated(kind: type, form: dict[str, object], computed: set[str]) -> None:
    """A field that passes read and no profile can set would be a constant in disguise."""
    assert {one.name for one in fields(kind)} - computed == set(form) - {"default_runtime", "latency"}


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
