"""Read off ONNX Runtime's own optimized graph which units it really runs in int8."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import onnx

from graphopt import runtime
from graphopt.passes.quantize_int8.units import Role, Units

# ONNX Runtime keeps a node's name as the beginning of the name of what it makes of the node.
MARK = "graphopt_unit_"
_MARKED = re.compile(rf"^{MARK}(\d+)(?:\D.*)?$")
INT8_OPERATORS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger")


def left_in_float(marked: onnx.ModelProto, units: Units, int8: Iterable[int], threads: int = 1) -> Mapping[int, str]:
    """Return the heavy units of ``int8`` that ONNX Runtime does not run in int8, with what it runs instead.

    Args:
        marked: the quantized model, its units' nodes named ``MARK`` and their index.
        units: units of the float model.
        int8: the units that were written to run in int8.
        threads: intra-op threads of the session.

    Returns:
        operator that runs in float by unit index; empty text where the unit was merged into another operator.
    """
    runs_as: dict[int, str] = {}
    for node in runtime.optimized_graph(marked, threads).graph.node:
        found = _MARKED.match(node.name)
        if found:
            runs_as[int(found[1])] = node.op_type
    return {
        index: runs_as.get(index, "")
        for index in sorted(int8)
        if units.all[index].role is Role.HEAVY and not runs_as.get(index, "").startswith(INT8_OPERATORS)
    }
