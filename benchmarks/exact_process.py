"""Runs a piece of work in a process of its own, within a limit of CPU time: other tools crash, hang and eat memory."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.costs import MEMORY_LIMIT, RESULT_MARK, ROOT

# Idle threads that spin would count as CPU time.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def report(row: Mapping[str, Any]) -> None:
    """Tell the parent; a later report replaces this one, and the last one holds if the process then dies."""
    print(RESULT_MARK + json.dumps(row), flush=True)


def run(module: str, order: Mapping[str, Any], cpu_seconds: float, wall_seconds: float | None = None) -> dict[str, Any]:
    """Run `python -m module ORDER`; what it reported last, with `error` where it did not end well."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds) + 5))

    try:
        done = subprocess.run(
            [sys.executable, "-m", module, json.dumps(dict(order))],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=wall_seconds or 6 * cpu_seconds,
            check=False,
            preexec_fn=limit,
        )
        code, output, errors = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as expired:
        code, output, errors = -24, (expired.stdout or b"").decode(errors="replace"), ""
    reports = [line for line in output.splitlines() if line.startswith(RESULT_MARK)]
    row: dict[str, Any] = json.loads(reports[-1].removeprefix(RESULT_MARK)) if reports else {}
    if code:
        row["error"] = _reason(code, errors, cpu_seconds)
    return row


def _reason(code: int, errors: str, cpu_seconds: float) -> str:
    if code in {-24, -9}:  # SIGXCPU
        return f"not done after {cpu_seconds:.0f} CPU s"
    if code < 0:
        return f"killed by signal {-code}"
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    return (lines or [f"exit code {code}"])[-1][:200]
