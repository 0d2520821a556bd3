"""Reading target profiles: strictness, inheritance, releases and power modes, and what the CPU can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.errors import UsageError
from graphopt.targets import PowerMode, load_target
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

# A device with two releases, two power modes and a runtime whose versions differ.
DEVICE = """\
name = "board"
summary = "a board"
recipe = ["eliminate_dead"]
release = "2"
[hardware]
runtime = "engine"
providers = ["CPUExecutionProvider"]
precisions = ["float32"]
refused_operators = ["Det"]
[hardware.device]
compute_capability = "8.7"
multiprocessors = 8
bandwidth_gb_s = 100
memory_gb = 8
launch_us = 10
unverified = ["peak_tops.float16"]
peak_tops = { float32 = 2.0, float16 = 16.0 }
power_modes = { MAXN = { clock = 1.0 }, "15W" = { clock = 0.5, bandwidth = 0.25 } }
[hardware.runtimes.engine]
fused = true
precision = "float16"
constants = "eager"
[hardware.runtimes.eager]
fused = false
precision = "float32"
constants = "eager"
fitted = true
[versions.engine."8.2"]
opset = [7, 13]
refused_operators = ["Einsum"]
written_out = ["OneHot"]
[versions.engine."8.10"]
opset = [7, 17]
[releases."1"]
note = "the first"
also = ["1.1"]
runtime_version = "8.5.2"
device.bandwidth_gb_s = 50
[releases."2"]
note = "the second"
runtime_version = "8.10"
"""


def profile(folder: Path, text: str, name: str = "board") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


# One file


def test_a_profile_is_read_from_a_file(tmp_path: Path) -> None:
    target = load_target(profile(tmp_path, PROFILE))
    assert (target.name, target.recipe, target.hardware.opset) == ("board", ("eliminate_dead",), (13, 21))
    assert target.hardware.int8 is not None
    assert (target.hardware.int8.activation_dtype, target.hardware.int8.weight_bits) == ("int8", 7)


def test_a_profile_without_int8_refuses_int8(tmp_path: Path) -> None:
    text = PROFILE[: PROFILE.index("[hardware.int8]")]
    assert load_target(str(profile(tmp_path, text))).hardware.int8 is None


def test_a_refusal_of_int8_outweighs_how_it_would_be_written(tmp_path: Path) -> None:
    hardware = load_target(
        profile(tmp_path, PROFILE.replace("[hardware]", '[hardware]\nint8_refusal = "too old"'))
    ).hardware
    assert (hardware.int8, hardware.int8_refusal) == (None, "too old")


def test_options_of_the_recipe_are_given_by_pass(tmp_path: Path) -> None:
    text = PROFILE.replace("[hardware]", "[options.eliminate_dead]\nkeep = 0.5\n[hardware]")
    assert load_target(profile(tmp_path, text)).options == {"eliminate_dead.keep": 0.5}
    with pytest.raises(UsageError, match=r"line 5: 'options.prune_filters' is for a pass that the recipe has not"):
        load_target(profile(tmp_path, text.replace("eliminate_dead]", "prune_filters]")))


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
        pytest.param("weight_bits = 7", "weight_bits = [7]", "'hardware.int8.weight_bits' must be 7", id="a list"),
        pytest.param('"int8"\nw', '"int4"\nw', "line 12: 'hardware.int8.activation_dtype' must be", id="activations"),
        pytest.param("opset = [13, 21]", "opset = 13", r"line 8: 'hardware.opset' must be \[lowest", id="opset"),
        pytest.param("opset = [13, 21]", "opset = [21, 13]", r"line 8: 'hardware.opset' must be \[lowest", id="order"),
        pytest.param('name = "board"', "name = 3", "line 1: 'name' must be a text", id="wrong type"),
        pytest.param('name = "board"', 'name = "a/b"', "line 1: 'name' must be of letters, digits", id="a path"),
        pytest.param('name = "board"', "name = " + "[" * 9999, "not valid TOML: nested too deeply", id="nested"),
        pytest.param('summary = "a board"\n', "", "'summary' must be given", id="missing"),
        pytest.param("opset = [13, 21]\n", "", "'hardware.opset' must be given", id="missing fact"),
        pytest.param(
            'recipe = ["eliminate_dead"]', 'recipe = "x"', "line 3: 'recipe' must be given, as a list", id="list"
        ),
        pytest.param('name = "board"', "name = board", "not valid TOML.*line 1", id="syntax"),
        pytest.param('name = "board"', "hardware = 3", "not valid TOML", id="two meanings"),
        pytest.param("opset = [13, 21]", "device = 3", "line 8: 'hardware.device' must be a table", id="no table"),
        pytest.param('name = "board"', "inherits = 3", "line 1: 'inherits' must be the name", id="inherits a number"),
        pytest.param(
            'name = "board"', 'inherits = "gup"', "line 1: 'inherits' cannot be followed: unknown target 'gup'",
            id="inherits what is not there",
        ),
        pytest.param('name = "board"', 'release = "9"', "line 1: 'release' is '9'; known here: none", id="release"),
    ],
)  # fmt: skip
def test_a_wrong_profile_names_file_line_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PROFILE
    path = profile(tmp_path, PROFILE.replace(old, new, 1))
    with pytest.raises(UsageError, match=f"board.toml.*{message}"):
        load_target(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param("clock = 0.5", "clock = -1", "'hardware.device.power_modes.15W.clock' must be", id="power mode"),
        pytest.param('power_modes = { MAXN = { clock = 1.0 }, "15W" = { clock = 0.5,', 'power_modes = { "15W" = {',
                     "'hardware.device.power_modes.15W.clock' must be given", id="mode without clock"),
        pytest.param("launch_us = 10\n", "", "'hardware.device.launch_us' must be given", id="missing figure"),
        pytest.param("float32 = 2.0", 'float32 = "2"', "'hardware.device.peak_tops.float32' must be", id="peak"),
        pytest.param("peak_tops.float16", "speed", "line 16: .*'speed', which is not among the figures", id="figure"),
        pytest.param("fitted = true", "fits = true", "line 27: 'hardware.runtimes.eager.fits' is not known", id="fits"),
        pytest.param('constants = "eager"\nfitted', "fitted",
                     "'hardware.runtimes.eager.constants' must be given", id="no constants"),
        pytest.param('note = "the first"', "nota = 1", "line 35: 'releases.1.nota' is not known", id="release's key"),
        pytest.param("opset = [7, 17]", "opset = 17", "line 33: 'versions.engine.8.10.opset' must", id="version's key"),
        pytest.param('"8.10"\n', '"7.1"\n', "'hardware.runtime_version' is 7.1; the oldest that is known is 8.2",
                     id="version too old"),
        pytest.param('release = "2"', 'offered_releases = ["3"]', "line 4: .*release '3'; known here: 1", id="offer"),
        pytest.param("[versions", "[hardware.latency.warp]\noverlap = 1.0\n[versions",
                     "'hardware.latency.warp' names 'warp', which is no runtime; known: engine, eager", id="overrides"),
        # Facts are looked up by name: a wrong one would be stated and never found.
        pytest.param("float32 = 2.0", "fp32 = 2.0", "line [0-9]+: '.*peak_tops.fp32' must be a data type: .*float32",
                     id="name of a type"),
        pytest.param("precisions = [", 'precisions = ["half", ', "'hardware.precisions' names 'half'; data types are",
                     id="names of types"),
        pytest.param("peak_tops.float16", "peak_tops.int4", "'peak_tops.int4', which is not among", id="inner figure"),
        pytest.param("clock = 0.5", "clock = 625", "15W.clock' must be a share .*no megahertz", id="megahertz"),
        pytest.param("[hardware]\n", "[hardware]\nwrite_opset = 30\n",
                     "'hardware.write_opset' is 30, outside the opset", id="opset to write"),
    ],
)  # fmt: skip
def test_a_wrong_device_names_file_line_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in DEVICE
    last = DEVICE.rindex('runtime_version = "8.10"') if old == '"8.10"\n' else 0
    path = profile(tmp_path, DEVICE[:last] + DEVICE[last:].replace(old, new, 1))
    with pytest.raises(UsageError, match=f"board.toml.*{message}"):
        load_target(path)


def test_an_inline_table_has_a_line_too(tmp_path: Path) -> None:
    path = profile(tmp_path, 'inherits = "jetson"\nhardware = { device = { bandwidth = 34 } }\n')
    with pytest.raises(UsageError, match=r"line 2: 'hardware\.device\.bandwidth' is not known"):
        load_target(path)


def test_a_file_to_inherit_from_that_is_not_there_is_told_where_named(tmp_path: Path) -> None:
    path = profile(tmp_path, 'summary = "a board"\ninherits = "gone.toml"\n')
    with pytest.raises(
        UsageError, match=r"board\.toml, line 2: 'inherits' cannot be followed: there is no file .*gone"
    ):
        load_target(path)


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.toml: the target profile cannot be read: No such file"):
        load_target(str(tmp_path / "none.toml"))


# Inheritance


def test_a_profile_inherits_and_states_only_what_differs(tmp_path: Path) -> None:
    changed = load_target(profile(tmp_path, 'inherits = "cpu"\n[hardware.int8]\nweight_bits = 7\n'))
    cpu = load_target("cpu")
    assert changed.recipe == cpu.recipe
    assert changed.hardware.opset == cpu.hardware.opset
    assert changed.hardware.int8 is not None
    assert changed.hardware.int8.weight_bits == 7


def test_a_profile_without_a_name_has_its_files(tmp_path: Path) -> None:
    target = load_target(profile(tmp_path, 'inherits = "cpu"\n', "gateway"))
    assert (target.name, target.hardware.name) == ("gateway", "gateway")


def test_a_profile_inherits_from_a_file_beside_it(tmp_path: Path) -> None:
    profile(tmp_path, PROFILE, "base")
    assert load_target(profile(tmp_path, 'inherits = "base.toml"\nname = "child"')).recipe == ("eliminate_dead",)


def test_of_several_parents_the_later_wins(tmp_path: Path) -> None:
    profile(tmp_path, PROFILE, "first")
    profile(tmp_path, 'summary = "second"\n[hardware]\nopset = [7, 9]\n', "second")
    target = load_target(profile(tmp_path, 'inherits = ["first.toml", "second.toml"]\n'))
    assert (target.summary, target.hardware.opset, target.hardware.runtime) == ("second", (7, 9), "onnxruntime")


def test_profiles_that_inherit_in_a_ring_are_refused(tmp_path: Path) -> None:
    profile(tmp_path, 'inherits = "b.toml"', "a")
    profile(tmp_path, 'inherits = "c.toml"', "b")
    path = profile(tmp_path, 'inherits = "a.toml"', "c")
    with pytest.raises(UsageError, match=r"b.toml, line 1: 'inherits' goes .*c.toml -> a.toml -> b.toml -> c.toml"):
        load_target(path)


def test_an_error_in_what_is_inherited_names_that_file(tmp_path: Path) -> None:
    profile(tmp_path, PROFILE.replace("weight_bits = 7", "weight_bits = 3"), "base")
    with pytest.raises(UsageError, match=r"base.toml, line 13: 'hardware.int8.weight_bits'"):
        load_target(profile(tmp_path, 'inherits = "base.toml"'))


def test_what_a_profile_states_wins_over_an_inherited_release(tmp_path: Path) -> None:
    profile(tmp_path, DEVICE, "base")
    text = 'inherits = "base.toml@1"\n[hardware]\nopset = [9, 12]\ndevice.bandwidth_gb_s = 40\n'
    hardware = load_target(profile(tmp_path, text)).hardware
    assert hardware.device is not None
    assert (hardware.release, hardware.opset, hardware.device.bandwidth_gb_s) == ("1", (9, 12), 40)


# Releases, power modes, runtimes


def test_a_release_is_chosen_by_name_and_by_its_other_names(tmp_path: Path) -> None:
    path = profile(tmp_path, DEVICE)
    assert load_target(path).hardware.release == "2"
    for selector in ("1", "1.1"):
        target = load_target(f"{path}@{selector}")
        assert target.hardware.device is not None
        assert (target.hardware.release, target.hardware.device.bandwidth_gb_s) == ("1", 50)
        assert target.name == target.hardware.name == f"board@{selector}"
    assert target.releases == {"1": "the first (also 1.1)", "2": "the second"}


def test_the_version_of_the_runtime_implies_facts(tmp_path: Path) -> None:
    path = profile(tmp_path, DEVICE)
    older, newer = load_target(f"{path}@1").hardware, load_target(path).hardware
    assert (older.opset, newer.opset) == ((7, 13), (7, 17))  # 8.2 <= 8.5.2 < 8.10
    assert (older.refused_operators, newer.refused_operators) == (("Det", "Einsum"), ("Det",))
    assert (older.written_out, newer.written_out) == (("OneHot",), ())


def test_a_power_mode_slows_the_device(tmp_path: Path) -> None:
    path = profile(tmp_path, DEVICE)
    device = load_target(f"{path}@15W,1").hardware.device
    assert device is not None
    assert (device.power_mode, device.peak_tops, device.bandwidth_gb_s) == ("15W", {"float32": 1, "float16": 8}, 12.5)
    assert device.power_modes == {"MAXN": PowerMode(1.0), "15W": PowerMode(0.5, 0.25)}


@pytest.mark.parametrize(
    ("selectors", "message"),
    [
        pytest.param(
            "3", "no release and no power mode '3'. Releases: 1, 1.1, 2. Power modes: MAXN, 15W", id="neither"
        ),
        pytest.param("1,2", "1 and 2 are both releases; name one", id="two releases"),
        pytest.param("MAXN,15W", "MAXN and 15W are both power modes; name one", id="two modes"),
        pytest.param("1,", "after '@' stand releases and power modes", id="empty"),
    ],
)
def test_a_selector_that_is_not_there_is_refused(tmp_path: Path, selectors: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_target(f"{profile(tmp_path, DEVICE)}@{selectors}")


def test_a_profile_may_choose_for_those_that_inherit_it(tmp_path: Path) -> None:
    profile(tmp_path, DEVICE, "base")
    child = profile(tmp_path, 'inherits = "base.toml@1,15W"')
    device = load_target(child).hardware.device
    assert device is not None
    assert (device.power_mode, device.bandwidth_gb_s) == ("15W", 12.5)
    chosen = load_target(f"{child}@2,MAXN").hardware
    assert chosen.device is not None
    assert (chosen.release, chosen.device.power_mode, chosen.device.bandwidth_gb_s) == ("2", "MAXN", 100)
    named = load_target(profile(tmp_path, 'inherits = "base.toml"\nrelease = "1.1"\npower_mode = "15W"')).hardware
    assert named.device is not None
    assert (named.release, named.device.power_mode) == ("1", "15W")


def test_an_at_sign_in_a_path_is_no_selector(tmp_path: Path) -> None:
    folder = tmp_path / "me@home"
    folder.mkdir()
    path = profile(folder, DEVICE)
    assert load_target(path).name == "board"
    assert load_target(f"{path}@1").name == "board@1"


def test_constants_that_were_refitted_replace_those_of_the_set(tmp_path: Path) -> None:
    profile(tmp_path, DEVICE, "base")
    text = 'inherits = "base.toml"\n[hardware.latency.eager]\ncompute.pointwise = 0.5\n"kernel.us" = 2\noverlap = 3\n'
    engine, eager = load_target(profile(tmp_path, text)).hardware.runtimes
    assert (engine.name, dict(engine.latency)) == ("engine", {})
    assert (eager.name, dict(eager.latency)) == ("eager", {"compute.pointwise": 0.5, "kernel.us": 2, "overlap": 3})


def test_the_default_runtime_comes_first(tmp_path: Path) -> None:
    profile(tmp_path, DEVICE, "base")
    child = profile(tmp_path, 'inherits = "base.toml"\n[hardware]\ndefault_runtime = "eager"\n')
    assert [one.name for one in load_target(child).hardware.runtimes] == ["eager", "engine"]


# This machine's CPU


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
