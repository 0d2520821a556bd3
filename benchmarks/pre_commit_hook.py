"""The hook as other repositories use it, whole: `pre-commit try-repo` on a scratch repository.

    python -m benchmarks.pre_commit_hook [CHECKOUT]

pre-commit clones the checkout, makes an environment of its own for it with pip (from the network: a minute or more) and
runs the hook. The tests do the same in their own environment (`tests/checking/test_pre_commit_hook.py`). Changes of
the checkout that are not committed count, too: pre-commit makes a shadow of it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx

from models.mobilenet_v1 import Net, build

HERE = Path(__file__).parents[1]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


def tried(checkout: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the hook on all files of a repository."""
    command = [sys.executable, "-m", "pre_commit", "try-repo", str(checkout), "graphopt-check", "--all-files", "-v"]
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return subprocess.run(command, cwd=folder, env=inherited, capture_output=True, text=True, check=False)


def main() -> None:
    """Run the command line."""
    checkout = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        onnx.save_model(build(Net(width=0.25)), folder / "sound.onnx")
        sound = tried(checkout, folder)
        (folder / "pointer.onnx").write_text(POINTER)
        broken = tried(checkout, folder)
    print(sound.stdout + sound.stderr + broken.stdout + broken.stderr)
    right = sound.returncode == 0 and broken.returncode == 1 and "pointer.onnx: GO102" in broken.stdout
    print("as it should be" if right else "NOT as it should be")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
