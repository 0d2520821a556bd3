"""The one door for tests of passes: tiny models from text, passes applied under watch, outputs compared.

Runs are made with all of ONNX Runtime's graph optimizations off: otherwise it folds both sides the same way, and a
wrong fold of ours would go unseen.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs

from graphopt import runtime
from graphopt.graph import export_graph, import_graph, verify, walk
from graphopt.passes.base import Context, ExactPass, PassReport, Skip
from graphopt.targets import load_target

Arrays = Mapping[str, np.ndarray[Any, Any]]
HEAD = '<ir_version: 8, opset_import: ["" : {opset}]> '


def model(text: str, *, opset: int = 17, ir_version: int = 8, **weights: Any) -> onnx.ModelProto:
    """Parse a graph in ONNX text form; ``<float[6] w>`` declares a weight drawn from its name and shape.

    ``weights`` gives values for some by name. A tensor declared that way which a node writes stays a declaration.
    """
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> ' if not text.lstrip().startswith("<") else ""
    parsed = onnx.parser.parse_model(head + text)
    pending = [parsed.graph]
    while pending:
        graph = pending.pop()
        for node in graph.node:
            if not node.domain:
                node.ClearField("domain")  # The parser writes it out empty, exporters do not.
        written = {name for node in graph.node for name in node.output}
        declared = list(graph.value_info)
        graph.ClearField("value_info")
        for info in declared:
            if info.name in written:
                graph.value_info.append(info)
                continue
            tensor = info.type.tensor_type
            shape = tuple(dim.dim_value for dim in tensor.shape.dim)
            values = np.asarray(weights.get(info.name, _drawn(info.name, shape)))
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            graph.initializer.append(onnx.numpy_helper.from_array(values.astype(dtype), info.name))
        pending.extend(attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return parsed


def _drawn(name: str, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Values between 0.5 and 1.5 with both signs mixed in, except for variances, which are positive."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.uniform(0.5, 1.5, size=shape)
    return values if name.startswith("var") else values * rng.choice([-1.0, 1.0], size=shape)


def feeds(proto: onnx.ModelProto, *, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs; open dimensions get ``batch``."""
    rng = np.random.default_rng(seed)
    fed = {}
    for spec in runtime.input_specs(proto):
        shape = [size if isinstance(size, int) else batch for size in spec.shape or ()]
        if spec.dtype.kind == "b":
            fed[spec.name] = rng.integers(0, 2, size=shape).astype(bool)
        elif spec.dtype.kind in "iu":
            fed[spec.name] = rng.integers(0, 3, size=shape).astype(spec.dtype)
        else:
            fed[spec.name] = rng.normal(size=shape).astype(spec.dtype)
    return fed


def outputs(proto: onnx.ModelProto, fed: Arrays) -> dict[str, Any]:
    """Run a model with every graph optimization off."""
    return runtime.run(runtime.session(proto, optimize=False), fed)


def assert_same(before: Mapping[str, Any], after: Mapping[str, Any], *, rtol: float = 2e-5) -> None:
    """Compare outputs: equal names, dtypes and shapes; values within ``rtol`` of the largest of each output."""
    assert list(before) == list(after)
    for name, wanted in before.items():
        found = after[name]
        if not isinstance(wanted, np.ndarray):
            assert type(found) is type(wanted)
            continue
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
        if wanted.dtype.kind == "f" and wanted.size:
            finite = wanted[np.isfinite(wanted)]
            scale = float(np.abs(finite).max(initial=0.0)) or 1.0
            np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(found, wanted, err_msg=name)


def context(target: str = "cpu") -> Context:
    """A context for exact passes, which look at nothing in it but facts of the target."""
    return Context(hardware=load_target(target).hardware)


@dataclass(frozen=True)
class Run:
    """What a pass made of a model."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    report: PassReport

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return self.report.skipped

    @property
    def reasons(self) -> list[str]:
        return [skip.reason for skip in self.report.skipped]


def apply(
    one: ExactPass,
    proto: onnx.ModelProto,
    fed: Arrays | None = None,
    *,
    rtol: float = 2e-5,
    compare: bool = True,
    target: str = "cpu",
) -> Run:
    """Apply an exact pass and hold it to its promises.

    The model is valid before and after; outputs are the same; names of inputs and outputs stay; the caller's model is
    not touched; applied again, the pass changes nothing; the bytes are the same each time. ``compare=False`` leaves
    the outputs out, for operators that ONNX Runtime does not run.
    """
    untouched = proto.SerializeToString(deterministic=True)
    verify(proto)
    first, report = _once(one, proto, target)
    assert proto.SerializeToString(deterministic=True) == untouched, "the input model was changed"
    verify(first)
    assert [info.name for info in first.graph.output] == [info.name for info in proto.graph.output]
    assert [spec.name for spec in runtime.input_specs(first)] == [spec.name for spec in runtime.input_specs(proto)]
    repeated, _ = _once(one, proto, target)
    assert repeated.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)
    again, second = _once(one, first, target)
    assert second.changes == 0, f"a second run changed {second.changes} more: {second.details}"
    assert sorted(ops(again)) == sorted(ops(first))
    if report.changes == 0:
        assert ops(first) == ops(proto)
    if compare:
        fed = feeds(proto) if fed is None else fed
        assert_same(outputs(proto, fed), outputs(first, fed), rtol=rtol)
    return Run(proto, first, report)


def _once(one: ExactPass, proto: onnx.ModelProto, target: str) -> tuple[onnx.ModelProto, PassReport]:
    work = import_graph(proto)
    report = one.apply(work.gs, context(target))
    return export_graph(work), report


def ops(proto: onnx.ModelProto) -> list[str]:
    """Operator types in order, those of subgraphs after their parent's."""
    return [node.op_type for node in proto.graph.node]


def all_ops(graph: gs.Graph) -> list[str]:
    """Operator types of a graph and its subgraphs."""
    return [node.op for each in walk(graph) for node in each.nodes]


def initializer(proto: onnx.ModelProto, name: str) -> np.ndarray[Any, Any]:
    """The values of one initializer."""
    return onnx.numpy_helper.to_array(next(tensor for tensor in proto.graph.initializer if tensor.name == name))
