"""How a node is carried over to an older operator set version: the steps of ``opset_steps``, backwards.

A node goes from one version of its operator to the one before. Where something was said differently then, a step says
it that way: an input that was an attribute becomes one if it is fixed, a default that changed is spelled out. Then the
schema of the older version must take what is left: its attributes (new ones go where they say what was always so), as
many inputs and outputs, and their types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx
import onnx.defs

from graphopt.passes.opset_older import STEPS
from graphopt.passes.opset_steps import Input, State, schema_of
from graphopt.passes.opset_types import allowed_types, type_named, type_of

# Element types that no net of the time before them holds: where a type is not known, it is taken not to be one.
_RARE = ("bfloat16", "float8", "float4", "int4", "int2", "complex", "string", "seq(", "optional(", "sparse")


def lower(state: State, current: int, wanted: int) -> State | str:
    """Carry a node from one operator set version to an earlier one; a text says why it cannot be."""
    now = current
    while True:
        schema = schema_of(state.op, now)
        if schema is None:
            return f"{state.op} is not known at opset {now}"
        version = schema.since_version
        if version <= wanted:
            return state
        older = schema_of(state.op, version - 1)
        if older is None or older.deprecated:
            return f"{state.op} came with opset {version}"
        step = STEPS.get((state.op, version))
        result = state if step is None else step(state)
        if not isinstance(result, str):
            result = _fitted(result, schema, older)
        if isinstance(result, str):
            return f"{state.op} before opset {version}: {result}"
        state, now = result, version - 1


def _fitted(state: State, newer: onnx.defs.OpSchema, older: onnx.defs.OpSchema) -> State | str:
    """The state in the terms of an older schema, or what that does not take."""
    result = _attributes(state, newer, older)
    if isinstance(result, str):
        return result
    inputs = list(result.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    if len(inputs) < len(result.inputs):
        result = replace(result, inputs=tuple(inputs))
    reason = _missing(inputs, older)
    if reason:
        return reason
    extra = range(older.max_output, len(result.outputs))
    if any(result.outputs[slot] and result.reads[slot] for slot in extra):
        return "it had fewer outputs"
    if extra:
        result = replace(result, outputs=result.outputs[: older.max_output])
    return _types(result, newer, older) or result


def _missing(inputs: Sequence[Input], older: onnx.defs.OpSchema) -> str:
    if len(inputs) > older.max_input:
        name = "an input" if older.max_input >= len(older.inputs) else f"input {older.max_input + 1}"
        return f"{name} was not there"
    for slot, formal in enumerate(older.inputs):
        single = formal.option == onnx.defs.OpSchema.FormalParameterOption.Single
        if single and (slot >= len(inputs) or inputs[slot] is None):
            return f"it needed the input {formal.name}"
    return ""


def _attributes(state: State, newer: onnx.defs.OpSchema, older: onnx.defs.OpSchema) -> State | str:
    """The attributes as the older schema has them."""
    known, before = _attributes_of(newer), _attributes_of(older)
    kept = dict(state.attrs)
    for name, value in state.attrs.items():
        if name in before:
            continue
        if name in known and _default(known[name]) == value:
            del kept[name]
        else:
            return f"there was no attribute {name}"
    for name, attribute in before.items():
        if name in kept:
            continue
        if attribute.required:
            return f"it needed the attribute {name}"
        if name in known and _default(known[name]) != _default(attribute):
            if _default(known[name]) is None:
                return f"the default of {name} changed"
            kept[name] = _default(known[name])
    return state if kept == dict(state.attrs) else replace(state, attrs=kept)


def _attributes_of(schema: onnx.defs.OpSchema) -> Mapping[str, onnx.defs.OpSchema.Attribute]:
    found: Mapping[str, onnx.defs.OpSchema.Attribute] = schema.attributes
    return found


def _default(attribute: onnx.defs.OpSchema.Attribute) -> Any:
    """The default of an attribute as graphs hold it; None where there is none."""
    proto = attribute.default_value
    if not proto.name:
        return None
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, (list, tuple)) else value


def _types(state: State, newer: onnx.defs.OpSchema, older: onnx.defs.OpSchema) -> str:
    """Why the older schema does not take the types of inputs and outputs; empty where it does."""
    bound: dict[str, str] = {}
    given = [(slot, type_of(state, each)) for slot, each in enumerate(state.inputs) if each is not None]
    made = [(slot, type_named(state, name)) for slot, name in enumerate(state.names[: len(state.outputs)]) if name]
    for formals, later, types, what in (
        (older.inputs, newer.inputs, given, "input"),
        (older.outputs, newer.outputs, made, "output"),
    ):
        for slot, found in types:
            formal = formals[min(slot, len(formals) - 1)]
            allowed = allowed_types(older, formal)
            if found is None:
                new = allowed_types(newer, later[min(slot, len(later) - 1)]) - allowed
                if any(not any(rare in each for rare in _RARE) for each in new):
                    return f"the type of {what} {slot + 1} is not known, and fewer were taken"
                continue
            if found not in allowed:
                return f"{what} {slot + 1} was not taken as {found}"
            if formal.is_homogeneous and bound.setdefault(formal.type_str, found) != found:
                return f"{what} {slot + 1} had to be {bound[formal.type_str]} like another"
    return ""
