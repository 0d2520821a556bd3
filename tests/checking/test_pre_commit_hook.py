"""The hook that other repositories use, run by the real pre-commit on a scratch repository.

``language: python`` would build an environment with pip from the network. Here the hook runs in the environment of the
tests; everything else is as ``.pre-commit-hooks.yaml`` says. ``benchmarks/pre_commit_hook.py`` does it whole.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from support import model

import graphopt

HOOKS = Path(graphopt.__file__).parents[1] / ".pre-commit-hooks.yaml"
SOUND = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w> { y = Conv(x, w) }"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


def hook() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="pre-commit is not installed")
    (found,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))
    return dict(found)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose only hook is ours, with one sound model in it."""
    pytest.importorskip("pre_commit")
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    local = {**hook(), "language": "system"}
    config = {"repos": [{"repo": "local", "hooks": [local]}]}
    (folder / ".pre-commit-config.yaml").write_text(json.dumps(config))  # JSON is YAML
    onnx.save_model(model(SOUND), folder / "sound.onnx")
    git(folder, "add", ".")
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, env=environment(folder), capture_output=True)


def environment(folder: Path) -> dict[str, str]:
    """What pre-commit needs: its own cache, the commands of this environment, and no one's git settings."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return {
        **inherited,
        "PRE_COMMIT_HOME": str(folder.parent / "cache"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "GIT_CONFIG_GLOBAL": os.devnull,
    }


def pre_commit(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pre_commit", "run", "--color", "never"]
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


def test_the_hook_is_the_command() -> None:
    found = hook()
    assert (found["id"], found["entry"], found["language"]) == ("graphopt-check", "graphopt check", "python")


def test_a_sound_model_is_committed_and_a_pointer_is_not(repository: Path) -> None:
    done = pre_commit(repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed" in done.stdout

    (repository / "models").mkdir()
    (repository / "models" / "net.onnx").write_text(POINTER)
    git(repository, "add", ".")
    done = pre_commit(repository)
    assert done.returncode == 1
    assert "models/net.onnx: GO102 the file is a Git LFS pointer" in done.stdout


def test_the_configuration_of_the_repository_holds(repository: Path) -> None:
    (repository / "pyproject.toml").write_text('[tool.graphopt]\nmax-bytes = "10MB"\n')
    git(repository, "add", ".")
    assert pre_commit(repository).returncode == 0
    (repository / "pyproject.toml").write_text("[tool.graphopt]\nmax-bytes = 100\n")
    git(repository, "add", ".")
    done = pre_commit(repository)
    assert done.returncode == 1
    assert "sound.onnx: GO901" in done.stdout


def test_other_files_are_none_of_its_business(repository: Path) -> None:
    git(repository, "rm", "-q", "--cached", "sound.onnx")
    (repository / "notes.txt").write_text("no model")
    git(repository, "add", "notes.txt")
    assert "no files to check" in pre_commit(repository).stdout
