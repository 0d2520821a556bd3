"""Which nodes hand one of their inputs on unchanged, proven by operator semantics and inferred types alone.

Shapes come from inference over inputs and weights, never from what the file declares for tensors in between; two open
dimensions are equal only where they carry the same symbol (``types_of`` with distinct symbols). ``no_op_arithmetic``
and ``no_op_shapes`` hold the rules; each looks first at what costs nothing, since inference runs only if a rule asks.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from graphopt.passes.no_ops.arithmetic import ARITHMETIC
from graphopt.passes.no_ops.knowledge import Knowledge, Rule
from graphopt.passes.no_ops.shapes import SHAPES

RULES: Mapping[str, Rule] = {**ARITHMETIC, **SHAPES}


def passed_on(node: gs.Node, known: Knowledge) -> gs.Tensor | None:
    """The tensor that output 0 of ``node`` always equals, value by value, in dtype and in shape; None if none does."""
    rule = RULES.get(node.op)
    if rule is None or node.domain or not node.inputs or not node.outputs:
        return None
    source = rule(node, known)
    return None if source is None or source.is_empty() or node.outputs[0].is_empty() else source
