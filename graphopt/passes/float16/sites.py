"""Nodes that read or write float32, and which of their inputs and outputs would be float16.

An input or output *follows* its node's precision where the operator's schema has float16 as well as float32 for it.
Others keep float32 whatever the node computes in: scales of Resize, coordinates of GridSample, statistics that
LayerNormalization gives out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import TensorType, dtype_of, is_constant, is_op, types_of, values_of, walk
from graphopt.passes.opset_steps import schema_of
from graphopt.passes.opset_types import taken_types

FLOAT = onnx.TensorProto.FLOAT
_BOTH = {"tensor(float)", "tensor(float16)"}

# Inputs that stay float32 although they might be float16: positions and shares, not values.
_APART: Mapping[str, frozenset[int]] = {
    "Dropout": frozenset({1}),
    "GridSample": frozenset({1}),
    "Resize": frozenset({1, 2}),
}
# Operators that are left in float32, with the reason.
_BLOCKED: Mapping[str, str] = {
    "AffineGrid": "it makes positions, which float16 blurs",
    "Col2Im": "it adds up overlapping blocks",
    "CumProd": "it multiplies many values one after the other",
    "CumSum": "it adds up many values one after the other",
    "DFT": "it adds up many values",
    "DeformConv": "its offsets are positions, which float16 blurs",
    "Det": "its products leave the range of float16",
    "MaxRoiPool": "its boxes are positions, which float16 blurs",
    "MelWeightMatrix": "it makes positions, which float16 blurs",
    "Mod": "it tells remainders, which float16 blurs",
    "NonMaxSuppression": "its boxes are positions, which float16 blurs",
    "Range": "it counts, and float16 counts to 2048",
    "ReduceProd": "its product leaves the range of float16",
    "RoiAlign": "its boxes are positions, which float16 blurs",
    "STFT": "it adds up many values",
    "TopK": "its order may change, and whatever is picked by it",
}
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
# Operators whose results hold nothing that their inputs did not hold: rounded values stay as they are.
MOVES = frozenset(
    {
        "BatchToSpace", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements",
        "GatherND", "Identity", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Relu", "Neg", "Abs", "Max",
        "Min", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
        "Compress", "ReverseSequence", "Trilu", "Clip", "Sign", "Floor", "Ceil", "Round",
    }
)  # fmt: skip
# What Q and DQ read and write in float16 from this opset version on.
_HALF_SCALES = 19


@dataclass(frozen=True)
class Site:
    """A node that reads or writes float32.

    Attributes:
        number: its place among all nodes, subgraphs included; the same each time that the model is opened.
        node: the node.
        home: the graph that it stands in.
        reads: inputs that follow its precision.
        writes: outputs that do.
        blocked: why it must compute in float32 whatever the values are; empty where it need not.
    """

    number: int
    node: gs.Node
    home: gs.Graph
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    blocked: str = ""

    @property
    def has_float16(self) -> bool:
        """Whether a runtime that chooses types by itself might run it in float16."""
        return not self.blocked or self.node.op in _BLOCKED

    @property
    def name(self) -> str:
        """The node's name, else that of its first output."""
        return str(self.node.name or next((each.name for each in self.node.outputs if not each.is_empty()), ""))


def find_sites(graph: gs.Graph) -> list[Site]:
    """Every node that reads or writes float32, in the order of the graph, those of subgraphs after their parents."""
    types = types_of(graph)
    found: list[Site] = []
    number = -1
    for home in walk(graph):
        for node in home.nodes:
            number += 1
            if is_op(node, "Constant"):
                continue
            site = _site(number, node, home, graph.opset, types)
            if site is not None:
                found.append(site)
    return _without_sizes(found)


def is_single(tensor: gs.Tensor, types: Mapping[str, TensorType]) -> bool | None:
    """Whether a tensor holds float32; None where its type is not known."""
    if tensor.is_empty():
        return False
    if isinstance(tensor, gs.Constant):
        return bool(dtype_of(tensor) == np.float32)
    found = types.get(tensor.name)
    return None if found is None or not found.dtype else found.dtype == FLOAT


def _site(number: int, node: gs.Node, home: gs.Graph, opset: int, types: Mapping[str, TensorType]) -> Site | None:
    inputs = [is_single(tensor, types) for tensor in node.inputs]
    outputs = [is_single(tensor, types) for tensor in node.outputs]
    if not any(single is not False for single in (*inputs, *outputs)):
        return None
    if not is_op(node, node.op):
        return Site(number, node, home, (), (), f"{node.op} of domain {node.domain} may have no float16 form")
    if node.op in _CONTROL:
        return Site(number, node, home, (), (), "what goes into its body and comes out of it stays float32")
    schema = schema_of(node.op, opset)
    if schema is None:
        return Site(number, node, home, (), (), f"{node.op} is not known at opset {opset}")
    apart = _APART.get(node.op, frozenset())
    taken, made = taken_types(schema, len(node.inputs), len(node.outputs))
    reads = tuple(
        slot for slot, each in enumerate(taken) if each >= _BOTH and inputs[slot] is not False and slot not in apart
    )
    writes = tuple(slot for slot, each in enumerate(made) if each >= _BOTH and outputs[slot] is not False)
    unknown = any(inputs[slot] is None for slot in reads) or any(outputs[slot] is None for slot in writes)
    reason = _reason(node, opset, bool(reads or writes), unknown)
    return Site(number, node, home, reads, writes, reason)


def _reason(node: gs.Node, opset: int, follows: bool, unknown: bool) -> str:
    if node.op in _BLOCKED:
        return _BLOCKED[node.op]
    if node.op in {"QuantizeLinear", "DequantizeLinear"} and opset < _HALF_SCALES:
        return f"its scale is float32 before opset {_HALF_SCALES}"
    if node.op == "QuantizeLinear" and is_constant(node.inputs[0]):
        return "it rounds a constant"
    if not follows:
        return f"{node.op} of opset {opset} has no float16"
    return "the type of what it reads or writes is not known" if unknown else ""


# Arithmetic that exporters write on sizes: between a Cast to float and one back to integers.
_ON_SIZES = frozenset(
    {
        "Add", "Cast", "Ceil", "Concat", "Div", "Floor", "Gather", "Identity", "Max", "Min", "Mul", "Neg", "Pow",
        "Reciprocal", "Reshape", "Round", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Unsqueeze",
    }
)  # fmt: skip


def _without_sizes(sites: list[Site]) -> list[Site]:
    """Block arithmetic that whole numbers are made of: float16 tells them apart up to 2048 only."""
    by_node = {id(site.node): at for at, site in enumerate(sites)}
    pending = [site.node for site in sites if _makes_whole(site)]
    counting: set[int] = set()
    while pending:
        node = pending.pop()
        if id(node) in counting or id(node) not in by_node or node.op not in _ON_SIZES:
            continue
        counting.add(id(node))
        pending.extend(producer for tensor in node.inputs for producer in tensor.inputs)
    return [
        Site(site.number, site.node, site.home, site.reads, site.writes, "whole numbers are made of what it computes")
        if id(site.node) in counting and not site.blocked
        else site
        for site in sites
    ]


def _makes_whole(site: Site) -> bool:
    """Whether the node casts floats to integers."""
    if not is_op(site.node, "Cast") or not site.reads:
        return False
    made = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(site.node.attrs.get("to", FLOAT))))
    return made.kind in "iu"


def constants_of(site: Site) -> Iterator[tuple[int, gs.Tensor]]:
    """The constants that a node reads in its own precision, with their slots."""
    for slot in site.reads:
        tensor = site.node.inputs[slot]
        if is_constant(tensor) and values_of(tensor) is not None:
            yield slot, tensor
