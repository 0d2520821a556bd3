"""Vectors of sizes, computed from few tensors with few nodes.

Exporters ask for the shape of nearly every tensor, take single sizes out of it and join them to targets. Where two
such values are proven equal, element by element, one is enough; and a value whose elements are sizes of tensors and
numbers is one Shape, or a Concat of Shapes and constants, however it was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import is_op, replace_uses
from graphopt.passes.movement.editor import Editor
from graphopt.passes.movement.reshape_sizes import Size, Sizes
from graphopt.passes.movement.reshape_values import Elements

Key: TypeAlias = tuple[str, tuple[int, ...], Sizes]
# From here on Shape takes a start and an end.
_PARTS_OF_SHAPE = 15
# A tensor that has a size; more are not tried.
_PROVIDERS = 4
_INT64 = np.dtype(np.int64).str


@dataclass
class _Home:
    """What one graph has computed so far.

    Attributes:
        first: the first tensor with some value.
        providers: size -> tensors and axes that have it.
        seen: tensors whose sizes are listed.
    """

    first: dict[Key, gs.Tensor] = field(default_factory=dict)
    providers: dict[Size, list[tuple[gs.Tensor, int]]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)

    def provide(self, editor: Editor, tensor: gs.Tensor) -> None:
        """List the sizes of a tensor."""
        if id(tensor) in self.seen:
            return
        self.seen.add(id(tensor))
        for axis, size in enumerate(editor.of(tensor) or ()):
            known = self.providers.setdefault(size, [])
            if size[1] and len(known) < _PROVIDERS:
                known.append((tensor, axis))


@dataclass(frozen=True)
class _Piece:
    """A stretch of a value: sizes ``start`` to ``end`` of a tensor, or numbers."""

    elements: Sizes
    tensor: gs.Tensor | None = None
    start: int = 0


def simplify_shape_values(editor: Editor) -> None:
    """Compute equal values once, and every vector of sizes with as few nodes as possible."""
    for home in editor.index.graphs:
        nodes = list(home.nodes)
        if not any(is_op(node, "Shape") for node in nodes) or not _is_sorted(nodes):
            continue
        state = _Home()
        if home is editor.index.graph:
            for tensor in home.inputs:
                state.provide(editor, tensor)
        for node in nodes:
            if editor.is_dead(node) or len(node.outputs) != 1:
                continue
            if is_op(node, "Shape") and (node.inputs[0].inputs or home is editor.index.graph):
                state.provide(editor, node.inputs[0])
            known = editor.values.of(node.outputs[0])
            if known is not None and not known.known:
                _visit(editor, state, node, known)
    editor.finish()


def _is_sorted(nodes: Sequence[gs.Node]) -> bool:
    place = {id(node): at for at, node in enumerate(nodes)}
    return all(
        place.get(id(producer), -1) < at
        for at, node in enumerate(nodes)
        for tensor in node.inputs
        for producer in tensor.inputs
    )


def _visit(editor: Editor, state: _Home, node: gs.Node, known: Elements) -> None:
    result = node.outputs[0]
    key = (known.dtype, known.shape, known.items)
    earlier = state.first.get(key)
    if earlier is not None and not _is_alive(editor, earlier):
        earlier = None
        del state.first[key]
    if earlier is not None and not editor.index.is_output(result):
        if result.outputs:
            replace_uses(editor.index, result, earlier)
            editor.counts["shape_values"] += 1
            editor.release(result)
        return
    state.first.setdefault(key, result)
    if is_op(node, "Shape"):
        _ask_earlier(editor, state, node, known.items)
    elif len(known.shape) == 1 and known.dtype == _INT64:
        _rebuild(editor, state, node, known.items)


def _ask_earlier(editor: Editor, state: _Home, node: gs.Node, elements: Sizes) -> None:
    """Let a Shape read an earlier tensor of the same sizes, so that what it reads now need not be there for it."""
    source = node.inputs[0]
    pieces = _pieces(editor, state, elements) or []
    if len(pieces) != 1 or pieces[0].tensor is None or pieces[0].tensor is source or not source.inputs:
        return
    if not _is_one_node(editor, pieces[0]) or (pieces[0].tensor.inputs and not editor.is_private(source)):
        return
    _write_piece(editor, node, pieces[0])
    editor.counts["shape_values"] += 1


def _rebuild(editor: Editor, state: _Home, node: gs.Node, elements: Sizes) -> None:
    """Let a node compute its value in the shortest way, if that frees more nodes than it takes."""
    pieces = _pieces(editor, state, elements)
    if pieces is None:
        return
    existing = [None if len(pieces) == 1 or each.tensor is None else _existing(editor, state, each) for each in pieces]
    cost = int(len(pieces) > 1)
    for piece, tensor in zip(pieces, existing, strict=True):
        if tensor is None and piece.tensor is not None:
            cost += 1 if _is_one_node(editor, piece) else 2
    kept = {id(tensor) for tensor in existing if tensor is not None}
    if _freed(editor, node, kept, cost + 1) <= cost:
        return
    result = node.outputs[0]
    if len(pieces) == 1:
        _write_piece(editor, node, pieces[0])
    else:
        parts = []
        for piece, found in zip(pieces, existing, strict=True):
            tensor = found
            if piece.tensor is None:
                tensor = editor.ints([number for number, _ in piece.elements], f"{result.name}_part")
            elif tensor is None:
                tensor = editor.new_tensor(result, ((len(piece.elements), ()),))
                _write_piece(editor, editor.add("Shape", [piece.tensor], tensor, {}, node), piece)
                state.first.setdefault((_INT64, (len(piece.elements),), piece.elements), tensor)
            parts.append(tensor)
        editor.rewrite(node, "Concat", parts, {"axis": 0})
    editor.counts["shape_values"] += 1


def _existing(editor: Editor, state: _Home, piece: _Piece) -> gs.Tensor | None:
    found = state.first.get((_INT64, (len(piece.elements),), piece.elements))
    return found if found is not None and _is_alive(editor, found) else None


def _is_alive(editor: Editor, tensor: gs.Tensor) -> bool:
    return not any(editor.is_dead(producer) for producer in tensor.inputs)


def _pieces(editor: Editor, state: _Home, elements: Sizes) -> list[_Piece] | None:
    """Cut a value into stretches of sizes and of numbers; None where an element is neither."""
    pieces: list[_Piece] = []
    at = 0
    while at < len(elements):
        best: tuple[int, gs.Tensor | None, int] = (0, None, 0)
        for tensor, axis in state.providers.get(elements[at], ()):
            sizes = editor.of(tensor) or ()
            length = 1
            while elements[at + length : at + length + 1] == sizes[axis + length : axis + length + 1] != ():
                length += 1
            if length > best[0]:
                best = (length, tensor, axis)
        length, found, axis = best
        if found is None:
            if elements[at][1]:
                return None
            length = 1
            while at + length < len(elements) and not elements[at + length][1]:
                length += 1
        pieces.append(_Piece(elements[at : at + length], found, axis))
        at += length
    return pieces


def _is_one_node(editor: Editor, piece: _Piece) -> bool:
    return editor.opset >= _PARTS_OF_SHAPE or _is_whole(editor, piece)


def _is_whole(editor: Editor, piece: _Piece) -> bool:
    return piece.tensor is not None and len(editor.of(piece.tensor) or ()) == len(piece.elements)


def _write_piece(editor: Editor, node: gs.Node, piece: _Piece) -> None:
    """Let a node be the sizes of a tensor from one axis to another."""
    assert piece.tensor is not None
    end = piece.start + len(piece.elements)
    if _is_whole(editor, piece):
        editor.rewrite(node, "Shape", [piece.tensor], {})
    elif editor.opset >= _PARTS_OF_SHAPE:
        editor.rewrite(node, "Shape", [piece.tensor], {"start": piece.start, "end": end})
    else:
        name = node.outputs[0].name
        whole = editor.new_tensor(node.outputs[0], ((len(editor.of(piece.tensor) or ()), ()),))
        editor.add("Shape", [piece.tensor], whole, {}, node)
        if editor.opset < 10:
            editor.rewrite(node, "Slice", [whole], {"axes": [0], "starts": [piece.start], "ends": [end]})
        else:
            bounds = [editor.ints([number], f"{name}_slice") for number in (piece.start, end)]
            editor.rewrite(node, "Slice", [whole, *bounds], {})


def _freed(editor: Editor, node: gs.Node, kept: set[int], enough: int) -> int:
    """How many nodes are there for the sake of this one only, itself included; counted up to ``enough``."""
    cone = {id(node)}
    pending = [node]
    while pending and len(cone) < enough:
        for tensor in pending.pop().inputs:
            if len(tensor.inputs) != 1 or id(tensor) in kept or editor.index.is_output(tensor):
                continue
            producer = tensor.inputs[0]
            if id(producer) in cone or len(producer.outputs) != 1 or len(tensor.outputs) > _PROVIDERS:
                continue
            if is_op(producer, "Constant") or editor.index.home(producer) is not editor.index.home(node):
                continue
            if producer.op not in _INTEGER_OPS or any(id(reader) not in cone for reader in tensor.outputs):
                continue
            cone.add(id(producer))
            pending.append(producer)
    return len(cone)


_INTEGER_OPS = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Gather",
        "Identity",
        "Mul",
        "Reshape",
        "Shape",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Where",
    }
)
