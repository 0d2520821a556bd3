"""How long `graphopt check` takes for many models in one call, and what it says of given ones.

    python -m benchmarks.checking [--models 50] [--option=--target --option=jetson-orin-nano]
    python -m benchmarks.checking --findings MODEL... [--target T]

The first writes different nets of 10 MB (MobileNet v1 of width 0.75 with BatchNormalization, different seeds) to a
temporary folder and starts the program on all of them at once. CPU time is that of the child process, start included.
The second counts findings by code over given models: clean exports should have hardly any.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx

from graphopt.checking import check
from models.mobilenet_v1 import Net, build


def timed(models: int, options: Sequence[str]) -> str:
    """One line on one call over so many models."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"net_{number:02}.onnx" for number in range(models)]
        for number, path in enumerate(paths):
            onnx.save_model(build(Net(width=0.75, batchnorm=True), seed=number), path)
        size = sum(path.stat().st_size for path in paths)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "graphopt", "check", "--no-config", *options, *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = done.stderr.strip().splitlines()[-1]
    return (
        f"{models} models, {size / 1e6:.0f} MB: {cpu:.1f} s of CPU, {seconds:.1f} s by the clock "
        f"(exit code {done.returncode}; {told})"
    )


def counted(paths: Sequence[str], target: str | None) -> str:
    """Findings by code: in how many of the models, and one of them."""
    models: Counter[str] = Counter()
    examples: dict[str, str] = {}
    files = check(paths, target=target, use_config=False).files
    for file in files:
        models.update({found.code for found in file.findings})
        for found in file.findings:
            examples.setdefault(found.code, f"{Path(file.path).name}: {found.where}: {found.message}")
    rows = [f"| {code} | {models[code]} of {len(files)} | {examples[code]} |" for code in sorted(models)]
    return "\n".join(["| code | models | for example |", "|---|---|---|", *rows])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--option", action="append", default=[], help="passed on to the program")
    parser.add_argument("--findings", nargs="+", metavar="MODEL")
    parser.add_argument("--target")
    given = parser.parse_args()
    print(counted(given.findings, given.target) if given.findings else timed(given.models, given.option))


if __name__ == "__main__":
    main()
