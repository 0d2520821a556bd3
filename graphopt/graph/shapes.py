"""Shapes and dtypes of all tensors, as ONNX's own inference finds them.

Inference over a whole model costs about what opening it costs, so an opened graph remembers what was found. A tensor
keeps its meaning while passes edit (see ``graphopt.graph``), therefore what is known of a name stays true; only nodes
that a pass added are inferred, on their own. All is inferred anew where that may tell more: when something was left
open, and a shape that was computed before has become a constant since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import onnx
import onnx.shape_inference
import onnx_graphsurgeon as gs

from graphopt.graph.exporting import skeleton, skeleton_of
from graphopt.graph.importing import described, import_graph
from graphopt.graph.opened import OpenGraph
from graphopt.graph.order import walk
from graphopt.graph.values import Shape, onnx_dtype

_Raw: TypeAlias = onnx.TensorProto | onnx.ValueInfoProto

# Operators whose result has a shape that lies in the values of an input, from that input on.
_SHAPED_BY = {
    "AffineGrid": 1, "CenterCropPad": 1, "ConstantOfShape": 0, "Expand": 1, "OneHot": 1, "Pad": 1, "Range": 0,
    "Reshape": 1, "Resize": 1, "Slice": 1, "Split": 1, "Squeeze": 1, "Tile": 1, "TopK": 1, "Unsqueeze": 1,
    "Upsample": 1,
}  # fmt: skip

# Operators of ONNX Runtime's own that have the shapes and types of a standard one, and how many inputs that reads.
_MICROSOFT = "com.microsoft"
_STANDARD = {"DynamicQuantizeLSTM": ("LSTM", 8), "FusedConv": ("Conv", 3), "FusedGemm": ("Gemm", 3)}


@dataclass(frozen=True)
class TensorType:
    """What is known of a tensor: ONNX element type (0 unknown) and shape (None: rank unknown)."""

    dtype: int
    shape: Shape | None


class Types(Mapping[str, TensorType]):
    """Types by name of tensor; declarations are read when asked for, which most never are.

    Values that are no tensors are iterated over, but asking for one raises KeyError, as for an unknown name.
    """

    def __init__(self) -> None:
        self._raw: dict[str, _Raw] = {}
        self._read: dict[str, TensorType] = {}
        self._made_up = 0
        self._constants: dict[str, int] = {}

    def __getitem__(self, name: str) -> TensorType:
        found = self._read.get(name)
        if found is None:
            read = _read(self._raw[name])
            if read is None:
                raise KeyError(name)
            found = self._read[name] = read
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def knows(self, name: str) -> bool:
        """Whether inference has seen the name, whatever it made of it."""
        return name in self._raw

    def raw(self, name: str) -> _Raw | None:
        """The declaration as inference gave it."""
        return self._raw.get(name)

    def add(self, declarations: Iterable[_Raw]) -> None:
        """Take declarations in; of a kind that is no tensor nothing can be asked."""
        self._raw.update({one.name: one for one in declarations})

    def take(self, other: Types) -> None:
        """Take over all that another holds."""
        self._raw.update(other._raw)

    def rename_made_up(self, declarations: Iterable[onnx.ValueInfoProto], given: Set[str]) -> None:
        """Give symbols that inference made up (not ``given``) names that no earlier inference has used."""
        names: dict[str, str] = {}
        for info in declarations:
            if not info.type.HasField("tensor_type"):
                continue
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_param and dim.dim_param not in given:
                    dim.dim_param = names.setdefault(dim.dim_param, f"unk__later_{self._made_up + len(names)}")
        self._made_up += len(names)

    def add_constants(self, graph: gs.Graph) -> None:
        """Take in the constants that nodes read, also those that were computed, of types half known, before."""
        for node in graph.nodes:
            for tensor in node.inputs:
                if not isinstance(tensor, gs.Constant) or self._constants.get(tensor.name) == id(tensor):
                    continue
                self.forget([tensor.name])
                # A name that sibling subgraphs give to different constants tells nothing.
                if self._constants.setdefault(tensor.name, id(tensor)) == id(tensor):
                    info = onnx.helper.make_tensor_value_info(
                        tensor.name, onnx_dtype(tensor.dtype), tuple(tensor.shape)
                    )
                    self.add([info])

    def forget(self, names: Iterable[str]) -> None:
        """Take names out."""
        for name in names:
            self._raw.pop(name, None)
            self._read.pop(name, None)


@dataclass(frozen=True)
class Known:
    """What an opened graph remembers.

    Attributes:
        types: what was found.
        computed_shapes: how many inputs that decide on a shape were computed when all was inferred.
        opset: the operator set version then.
        bodies: how many graphs there were, with subgraphs.
        nodes: the outputs of all nodes then.
    """

    types: Types
    computed_shapes: int
    opset: int
    bodies: int
    nodes: frozenset[str]


def infer_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shape of every tensor whose rank is known, by name: an integer, a symbol's name or None an axis.

    Works for models of any size: large weights never reach the inference. What an exporter declared for tensors
    between inputs and outputs is not trusted; graph inputs are.
    """
    return {name: found.shape for name, found in infer_types(model).items() if found.shape is not None}


def infer_types(model: onnx.ModelProto) -> dict[str, TensorType]:
    """Dtype and shape of every tensor of which anything is known, by name; see ``infer_shapes``."""
    types = types_of(import_graph(model).gs, distinct=False)
    return {name: found for name in types if (found := types.get(name)) is not None}


def types_of(graph: gs.Graph, *, distinct: bool = True) -> Mapping[str, TensorType]:
    """Dtype and shape of every tensor of an opened graph, by name, subgraphs included.

    A name that stands for different tensors in sibling subgraphs is left out. Inference goes on past nodes that it
    does not understand; a graph that it cannot treat at all yields only what constants and inputs say.

    Args:
        graph: the outermost graph.
        distinct: give every open dimension of every input a symbol of its own, so that equal symbols prove equal
            sizes even where callers do not keep to the declared ones. What is found this way is remembered.
    """
    if not distinct:
        return _infer_all(graph, distinct=False)
    known = graph.known if isinstance(graph, OpenGraph) else None
    graphs = list(walk(graph))
    computed = sum(_computed_shapes(each) for each in graphs)
    if known is not None and (known.opset, known.bodies) == (graph.opset, len(graphs)):
        # A result that is shaped by a constant now may be known better than before.
        stale = known.computed_shapes != computed and not _is_complete(graphs, known.types)
        if not stale and _infer_new(graph, graphs, known.types):
            return known.types
    types = _infer_all(graph, distinct=True)
    if isinstance(graph, OpenGraph):
        graph.known = Known(types, computed, graph.opset, len(graphs), _outputs_of(graph))
    return types


def forget_types(graph: gs.Graph) -> bool:
    """Forget what is remembered of a graph if inferring all anew may tell more; return whether it was forgotten."""
    known = graph.known if isinstance(graph, OpenGraph) else None
    if known is None or known.nodes == _outputs_of(graph) or _is_complete(walk(graph), known.types):
        return False
    graph.known = None
    return True


def infer_again(graph: gs.Graph) -> None:
    """Forget all types of a graph, because an input's declaration changed."""
    if isinstance(graph, OpenGraph):
        graph.known = None


def _outputs_of(graph: gs.Graph) -> frozenset[str]:
    return frozenset(tensor.name for each in walk(graph) for node in each.nodes for tensor in node.outputs)


def _computed_shapes(graph: gs.Graph) -> int:
    return sum(
        1
        for node in graph.nodes
        if (first := _SHAPED_BY.get(node.op)) is not None
        and any(not isinstance(tensor, gs.Constant) and not tensor.is_empty() for tensor in node.inputs[first:])
    )


def _is_complete(graphs: Iterable[gs.Graph], types: Types) -> bool:
    for graph in graphs:
        for node in graph.nodes:
            for tensor in node.outputs:
                raw = types.raw(tensor.name)
                if raw is None or isinstance(raw, onnx.TensorProto):
                    continue
                declared = raw.type.tensor_type
                if not declared.HasField("shape") or any(_is_open(dim) for dim in declared.shape.dim):
                    return False
    return True


def _is_open(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether nothing is known of a size; symbols of inputs hold an ``@``, those that inference makes up do not."""
    return not dim.HasField("dim_value") and "@" not in dim.dim_param


def _infer_new(graph: gs.Graph, graphs: list[gs.Graph], types: Types) -> bool:
    """Find the types of what was added since; return whether that can be told without inferring all."""
    for each in graphs:
        new = [
            node for node in each.nodes if any(tensor.name and not types.knows(tensor.name) for tensor in node.outputs)
        ]
        types.add_constants(each)
        if not new:
            continue
        if each is not graph or len(new) > len(graph.nodes) // 2:
            return False
        if any(isinstance(value, gs.Graph) for node in new for value in node.attrs.values()):
            return False
        _infer_part(graph, new, types)
    return True


def _infer_part(graph: gs.Graph, nodes: list[gs.Node], types: Types) -> None:
    model = skeleton_of(nodes, graph)
    written = {name for node in model.graph.node for name in node.output}
    declared = {tensor.name for tensor in model.graph.initializer} | {info.name for info in model.graph.input}
    for name in dict.fromkeys(name for node in model.graph.node for name in node.input):
        raw = types.raw(name)
        if name not in written and name not in declared and isinstance(raw, onnx.ValueInfoProto):
            model.graph.input.append(raw)
    found = _inferred(model).graph
    new = [info for info in (*found.value_info, *found.output) if info.name in written]
    types.rename_made_up(new, {dim.dim_param for info in found.input for dim in info.type.tensor_type.shape.dim})
    types.add(new)
    # Nothing is known of the others, and nothing will be until all is inferred anew.
    types.add(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None)
        for name in written
        if name and not types.knows(name)
    )


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    # What inputs and weights say is worth having even where inference gives up.
    if any(imported.domain == _MICROSOFT for imported in model.opset_import):
        _use_standard_operators(model.graph)
    with suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return onnx.shape_inference.infer_shapes(model, check_type=False, strict_mode=False, data_prop=True)
    return model


def _use_standard_operators(root: onnx.GraphProto) -> None:
    """Let inference see standard operators where it knows nothing of others that are shaped alike."""
    pending = [root]
    while pending:
        for node in pending.pop().node:
            if node.domain == _MICROSOFT and node.op_type in _STANDARD:
                node.op_type, reads = _STANDARD[node.op_type]
                node.domain = ""
                del node.input[reads:]
            pending.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))


def _infer_all(graph: gs.Graph, *, distinct: bool) -> Types:
    model = skeleton(graph)
    if distinct:
        _separate_symbols(model.graph)
    model = _inferred(model)
    types = Types()
    ambiguous: set[str] = set()
    pending = [model.graph]
    while pending:
        proto = pending.pop()
        own = Types()
        own.add(proto.initializer)
        for group in (proto.value_info, proto.output, proto.input):
            own.add(group)
        ambiguous.update(name for name in own if types.knows(name))
        types.take(own)
        pending.extend(
            attribute.g
            for node in proto.node
            for attribute in node.attribute
            if attribute.type == onnx.AttributeProto.GRAPH
        )
    types.forget(ambiguous)
    return types


def _read(raw: _Raw) -> TensorType | None:
    if isinstance(raw, onnx.TensorProto):
        return TensorType(raw.data_type, tuple(raw.dims))
    kind, dtype, shape = described(raw)
    if kind != "tensor_type" or not raw.type.HasField("tensor_type"):
        return None
    return TensorType(0 if dtype is None else onnx_dtype(dtype), shape)


def _separate_symbols(proto: onnx.GraphProto) -> None:
    for info in proto.input:
        if not info.type.HasField("tensor_type"):
            continue
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.WhichOneof("value") != "dim_value" or dim.dim_value < 0:
                dim.dim_param = f"{info.name}@{axis}"
