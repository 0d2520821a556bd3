"""Is separation exact at full rank? Every convolution of many networks, alone and in place.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.separate_exact MODEL_OR_FOLDER ... [--operators] [--whole]
        [--out results.jsonl] [--table results.md]

Each Conv and ConvTranspose (of subgraphs too) is taken out with its attributes and weights, fed noise of a few output
positions, and written as its factors at full rank in every form and layout that can be written. Said is the largest
difference over the largest output, both run in ONNX Runtime with its optimizations off. ``--operators`` adds onnx's own
operator tests, whose answers are compared, too. ``--whole`` also separates all convolutions of each network at once,
in place, where residual additions are taken up, and compares the network's outputs. Layers that occur again with the
same weights, attributes and sizes are looked at once. One JSON line a network, and a table of all.
"""

import argparse
import gc
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.exact_feeds import feeds
from benchmarks.prune_surgery import compared
from benchmarks.suite_cases import cases
from graphopt import runtime
from graphopt.graph import verify
from graphopt.model import load, upgrade_opset
from graphopt.model.walk import bodies
from graphopt.passes.separable.decompose import decompose, geometry_of
from graphopt.passes.separable.factors import Factors, Form, Geometry
from graphopt.passes.separable.write import Layout, can_write, write
from graphopt.recovery.layers import find_layers, read_weights
from graphopt.recovery.net import Net

FORMS: tuple[Form, ...] = ("depthwise_first", "pointwise_first", "spatial")
LAYOUTS: tuple[Layout, ...] = ("sum", "concat", "multiplier")
# Of outputs' largest value; float16 keeps three digits.
LIMIT, HALF_LIMIT = 2e-5, 5e-3
IN_PLACE = 1e-4
# Further off, how many times what rounding the inputs does.
ROUNDINGS, DRAWS = 10, 8
# The spatial form's rank grows with the channels: beyond this an eigendecomposition takes a minute.
LARGEST_RANK = 1024


HEADER = """# Separation at full rank

Written by `python -m benchmarks.separate_exact`: every convolution alone, written as its factors at full rank, against
the original; differences over the largest output, ONNX Runtime's optimizations off.

"""


@dataclass
class Found:
    """What was found of one network.

    Attributes:
        convolutions: nodes seen.
        looked_at: layers that were separated, each once.
        again: layers of those seen before, in this network or another.
        refused: why the others cannot be separated -> how many.
        written: "form layout" -> layers.
        unwritten: why a form or layout could not be written -> how many.
        differences: "form layout" -> the largest difference.
        whole: the largest difference of the network's outputs with everything separated in place.
        faults: what went wrong.
    """

    model: str
    convolutions: int = 0
    looked_at: int = 0
    again: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    unwritten: Counter[str] = field(default_factory=Counter)
    differences: dict[str, float] = field(default_factory=dict)
    whole: float | None = None
    faults: list[str] = field(default_factory=list)


def answers(model: onnx.ModelProto, feed: Mapping[str, Any]) -> Mapping[str, Any]:
    """The outputs of a model, on one thread: most layers are tiny."""
    return runtime.run(runtime.session(model, optimize=False), feed)


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every constant by name; light networks hold theirs as ConstantOfShape."""
    found: dict[str, np.ndarray] = {}
    for body in bodies(model):
        for tensor in getattr(body.proto, "initializer", ()):
            found[tensor.name] = numpy_helper.to_array(tensor)
        for node in body.proto.node:
            given = {each.name: each for each in node.attribute}
            if node.op_type == "Constant" and "value" in given:
                found[node.output[0]] = numpy_helper.to_array(given["value"].t)
            elif node.op_type == "ConstantOfShape" and node.input[0] in found:
                value = numpy_helper.to_array(given["value"].t)[0] if "value" in given else np.float32(0)
                found[node.output[0]] = np.full(found[node.input[0]], value)
            elif node.op_type == "Identity" and node.input[0] in found:
                found[node.output[0]] = found[node.input[0]]
    return found


def operator_set(model: onnx.ModelProto) -> int:
    """The model's operator set; at least 7, for ONNX Runtime has no older Add."""
    return max(7, *(each.version for each in model.opset_import if each.domain in ("", "ai.onnx")))


def alone(node: onnx.NodeProto, weights: np.ndarray, bias: np.ndarray | None, opset: int) -> onnx.ModelProto:
    """A network of one convolution."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:], copy.output[:]
    copy.input.extend(["x", "w"] if bias is None else ["x", "w", "b"])
    copy.output.append("y")
    copy.name = "layer"
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    groups = given.get("group", 1)
    channels = weights.shape[1] * groups if node.op_type == "Conv" else weights.shape[0]
    sizes = [_size(node.op_type, given, axis, weights.shape[2:]) for axis in range(weights.ndim - 2)]
    dtype = helper.np_dtype_to_tensor_dtype(weights.dtype)
    graph = helper.make_graph(
        [copy],
        "layer",
        [helper.make_tensor_value_info("x", dtype, [1, channels, *sizes])],
        [helper.make_tensor_value_info("y", dtype, ["n", *"abcd"[: weights.ndim - 1]])],
        [numpy_helper.from_array(np.ascontiguousarray(weights), "w")],
    )
    if bias is not None:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(bias), "b"))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _size(operator: str, given: Mapping[str, Any], axis: int, kernel: tuple[int, ...]) -> int:
    """Input size along an axis for which there are a few positions of output, some of which meet the padding."""
    axes = len(kernel)
    stride, dilation = (given.get(name, [1] * axes)[axis] for name in ("strides", "dilations"))
    spread = (kernel[axis] - 1) * dilation + 1
    pads = given.get("pads", [0] * (2 * axes))
    padded = pads[axis] + pads[axes + axis]
    if operator == "ConvTranspose":
        if "output_shape" in given:
            return -(-given["output_shape"][axis - axes] // stride)
        return 3 + padded // stride
    if given.get("auto_pad", b"NOTSET").startswith(b"SAME"):
        return spread // 2 + 2 * stride + 1
    return max(spread - padded, 1) + 2 * stride


def layers_of(model: onnx.ModelProto, found: Found) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Each convolution with constant weights as a network of its own."""
    constants = constants_of(model)
    opset = operator_set(model)
    for body in bodies(model):
        for node in body.proto.node:
            if node.op_type not in ("Conv", "ConvTranspose"):
                continue
            found.convolutions += 1
            weights = constants.get(node.input[1])
            geometry = geometry_of(node, None if weights is None else weights.shape)
            if isinstance(geometry, str):
                found.refused[geometry] += 1
            elif weights is not None:
                bias = constants.get(node.input[2]) if len(node.input) > 2 else None
                yield node.name or node.output[0], alone(node, weights, bias, opset)


def full_rank(model: onnx.ModelProto, tensor: str, form: Form) -> Factors:
    """Factors of a layer that stand for all of it."""
    net = Net(model)
    layer = next(each for each in find_layers(net)[0] if each.name == tensor)
    geometry = geometry_of(net.steps[layer.step][0], net.constants[net.steps[layer.step][0].input[1]].dims)
    assert isinstance(geometry, Geometry)
    return decompose(read_weights(net, layer).matrix, geometry, form, geometry.full_rank(form))


def examine(name: str, model: onnx.ModelProto, found: Found, seen: set[bytes]) -> None:
    """Separate one layer in every way."""
    key = hashlib.blake2b(model.SerializeToString(deterministic=True)).digest()
    if key in seen:
        found.again += 1
        return
    seen.add(key)
    found.looked_at += 1
    (node,) = model.graph.node
    specs = runtime.input_specs(model)
    shape = [size if isinstance(size, int) else 1 for size in specs[0].shape or ()]
    feed = {"x": np.random.default_rng(0).normal(size=shape).astype(specs[0].dtype)}
    before = answers(model, feed)
    for form in FORMS:
        reasons = {layout: can_write(node, form, layout) for layout in LAYOUTS}
        factors = None
        for layout, reason in reasons.items():
            if reason:
                found.unwritten[f"{form} {layout}: {reason}"] += 1
                continue
            if factors is None:
                net = Net(model)
                geometry = geometry_of(node, net.constants["w"].dims)
                assert isinstance(geometry, Geometry)
                if geometry.full_rank(form) > LARGEST_RANK:
                    found.unwritten[f"{form}: full rank above {LARGEST_RANK}, not tried"] += 1
                    break
                factors = full_rank(model, "y", form)
            after = write(model, {"y": factors}, {"y": layout})
            verify(after)
            compare(f"{form} {layout}", name, before, answers(after, feed), found)


def compare(kind: str, name: str, before: Mapping[str, Any], after: Mapping[str, Any], found: Found) -> None:
    """Note how far a layer's output is off."""
    found.written[kind] += 1
    one, other = before["y"], after["y"]
    if one.shape != other.shape:
        found.faults.append(f"{name} {kind}: shape {other.shape}, not {one.shape}")
        return
    largest = float(np.abs(one.astype(np.float64)).max(initial=0.0)) or 1.0
    off = float(np.abs(one.astype(np.float64) - other).max(initial=0.0)) / largest
    if one.dtype.itemsize >= 4:
        found.differences[kind] = max(found.differences.get(kind, 0.0), off)
    if not off <= (LIMIT if one.dtype.itemsize >= 4 else HALF_LIMIT):
        found.faults.append(f"{name} {kind}: off by {off:.2e}")


def in_place(model: onnx.ModelProto, name: str, found: Found) -> None:
    """Separate all that can be in the network itself, and compare its outputs."""
    feed = next(iter(feeds(model, name)))
    model = upgrade_opset(model, 7)[0]
    net = Net(model)
    factors: dict[str, Factors] = {}
    for layer in find_layers(net)[0]:
        (node,) = net.steps[layer.step]
        geometry = geometry_of(node, net.constants[node.input[1]].dims)
        if isinstance(geometry, Geometry) and layer.kind in ("convolution", "transposed"):
            form: Form = FORMS[len(factors) % 2]
            factors[layer.name] = decompose(read_weights(net, layer).matrix, geometry, form, geometry.full_rank(form))
    if factors:
        after = write(model, factors, dict.fromkeys(factors, "sum"))
        verify(after)
        before = answers(model, feed)
        fault, found.whole = compared(before, answers(after, feed))
        # A sigmoid that says 1e-5 is not known to four digits, and boxes that score alike change places: what the
        # input's own rounding does is no fault.
        if fault and found.whole > ROUNDINGS * rounding(model, feed, before):
            found.faults.append(f"in place: {fault}")


def rounding(model: onnx.ModelProto, feed: Mapping[str, Any], before: Mapping[str, Any]) -> float:
    """How far a network's outputs move where inputs are rounded otherwise, at most in some draws."""
    rng = np.random.default_rng(0)
    shaken = ({name: nudged(values, rng) for name, values in feed.items()} for _ in range(DRAWS))
    return max(compared(before, answers(model, each))[1] for each in shaken)


def nudged(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An input with roundings of its own."""
    if values.dtype.kind != "f":
        return values
    noise = rng.normal(size=values.shape) * np.finfo(values.dtype).eps
    return (values * (1 + noise)).astype(values.dtype)


def network(path: Path, seen: set[bytes], whole: bool) -> Found:
    """All of one network."""
    found = Found(path.stem)
    try:
        model = load(path)
        for name, layer in layers_of(model, found):
            try:
                examine(name, layer, found, seen)
            except Exception as error:
                found.faults.append(f"{name}: {type(error).__name__}: {error}"[:400])
        if whole:
            in_place(model, path.stem, found)
    except Exception as error:
        found.faults.append(f"{type(error).__name__}: {error}"[:400])
    return found


def operator_tests(seen: set[bytes]) -> Iterator[Found]:
    """Onnx's tests of Conv and ConvTranspose, weights and bias made constant."""
    for case in cases():
        nodes = [node for node in case.model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
        if len(nodes) != 1 or len(case.model.graph.node) != 1 or nodes[0].domain not in ("", "ai.onnx"):
            continue
        found = Found(case.name, convolutions=1)
        names = [value.name for value in case.model.graph.input]
        given = {**{t.name: numpy_helper.to_array(t) for t in case.model.graph.initializer},
                 **dict(zip(names, case.inputs, strict=False))}  # fmt: skip
        (node,) = nodes
        geometry = geometry_of(node, given[node.input[1]].shape)
        if isinstance(geometry, str):
            found.refused[geometry] += 1
            yield found
            continue
        bias = given.get(node.input[2]) if len(node.input) > 2 else None
        try:
            model = alone(node, given[node.input[1]], bias, operator_set(case.model))
            model.graph.input[0].CopyFrom(
                helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, given[node.input[0]].shape)
            )
            examine(case.name, model, found, seen)
            for form in FORMS:
                if not can_write(node, form, "sum"):
                    after = write(model, {"y": full_rank(model, "y", form)}, {"y": "sum"})
                    wanted = {"y": np.asarray(case.outputs[0])}
                    compare(f"{form} expected", case.name, wanted, answers(after, {"x": given[node.input[0]]}), found)
        except Exception as error:
            found.faults.append(f"{type(error).__name__}: {error}"[:400])
        yield found


def stored(path: Path) -> Iterator[Found]:
    """What an earlier run wrote by ``--out``."""
    for line in path.read_text(encoding="utf-8").splitlines():
        found = Found(**json.loads(line))
        for name in ("refused", "written", "unwritten"):
            setattr(found, name, Counter(getattr(found, name)))
        yield found


def results(paths: list[Path], operators: bool, whole: bool) -> Iterator[Found]:
    seen: set[bytes] = set()
    for path in paths:
        if path.suffix == ".jsonl":
            yield from stored(path)
            continue
        yield network(path, seen, whole)
        gc.collect()
    if operators:
        yield from operator_tests(seen)


def table(every: list[Found]) -> str:
    """What was found of all of them."""
    written, unwritten, refused = (
        sum((getattr(found, name) for found in every), Counter()) for name in ("written", "unwritten", "refused")
    )
    total, looked, again = (
        sum(getattr(each, name) for each in every) for name in ("convolutions", "looked_at", "again")
    )
    lines = [f"{len(every)} networks, {total} convolutions: {looked} separated, {again} the same as one of those"]
    lines += [f"{count:6d} not: {reason}" for reason, count in refused.most_common()]
    lines += ["", f"{'form, layout':32s} {'layers':>7s} {'largest difference':>19s}"]
    for kind, count in sorted(written.items()):
        worst = max((found.differences.get(kind, 0.0) for found in every), default=0.0)
        lines.append(f"{kind:32s} {count:7d} {worst:19.1e}")
    lines += ["", *(f"{count:6d} {reason}" for reason, count in unwritten.most_common())]
    wholes = [found.whole for found in every if found.whole is not None]
    if wholes:
        near = [each for each in wholes if each <= IN_PLACE]
        lines.append(
            f"\n{len(wholes)} networks separated in place, {len(near)} of them off by {max(near):.1e} at most,"
        )
        lines.append("the others by what rounding of their inputs does (unless counted below)")
    lines.append(f"{sum(bool(found.faults) for found in every)} networks with faults")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="networks, folders of them, or results of --out")
    parser.add_argument("--operators", action="store_true", help="onnx's operator tests, too")
    parser.add_argument("--whole", action="store_true", help="whole networks, too")
    parser.add_argument("--out", type=Path, help="append one JSON line a network")
    parser.add_argument("--table", type=Path, help="write the table of all here, as Markdown")
    options = parser.parse_args()
    paths = [path for given in options.models for path in (sorted(given.glob("*.onnx")) if given.is_dir() else [given])]
    every = []
    for found in results(paths, options.operators, options.whole):
        every.append(found)
        worst = max(found.differences.values(), default=0.0)
        print(f"{found.model[:44]:44s} {found.convolutions:5d} {found.looked_at:5d} {worst:8.1e} "
              f"{'' if found.whole is None else f'{found.whole:8.1e}'}", flush=True)  # fmt: skip
        for fault in found.faults[:3]:
            print(f"    {fault}", flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(vars(found)) + "\n")
    print(f"\n{table(every)}")
    if options.table is not None:
        options.table.write_text(HEADER + f"```\n{table(every)}\n```\n", encoding="utf-8")
    return 1 if any(found.faults for found in every) else 0


if __name__ == "__main__":
    sys.exit(main())
