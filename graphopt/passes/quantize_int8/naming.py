"""Constants that are written into a graph beside what is there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphopt.model.fresh import fresh


def constant(
    names: set[str], initializers: list[onnx.TensorProto], prefix: str, values: npt.NDArray[np.generic]
) -> str:
    """Add a constant under a fresh name, and return the name."""
    name = fresh(names, prefix)
    initializers.append(numpy_helper.from_array(values, name))
    return name
