"""Rename values throughout a model, and give the version converter's new values names of their own."""

from __future__ import annotations

import re
from collections.abc import Callable

import onnx

from graphopt.model.walk import bodies

GENERATED = re.compile(r"_v_\d+")
"""Names that the converter invents. It may reuse one that is taken: by an earlier conversion, or in a subgraph."""
_SHIELD = "shielded"


def shield(model: onnx.ModelProto) -> None:
    """Move the model's own values out of the way of generated names, in place."""
    _rename_all(model, lambda name: _SHIELD + name if GENERATED.fullmatch(name) else name)


def unshield(model: onnx.ModelProto, opset: int) -> None:
    """Undo ``shield`` on a converted model, in place; its generated names become unique ones."""
    taken = {name for body in bodies(model) for node in body.proto.node for name in (*node.input, *node.output)}
    for body in bodies(model):
        fresh: dict[str, str] = {}
        created = [output for node in body.proto.node for output in node.output]
        if isinstance(body.proto, onnx.GraphProto):
            created += [tensor.name for tensor in body.proto.initializer]
        for name in created:
            if GENERATED.fullmatch(name) and name not in fresh:
                number = len(fresh)
                while (candidate := f"opset{opset}_{number}") in taken:
                    number += 1
                taken.add(candidate)
                fresh[name] = candidate
        if fresh:
            _rename_body(body.proto, lambda name, fresh=fresh: fresh.get(name, name))  # type: ignore[misc]
    _rename_all(model, lambda name: name.removeprefix(_SHIELD) if _shielded(name) else name)


def _shielded(name: str) -> bool:
    return name.startswith(_SHIELD) and GENERATED.fullmatch(name, len(_SHIELD)) is not None


def _rename_all(model: onnx.ModelProto, new_name: Callable[[str], str]) -> None:
    for body in bodies(model):
        if body.function is None:
            _rename_body(body.proto, new_name)


def _rename_body(body: onnx.GraphProto | onnx.FunctionProto, new_name: Callable[[str], str]) -> None:
    for node in body.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                changed = new_name(name)
                if changed != name:
                    names[index] = changed
    if isinstance(body, onnx.GraphProto):
        for named in (*body.initializer, *body.input, *body.output, *body.value_info):
            changed = new_name(named.name)
            if changed != named.name:
                named.name = changed
