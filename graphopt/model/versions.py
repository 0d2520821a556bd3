"""IR version facts."""

from __future__ import annotations

import onnx


def initializers_are_constants(model: onnx.ModelProto) -> bool:
    """Whether an initializer that is also a graph input is a constant.

    Below IR version 4 every initializer had to be listed as an input and runtimes treat it as a constant; from 4 on
    such an input is a default that the caller may override (onnx/docs/IR.md, 'Graphs'; ONNX Runtime does so).
    """
    return model.ir_version < 4


def raise_ir_version(model: onnx.ModelProto, minimum: int) -> None:
    """Raise the IR version of ``model`` in place to at least ``minimum``; what is constant stays constant.

    Crossing from 3 to 4, inputs that have an initializer are taken off the list of inputs. Left there they would
    become overridable and ONNX Runtime would stop folding them.
    """
    if model.ir_version >= minimum:
        return
    if initializers_are_constants(model) and minimum >= 4:
        constants = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in constants]
        if len(inputs) < len(model.graph.input):
            kept = onnx.GraphProto(input=inputs)
            del model.graph.input[:]
            model.graph.input.MergeFrom(kept.input)
    model.ir_version = minimum
