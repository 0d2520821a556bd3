"""The configuration: where it is found, what it says for which file, and what is wrong with it, by line and key."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import model

from graphopt.checking import check
from graphopt.checking.config import find_config, read_config
from graphopt.checking.patterns import matches
from graphopt.errors import UsageError
from graphopt.targets.lines import line_of

UNUSED = "g (float[2] x) => (float[2] y) { y = Relu(x) z = Neg(x) }"


def write(folder: Path, text: str, name: str = "graphopt.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# Where it is found


def test_the_first_one_from_the_folder_upwards_holds(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    own = write(inner.parent, "", "graphopt.toml")
    write(tmp_path, "[tool.graphopt]", "pyproject.toml")
    write(inner, "[tool.other]", "pyproject.toml")
    assert find_config(inner) == own.resolve()
    own.unlink()
    assert find_config(inner) == (tmp_path / "pyproject.toml").resolve()
    write(tmp_path, "", "graphopt.toml")
    assert find_config(inner) == (tmp_path / "graphopt.toml").resolve()


def test_the_keys_stand_in_check_or_beside_it(tmp_path: Path) -> None:
    for text, name in (
        ('target = "gpu"\nmax-bytes = 5', "graphopt.toml"),
        ('[check]\ntarget = "gpu"\nmax-bytes = 5', "graphopt.toml"),
        ('[tool.graphopt]\ntarget = "gpu"\nmax-bytes = 5', "pyproject.toml"),
        ('[tool.graphopt]\ntarget = "gpu"\n[tool.graphopt.check]\nmax-bytes = 5', "pyproject.toml"),
    ):
        found = read_config(write(tmp_path, text, name)).settings
        assert (found.target, found.max_bytes) == ("gpu", 5)


def test_amounts_may_carry_a_unit(tmp_path: Path) -> None:
    text = 'max-bytes = "1.5MiB"\nmax-parameters = "4.2M"\nmax-macs = "1G"\nmax-latency-ms = 2.5'
    found = read_config(write(tmp_path, text)).settings
    assert (found.max_bytes, found.max_parameters, found.max_macs) == (1_572_864, 4_200_000, 1_000_000_000)
    assert found.max_latency_ms == 2.5


def test_a_profile_is_looked_for_beside_the_configuration(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, 'target = "boards/a.toml"')).settings.target == str(tmp_path / "boards/a.toml")


# What it says for which file


def test_the_last_pattern_that_fits_wins_and_ignored_codes_add_up(tmp_path: Path) -> None:
    text = """
        max-bytes = 1
        max-macs = 7
        ignore = ["GO110"]
        [paths."small/*.onnx"]
        max-bytes = 2
        ignore = ["unused_weights"]
        [paths."small/b.onnx"]
        max-bytes = 3
    """
    config = read_config(write(tmp_path, text))
    bytes_of = {
        name: config.settings_for(tmp_path / name).max_bytes for name in ("a.onnx", "small/a.onnx", "small/b.onnx")
    }
    assert bytes_of == {"a.onnx": 1, "small/a.onnx": 2, "small/b.onnx": 3}
    last = config.settings_for(tmp_path / "small/b.onnx")
    assert last.max_macs == 7
    assert last.ignored() == {"GO110", "GO111"}


def test_patterns_are_seen_from_the_configurations_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, '[paths."models/*"]\nignore = ["GO1"]')
    (tmp_path / "models").mkdir()
    onnx.save_model(model(UNUSED), tmp_path / "models" / "net.onnx")
    onnx.save_model(model(UNUSED), tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path / "models")
    inside, outside = check(["net.onnx", "../net.onnx"]).files
    assert (inside.findings, inside.ignored) == ((), 1)
    assert [found.code for found in outside.findings] == ["GO110"]


def test_excluded_files_are_not_opened(tmp_path: Path) -> None:
    config = write(tmp_path, 'exclude = ["broken/"]')
    write(tmp_path / "broken" / "deep", "not a model", "net.onnx")
    assert check(tmp_path, config=config).files == ()
    assert check(tmp_path / "broken" / "deep" / "net.onnx", config=config).files == ()


def test_what_the_caller_says_goes_before_the_configuration(tmp_path: Path) -> None:
    config = write(tmp_path, 'fail-on = "warning"\nmax-bytes = 1\n[paths."*.onnx"]\nmax-bytes = 2')
    path = tmp_path / "net.onnx"
    onnx.save_model(model(UNUSED), path)
    assert check(path, config=config, max_bytes=10**6).exit_code == 1
    assert check(path, config=config, max_bytes=10**6, fail_on="error").exit_code == 0
    assert check(path, config=config, max_bytes=10**6, ignore=["GO110"]).exit_code == 0
    assert check(path, use_config=False).exit_code == 0


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.onnx", "a.onnx", True),
        ("*.onnx", "deep/er/a.onnx", True),
        ("deep/*.onnx", "deep/er/a.onnx", False),
        ("deep/**/*.onnx", "deep/er/a.onnx", True),
        ("deep/**/*.onnx", "deep/a.onnx", True),
        ("deep/", "deep/er/a.onnx", True),
        ("deep/**", "deeper/a.onnx", False),
        ("./a.onnx", "b/a.onnx", False),
        ("./a.onnx", "a.onnx", True),
        ("/a.onnx", "b/a.onnx", False),
        ("/a.onnx", "a.onnx", True),
        ("a[0-9].onnx", "a7.onnx", True),
        ("a[!0-9].onnx", "a7.onnx", False),
        ("a?.onnx", "a/.onnx", False),
        ("a.onnx", "axonnx", False),
        ("a+(b).onnx", "a+(b).onnx", True),
    ],
)
def test_patterns(pattern: str, path: str, fits: bool) -> None:
    assert matches(pattern, path) is fits


# What is wrong with it


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("max-byte = 1", 1, "'max-byte' is not known; known here:"),
        ("\n[check]\n# how large\nmax_bytes = 1", 4, "'check.max_bytes' is not known"),
        ("[cheque]\nmax-bytes = 1", 1, "'cheque' is not known"),
        ('max-bytes = "5 bananas"', 1, "'max-bytes' must be a whole number, or a text such as '10MB'"),
        ("max-bytes = -1", 1, "'max-bytes' must be"),
        ("max-macs = true", 1, "'max-macs' must be"),
        ("max-latency-ms = 0", 1, "'max-latency-ms' must be a number of milliseconds above 0"),
        ("batch = 1\ntarget = 5", 2, "'target' must be a text"),
        ('ignore = [\n  "GO110",\n  "GO777",\n]', 1, "'ignore' names 'GO777', but no rule has this code or name"),
        (
            '[paths."a/*.onnx"]\nmax-bytes = 1\nbatch = 0',
            3,
            "'paths.\"a/*.onnx\".batch' must be a whole number above 0",
        ),
        ('[paths."[z-a].onnx"]\nbatch = 1', 1, "'paths.\"[z-a].onnx\"' holds '[z-a].onnx', which is no pattern"),
        ('paths = { "a.onnx" = { fail-on = "error" } }', 1, "'paths.\"a.onnx\".fail-on' is not known"),
        ('fail-on = "never"', 1, "'fail-on' must be 'error' or 'warning'"),
        ("input-shapes = { x = [1, 0] }", 1, "'input-shapes.x' must be a list of sizes"),
        ("batch = 1\n[check]\nbatch = 1", 1, "'batch' is given twice"),
        ("check = 5", 1, "'check' must be a table"),
    ],
)
def test_what_means_nothing_is_an_error_with_line_and_key(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}, line {line}: {words}")


def test_what_is_no_toml_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not valid TOML.*line 1"):
        read_config(write(tmp_path, "max-bytes =\nbatch = 1"))
    (tmp_path / "graphopt.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a text file"):
        read_config(tmp_path / "graphopt.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(tmp_path / "none.toml")


def test_keys_of_pyproject_are_named_whole(tmp_path: Path) -> None:
    path = write(tmp_path, '[project]\nname = "x"\n\n[tool.graphopt.check]\nmax-byte = 1', "pyproject.toml")
    with pytest.raises(UsageError, match=r"line 5: 'tool.graphopt.check.max-byte' is not known"):
        read_config(path)


def test_an_unknown_target_in_the_configuration_is_an_error_before_any_file_is_read(tmp_path: Path) -> None:
    config = write(tmp_path, '[paths."other/*"]\ntarget = "jetson-9000"')
    with pytest.raises(UsageError, match="jetson-9000"):
        check(tmp_path / "none.onnx", config=config)


def test_an_unknown_code_to_ignore_is_an_error() -> None:
    with pytest.raises(UsageError, match="'GO777'"):
        check([], ignore=["GO777"], use_config=False)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.lists(
        st.sampled_from(["flat = 1", "many = [\n 1,\n 2 ]", "# words", "", 'text = """\nwanted = 2\n"""']), max_size=9
    )
)
def test_the_line_of_a_key_is_found_whatever_stands_before_it(before: list[str]) -> None:
    lines = "\n".join(
        f"{text.replace(' =', f'{number} =', 1)}" if "=" in text else text for number, text in enumerate(before)
    )
    text = f"{lines}\nwanted = 1\nafter = 3" if before else "wanted = 1"
    assert line_of(text, ("wanted",)) == next(
        number for number in range(text.count("\n") + 1, 0, -1) if text.splitlines()[number - 1] == "wanted = 1"
    )
