"""Chains of operators that only change the shape: Reshape, Flatten, Squeeze and Unsqueeze.

Two in a row are one that reads what the first reads, or none. So are two with elementwise operators between them:
those run on the shape that the first one reads. ``reshape_forms`` holds the algebra.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.graph import is_constant, is_op, set_input, set_output, shape_of
from graphopt.passes.movement.editor import Editor
from graphopt.passes.movement.reshape_forms import RESHAPES, Form, composed
from graphopt.passes.movement.reshape_sizes import BROADCASTING

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
