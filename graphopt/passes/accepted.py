"""Which operators a pass may put into a graph: those that the target takes as they are."""

from __future__ import annotations

from functools import lru_cache

import onnx.defs

from graphopt.targets.schema import Hardware


def unwanted(hardware: Hardware) -> frozenset[str]:
    """Operators that must not be in the result: ``Operator`` of the default domain, or ``domain::Operator``."""
    return frozenset((*hardware.written_out, *hardware.refused_operators))


def highest_opset(current: int, hardware: Hardware) -> int:
    """The operator set whose operators may be made in a graph of opset ``current``: it may be lowered later."""
    return min(current, hardware.opset[1])


@lru_cache(maxsize=4096)
def exists(op: str, opset: int) -> bool:
    """Whether the default domain has an operator at an opset version, and not as a deprecated one."""
    if not onnx.defs.has(op, max_inclusive_version=opset):
        return False
    return not onnx.defs.get_schema(op, max_inclusive_version=opset).deprecated
