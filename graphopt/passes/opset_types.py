"""Types of a node's inputs and outputs, as operator schemas write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx_graphsurgeon as gs

from graphopt.graph import dtype_of, onnx_dtype
from graphopt.graph.shapes import Types
from graphopt.passes.opset_steps import State


def type_of(state: State, given: gs.Tensor | Any) -> str | None:
    """The type of an input as schemas write it; None where it is not known."""
    if isinstance(given, np.ndarray):
        return _written(onnx_dtype(given.dtype))
    if isinstance(given, gs.Constant):
        dtype = dtype_of(given)
        return None if dtype is None else _written(onnx_dtype(dtype))
    return type_named(state, given.name)


def type_named(state: State, name: str) -> str | None:
    """The type of a tensor as schemas write it; None where it is not known."""
    declared = state.types.raw(name) if isinstance(state.types, Types) else None
    if isinstance(declared, onnx.ValueInfoProto) and not declared.type.HasField("tensor_type"):
        return _container(declared.type)
    found = state.types.get(name)
    return None if found is None or not found.dtype else _written(found.dtype)


def _container(declared: onnx.TypeProto) -> str | None:
    """How schemas write a type; None where it is not known."""
    if declared.HasField("sequence_type"):
        inner = _container(declared.sequence_type.elem_type)
        return None if inner is None else f"seq({inner})"
    if declared.HasField("optional_type"):
        inner = _container(declared.optional_type.elem_type)
        return None if inner is None else f"optional({inner})"
    if declared.HasField("tensor_type") and declared.tensor_type.elem_type:
        return _written(declared.tensor_type.elem_type)
    return None


@lru_cache(maxsize=256)
def _written(dtype: int) -> str:
    return f"tensor({onnx.helper.tensor_dtype_to_string(dtype).removeprefix('TensorProto.').lower()})"


@lru_cache(maxsize=4096)
def _constraints(op: str, version: int) -> Mapping[str, frozenset[str]]:
    schema = onnx.defs.get_schema(op, max_inclusive_version=version)
    return {each.type_param_str: frozenset(each.allowed_type_strs) for each in schema.type_constraints}


def allowed_types(schema: onnx.defs.OpSchema, formal: onnx.defs.OpSchema.FormalParameter) -> frozenset[str]:
    """The types that an input or output of an operator of the default domain may have."""
    found = _constraints(schema.name, schema.since_version)
    return found.get(formal.type_str, frozenset({formal.type_str}))


def taken_types(schema: onnx.defs.OpSchema, inputs: int, outputs: int) -> tuple[list[frozenset[str]], ...]:
    """The types that each input and each output of a node may have; the last one of a schema may stand for many."""

    def types(formals: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[frozenset[str]]:
        return [
            allowed_types(schema, formals[min(slot, len(formals) - 1)]) if formals else frozenset()
            for slot in range(count)
        ]

    return types(schema.inputs, inputs), types(schema.outputs, outputs)
