"""What the tests of ``quantize_int8`` share: tiny float models, fixed ranges, and graphs told as lines of text."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt import runtime
from graphopt.graph import infer_types
from graphopt.passes.quantize_int8.fused import MARK, left_in_float
from graphopt.passes.quantize_int8.placement import Placement, place
from graphopt.passes.quantize_int8.units import Role, Units, find_units
from graphopt.passes.quantize_int8.write import write
from graphopt.targets.schema import Int8Rules

U8 = Int8Rules()
Range = tuple[float, float]

QUANTIZED_BEHIND_OUR_BACK = (
    "ONNX Runtime (WeightBiasQuantization, since 1.21) rounds by itself the weights of a Conv or Gemm in float between "
    "DequantizeLinear and QuantizeLinear, to 8 bits with one scale for all channels, and runs it in int8: what was "
    "left in float for speed or accuracy is neither. A DequantizeLinear of its own, its scale repeated for each "
    "channel, keeps it in float (tried)"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measurements of one test are not seen by another, nor by the user's own runs."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(folder))
    return folder


def net(text: str, *, opset: int = 17, **given: Any) -> onnx.ModelProto:
    """Parse a graph in ONNX text form; initializers declared without values get He-normal weights drawn by name."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> ' if not text.lstrip().startswith("<") else ""
    model = onnx.parser.parse_model(head + text)
    made = {name for node in model.graph.node for name in node.output}
    declared = [value for value in model.graph.value_info if value.name not in made]
    for value in declared:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value for dim in tensor.shape.dim)
        if value.name in given:
            values = np.asarray(given[value.name])
        else:
            spread = np.sqrt(2.0 / max(1, int(np.prod(shape[1:])))) if len(shape) > 1 else 0.1
            values = np.random.default_rng(zlib.crc32(value.name.encode())).normal(0, spread, size=shape)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(dtype).reshape(shape), value.name))
        model.graph.value_info.remove(value)
    return model


def units_of(model: onnx.ModelProto) -> Units:
    """Units with the element types that shape inference finds."""
    return find_units(model, {name: found.dtype for name, found in infer_types(model).items() if found.dtype})


class Ranges(dict[str, Range]):
    """The ranges given by name, and one for all other tensors."""

    def __init__(self, other: Range = (-8.0, 8.0), **given: Range) -> None:
        super().__init__(given)
        self._other = other

    def __missing__(self, key: str) -> Range:
        return self._other


def quantized(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range] | None = None,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    rules: Int8Rules = U8,
    mark: str = "",
    **placed: Any,
) -> onnx.ModelProto:
    """Write ``model`` with every unit in int8 that can be and whose name is ``wanted``; checked."""
    before = model.SerializeToString(deterministic=True)
    units = units_of(model)
    chosen = [unit.index for unit in units.all if unit.role is not Role.FLOAT and wanted(unit.name)]
    placement = place(units, chosen, ranges if ranges is not None else Ranges(), rules, **placed)
    result = write(model, units, placement, rules, mark=mark)
    onnx.checker.check_model(result, full_check=True)
    assert model.SerializeToString(deterministic=True) == before
    assert [value.name for value in result.graph.output] == [value.name for value in model.graph.output]
    return result


def placement_of(model: onnx.ModelProto, ranges: Mapping[str, Range], rules: Int8Rules = U8) -> Placement:
    """The placement with every unit in int8 that can be."""
    units = units_of(model)
    return place(units, [unit.index for unit in units.all if unit.role is not Role.FLOAT], ranges, rules)


def flow(model: onnx.ModelProto) -> list[str]:
    """Tell who reads whom: one line an edge, ``Conv -> Q -> DQ -> Relu``; weights are left out.

    A node is called by its operator, with a number from the second of its kind on; inputs and outputs of the graph by
    their names. Edges come in the order of the readers.
    """
    seen: dict[str, int] = {}
    came_by: dict[str, str] = {value.name: value.name for value in model.graph.input}
    constants = {tensor.name for tensor in model.graph.initializer}
    lines: list[str] = []
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            short = "Q" if node.op_type == "QuantizeLinear" else "DQ"
            if node.input[0] in constants:
                constants.update(node.output)
                continue
            came_by[node.output[0]] = f"{came_by[node.input[0]]} -> {short}"
            continue
        seen[node.op_type] = seen.get(node.op_type, 0) + 1
        name = node.op_type + (str(seen[node.op_type]) if seen[node.op_type] > 1 else "")
        captured = {read for attribute in node.attribute for inner in attribute.g.node for read in inner.input}
        for read in (*node.input, *sorted(captured)):
            if read in came_by:
                lines.append(f"{came_by[read]} -> {name}")
        came_by |= dict.fromkeys(node.output, name)
    return [*lines, *(f"{came_by[value.name]} -> {value.name}" for value in model.graph.output)]


def quantizers(model: onnx.ModelProto) -> dict[str, tuple[float, int]]:
    """Scale and zero point of every QuantizeLinear, by the tensor it quantizes without the suffix ``_float``."""
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.input[0].removesuffix("_float"): (float(values[node.input[1]]), int(values[node.input[2]]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in values
    }


def unfused(model: onnx.ModelProto, ranges: Mapping[str, Range] | None = None, **options: Any) -> dict[str, str]:
    """Which heavy units ONNX Runtime leaves in float when all are written for int8: name -> what runs instead."""
    units = units_of(model)
    chosen = [unit.index for unit in units.all if unit.role is not Role.FLOAT]
    marked = quantized(model, ranges, mark=MARK, **options)
    return {units.all[index].name: operator for index, operator in left_in_float(marked, units, chosen).items()}


def count(model: onnx.ModelProto, operator: str) -> int:
    return sum(node.op_type == operator for node in model.graph.node)


def runs_as(model: onnx.ModelProto) -> list[str]:
    """The operators that ONNX Runtime executes, in order, without conversions, constants and changes of layout."""
    left_out = ("QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput", "Constant")
    return [node.op_type for node in runtime.optimized_graph(model).graph.node if node.op_type not in left_out]


def feed_for(model: onnx.ModelProto, *, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Normally distributed inputs; open dimensions get ``batch``."""
    generator = np.random.default_rng(seed)
    fed = {}
    for spec in runtime.input_specs(model):
        shape = [size if isinstance(size, int) else batch for size in spec.shape or ()]
        fed[spec.name] = generator.normal(size=shape).astype(spec.dtype)
    return fed


def sqnr(model: onnx.ModelProto, other: onnx.ModelProto, fed: Mapping[str, np.ndarray[Any, Any]]) -> float:
    """Signal to noise of ``other``'s outputs against ``model``'s, in dB, with ONNX Runtime's optimizations off."""
    wanted = runtime.run(runtime.session(model, optimize=False), fed)
    found = runtime.run(runtime.session(other, optimize=False), fed)
    signal = sum(float(np.square(wanted[name].astype(np.float64)).sum()) for name in wanted)
    error = sum(float(np.square(wanted[name].astype(np.float64) - found[name]).sum()) for name in wanted)
    return float(10 * np.log10(signal / max(error, 1e-300)))
