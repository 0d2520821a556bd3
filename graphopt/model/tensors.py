"""How many bytes and values a tensor must hold for its shape and type, and whether it does."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

from graphopt.errors import UnsafeModelError, UnsupportedModelError

# Bits of one element as stored in raw_data or in an external file, by data type number (onnx.proto, TensorProto).
# Numbers, not names: the types from 23 on are younger than the oldest onnx that we accept.
BITS: dict[int, int] = {
    data_type: bits
    for bits, types in {
        128: (TensorProto.COMPLEX128,),
        64: (TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64, TensorProto.COMPLEX64),
        32: (TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT32),
        16: (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT16, TensorProto.UINT16),
        8: (TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL, 17, 18, 19, 20, 24),  # float8 types
        6: (27, 28),  # float6e2m3, float6e3m2
        4: (21, 22, 23),  # uint4, int4, float4e2m1
        2: (25, 26),  # uint2, int2
    }.items()
    for data_type in types
}

_TYPED_FIELD: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")


def element_count(tensor: onnx.TensorProto) -> int:
    """Number of elements that the dims declare; 1 for a scalar."""
    return math.prod(tensor.dims)


def byte_count(tensor: onnx.TensorProto) -> int:
    """Bytes that the dims and the data type declare, elements packed as in ``raw_data``; 0 for strings.

    Raises:
        UnsupportedModelError: for a data type that this version does not know.
    """
    if tensor.data_type == TensorProto.STRING:
        return 0
    bits = BITS.get(tensor.data_type)
    if bits is None:
        raise UnsupportedModelError(f"tensor {tensor.name!r} has the unknown data type {tensor.data_type}")
    return (element_count(tensor) * bits + 7) // 8


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the values are in a file beside the model."""
    return tensor.data_location == TensorProto.EXTERNAL


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of values that the tensor holds in memory; an estimate for typed fields, 0 for external tensors."""
    if is_external(tensor):
        return 0
    if tensor.data_type == TensorProto.STRING:
        return sum(len(value) for value in tensor.string_data)
    return byte_count(tensor)


def vet_values(tensor: onnx.TensorProto) -> None:
    """Check that a tensor held in the model carries exactly the values that its dims and type declare.

    Raises:
        UnsafeModelError: negative dims, or more or fewer values than declared.
        UnsupportedModelError: unknown data type, or a tensor stored in segments.
    """
    vet_dims(tensor)
    if tensor.HasField("segment"):
        raise UnsupportedModelError(f"tensor {tensor.name!r} is stored in segments, which no runtime reads")
    expected = byte_count(tensor)
    if tensor.HasField("raw_data"):
        if tensor.data_type == TensorProto.STRING:
            raise UnsafeModelError(f"tensor {tensor.name!r} holds strings as raw bytes")
        _expect(tensor, len(tensor.raw_data), expected, "bytes")
        return
    field = _TYPED_FIELD.get(tensor.data_type, "int32_data")
    count = element_count(tensor)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        count *= 2
    elif BITS.get(tensor.data_type, 8) in (2, 4):
        count = expected  # packed: one byte of elements in each int32
    _expect(tensor, len(getattr(tensor, field)), count, "values")
    for other in _TYPED_FIELDS:
        if other != field and len(getattr(tensor, other)):
            raise UnsafeModelError(f"tensor {tensor.name!r} holds values in {other}, where its type has no place")


def vet_dims(tensor: onnx.TensorProto) -> None:
    """Refuse negative dims with UnsafeModelError."""
    if any(dim < 0 for dim in tensor.dims):
        raise UnsafeModelError(f"tensor {tensor.name!r} has a negative dimension: {list(tensor.dims)}")


def _expect(tensor: onnx.TensorProto, actual: int, expected: int, unit: str) -> None:
    if actual != expected:
        kind = TensorProto.DataType.Name(tensor.data_type).lower()
        raise UnsafeModelError(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} and type {kind} needs {expected} {unit} "
            f"of data, but holds {actual}"
        )
