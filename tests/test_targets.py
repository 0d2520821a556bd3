"""Target profiles: strict reading, inheritance, names that are not there yet, and what the CPU can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.errors import UsageError
from graphopt.targets import TARGETS, load_target
from graphopt.targets.detect import cpu_description, read_cpu

PROFILE = """\
name = "board"
summary = "a board"
recipe = ["eliminate_dead"]

[hardware]
runtime = "onnxruntime"
providers = ["CPUExecutionProvider"]
opset = [13, 21]
precisions = ["float32", "int8"]

[hardware.int8]
activation_dtype = "int8"
weight_bits = 7
"""


def profile(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(text)
    return path


def test_the_cpu_target_ends_with_quantization() -> None:
    target = load_target("cpu")
    assert target.name == target.hardware.name == "cpu"
    assert target.recipe[0] == "fix_shapes"
    assert target.recipe[-1] == "quantize_int8"
    assert target.hardware.providers == ("CPUExecutionProvider",)
    assert target.hardware.int8 is not None
    assert target.hardware.int8.activation_dtype == "uint8"


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_a_profile_of_its_own_name(name: str) -> None:
    assert load_target(name).name == name


def test_an_unknown_target_lists_what_is_available_and_what_comes_close() -> None:
    message = r"unknown target 'jetson-orin'. Did you mean jetson-orin-nano or jetson-orin-nx.*\? Available: cpu, gpu, .*; or give .* FILE.toml"
    with pytest.raises(UsageError, match=message):
        load_target("jetson-orin")


def test_a_profile_is_read_from_a_file(tmp_path: Path) -> None:
    target = load_target(profile(tmp_path, PROFILE))
    assert (target.name, target.recipe, target.hardware.opset) == ("board", ("eliminate_dead",), (13, 21))
    assert target.hardware.int8 is not None
    assert (target.hardware.int8.activation_dtype, target.hardware.int8.weight_bits) == ("int8", 7)


def test_a_profile_without_int8_refuses_int8(tmp_path: Path) -> None:
    text = PROFILE[: PROFILE.index("[hardware.int8]")]
    assert load_target(str(profile(tmp_path, text))).hardware.int8 is None


def test_a_profile_inherits_and_states_only_what_differs(tmp_path: Path) -> None:
    changed = load_target(profile(tmp_path, 'inherits = "cpu"\n[hardware.int8]\nweight_bits = 7\n'))
    cpu = load_target("cpu")
    assert changed.recipe == cpu.recipe
    assert changed.hardware.opset == cpu.hardware.opset
    assert changed.hardware.int8 is not None
    assert changed.hardware.int8.weight_bits == 7


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param('runtime = "onnx', 'rutime = "onnx', "line 6: 'hardware.rutime' is not known", id="unknown key"),
        pytest.param("recipe = [", "recipes = [", "line 3: 'recipes' is not known", id="unknown top key"),
        pytest.param(
            "weight_bits = 7", "bits = 7", "line 13: 'hardware.int8.bits' is not known", id="unknown int8 key"
        ),
        pytest.param(
            "weight_bits = 7", "weight_bits = 4", "line 13: 'hardware.int8.weight_bits' must be 7, 8", id="bits"
        ),
        pytest.param('"int8"\nw', '"int4"\nw', "line 12: 'hardware.int8.activation_dtype' must be", id="activations"),
        pytest.param("opset = [13, 21]", "opset = 13", r"line 8: 'hardware.opset' must be \[lowest", id="opset"),
        pytest.param('name = "board"', "name = 3", "line 1: 'name' must be a text", id="wrong type"),
        pytest.param('summary = "a board"\n', "", "'summary' must be given", id="missing"),
        pytest.param(
            'recipe = ["eliminate_dead"]', 'recipe = "x"', "line 3: 'recipe' must be given, as a list", id="list"
        ),
        pytest.param('name = "board"', "name = board", "not valid TOML.*line 1", id="syntax"),
        pytest.param('name = "board"', "hardware = 3", "not valid TOML", id="two meanings"),
        pytest.param('name = "board"', 'inherits = "gup"', "line 1: 'inherits' .*unknown target 'gup'", id="inherits"),
    ],
)
def test_a_wrong_profile_names_file_line_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PROFILE
    path = profile(tmp_path, PROFILE.replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        load_target(path)


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.toml: the target profile cannot be read: No such file"):
        load_target(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("cpuinfo", "architecture", "bits"),
    [
        pytest.param("model name : A\nflags : avx2 avx512f avx512_vnni", "x86_64", 8, id="AVX512-VNNI"),
        pytest.param("model name : B\nflags : avx2 avx_vnni", "AMD64", 8, id="AVX-VNNI"),
        pytest.param("model name : C\nflags : avx2 avx512f", "x86_64", 7, id="AVX512 without VNNI"),
        pytest.param("", "x86_64", 7, id="x86 of unknown kind"),
        pytest.param("Features : fp asimd asimddp\nCPU implementer : 0x41", "aarch64", 8, id="Arm with dot product"),
        pytest.param("", "arm64", 8, id="Arm of unknown kind"),
    ],
)
def test_weights_lose_a_bit_where_sums_would_saturate(cpuinfo: str, architecture: str, bits: int) -> None:
    assert read_cpu(cpuinfo, architecture).weight_bits == bits


def test_only_the_first_processor_counts_and_the_description_names_the_kernels_flags() -> None:
    cpu = read_cpu("model name\t: One\nflags\t: fpu avx2\n\nmodel name\t: Two\nflags\t: avx2 avx_vnni", "x86_64")
    assert str(cpu) == "One (x86_64 avx2)"
    assert cpu_description()
