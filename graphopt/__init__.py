"""graphopt makes a trained ONNX model faster for a target, and proves that it still answers right.

::

    import graphopt

    result = graphopt.optimize("model.onnx", data="samples.npz", max_drop=0.01)
    print(result.report)
    result.save("model.cpu.onnx")

See ``docs/python.md``. What is heavy (onnx, ONNX Runtime) is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphopt._version import __version__
from graphopt.errors import (
    DataError,
    GateError,
    GraphoptError,
    ModelError,
    OutputError,
    PassError,
    PassWarning,
    UnsafeModelError,
    UnsupportedModelError,
    UsageError,
)

# Not lazily: the module has the function's name, and once imported would hide it.
from graphopt.optimize import optimize, run

if TYPE_CHECKING:
    from graphopt.channels import Dependencies, cut, dependency_groups
    from graphopt.checking import CheckResult, check
    from graphopt.model import load, save
    from graphopt.passes import PASSES
    from graphopt.report import Report, write_report
    from graphopt.result import Result
    from graphopt.targets import TARGETS, Target, load_target

# Public name -> module that it is imported from when it is first used.
_LAZY = {
    "PASSES": "graphopt.passes",
    "CheckResult": "graphopt.checking",
    "check": "graphopt.checking",
    "Dependencies": "graphopt.channels",
    "cut": "graphopt.channels",
    "dependency_groups": "graphopt.channels",
    "TARGETS": "graphopt.targets",
    "Report": "graphopt.report",
    "Result": "graphopt.result",
    "Target": "graphopt.targets",
    "load": "graphopt.model",
    "load_target": "graphopt.targets",
    "save": "graphopt.model",
    "write_report": "graphopt.report",
}

__all__ = [
    "PASSES",
    "TARGETS",
    "CheckResult",
    "DataError",
    "Dependencies",
    "GateError",
    "GraphoptError",
    "ModelError",
    "OutputError",
    "PassError",
    "PassWarning",
    "Report",
    "Result",
    "Target",
    "UnsafeModelError",
    "UnsupportedModelError",
    "UsageError",
    "__version__",
    "check",
    "cut",
    "dependency_groups",
    "load",
    "load_target",
    "optimize",
    "run",
    "save",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
