"""Weights that are stored more than once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import onnx

from graphopt.checking.catalog import DUPLICATE_WEIGHTS
from graphopt.checking.unused import shortened
from graphopt.model import initializers_are_constants
from graphopt.model.tensors import byte_count, is_external
from graphopt.rules import Finding

MINIMUM_BYTES = 1024
"""Smaller tensors are not compared: equal scalars and short vectors are everywhere, and cost nothing."""
_PROBE = 64
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def duplicates(model: onnx.ModelProto) -> Iterator[Finding]:
    """Yield one finding for all initializers and constants of the main graph that repeat an earlier one.

    Compared are type, shape and bytes. Left out: what the graph returns, defaults of inputs that the caller may
    override, external data that was not read, and scales and zero points, of which every quantizer has its own.
    """
    graph = model.graph
    own = {info.name for info in graph.output}
    if not initializers_are_constants(model):
        own.update(info.name for info in graph.input)
    own.update(name for node in graph.node if node.op_type in _QUANTIZERS for name in node.input[1:])
    alike: dict[tuple[object, ...], list[tuple[str, onnx.TensorProto]]] = {}
    for name, tensor in _stored(graph):
        if name in own or is_external(tensor) or byte_count(tensor) < MINIMUM_BYTES:
            continue
        alike.setdefault((tensor.data_type, *tensor.dims), []).append((name, tensor))
    repeated: list[tuple[str, str]] = []
    wasted = 0
    for group in alike.values():
        for first, *others in _equal(group):
            repeated += [(name, first[0]) for name, _ in others]
            wasted += byte_count(first[1]) * len(others)
    if repeated:
        pairs = [f"{name} repeats {first}" for name, first in repeated]
        one = "1 weight is" if len(pairs) == 1 else f"{len(pairs)} weights are"
        yield DUPLICATE_WEIGHTS.finding(
            repeated[0][0], f"{one} stored more than once, {wasted:,} bytes too many: {shortened(pairs)}"
        )


def _stored(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant" and node.domain == "":
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.HasField("t"):
                    yield node.output[0], attribute.t


def _equal(group: Sequence[tuple[str, onnx.TensorProto]]) -> list[list[tuple[str, onnx.TensorProto]]]:
    """Groups of at least two tensors of equal values; a few bytes tell most apart, and spare hashing them whole."""
    if len(group) < 2:
        return []
    by_probe: dict[bytes, list[tuple[str, onnx.TensorProto, bytes]]] = {}
    for name, tensor in group:
        content = tensor.raw_data or bytes(onnx.numpy_helper.to_array(tensor).tobytes())
        middle = len(content) // 2
        probe = content[:_PROBE] + content[middle : middle + _PROBE] + content[-_PROBE:]
        by_probe.setdefault(probe, []).append((name, tensor, content))
    found: list[list[tuple[str, onnx.TensorProto]]] = []
    for likely in by_probe.values():
        by_digest: dict[bytes, list[tuple[str, onnx.TensorProto]]] = {}
        for name, tensor, content in likely if len(likely) > 1 else ():
            by_digest.setdefault(hashlib.sha256(content).digest(), []).append((name, tensor))
        found += [equal for equal in by_digest.values() if len(equal) > 1]
    return found
