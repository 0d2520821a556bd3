"""What a piece of work costs: CPU seconds and peak memory, each piece in a process of its own.

A worker is a module of this package run as `python -m benchmarks.WORKER JSON`; it does its work inside `measured`,
which prints one JSON line. The parent puts a limit on the address space, so that a tool that wants all memory fails
on its own and is recorded as such instead of taking the machine with it.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MEMORY_LIMIT = 12 * 2**30  # bytes of address space
RESULT_MARK = "benchmark-result:"


@dataclass(frozen=True)
class Cost:
    """Outcome of one worker. `error` is None when it finished; `details` is what the worker returned."""

    cpu_seconds: float  # user + system, all threads, imports left out
    wall_seconds: float
    peak_mb: float  # whole process, imports included, 2**20 bytes
    error: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in 2**20 bytes.

    Read from /proc where that exists: `ru_maxrss` of a fresh process starts at its parent's peak on Linux.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measured(work: Callable[[], Mapping[str, Any] | None]) -> None:
    """Run `work` in this worker process and print its cost, the last line on standard output."""
    started, started_wall = time.process_time(), time.perf_counter()
    details = dict(work() or {})
    cost = {
        "cpu_seconds": time.process_time() - started,
        "wall_seconds": time.perf_counter() - started_wall,
        "peak_mb": peak_memory_mb(),
        "details": details,
    }
    print(RESULT_MARK + json.dumps(cost), flush=True)


class Stopwatch:
    """CPU seconds of this process from `start` to the last `stop`, summed over starts.

    `excluded` says how many of all seconds so far were not the tool's.
    """

    def __init__(self, excluded: Callable[[], float]) -> None:
        self.excluded = excluded
        self.seconds = 0.0
        self._started = 0.0

    def _now(self) -> float:
        return time.process_time() - self.excluded()

    def start(self) -> None:
        self._started = self._now()

    def stop(self) -> None:
        now = self._now()
        self.seconds += now - self._started
        self._started = now


def run_worker(
    module: str, arguments: Mapping[str, Any], memory_limit: int = MEMORY_LIMIT, timeout: float = 7200
) -> Cost:
    """Run `module` with `arguments` as JSON in a fresh process; failures come back as `Cost.error`.

    graphopt's cache of kernel times starts empty, as on a machine that it has not seen. NumPy's products stay on one
    thread for every tool, since idle threads that spin count as CPU time.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"GRAPHOPT_CACHE_DIR": folder, "OPENBLAS_NUM_THREADS": "1"}
        return _run_worker(module, arguments, memory_limit, timeout, environment)


def _run_worker(
    module: str, arguments: Mapping[str, Any], memory_limit: int, timeout: float, environment: Mapping[str, str]
) -> Cost:

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))

    command = [sys.executable, "-m", module, json.dumps(dict(arguments))]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            preexec_fn=limit,
        )
    except subprocess.TimeoutExpired:
        return Cost(0, timeout, 0, error=f"no result after {timeout:.0f} s")
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT_MARK)]
    if done.returncode == 0 and results:
        return Cost(**json.loads(results[-1].removeprefix(RESULT_MARK)))
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    if any(sign in done.stderr for sign in ("MemoryError", "bad_alloc", "Failed to allocate", "Cannot allocate")):
        last = f"out of memory (limit {memory_limit / 2**30:.0f} GB)"
    return Cost(0, time.perf_counter() - started, 0, error=last[:300])
