"""Write operators that the target does not take as simpler ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.graph import Index, add_node, is_op, variable, walk
from graphopt.passes.base import Context, PassReport


@dataclass(frozen=True)
class WriteOut:
    """Write operators that the target does not take as simpler ones."""

    name: ClassVar[str] = "write_out"
    summary: ClassVar[str] = "write operators that the target does not take as simpler ones"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        unwanted = {*context.hardware.written_out, *context.hardware.refused_operators}
        if "HardSwish" not in unwanted:
            return PassReport(0)
        index = Index(graph)
        found = [node for home in walk(graph) for node in home.nodes if is_op(node, "HardSwish")]
        for node in found:
            (source,), (target,), home = node.inputs, node.outputs, index.home(node)
            name = node.name or target.name
            gate = variable(index, f"{name}_gate")
            line = {"alpha": 1 / 6, "beta": 0.5}
            add_node(index, "HardSigmoid", [source], [gate], line, prefix=f"{name}_gate", home=home)
            add_node(index, "Mul", [source, gate], [target], prefix=f"{name}_mul", home=home)
        index.drop(found)
        index.finish()
        return PassReport(len(found), details={"HardSwish": len(found)} if found else {})
