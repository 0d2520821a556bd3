"""Chains of operators that only change the shape: Reshape, Flatten, Squeeze and Unsqueeze.

Two in a row are one that reads what the first reads, or none. So are two with elementwise operators between them:
those run on the shape that the first one reads. ``composed`` holds the algebra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.graph import is_constant, is_op, set_input, set_output, shape_of
from graphopt.passes.reshape_editor import Editor
from graphopt.passes.reshape_sizes import BROADCASTING, ONE, Size, Sizes, closed_target, product

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
# One value in, one value out, whatever the shape.
UNARY = frozenset(
    {
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitwiseNot",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
    }
)
# So many elementwise nodes may stand between two; without a limit, a long run of them would be walked again and again.
_FARTHEST = 16


@dataclass(frozen=True)
class Form:
    """One node that does what two did: an operator with integers for its second input, or an attribute.

    Attributes:
        op: the operator; empty where the result is the source itself.
        numbers: target of a Reshape, axes of a Squeeze or Unsqueeze.
        tensor: a target that is computed, instead.
        attrs: its other attributes.
        rest: whether the second input can stay as it is.
    """

    op: str = ""
    numbers: Sequence[int] | None = None
    tensor: gs.Tensor | None = None
    attrs: Mapping[str, Any] | None = None


def merge_reshapes(editor: Editor, node: gs.Node) -> bool:
    """Let a node read what the shape-changing node before it reads."""
    if not node.inputs or node.inputs[0].is_empty():
        return False
    middle = node.inputs[0]
    before = editor.producer(middle, node, *RESHAPES)
    if before is None or before is node:
        return False
    source = before.inputs[0]
    form = composed(editor, node, before, middle)
    if form is None or (form.numbers is not None and _is_new(editor, node, form) and not editor.is_private(middle)):
        return False
    _write(editor, node, source, form)
    editor.counts["reshapes"] += 1
    return True


def move_over_elementwise(editor: Editor, node: gs.Node) -> bool:
    """``Reshape -> elementwise -> Reshape``: run the elementwise nodes on the shape that the first one reads."""
    between: list[gs.Node] = []
    tensor = node.inputs[0]
    while editor.is_private(tensor) and len(tensor.inputs) == 1 and len(between) <= _FARTHEST:
        above = tensor.inputs[0]
        if editor.index.home(above) is not editor.index.home(node) or len(above.outputs) != 1:
            return False
        if is_op(above, *RESHAPES):
            break
        slot = _elementwise_slot(editor, above)
        if slot is None:
            return False
        between.append(above)
        tensor = above.inputs[slot]
    else:
        return False
    before = tensor.inputs[0]
    if not between or before.inputs[0].is_empty():
        return False
    source = before.inputs[0]
    sizes, middle = editor.of(source), editor.of(tensor)
    if sizes is None or middle is None or editor.sizes.opset < 7:
        return False
    if any(_rank_of_operands(each) > min(len(sizes), len(middle)) for each in between):
        return False
    form = composed(editor, node, before, tensor)
    if form is None:
        return False
    value = source
    for each in reversed(between):
        slot = _elementwise_slot(editor, each) or 0
        old = each.outputs[0]
        made = editor.new_tensor(old, sizes)
        set_input(editor.index, each, slot, value)
        set_output(editor.index, each, 0, made)
        list.clear(old.inputs)
        value = made
    _write(editor, node, value, form)
    editor.release(tensor)
    editor.counts["reshapes_over_elementwise"] += 1
    return True


def _elementwise_slot(editor: Editor, node: gs.Node) -> int | None:
    """The input of an elementwise node that fixes its shape; None where there is no such."""
    if node.op in UNARY and is_op(node, node.op):
        return 0 if all(is_constant(tensor) or tensor.is_empty() for tensor in node.inputs[1:]) else None
    if node.op not in BROADCASTING or not is_op(node, node.op) or len(node.inputs) != 2:
        return None
    for slot in (0, 1):
        if is_constant(node.inputs[1 - slot]) and not is_constant(node.inputs[slot]):
            shape = shape_of(node.inputs[1 - slot])
            return slot if shape is not None and all(size == 1 for size in shape) else None
    return None


def _rank_of_operands(node: gs.Node) -> int:
    if node.op in UNARY:
        return 0
    return max(len(shape_of(tensor) or ()) for tensor in node.inputs if is_constant(tensor))


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
    target = closed_target(outer, source, _hazards(editor, node, before, middle))
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
    a = _positive(first, inner if before.op == "Unsqueeze" else source)
    b = _positive(second, outer if node.op == "Unsqueeze" else inner)
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


def _positive(axes: Sequence[int], rank: int | None) -> list[int] | None:
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


def _hazards(editor: Editor, node: gs.Node, before: gs.Node, middle: gs.Tensor) -> frozenset[Size] | None:
    """The sizes that must not be 0 today: those that a Reshape copies beside a -1."""
    found: set[Size] = set()
    for each, read in ((before, before.inputs[0]), (node, middle)):
        if each.op != "Reshape" or each.attrs.get("allowzero", 0):
            continue
        target, sizes = editor.constants(each, 1, "shape", 5), editor.of(read)
        if target is not None and sizes is not None and -1 in target:
            found.update(sizes[axis] for axis, item in enumerate(target) if item == 0 and axis < len(sizes))
    return frozenset(found)


def _is_new(editor: Editor, node: gs.Node, form: Form) -> bool:
    """Whether the form needs numbers that the node does not hold already."""
    return form.op != node.op or editor.constants(node, 1, "axes", 13) != list(form.numbers or ())


def _write(editor: Editor, node: gs.Node, source: gs.Tensor, form: Form) -> None:
    """Let ``node`` compute its output of ``source``."""
    if not form.op:
        editor.bypass(node, source)
        return
    attrs = dict(form.attrs or {})
    inputs = [source]
    if form.tensor is not None:
        inputs.append(form.tensor)
    elif form.numbers is not None:
        if form.op != "Reshape" and editor.opset < 13:
            attrs["axes"] = list(form.numbers)
        else:
            inputs.append(editor.ints(form.numbers, f"{node.outputs[0].name}_{form.op.lower()}"))
    editor.rewrite(node, form.op, inputs, attrs)


def squeeze_before_transpose(editor: Editor, node: gs.Node) -> bool:
    """``Reshape -> Transpose -> Squeeze``: the axes are never made, and the Transpose is the smaller."""
    transpose = editor.producer(node.inputs[0], node, "Transpose")
    if node.op != "Squeeze" or transpose is None or not editor.is_private(node.inputs[0]):
        return False
    middle = transpose.inputs[0]
    before = editor.producer(middle, node, *RESHAPES)
    if before is None or not editor.is_private(middle):
        return False
    source, inner, moved = editor.of(before.inputs[0]), editor.of(middle), editor.of(node.inputs[0])
    if inner is None or moved is None or editor.opset < 5:
        return False
    order = list(transpose.attrs.get("perm", range(len(inner) - 1, -1, -1)))
    axes = editor.constants(node, 1, "axes", 13)
    if axes is None:
        if editor.has(node, 1, "axes", 13) or any(names for _, names in inner):
            return False
        axes = [axis for axis, size in enumerate(moved) if size == ONE]
    places = _positive(axes, len(inner))
    if places is None or sorted(order) != list(range(len(inner))):
        return False
    gone = {order[axis] for axis in places}
    left = [axis for axis in range(len(inner)) if axis not in gone]
    wanted = tuple(inner[axis] for axis in left)
    perm = [left.index(axis) for axis in order if axis not in gone]
    if source == wanted:
        reads = before.inputs[0]
    else:
        target = closed_target(wanted, source, _hazards(editor, node, before, middle))
        if target is None:
            return False
        reads = editor.new_tensor(middle, wanted)
        numbers = editor.ints(target, f"{reads.name}_shape")
        editor.add("Reshape", [before.inputs[0], numbers], reads, {}, node)
    editor.rewrite(node, "Transpose", [reads], {"perm": perm})
    editor.counts["reshapes"] += 1
    return True


def keep_reduced_axes(editor: Editor, node: gs.Node) -> bool:
    """A reduction whose axes are put back, or taken out, right after it: let it keep them, or not."""
    reduction = node.inputs[0].inputs[0] if len(node.inputs[0].inputs) == 1 else None
    if reduction is None or not reduction.op.startswith(("Reduce", "Arg")) or not is_op(reduction, reduction.op):
        return False
    if editor.index.home(reduction) is not editor.index.home(node) or not editor.is_private(node.inputs[0]):
        return False
    read, result = editor.of(reduction.inputs[0]), editor.of(node.outputs[0])
    if read is None or result is None:
        return _put_back(editor, node, reduction)
    axes = _reduced_axes(editor, reduction, len(read))
    if axes is None:
        return False
    kept = not reduction.attrs.get("keepdims", 1)
    shape = [ONE if axis in axes else size for axis, size in enumerate(read) if kept or axis not in axes]
    if tuple(shape) != result:
        return False
    editor.rewrite(node, reduction.op, list(reduction.inputs), {**reduction.attrs, "keepdims": int(kept)})
    editor.counts["reductions"] += 1
    return True


def _put_back(editor: Editor, node: gs.Node, reduction: gs.Node) -> bool:
    """An Unsqueeze of just the axes that were reduced needs no shape to be known."""
    since = 13 if reduction.op == "ReduceSum" else 18
    if node.op != "Unsqueeze" or reduction.attrs.get("keepdims", 1) or reduction.op.startswith("Arg"):
        return False
    first, second = editor.constants(reduction, 1, "axes", since), editor.constants(node, 1, "axes", 13)
    if not first or second is None or sorted(first) != sorted(second) or min(first) < 0:
        return False
    editor.rewrite(node, reduction.op, list(reduction.inputs), {**reduction.attrs, "keepdims": 1})
    editor.counts["reductions"] += 1
    return True


def _reduced_axes(editor: Editor, node: gs.Node, rank: int) -> list[int] | None:
    if node.op.startswith("Arg"):
        return _positive([node.attrs.get("axis", 0)], rank)
    since = 13 if node.op == "ReduceSum" else 18
    if not editor.has(node, 1, "axes", since):
        return None if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    axes = editor.constants(node, 1, "axes", since)
    if not axes:
        return None
    return _positive(axes, rank)
