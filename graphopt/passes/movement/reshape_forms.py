"""What two shape-changing nodes in a row do, said as one; the algebra of ``reshape_chains``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.passes.movement.editor import Editor
from graphopt.passes.movement.reshape_sizes import Size, Sizes, closed_target, product

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Form:
    """One node that does what two did: an operator with integers for its second input, or an attribute.

    Attributes:
        op: the operator; empty where the result is the source itself.
        numbers: target of a Reshape, axes of a Squeeze or Unsqueeze.
        tensor: a target that is computed, instead.
        attrs: its other attributes.
    """

    op: str = ""
    numbers: Sequence[int] | None = None
    tensor: gs.Tensor | None = None
    attrs: Mapping[str, Any] | None = None


def composed(editor: Editor, node: gs.Node, before: gs.Node, middle: gs.Tensor) -> Form | None:
    """What ``node`` does with ``middle``, the output of ``before``, said of the input of ``before``; None: unknown.

    Elementwise nodes may stand between ``middle`` and ``node``.
    """
    axes = _axes_alone(editor, node, before)
    if axes is not None:
        return axes
    source, inner, outer = editor.of(before.inputs[0]), editor.of(middle), editor.of(node.outputs[0])
    if source is not None and source == outer:
        return Form()
    form: Form | None = None
    if node.op == "Reshape" and editor.opset >= 5 and len(node.inputs) == 2:
        form = _reshape(editor, node, source, inner)
    elif node.op == "Flatten" and source is not None and inner is not None:
        form = _flatten(node, source, inner)
    if form is not None or outer is None or editor.opset < 5:
        return form
    target = closed_target(outer, source, hazards(editor, node, before, middle))
    return None if target is None else Form("Reshape", target, attrs={})


def _axes_alone(editor: Editor, node: gs.Node, before: gs.Node) -> Form | None:
    """Squeeze and Unsqueeze with known axes: no shape need be known."""
    if before.op not in {"Squeeze", "Unsqueeze"} or node.op not in {"Squeeze", "Unsqueeze"}:
        return None
    first, second = (editor.constants(each, 1, "axes", 13) for each in (before, node))
    if first is None or second is None:
        return None
    ranks = [editor.of(tensor) for tensor in (before.inputs[0], before.outputs[0], node.outputs[0])]
    source, inner, outer = (None if sizes is None else len(sizes) for sizes in ranks)
    a = positive(first, inner if before.op == "Unsqueeze" else source)
    b = positive(second, outer if node.op == "Unsqueeze" else inner)
    if a is None or b is None:
        return None
    # Letters stand for the axes of the source, None for axes of size 1 that an Unsqueeze put in.
    length = source if source is not None else max([*a, *b], default=0) + len(a) + len(b) + 1
    squeezed = set(a) if before.op == "Squeeze" else set()
    start: list[int | None] = list(range(length))
    middle = [axis for axis in start if axis not in squeezed]
    if before.op == "Unsqueeze":
        middle = _inserted(middle, a)
    final = _inserted(middle, b) if node.op == "Unsqueeze" else _removed(middle, b)
    return _between(start, final, squeezed)


def positive(axes: Sequence[int], rank: int | None) -> list[int] | None:
    """Axes counted from the front; None where that is not certain."""
    if rank is None:
        return list(axes) if all(axis >= 0 for axis in axes) else None
    found = [axis + rank if axis < 0 else axis for axis in axes]
    return found if all(0 <= axis < rank for axis in found) and len(set(found)) == len(found) else None


def _inserted(items: Sequence[int | None], axes: Sequence[int]) -> list[int | None]:
    rest = iter(items)
    return [None if axis in set(axes) else next(rest, -1) for axis in range(len(items) + len(axes))]


def _removed(items: Sequence[int | None], axes: Sequence[int]) -> list[int | None]:
    return [item for axis, item in enumerate(items) if axis not in set(axes)]


def _between(start: Sequence[int | None], final: Sequence[int | None], ones: set[int]) -> Form | None:
    """The Squeeze, the Unsqueeze or nothing that makes ``final`` of ``start``, whose axes ``ones`` are of size 1."""
    gone = [axis for axis in start if axis not in final]
    if len(final) == len(start) and all(
        have == want or (want is None and have in ones) for have, want in zip(start, final, strict=True)
    ):
        return Form()
    if None not in final:
        return Form("Squeeze", [axis for axis in gone if axis is not None])
    if not gone:
        return Form("Unsqueeze", [axis for axis, item in enumerate(final) if item is None])
    # Axes taken out and put in again at the same place, and others beside them.
    kept = list(final)
    for axis in [axis for axis in gone if axis in ones]:
        place = next((i for i, item in enumerate(kept) if item is None and _fits(kept, i, axis)), None)
        if place is not None:
            kept[place] = axis
    return None if kept == list(final) else _between(start, kept, set())


def _fits(items: Sequence[int | None], place: int, axis: int | None) -> bool:
    """Whether the axis stands in order at a place of the list."""
    before = [item for item in items[:place] if item is not None]
    after = [item for item in items[place + 1 :] if item is not None]
    return axis is not None and all(item < axis for item in before) and all(item > axis for item in after)


def _reshape(editor: Editor, node: gs.Node, source: Sizes | None, inner: Sizes | None) -> Form | None:
    """A Reshape depends on what it reads by its zeros only: they copy a size of the same axis."""
    if node.attrs.get("allowzero", 0):
        return Form("Reshape", tensor=node.inputs[1], attrs=node.attrs)
    wanted = editor.constants(node, 1, "shape", 5)
    if wanted is None:
        known = editor.values.of(node.inputs[1])
        if known is not None and len(known.shape) == 1:
            wanted = [0 if names else number for number, names in known.items]
            safe = all(item or _same(source, inner, axis) for axis, item in enumerate(wanted))
            return Form("Reshape", tensor=node.inputs[1], attrs=node.attrs) if safe else None
        return None
    target = []
    for axis, item in enumerate(wanted):
        if item or _same(source, inner, axis):
            target.append(item)
        elif inner is not None and axis < len(inner) and not inner[axis][1] and inner[axis][0]:
            target.append(inner[axis][0])
        else:
            return None
    if target == wanted:
        return Form("Reshape", tensor=node.inputs[1], attrs=node.attrs)
    return Form("Reshape", target, attrs=node.attrs)


def _same(source: Sizes | None, inner: Sizes | None, axis: int) -> bool:
    if source is None or inner is None or axis >= len(source) or axis >= len(inner):
        return False
    return source[axis] == inner[axis]


def _flatten(node: gs.Node, source: Sizes, inner: Sizes) -> Form | None:
    axis = node.attrs.get("axis", 1)
    axis += len(inner) if axis < 0 else 0
    wanted = product(inner[:axis]), product(inner[axis:])
    for cut in range(len(source) + 1):
        if (product(source[:cut]), product(source[cut:])) == wanted:
            return Form("Flatten", attrs={"axis": cut})
    return None


def hazards(editor: Editor, node: gs.Node, before: gs.Node, middle: gs.Tensor) -> frozenset[Size] | None:
    """The sizes that must not be 0 today: those that a Reshape copies beside a -1."""
    found: set[Size] = set()
    for each, read in ((before, before.inputs[0]), (node, middle)):
        if each.op != "Reshape" or each.attrs.get("allowzero", 0):
            continue
        target, sizes = editor.constants(each, 1, "shape", 5), editor.of(read)
        if target is not None and sizes is not None and -1 in target:
            found.update(sizes[axis] for axis, item in enumerate(target) if item == 0 and axis < len(sizes))
    return frozenset(found)
