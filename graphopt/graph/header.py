"""What a model holds beside the operators: kept here while passes edit the graph, and put back on export."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class GraphExtras:
    """What graphsurgeon has no place for in one graph.

    Attributes:
        graph: the graph meant; held so that its ``id`` stays its own.
        shell: doc string, metadata and quantization annotations.
        infos: tensor name -> its declaration (type, doc string, metadata); these may belong to the caller.
        defaults: input name -> the initializer that a caller may override (IR version 4 on).
    """

    graph: gs.Graph
    shell: onnx.GraphProto
    infos: dict[str, onnx.ValueInfoProto]
    defaults: dict[str, onnx.TensorProto]


@dataclass(frozen=True)
class NodeExtras:
    """Doc string, metadata and the like of one node; ``node`` is held so that its ``id`` stays its own."""

    node: gs.Node
    shell: onnx.NodeProto
    attribute_docs: dict[str, str]


@dataclass(frozen=True)
class Header:
    """Everything of a model but its operators.

    Attributes:
        model: all fields of the model but the graph.
        graphs: ``id`` of a graph -> its extras.
        nodes: ``id`` of a node -> its extras, for nodes that have any.
        owners: ``id`` of an imported constant -> (the constant, the graph that declares it). Constants made later
            belong to the outermost graph, which every subgraph sees.
        unread: names of the initializers that nothing read when the model was opened. Writing leaves them out; a pass
            that counts this as its work takes them off the list.
    """

    model: onnx.ModelProto
    graphs: dict[int, GraphExtras] = field(default_factory=dict)
    nodes: dict[int, NodeExtras] = field(default_factory=dict)
    owners: dict[int, tuple[gs.Constant, gs.Graph]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WorkGraph:
    """A model opened for editing: ``gs`` is what passes edit, ``header`` what they need not know."""

    gs: gs.Graph
    header: Header


def copy_fields(source: Any, target: Any, leave_out: frozenset[str]) -> None:
    """Copy every set field of one protobuf message into another of its kind, but those named."""
    for descriptor, value in source.ListFields():
        if descriptor.name in leave_out:
            continue
        if descriptor.is_repeated:
            getattr(target, descriptor.name).extend(value)
        elif descriptor.message_type is not None:
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)
