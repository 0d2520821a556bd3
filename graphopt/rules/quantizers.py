"""QuantizeLinear and DequantizeLinear as rules ask about them. Q and DQ for short."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from graphopt.rules.view import Node, Shape, Tensor, View

QUANTIZE = frozenset({"QuantizeLinear", "com.microsoft::QuantizeLinear"})
DEQUANTIZE = frozenset({"DequantizeLinear", "com.microsoft::DequantizeLinear"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
WEIGHTED = CONVOLUTIONS | {"Gemm", "MatMul"}

# What hands values on as they are: runtimes move Q and DQ across them (TensorRT Developer Guide, 'Q/DQ Layer-Placement
# Recommendations', figure 2).
MOVEMENT = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
# Those of them that write one tensor from one; the most that are followed one after the other.
_HANDING_ON = MOVEMENT - {"Concat"}
_FAR = 32


def is_quantizer(node: Node | None) -> bool:
    """Whether a node is a Q or a DQ."""
    return node is not None and (node.op in QUANTIZE or node.op in DEQUANTIZE)


def quantizers(view: View) -> Iterator[Node]:
    """Every Q and DQ, in graph order."""
    return (node for node in view.nodes if is_quantizer(node))


def dequantizer(tensor: Tensor | None) -> Node | None:
    """The DQ that writes a tensor, None where another node does."""
    node = tensor.producer if tensor is not None else None
    return node if node is not None and node.op in DEQUANTIZE else None


def quantizer_before(dequantize: Node | None) -> Node | None:
    """The Q whose integers a DQ reads, None where they are stored or come from elsewhere."""
    data = dequantize.input(0) if dequantize is not None else None
    node = data.producer if data is not None else None
    return node if node is not None and node.op in QUANTIZE else None


def before_pair(tensor: Tensor | None) -> Tensor | None:
    """The float tensor that a pair of Q and DQ before ``tensor`` reads, None where there is no such pair."""
    quantize = quantizer_before(dequantizer(tensor))
    return quantize.input(0) if quantize is not None else None


def source_of(tensor: Tensor | None) -> Node | None:
    """The node that a tensor's values come from, data movement on the way let through; None for what is fed."""
    for _ in range(_FAR):
        if tensor is None or tensor.producer is None:
            return None
        if tensor.producer.op not in _HANDING_ON:
            return tensor.producer
        tensor = tensor.producer.input(0)
    return None


def comes_quantized(tensor: Tensor | None) -> Node | None:
    """The DQ that a tensor's values come from, data movement on the way let through; None where there is none."""
    source = source_of(tensor)
    return source if source is not None and source.op in DEQUANTIZE else None


def in_int8(node: Node) -> bool:
    """Whether both inputs of a convolution or product come from a DQ."""
    return comes_quantized(node.input(0)) is not None and comes_quantized(node.input(1)) is not None


def quantized_type(view: View, node: Node) -> int:
    """``onnx.TensorProto`` data type of the integers of a Q or DQ; 0 where it cannot be told."""
    if node.input(2) is not None:
        return view.dtype(node.input(2))
    if node.op in QUANTIZE:
        return node.integer("output_dtype", TensorProto.UINT8) or TensorProto.UINT8
    before = quantizer_before(node)
    return quantized_type(view, before) if before is not None else view.dtype(node.input(0))


def type_name(dtype: int) -> str:
    """Name of an ``onnx.TensorProto`` data type, of one that this onnx does not know too."""
    known = dtype in TensorProto.DataType.values()
    return TensorProto.DataType.Name(dtype).lower() if known else f"unknown type {dtype}"


def holds_weights(view: View, node: Node) -> bool:
    """Whether a Q or DQ quantizes what the model fixes, not what flows through it."""
    return view.is_fixed(node.input(0))


def scales(view: View, node: Node) -> int | None:
    """How many scales a Q or DQ has; None where it cannot be told."""
    shape = view.shape(node.input(1))
    if shape is None:
        return None
    count = 1
    for size in shape:
        if not isinstance(size, int):
            return None
        count *= size
    return count


def weight_shape(view: View, node: Node) -> tuple[int, ...] | None:
    """Shape of the second input of a convolution or matrix product, quantized or not; None where it is unknown."""
    return _sizes(view.shape(node.input(1))) or _sizes(_shape_behind(view, node.input(1)))


def channels(view: View, node: Node) -> tuple[int, int] | None:
    """Input and output channels of a convolution, Gemm or product with fixed weights; None where they are unknown."""
    shape = weight_shape(view, node)
    if shape is None or len(shape) < 2 or (node.op == "MatMul" and not view.is_fixed(node.input(1))):
        return None
    group = node.integer("group", 1)
    if node.op == "Conv":
        return shape[1] * group, shape[0]
    if node.op == "ConvTranspose":
        return shape[0], shape[1] * group
    if node.op == "Gemm":
        return (shape[1], shape[0]) if node.integer("transB", 0) else (shape[0], shape[1])
    return shape[-2], shape[-1]


def _sizes(shape: Shape | None) -> tuple[int, ...] | None:
    sizes = tuple(size for size in shape or () if isinstance(size, int))
    return sizes if shape is not None and len(sizes) == len(shape) else None


def _shape_behind(view: View, tensor: Tensor | None) -> Shape | None:
    dequantize = dequantizer(tensor)
    before = quantizer_before(dequantize)
    if before is not None:
        return view.shape(before.input(0))
    return view.shape(dequantize.input(0)) if dequantize is not None else None
