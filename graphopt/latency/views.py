"""Nodes that do no work on a device: they give data another shape, another name, or back as it is."""

from __future__ import annotations

import onnx

from graphopt.latency.reading import Reader

_RENAMES = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
# In an eager runtime a tensor has strides, so that taking a part is no work either.
_EAGER_RENAMES = _RENAMES | {"Expand", "Slice", "Split"}
# An engine reads and writes other data types where it reads and writes.
_ENGINE_RENAMES = _RENAMES | {"Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"}
# What gives its input back where that has the size of the output already; exporters leave many such.
_MAY_DO_NOTHING = frozenset({"Concat", "Expand", "Pad", "Slice", "Split", "Tile"})


def is_absent(node: onnx.NodeProto, read: Reader) -> bool:
    """Whether not even an eager runtime does anything for the node.

    The nets whose latency was published were run with their Dropout; exporters leave it out.
    """
    if node.op_type in ("Cast", "CastLike") and node.input:
        return read.scope.dtypes.get(node.input[0], 0) == read.scope.dtypes.get(node.output[0], -1)
    return node.op_type in ("Dropout", "Identity")


def is_eager_view(node: onnx.NodeProto, read: Reader) -> bool:
    """Whether an eager runtime gives the node's input another shape, which costs the processor a call."""
    return node.op_type in _EAGER_RENAMES or _moves_nothing(node, read)


def is_engine_view(node: onnx.NodeProto, read: Reader) -> bool:
    """Whether an engine drops the node when it is built."""
    if node.op_type in _MAY_DO_NOTHING:
        computed = read.computed(node.input)
        alone = len(node.output) == 1 and computed == list(node.input[:1])
        return alone and read.shape(computed[0], node) == read.shape(node.output[0], node)
    return node.op_type in _ENGINE_RENAMES or _moves_nothing(node, read)


def _moves_nothing(node: onnx.NodeProto, read: Reader) -> bool:
    """Whether the node transposes axes of size 1 only past others, so that the data stay in order."""
    if node.op_type != "Transpose":
        return False
    shape = read.shape(node.input[0], node)
    order = next((list(a.ints) for a in node.attribute if a.name == "perm"), list(range(len(shape)))[::-1])
    moved = [axis for axis in order if shape[axis] != 1]
    return moved == sorted(moved)
