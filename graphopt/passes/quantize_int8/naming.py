"""Names for what is written into a graph beside what is there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper


def fresh(names: set[str], prefix: str) -> str:
    """Return ``prefix``, with a number where it is taken, and take it."""
    name, number = prefix, 1
    while name in names:
        number += 1
        name = f"{prefix}_{number}"
    names.add(name)
    return name


def constant(
    names: set[str], initializers: list[onnx.TensorProto], prefix: str, values: npt.NDArray[np.generic]
) -> str:
    """Add a constant under a fresh name, and return the name."""
    name = fresh(names, prefix)
    initializers.append(numpy_helper.from_array(values, name))
    return name
