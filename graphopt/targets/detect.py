"""What this machine's CPU is and which integer instructions it has."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# The instructions that decide which of ONNX Runtime's matrix kernels run; part of every cache key.
KERNEL_FLAGS = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
VNNI_FLAGS = frozenset({"avx_vnni", "avx512_vnni"})
X86 = frozenset({"x86_64", "amd64", "i386", "i686"})


@dataclass(frozen=True)
class Cpu:
    """The CPU that graphopt runs on.

    Attributes:
        model: the maker's name of it, or the architecture where the system does not tell.
        architecture: ``x86_64``, ``aarch64`` ... in lower case.
        flags: those of ``KERNEL_FLAGS`` that it has, in that order; empty where the system does not tell.
    """

    model: str
    architecture: str
    flags: tuple[str, ...]

    @property
    def weight_bits(self) -> int:
        """Bits that int8 weights may use without wrong sums: 8, or 7 on x86 without VNNI.

        There ONNX Runtime multiplies u8 by s8 with ``VPMADDUBSW``, which saturates sums of two products at 16 bits;
        with 7 bits 2 * 255 * 64 = 32,640 still fits (ONNX Runtime doc 'Quantize ONNX models', 'When to use
        reduce-range'). Arm's instructions widen before they add.
        """
        return 7 if self.architecture in X86 and not VNNI_FLAGS & set(self.flags) else 8

    def __str__(self) -> str:
        return f"{self.model} ({' '.join((self.architecture, *self.flags))})"


def read_cpu(cpuinfo: str, architecture: str) -> Cpu:
    """Read the text of ``/proc/cpuinfo``; an empty text gives a CPU without known flags.

    Args:
        cpuinfo: the file's text; only the first processor counts.
        architecture: as ``platform.machine()`` names it.
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    flags = tuple(flag for flag in KERNEL_FLAGS if flag in present)
    arm = " ".join(
        f"{key.removeprefix('CPU ')} {fields[key]}" for key in ("CPU implementer", "CPU part") if key in fields
    )
    return Cpu(fields.get("model name") or arm or architecture, architecture.lower(), flags)


def this_cpu() -> Cpu:
    """Return the CPU of this machine."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return read_cpu(text, platform.machine())


def cpu_description() -> str:
    """Name this machine's CPU and its integer instructions: for reports and cache keys."""
    return str(this_cpu())


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
