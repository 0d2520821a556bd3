"""The profiles in the package: complete, consistent, and saying what their devices are known for."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import onnx
import pytest

import graphopt
from graphopt.cli import main
from graphopt.errors import UsageError
from graphopt.passes import PASSES
from graphopt.rules.engine import select
from graphopt.targets import TARGETS, Device, Hardware, load_target, target_summaries
from graphopt.targets.source import read_source

FOLDER = Path(graphopt.__file__).parent / "targets" / "profiles"
DEVICES = [name for name in TARGETS if not name.startswith("cpu")]
ACCELERATORS = [name for name in TARGETS if name.endswith("-dla")]
# Every target with every release that it offers.
CHOICES = [
    name if not release else f"{name}@{release}" for name in TARGETS for release in ("", *load_target(name).releases)
]


def hardware(name: str) -> Hardware:
    return load_target(name).hardware


def device(name: str) -> Device:
    found = hardware(name).device
    assert found is not None
    return found


# The list


def test_every_file_is_a_target_and_every_target_has_a_file() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.toml")) == sorted(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_a_name_and_a_summary_of_its_own(name: str) -> None:
    target = load_target(name)
    assert target.name == target.hardware.name == name
    assert target_summaries()[name] == target.summary
    assert len(set(target_summaries().values())) == len(TARGETS)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("bases/*.toml")))
def test_a_base_is_no_target(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown target '{name}'"):
        load_target(name)


def test_an_unknown_target_lists_what_is_available_and_what_comes_close() -> None:
    message = r"unknown target 'jetson-orin'. Did you mean .*jetson-orin-nano.*\? Available: cpu, .* FILE.toml"
    with pytest.raises(UsageError, match=message):
        load_target("jetson-orin")
    with pytest.raises(UsageError, match="Did you mean titan-xp"):
        load_target("titan-x")
    with pytest.raises(UsageError, match=r"unknown target 'toaster'. Available"):
        load_target("toaster")


# Every choice


@pytest.mark.parametrize("choice", CHOICES)
def test_facts_fit_together(choice: str) -> None:
    target = load_target(choice)
    facts = target.hardware
    assert all(name in PASSES for name in target.recipe)
    assert select(facts.rules)
    assert "CPUExecutionProvider" in facts.providers  # results are validated on this machine
    assert (facts.int8 is None) == bool(facts.int8_refusal)
    assert facts.int8 is None or "int8" in facts.precisions or facts.int8_refusal
    assert facts.write_opset is None or facts.opset[0] <= facts.write_opset <= facts.opset[1]
    assert all(onnx.defs.has(name) for name in (*facts.refused_operators, *facts.written_out))
    assert not set(facts.refused_operators) & set(facts.written_out)


@pytest.mark.parametrize("choice", [one for one in CHOICES if not one.startswith("cpu")])
def test_a_device_has_peaks_for_what_it_computes_in(choice: str) -> None:
    facts = hardware(choice)
    assert facts.device is not None
    assert facts.runtimes
    computed = set(facts.precisions) - ({"float16"} if choice.startswith("titan-xp") else set())
    assert computed <= facts.device.peak_tops.keys()
    assert all(one.precision in facts.device.peak_tops for one in facts.runtimes)
    if not facts.accelerator:
        assert facts.device.peak_tops["float32"] <= facts.device.peak_tops.get("float16", float("inf"))
    assert "launch_us" in facts.device.unverified  # no data sheet states it


@pytest.mark.parametrize("choice", [one for one in CHOICES if hardware(one).strongly_typed])
def test_where_the_graph_decides_float32_stays_float32(choice: str) -> None:
    assert hardware(choice).runtimes[0].precision == "float32"


def test_only_what_was_fitted_on_the_device_says_so() -> None:
    fitted = {(name, model.name) for name in DEVICES for model in hardware(name).runtimes if model.fitted}
    assert fitted == {("titan-xp", "eager-fp32"), ("jetson-tx1", "eager-fp32")}
    for name, runtime in fitted:
        model = next(one for one in hardware(name).runtimes if one.name == runtime)
        assert (model.fused, model.precision, model.constants) == (False, "float32", f"{name}-eager")


# What is known of them


def test_the_cpu_target_ends_with_quantization() -> None:
    target = load_target("cpu")
    assert target.recipe[0] == "fix_shapes"
    assert target.recipe[-1] == "quantize_int8"
    assert target.hardware.providers == ("CPUExecutionProvider",)
    assert target.hardware.int8 is not None
    assert target.hardware.int8.activation_dtype == "uint8"


def test_cpus_without_vnni_lose_a_bit_of_weights_whatever_this_machine_has() -> None:
    bits = {}
    for name in ("cpu-avx2", "cpu-avx512", "cpu-vnni", "cpu-arm64"):
        rules = hardware(name).int8
        assert rules is not None
        bits[name] = rules.weight_bits
    assert bits == {"cpu-avx2": 7, "cpu-avx512": 7, "cpu-vnni": 8, "cpu-arm64": 8}


@pytest.mark.parametrize("name", ["jetson-nano", "jetson-tx1", "jetson-tx2"])
def test_old_modules_refuse_int8_and_say_why(name: str) -> None:
    facts = hardware(name)
    assert facts.int8 is None
    assert "compute capability" in facts.int8_refusal
    assert facts.precisions == ("float32", "float16")
    assert facts.release == "4.6.1"


@pytest.mark.parametrize(
    ("choice", "version", "highest"),
    [
        ("jetson-nano@4.5", "7.1.3", 11),
        ("jetson-nano@4.6", "8.0.1", 13),
        ("jetson-nano@4.6.4", "8.2.1", 13),
        ("jetson-agx-orin@5.0.2", "8.4.1", 17),
        ("jetson-agx-xavier@5.1.3", "8.5.2", 17),
        ("jetson-orin-nx@6.0", "8.6.2", 17),
        ("jetson-orin-nano", "10.3.0", 20),
        ("a10@10.15", "10.15", 24),
        ("h100@11.5", "11.5", 25),
    ],
)
def test_the_release_decides_version_and_opset(choice: str, version: str, highest: int) -> None:
    facts = hardware(choice)
    assert (facts.runtime_version, facts.opset[1]) == (version, highest)


def test_what_parsers_learned() -> None:
    unwanted = {
        release: {*hardware(f"jetson-agx-orin@{release}").written_out}
        | {*hardware(f"jetson-agx-orin@{release}").refused_operators}
        for release in ("5.0.2", "5.1", "6.0", "6.1")
    }
    assert {"HardSwish", "LayerNormalization", "GridSample", "OneHot", "RoiAlign", "Trilu"} <= unwanted["5.0.2"]
    assert not {"HardSwish", "GridSample", "OneHot", "RoiAlign", "Trilu"} & unwanted["5.1"]
    assert {"LayerNormalization", "IsInf", "Hardmax"} <= unwanted["5.1"]
    assert not {"LayerNormalization", "IsInf"} & unwanted["6.0"]
    assert "Hardmax" in unwanted["6.0"]
    assert "Hardmax" not in unwanted["6.1"]
    assert all("QLinearConv" in found for found in unwanted.values())


def test_types_are_the_graphs_from_tensorrt_10_12_on() -> None:
    typed = {
        choice: hardware(choice).strongly_typed for choice in ("a10@10.3", "a10@10.12", "a10@11.0", "gpu", "jetson")
    }
    assert typed == {"a10@10.3": False, "a10@10.12": True, "a10@11.0": True, "gpu": True, "jetson": False}


def test_int8_for_tensorrt_is_symmetric_and_explicit() -> None:
    rules = hardware("gpu").int8
    assert rules is not None
    assert (rules.activation_dtype, rules.symmetric, rules.weight_bits, rules.per_channel) == ("int8", True, 8, True)
    assert not rules.quantize_bias
    assert not rules.implicit
    assert not rules.quantize_outputs
    assert rules.residual_inputs == "skip"


def test_before_tensorrt_8_int8_is_implicit() -> None:
    rules = hardware("jetson-xavier-nx@4.5").int8
    assert rules is not None
    assert rules.implicit


@pytest.mark.parametrize("name", ACCELERATORS)
def test_accelerators_want_fixed_shapes_and_a_calibration_cache(name: str) -> None:
    facts, module = hardware(name), hardware(name.removesuffix("-dla"))
    assert (facts.accelerator, module.accelerator) == ("dla", "")
    assert facts.dynamic_shapes == "fixed"
    assert facts.int8 is not None
    assert facts.int8.implicit
    assert facts.channel_multiple["int8"] == 32
    assert device(name).peak_tops["int8"] < device(name.removesuffix("-dla")).peak_tops["int8"]


def test_low_power_leaves_most_of_the_int8_to_the_accelerator() -> None:
    peaks = {
        mode: (
            device(f"jetson-agx-orin@{mode}").peak_tops["int8"],
            device(f"jetson-agx-orin-dla@{mode}").peak_tops["int8"],
        )
        for mode in ("MAXN", "30W")
    }
    assert peaks["MAXN"][0] > peaks["MAXN"][1]
    assert peaks["30W"][0] < peaks["30W"][1]


def test_orin_nano_was_slower_before_jetpack_6_2() -> None:
    before, now = device("jetson-orin-nano@6.1"), device("jetson-orin-nano@6.2")
    assert now.peak_tops["int8"] / before.peak_tops["int8"] == pytest.approx(1020 / 625, rel=0.01)
    assert (before.bandwidth_gb_s, now.bandwidth_gb_s) == (68, 102)
    assert device("jetson-orin-nano@6.2,15W").bandwidth_gb_s == pytest.approx(68, rel=0.01)


def test_families_are_one_of_their_members() -> None:
    assert hardware("jetson").device == hardware("jetson-orin-nano").device
    assert hardware("gpu").device == hardware("t4").device
    assert hardware("gpu-cuda").device == hardware("t4").device


def test_the_cuda_provider_takes_no_int8_and_runs_the_types_of_the_graph() -> None:
    facts = hardware("a10@cuda")
    assert (facts.runtime, facts.runtimes[0].name, facts.int8, facts.strongly_typed) == (
        "onnxruntime",
        "cuda",
        None,
        True,
    )
    assert "TensorRT" in facts.int8_refusal
    assert not facts.refused_operators
    assert not facts.written_out


# Sources


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.toml")), ids=lambda path: path.stem)
def test_figures_of_a_device_have_a_source_above_them(path: Path) -> None:
    source = read_source(path)
    if "peak_tops" in source.table.get("hardware", {}).get("device", {}):
        assert "\n# " in source.text.partition("[hardware.device]")[0]


def test_no_module_but_the_reader_knows_a_target_by_its_name() -> None:
    """A pass, rule or model that asked for a name would not serve a user's own profile."""
    names = "|".join(set(TARGETS) - {"cpu", "gpu", "jetson"})
    for path in Path(graphopt.__file__).parent.rglob("*.py"):
        if path.parent.name != "targets" and "cli" not in path.parts:
            assert not re.search(f'"({names})"', path.read_text(encoding="utf-8")), path


# The command


def test_targets_are_listed_quickly(capsys: pytest.CaptureFixture[str]) -> None:
    before = time.thread_time()
    assert main(["targets"]) == 0
    assert time.thread_time() - before < 0.4  # most of the half second belongs to Python's own start
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(TARGETS)


def test_one_target_is_shown_with_its_runtimes_releases_and_power_modes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "jetson-agx-orin@5.1,30W"]) == 0
    lines = {line.split()[0]: line.split(None, 1)[1] for line in capsys.readouterr().out.splitlines() if line[0] != " "}
    assert lines["hardware.runtime_version"] == "8.5.2"
    assert lines["hardware.runtimes.tensorrt.fused"] == "yes"
    assert lines["hardware.device.power_modes.50W.clock"] == "0.637"
    assert lines["releases.6.0"] == "L4T 36.3, TensorRT 8.6.2"


def test_one_target_is_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "titan-xp", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["hardware"]["runtimes"]] == ["tensorrt", "cuda", "eager-fp32"]
    assert found["hardware"]["device"]["peak_tops"]["float32"] == 12.15
