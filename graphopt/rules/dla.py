"""GO501 to GO507: what a deep learning accelerator (DLA) leaves to the GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from onnx import TensorProto

from graphopt.rules.dla_limits import NATIVE
from graphopt.rules.operators import to_be_written_out
from graphopt.rules.quantizers import CONVOLUTIONS, is_quantizer
from graphopt.rules.rule import WARNING, Check, Place, Rule
from graphopt.rules.view import Node, Tensor, View
from graphopt.targets.schema import Hardware

MOST_LOADABLES = 16
_MOST_BATCH, _MOST_SIZE = 4096, 8192
_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16)
_FLOATS = (*_FLOATING, 0)
_OF_SHAPES = ("Shape", "Size")  # known when the engine is built
_POOLS = ("AveragePool", "MaxPool")
_WINDOWS = ("GlobalAveragePool", "GlobalMaxPool")


def _computing(view: View) -> Iterator[Node]:
    """Nodes that compute on what flows through, whatever they make of it: no constants, sizes, Q or DQ."""
    for node in view.nodes:
        outputs = [tensor for tensor in node.outputs if tensor is not None]
        if is_quantizer(node) or node.op in _OF_SHAPES or all(view.is_fixed(tensor) for tensor in outputs):
            continue
        if view.dtype(node.output()) in _FLOATS or any(_flows(view, tensor) for tensor in node.inputs):
            yield node


def _flows(view: View, tensor: Tensor | None) -> bool:
    return view.dtype(tensor) in _FLOATING and not view.is_fixed(tensor)


def _operator(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.accelerator != "dla":
        return
    for node in _computing(view):
        told = node.op in hardware.refused_operators or to_be_written_out(node, view, hardware)  # by rules of their own
        if node.op not in NATIVE and not told:
            advice = " (an AveragePool or MaxPool with a window of at most 8 is native)" if node.op in _WINDOWS else ""
            yield Place(node.name, f"{node.op}: the accelerator has no such layer; the GPU runs it{advice}")


def _limits(wanted: Callable[[str], bool]) -> Check:
    def check(view: View, hardware: Hardware) -> Iterator[Place]:
        if hardware.accelerator != "dla":
            return
        for node in _computing(view):
            limit = NATIVE.get(node.op) if wanted(node.op) else None
            if limit is not None and (problem := limit(node, view, hardware)):
                yield Place(node.name, f"{node.op}: {problem}; the GPU runs it instead of the accelerator")

    return check


def _sizes(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.accelerator != "dla":
        return
    for node in _computing(view):
        if problem := _too_large(view, node.output()):
            yield Place(node.name, f"{node.op}: {problem}; the GPU runs it instead of the accelerator")


def _too_large(view: View, tensor: Tensor | None) -> str:
    shape = view.shape(tensor) or ()
    if len(shape) < 3:
        return ""
    # Open sizes count as 1: too large is said only of what surely is.
    batch = math.prod(size for size in shape[:-3] if isinstance(size, int))
    if batch > _MOST_BATCH:
        return f"a batch of {batch}, more than {_MOST_BATCH}"
    wide = next((size for size in shape[-3:] if isinstance(size, int) and size > _MOST_SIZE), None)
    return "" if wide is None else f"a size of {wide}, more than {_MOST_SIZE}"


def _precision(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.accelerator != "dla" or not hardware.strongly_typed:
        return
    found = [node for node in view.nodes if node.op in CONVOLUTIONS and view.dtype(node.input(0)) == TensorProto.FLOAT]
    if found:
        yield Place(
            found[0].name,
            f"{len(found)} convolutions in float32; the accelerator computes in float16 and int8 only, the GPU runs "
            "them: run the pass convert_float16",
        )


def _loadables(view: View, hardware: Hardware) -> Iterator[Place]:
    if hardware.accelerator != "dla":
        return
    parts = _parts(view, hardware)
    if parts > MOST_LOADABLES:
        yield Place(
            "",
            f"the accelerator's layers fall apart into at least {parts} pieces with layers of the GPU between; only "
            f"{MOST_LOADABLES} can be loaded on a core",
        )


def _parts(view: View, hardware: Hardware) -> int:
    """How many pieces the graph falls into when what the accelerator does not run is taken out: at least so many."""
    native = {
        node
        for node in _computing(view)
        if (limit := NATIVE.get(node.op)) is not None
        and not limit(node, view, hardware)
        and not _too_large(view, node.output())
    }
    through = native | {node for node in view.nodes if is_quantizer(node)}
    seen: set[Node] = set()
    parts = 0
    for start in view.nodes:
        if start not in native or start in seen:
            continue
        parts += 1
        pending = [start]
        seen.add(start)
        while pending:
            fresh = [other for other in _neighbours(view, pending.pop()) if other in through and other not in seen]
            fresh = list(dict.fromkeys(fresh))
            seen.update(fresh)
            pending += fresh
    return parts


def _neighbours(view: View, node: Node) -> Iterator[Node]:
    for tensor in node.inputs:
        # A constant, or the input of the model, that two pieces share does not join them.
        if tensor is not None and tensor.producer is not None and not view.is_fixed(tensor):
            yield tensor.producer
    for tensor in node.outputs:
        if tensor is not None:
            yield from tensor.readers


_HEADER = "TensorRT 10.3.0, NvInfer.h (the same in 8.5.2)"
_TABLE = "docs.nvidia.com/deeplearning/tensorrt, 'DLA Supported Layers and Restrictions'"
_OPERATORS = "NVIDIA-AI-IOT/Deep-Learning-Accelerator-SW, operators/README"
_FALLS_BACK = (
    " Each layer that the GPU runs in between splits the network, and tensors travel to and fro. Build with "
    "--allowGPUFallback, or change the layer."
)

DLA: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            code="GO501",
            name="dla_operator",
            summary="every operator has a layer on the accelerator",
            explanation="Not native: GlobalAveragePool, HardSwish, HardSigmoid, Gelu, ReduceMean, Pad, Elu, "
            f"LayerNormalization, Tile, DepthToSpace, Gather and others.{_FALLS_BACK}",
            source=f"{_OPERATORS} (Orin, TensorRT 8.5 and 8.6); {_TABLE}; Reshape, Transpose, Split and ReduceMax as "
            "native: unverified",
            check=_operator,
            fix=("write_out",),
            level=WARNING,
        ),
        Rule(
            code="GO502",
            name="dla_convolution",
            summary="convolutions are within the accelerator's limits",
            explanation="Two-dimensional; kernel 1 to 32, stride 1 to 8, padding 0 to 31 and less than the kernel, "
            "dilation 1 to 32, at most 8192 output channels and groups. Transposed: no groups, padding or dilation; "
            f"kernel and stride 1 to 32, or 64, 96 or 128 by 1.{_FALLS_BACK}",
            source=f"{_HEADER}, IConvolutionLayer and IDeconvolutionLayer; {_TABLE}",
            check=_limits(CONVOLUTIONS.__contains__),
            level=WARNING,
        ),
        Rule(
            code="GO503",
            name="dla_pooling",
            summary="pools are within the accelerator's limits",
            explanation=f"Windows 1 to 8, strides 1 to 16, padding 0 to 7, two-dimensional.{_FALLS_BACK}",
            source=f"{_HEADER}, IPoolingLayer; {_TABLE}",
            check=_limits(_POOLS.__contains__),
            level=WARNING,
        ),
        Rule(
            code="GO504",
            name="dla_layer",
            summary="other layers are within the accelerator's limits",
            explanation="PRelu: constant slope. LRN: window 3, 5, 7 or 9. Sums, products, Max, Min, Sub, Div, Pow: "
            "equal int8 ranges on both sides. Concat: channels only. Softmax: at most 1024 values, 8192 where other "
            "axes are 1; none on Xavier. Slice: constant, step 1, not the batch. Resize: whole factors, 1 to 32 for "
            f"nearest and 1 to 4 for linear, height and width only. The batch axis stays first.{_FALLS_BACK}",
            source=f"{_HEADER}; {_TABLE}; Softmax on Xavier: NvInfer.h of 8.5",
            check=_limits(lambda op: op not in CONVOLUTIONS and op not in _POOLS),
            level=WARNING,
        ),
        Rule(
            code="GO505",
            name="dla_sizes",
            summary="batches are at most 4096, other sizes at most 8192",
            explanation=f"The batch is the product of all axes but the last three.{_FALLS_BACK}",
            source=f"{_TABLE}, General Restrictions",
            check=_sizes,
            level=WARNING,
        ),
        Rule(
            code="GO506",
            name="dla_precision",
            summary="convolutions are float16 or int8 where the runtime computes in the types of the graph",
            explanation="The accelerator has no float32. A strongly typed runtime does not choose float16 by itself.",
            source=f"{_TABLE} (all layers: FP16, INT8)",
            check=_precision,
            fix=("convert_float16",),
            level=WARNING,
        ),
        Rule(
            code="GO507",
            name="dla_loadables",
            summary="the network does not fall apart into more than 16 pieces",
            explanation="Each piece between two layers of the GPU is a loadable; a core holds 16.",
            source=f"{_TABLE}: 'only 16 DLA loadables can be loaded concurrently per core'",
            check=_loadables,
            level=WARNING,
        ),
    )
}
