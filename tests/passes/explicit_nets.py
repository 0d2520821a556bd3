"""What the tests of quantization for TensorRT share: a device's facts, and graphs written with every layer in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import onnx
from int8_nets import Range, Ranges

from graphopt.graph import infer_types
from graphopt.passes.quantize_int8.schemes import Scheme, scheme_for
from graphopt.passes.quantize_int8.units import Role, Units
from graphopt.targets.schema import Device, Hardware, Int8Rules, RuntimeModel

RULES = Int8Rules(
    activation_dtype="int8",
    quantize_bias=False,
    symmetric=True,
    quantized_operators=("Conv", "ConvTranspose", "Gemm", "MatMul"),
    quantize_outputs=False,
    residual_inputs="skip",
    shared_concat_scale=True,
    weight_nodes=True,
)
DEVICE = Device(
    compute_capability="8.7",
    multiprocessors=8,
    peak_tops={"float32": 2.0, "float16": 16.0, "int8": 32.0},
    bandwidth_gb_s=100.0,
    memory_gb=8.0,
    launch_us=5.0,
)
HARDWARE = Hardware(
    name="a board",
    runtime="tensorrt",
    runtime_version="8.6.2",
    providers=("CPUExecutionProvider",),
    opset=(7, 17),
    precisions=("float32", "float16", "int8"),
    channel_multiple={"float16": 8, "int8": 16},
    int8=RULES,
    device=DEVICE,
    runtimes=(RuntimeModel("tensorrt", fused=True, precision="float16", constants="datasheet"),),
)


def hardware(**rules: Any) -> Hardware:
    """The board, some of its rules for int8 changed."""
    return replace(HARDWARE, int8=replace(RULES, **rules))


def accelerator(**rules: Any) -> Hardware:
    """A deep learning accelerator, which takes a calibration cache."""
    return replace(
        HARDWARE,
        name="an accelerator",
        runtime_version="8.5.2",
        accelerator="dla",
        int8=replace(RULES, implicit=True, **rules),
    )


def cut(model: onnx.ModelProto, board: Hardware = HARDWARE) -> tuple[Scheme, Units]:
    """How the board wants int8 written, and the units of a model."""
    assert board.int8 is not None
    scheme = scheme_for(board, board.int8)
    dtypes = {name: found.dtype for name, found in infer_types(model).items() if found.dtype}
    return scheme, scheme.units(model, dtypes)


def written(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range] | None = None,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    board: Hardware = HARDWARE,
) -> onnx.ModelProto:
    """``model`` with every layer in int8 that the rules allow and whose name is ``wanted``; checked."""
    before = model.SerializeToString(deterministic=True)
    scheme, units = cut(model, board)
    refused = scheme.refused(units)
    able = [
        unit.index
        for unit in units.all
        if unit.role is not Role.FLOAT
        and unit.index not in refused
        and (unit.role is not Role.HEAVY or wanted(unit.name))
    ]
    chosen = scheme.settled(units, able)
    known = ranges if ranges is not None else Ranges()
    placed = scheme.place(units, chosen, {name: known[name] for name in scheme.tensors(units, chosen)})
    result = scheme.write(model, units, placed)
    onnx.checker.check_model(result, full_check=True)
    assert model.SerializeToString(deterministic=True) == before
    assert [value.name for value in result.graph.output] == [value.name for value in model.graph.output]
    return result
