"""What a tensor of the graph is: its constant value, dtype and shape.

graphsurgeon's own lazy values report dtypes that numpy lacks as bare integers, shapes as protobuf containers, and are
renamed in place on export. The two kinds of stored values here have numpy dtypes and tuples, and only ever read.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from graphopt.errors import UnsupportedModelError

Shape: TypeAlias = tuple[int | str | None, ...]
# Element types that numpy has and raw_data holds one after the other.
_PLAIN = frozenset(
    {
        onnx.TensorProto.BOOL, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16,
        onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32, onnx.TensorProto.INT64,
        onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64,
    }
)  # fmt: skip
_EXTERNAL = onnx.TensorProto.EXTERNAL
_SCALARS = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}


class StoredValues(LazyValues):  # type: ignore[misc]
    """The values of a TensorProto, read when asked for; the proto is never written to.

    Attributes:
        tensor: the proto; it may belong to the caller.
        shape: a tuple of integers.
        dtype: the numpy dtype (of ml_dtypes where numpy has none).
        nbytes: bytes of the values once unpacked.
    """

    def __init__(self, tensor: onnx.TensorProto) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.dims)
        self.dtype = numpy_dtype(tensor.data_type, tensor.name)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> npt.NDArray[Any]:
        """Return the values as a read-only array. Raises UnsupportedModelError where the data was not loaded."""
        if self.tensor.data_location == _EXTERNAL:
            raise UnsupportedModelError(
                f"the data of initializer '{self.tensor.name}' lies in a file that was not loaded"
            )
        if self.tensor.data_type in _PLAIN and self.tensor.HasField("raw_data") and sys.byteorder == "little":
            # What to_array does for these, at a tenth of its cost: a net has thousands of short vectors.
            values = np.frombuffer(self.tensor.raw_data, self.dtype)
            if values.size == math.prod(self.shape):
                return values.reshape(self.shape)
        values = np.asarray(onnx.numpy_helper.to_array(self.tensor))
        values.flags.writeable = False
        return values


class StoredSparse(SparseValues):  # type: ignore[misc]
    """The values of a SparseTensorProto; carried through, never unpacked."""

    def __init__(self, tensor: onnx.SparseTensorProto) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.dims)
        self.dtype = numpy_dtype(tensor.values.data_type, tensor.values.name)
        self.nbytes = math.prod(tensor.values.dims) * self.dtype.itemsize

    def load(self) -> npt.NDArray[Any]:
        """Raise UnsupportedModelError: no pass may edit a sparse initializer."""
        raise UnsupportedModelError(f"initializer '{self.tensor.values.name}' is sparse; its values cannot be edited")


@cache
def _known_dtype(data_type: int) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))


def numpy_dtype(data_type: int, name: str) -> np.dtype[Any]:
    """The numpy dtype of an ONNX element type; ``name`` is for the UnsupportedModelError of an unknown one."""
    try:
        return _known_dtype(data_type)
    except KeyError as error:
        raise UnsupportedModelError(f"tensor '{name}' has element type {data_type}, unknown to this onnx") from error


def onnx_dtype(dtype: Any) -> int:
    """The ONNX element type of a numpy dtype; an integer is taken to be one already."""
    if isinstance(dtype, int):
        return dtype
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def dtype_of(tensor: gs.Tensor) -> np.dtype[Any] | None:
    """The numpy dtype, None where it is unknown or the value is no tensor (sequence, optional, map)."""
    dtype = tensor.dtype
    if dtype is None or tensor.is_empty():
        return None
    return numpy_dtype(dtype, tensor.name) if isinstance(dtype, int) else np.dtype(dtype)


def shape_of(tensor: gs.Tensor) -> Shape | None:
    """The shape as a tuple: an integer, a symbol's name or None (unknown) an axis; None where the rank is unknown."""
    shape = tensor.shape
    return None if shape is None or tensor.is_empty() else tuple(shape)


def size_of(tensor: gs.Constant) -> int:
    """Bytes of a constant's values, without reading them."""
    return int(tensor._values.nbytes)


def is_op(node: gs.Node | None, *ops: str) -> bool:
    """Whether ``node`` is one of ``ops`` of the default ONNX domain."""
    return node is not None and node.op in ops and node.domain in {None, "", "ai.onnx"}


def is_constant(tensor: gs.Tensor) -> bool:
    """Whether the value is fixed by the model: an initializer, or the output of a Constant node."""
    if isinstance(tensor, gs.Constant):
        return True
    return len(tensor.inputs) == 1 and is_op(tensor.inputs[0], "Constant")


def values_of(tensor: gs.Tensor) -> npt.NDArray[Any] | None:
    """The values of a constant tensor, to be read only; None where they are not fixed by the model or cannot be had.

    Nothing is cached in the graph, so that walking over all weights does not hold a second copy of them. None also for
    sparse values and for data in a file that was not loaded.
    """
    if isinstance(tensor, gs.Constant):
        return _stored(tensor)
    if len(tensor.inputs) != 1 or not is_op(tensor.inputs[0], "Constant"):
        return None
    for name, value in tensor.inputs[0].attrs.items():
        if name == "value" and isinstance(value, gs.Constant):
            return _stored(value)
        if name in _SCALARS:
            return np.asarray(value, dtype=_SCALARS[name])
        if name in {"value_string", "value_strings"}:
            return np.asarray(value, dtype=object)
    return None


def _stored(constant: gs.Constant) -> npt.NDArray[Any] | None:
    held = constant._values
    if isinstance(held, StoredValues):
        return None if held.tensor.data_location == _EXTERNAL else held.load()
    return held if isinstance(held, np.ndarray) else None
