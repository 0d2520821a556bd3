"""The kernels that a runtime launches for a graph, and the work of each.

Two runtimes are known. An *eager* one runs operator after operator: each is a kernel, the bias of a convolution is one
more, and what only renames data (Reshape, Slice, Split) is none. A *fused* one (``fusion``) builds an engine first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod

import onnx

from graphopt.errors import ModelError
from graphopt.graph.cost import CONVOLUTIONS, MATRIX_PRODUCTS, RECURRENT, Scope, scopes
from graphopt.graph.cost.kinds import weight_name
from graphopt.latency.reading import Reader, name_of, reader
from graphopt.latency.views import is_absent, is_eager_view
from graphopt.latency.work import PRODUCTS, KernelWork

_INTEGER_PRODUCTS = {"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearConv", "QLinearMatMul"}


@dataclass(frozen=True)
class Kernel:
    """What a runtime does for one or more nodes.

    Attributes:
        name: the node that it is named after.
        nodes: all nodes that run inside it.
        works: the work; more than one entry where the runtime launches several kernels.
    """

    name: str
    nodes: tuple[str, ...]
    works: tuple[KernelWork, ...]


def kernels(
    model: onnx.ModelProto,
    *,
    fused: bool,
    precision: str = "float32",
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    graphs: Sequence[Scope] | None = None,
    float32: Set[str] = frozenset(),
) -> list[Kernel]:
    """The kernels of a model in order, for inputs of the sizes that ``graph.cost.scopes`` takes.

    ``graphs`` is what ``scopes`` returned for the same model and sizes, where the caller has it already. Nodes named in
    ``float32`` run in float32 whatever ``precision`` is.

    Raises:
        UsageError: shapes contradict the model.
        ModelError: a size is unknown.
    """
    from graphopt.latency.fusion import fused_kernels

    result: list[Kernel] = []
    known: set[str] = set()
    outputs = frozenset(value.name for value in model.graph.output)
    for scope in scopes(model, shapes, batch) if graphs is None else graphs:
        read = reader(scope, precision, known, float32)
        result += fused_kernels(read, outputs) if fused else _eager_kernels(read)
    return result


def _eager_kernels(read: Reader) -> list[Kernel]:
    result = []
    for node in read.working:
        if read.kind(node) in ("constant", "control_flow") or is_absent(node, read):
            continue
        name = name_of(node)
        if is_eager_view(node, read):
            result.append(Kernel(name, (name,), (KernelWork(kind="view", precision=read.precision),)))
            continue
        written = sum(read.elements(output, node) * read.width(output) for output in read.computed(node.output))
        taken = sum(read.taken(operand, node) * read.width(operand) for operand in read.computed(node.input))
        work = work_of(node, read, read.type_of(node.output[0]), taken + written)
        works: tuple[KernelWork, ...] = (work,)
        if node.op_type in CONVOLUTIONS and len(node.input) > 2 and node.input[2]:
            works += (KernelWork("bias", work.precision, outputs=work.outputs, activation_bytes=2 * written),)
        result.append(Kernel(name, (name,), works))
    return result


def work_of(node: onnx.NodeProto, read: Reader, precision: str, activation_bytes: float) -> KernelWork:
    """The work of ``node`` as the head of a kernel that moves ``activation_bytes``."""
    kind = _priced_as(node, read)
    outputs = sum(read.elements(name, node) for name in read.computed(node.output))
    constants = [name for name in dict.fromkeys(node.input) if name and read.is_known(name)]
    if kind not in PRODUCTS:
        return KernelWork(
            kind=_moving_kind(kind, node, read),
            precision=precision,
            outputs=outputs,
            activation_bytes=activation_bytes,
            window=_pooled(node, read) if kind in ("pooling", "reduction") else 1,
        )
    if node.op_type in _INTEGER_PRODUCTS:
        precision = "int8"
    width = 1 if precision == "int8" else read.width(node.output[0])
    weight_elements = sum(prod(read.shape(name, node)) for name in constants)
    in_channels, out_channels, groups, window = _channels(node, read)
    return KernelWork(
        kind=kind,
        precision=precision,
        macs=read.macs(node),
        outputs=outputs,
        activation_bytes=activation_bytes,
        weight_bytes=float(weight_elements * width),
        in_channels=in_channels,
        out_channels=out_channels,
        groups=groups,
        window=window,
        stride=prod(_integers(node, "strides")),
        winograd=float(_is_square_3x3(node, read)),
        launches=_launches(node, read),
    )


def _integers(node: onnx.NodeProto, name: str) -> tuple[int, ...]:
    return next((tuple(a.ints) for a in node.attribute if a.name == name), (1,))


def _priced_as(node: onnx.NodeProto, read: Reader) -> str:
    """The kind of work, where exporters or papers call by two names what runtimes do alike."""
    kind = read.kind(node)
    if kind == "transposed" and read.shape(weight_name(node), node)[1:2] == (1,) and _groups(node) > 1:
        return "depthwise"
    if node.op_type in ("ReduceMean", "ReduceMax") and _over_planes(node, read):
        return "pooling"
    return kind


def _over_planes(node: onnx.NodeProto, read: Reader) -> bool:
    """Whether a reduction is what GlobalAveragePool does: over all axes behind batch and channels."""
    taken, written = read.shape(node.input[0], node), read.shape(node.output[0], node)
    return len(taken) > 3 and written in (taken[:2], (*taken[:2], *(1 for _ in taken[2:])))


def _is_square_3x3(node: onnx.NodeProto, read: Reader) -> bool:
    """Whether Winograd's trick is made for the window; of all others of 9 elements it is not."""
    if node.op_type not in CONVOLUTIONS or node.op_type == "DeformConv":
        return False
    return read.shape(weight_name(node), node)[2:] == (3, 3) and set(_integers(node, "dilations")) == {1}


def _moving_kind(kind: str, node: onnx.NodeProto, read: Reader) -> str:
    """Tells apart elementwise operators that stretch a computed operand."""
    if kind not in ("elementwise", "unknown"):
        return kind
    sizes = {read.elements(name, node) for name in read.computed((*node.input, *node.output[:1]))}
    return "broadcast" if len(sizes) > 1 else "elementwise"


def _pooled(node: onnx.NodeProto, read: Reader) -> float:
    """Elements that each output of a pooling operator or of a reduction is made of."""
    window = next((tuple(a.ints) for a in node.attribute if a.name == "kernel_shape"), None)
    if window is not None:
        return float(prod(window))
    return max(1.0, read.elements(node.input[0], node) / max(read.elements(node.output[0], node), 1.0))


def _channels(node: onnx.NodeProto, read: Reader) -> tuple[int, int, int, int]:
    """Channels read and written, groups and window of a product."""
    groups = _groups(node)
    if node.op_type in CONVOLUTIONS or node.op_type == "ConvTranspose":
        shape = read.shape(weight_name(node), node)
        if len(shape) < 2:  # which ONNX's inference lets pass
            raise ModelError(f"node '{name_of(node)}' ({node.op_type}): a weight of {len(shape)} axes is none")
        if node.op_type == "ConvTranspose":
            return shape[0], shape[1] * groups, groups, prod(shape[2:])
        return shape[1] * groups, shape[0], groups, prod(shape[2:])
    output = read.shape(node.output[0], node)
    columns = output[-1] if output else 1
    if node.op_type in MATRIX_PRODUCTS or node.op_type == "Einsum":
        elements = read.elements(node.output[0], node)
        return max(1, round(read.macs(node) / max(elements, 1))), columns, 1, 1
    return columns, columns, 1, 1


def _groups(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _launches(node: onnx.NodeProto, read: Reader) -> int:
    """A recurrence launches kernels for every step."""
    if node.op_type not in RECURRENT:
        return 1
    batch_first = any(a.name == "layout" and a.i == 1 for a in node.attribute)
    return read.shape(node.input[0], node)[1 if batch_first else 0]
