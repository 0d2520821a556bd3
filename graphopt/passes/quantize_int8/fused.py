"""Read off ONNX Runtime's own optimized graph which units it really runs in int8."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import onnx

from graphopt import runtime
from graphopt.passes.quantize_int8.units import Role, Units

_MARK = "graphopt_unit_"
_MARKED = re.compile(rf"^{_MARK}(\d+)(?:_.*)?$")
INT8_OPERATORS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger")


def left_in_float(quantized: onnx.ModelProto, units: Units, int8: Iterable[int], threads: int = 1) -> Mapping[int, str]:
    """Return the heavy units of ``int8`` that ONNX Runtime does not run in int8, with what it runs instead.

    Nodes are marked in a copy by name, which ONNX Runtime keeps as the beginning of the name of what it makes of them.
    """
    first_output = {unit.node.output[0]: unit.index for unit in units.all}
    marked = onnx.ModelProto()
    marked.CopyFrom(quantized)
    names = dict(first_output.items())
    for node in marked.graph.node:
        if not node.output:
            continue
        index = names.get(node.output[0], names.get(node.output[0].removesuffix("_float")))
        if index is not None and node.op_type == units.all[index].node.op_type:
            node.name = f"{_MARK}{index}"
    runs_as: dict[int, str] = {}
    for node in runtime.optimized_graph(marked, threads).graph.node:
        found = _MARKED.match(node.name)
        if found:
            runs_as[int(found[1])] = node.op_type
    result = {}
    for index in sorted(int8):
        if units.all[index].role is not Role.HEAVY:
            continue
        operator = runs_as.get(index, "")
        if operator and not operator.startswith(INT8_OPERATORS):
            result[index] = operator
    return result
