"""Attributes of nodes: protobuf to Python values and back.

Numbers, strings and lists become Python values, tensors ``gs.Constant``, subgraphs ``gs.Graph``. Kinds that
graphsurgeon drops (types, sparse tensors, lists of tensors) stay the ``AttributeProto`` they came as; strings that are
not UTF-8 stay ``bytes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.defs
import onnx.numpy_helper
import onnx_graphsurgeon as gs

from graphopt.errors import UnsupportedModelError
from graphopt.graph.values import StoredSparse, StoredValues, onnx_dtype

# Attribute name -> kind, a member of ``AttributeProto.AttributeType``.
Kinds: TypeAlias = Mapping[str, Any]
_A = onnx.AttributeProto
_LISTS = {_A.FLOATS: "floats", _A.INTS: "ints", _A.STRINGS: "strings"}
_OPAQUE = frozenset({_A.SPARSE_TENSOR, _A.SPARSE_TENSORS, _A.TYPE_PROTO, _A.TYPE_PROTOS, _A.TENSORS})


@lru_cache(maxsize=4096)
def attribute_types(op: str, domain: str, opset: int) -> Kinds:
    """The kinds of an operator's attributes as its schema says; empty where it is unknown."""
    if not onnx.defs.has(op, domain=domain, max_inclusive_version=opset):
        return {}
    schema = onnx.defs.get_schema(op, domain=domain, max_inclusive_version=opset)
    attributes: Any = schema.attributes
    return {name: attribute.type.value for name, attribute in attributes.items()}


def read_attribute(attribute: onnx.AttributeProto, known: Kinds, where: str) -> Any:
    """The Python value of an attribute that is not a subgraph.

    Args:
        attribute: the attribute; may stay referenced.
        known: kinds by the schema; an empty list whose kind is not known there keeps its protobuf form.
        where: names the node in the UnsupportedModelError for kinds that cannot be carried.
    """
    kind = attribute.type
    if kind in _OPAQUE or attribute.ref_attr_name:
        return attribute
    if kind in {_A.FLOAT, _A.INT}:
        return attribute.f if kind == _A.FLOAT else attribute.i
    if kind == _A.STRING:
        return _text(attribute.s)
    if kind == _A.TENSOR:
        return gs.Constant(attribute.t.name, StoredValues(attribute.t))
    if kind in _LISTS:
        items = list(getattr(attribute, _LISTS[kind]))
        if not items and known.get(attribute.name) != kind:
            return attribute
        return [_text(item) for item in items] if kind == _A.STRINGS else items
    raise UnsupportedModelError(
        f"{where}: attribute '{attribute.name}' is of kind {_A.AttributeType.Name(kind)}, which graphopt cannot carry"
    )


def write_attribute(
    target: onnx.AttributeProto,
    name: str,
    value: Any,
    known: Kinds,
    where: str,
) -> None:
    """Write a Python value that is not a subgraph into ``target``.

    An integer given for an attribute that the schema calls a float becomes one. Raises UnsupportedModelError, naming
    ``where``, for a value that has no form as an attribute.
    """
    if isinstance(value, onnx.AttributeProto):
        target.CopyFrom(value)
        target.name = name
        return
    target.name = name
    if isinstance(value, (gs.Constant, np.ndarray)):
        target.type = _A.TENSOR
        write_tensor(target.t, value)
    elif isinstance(value, (str, bytes)):
        target.type = _A.STRING
        target.s = _bytes(value)
    elif isinstance(value, (type, np.dtype)):
        target.type = _A.INT
        target.i = onnx_dtype(value)
    elif isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        if known.get(name) == _A.FLOAT or isinstance(value, (float, np.floating)):
            target.type = _A.FLOAT
            target.f = float(value)
        else:
            target.type = _A.INT
            target.i = int(value)
    elif isinstance(value, (list, tuple)):
        _write_list(target, list(value), known.get(name), where)
    else:
        raise UnsupportedModelError(f"{where}: attribute '{name}' has a value of type {type(value).__name__}")


def write_tensor(target: onnx.TensorProto, value: Any) -> None:
    """Copy a ``gs.Constant`` with its name, or an array, into ``target``; unedited values stay byte for byte."""
    held = value._values if isinstance(value, gs.Constant) else value
    if isinstance(held, StoredSparse):
        raise UnsupportedModelError(f"constant '{value.name}' is sparse where a dense tensor belongs")
    if isinstance(held, StoredValues):
        target.CopyFrom(held.tensor)
    else:
        wanted = value._export_dtype if isinstance(value, gs.Constant) else None
        array = held if wanted is None else held.astype(onnx.helper.tensor_dtype_to_np_dtype(onnx_dtype(wanted)))
        target.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array)))
    if isinstance(value, gs.Constant):
        target.name = value.name


def _write_list(target: onnx.AttributeProto, items: list[Any], known: Any, where: str) -> None:
    if not items:
        if known not in _LISTS:
            raise UnsupportedModelError(f"{where}: empty list attribute '{target.name}', and no schema tells its kind")
        target.type = known
    elif all(isinstance(item, (str, bytes)) for item in items):
        target.type = _A.STRINGS
        target.strings.extend(_bytes(item) for item in items)
    elif known == _A.FLOATS or any(isinstance(item, (float, np.floating)) for item in items):
        target.type = _A.FLOATS
        target.floats.extend(float(item) for item in items)
    else:
        target.type = _A.INTS
        target.ints.extend(int(item) for item in items)


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
