"""Where pruning, substitution or int8 would pay on a target: the predicted time of each layer in other forms.

Only what the target has is priced: int8 where it takes int8, cuts and separation where its recipe has the passes. What
the accuracy says, the passes find out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import onnx

from graphopt.graph.cost import CONVOLUTIONS, MATRIX_PRODUCTS, Scope
from graphopt.graph.cost.kinds import attribute, weight_name
from graphopt.graph.cost.parameters import source
from graphopt.inspection.separable import SeparableLayer
from graphopt.latency import Estimate, KernelWork, convolution, fully_connected, kernel_us
from graphopt.targets import Hardware, Target

INT8 = "int8"
# Fields of LayerChoices.
FORMS = ("half_channels", "rank_1", "rank_2", "int8")


@dataclass(frozen=True)
class LayerChoices:
    """Predicted milliseconds of one layer's kernel, as it is and in other forms; None where a form does not apply.

    Attributes:
        name: the layer.
        ms: as it is.
        half_channels: with half of its channels in and out; an input or output of the model keeps its own.
        rank_1, rank_2: as one or two pairs of depthwise and pointwise convolutions, their launches included.
        int8: with inputs and weights in int8.
    """

    name: str
    ms: float
    half_channels: float | None
    rank_1: float | None
    rank_2: float | None
    int8: float | None


@dataclass(frozen=True)
class _Product:
    """A convolution or matrix product with stored weights, in the terms of ``graphopt.latency``."""

    channels: int
    filters: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    groups: int
    out_size: tuple[int, ...]
    batch: int
    keeps_channels: bool
    keeps_filters: bool

    def work(self, precision: str) -> KernelWork:
        if not self.kernel:
            return fully_connected(self.channels, self.filters, rows=self.batch, precision=precision)
        return convolution(
            self.channels,
            self.filters,
            kernel=self.kernel,
            strides=self.strides,
            groups=self.groups,
            out_size=self.out_size,
            batch=self.batch,
            precision=precision,
        )

    def halved(self) -> _Product | None:
        """With half of the channels; None where none can go."""
        channels = self.channels if self.keeps_channels else self.channels // 2
        filters = self.filters if self.keeps_filters else self.filters // 2
        groups = self.groups
        if groups > 1:  # groups go whole
            if self.keeps_channels or self.keeps_filters:
                return None
            kept = groups // 2
            groups, channels, filters = kept, self.channels // groups * kept, self.filters // groups * kept
        if channels < 1 or filters < 1 or (channels, filters) == (self.channels, self.filters):
            return None
        return replace(self, channels=channels, filters=filters, groups=groups)

    def separated(self, rank: int, form: str) -> tuple[_Product, _Product]:
        """As ``rank`` pairs, those of one kind written as one convolution; the depthwise one has the strides."""
        ones = (1,) * len(self.kernel)
        if form == "depthwise_first":
            between = self.channels * rank
            depthwise = replace(self, filters=between, groups=self.channels)
            pointwise = replace(self, channels=between, kernel=ones, strides=ones)
            return depthwise, pointwise
        between = self.filters * rank
        read = tuple(size * stride for size, stride in zip(self.out_size, self.strides, strict=True))
        pointwise = replace(self, filters=between, kernel=ones, strides=ones, out_size=read)
        depthwise = replace(self, channels=between, groups=self.filters)
        return pointwise, depthwise


def layer_choices(
    main: Scope,
    inputs: Collection[str],
    outputs: Collection[str],
    separable: Sequence[SeparableLayer],
    found: Estimate,
    target: Target,
) -> tuple[LayerChoices, ...]:
    """What each convolution and matrix product of the main graph would take in other forms, in order.

    Args:
        main: the main graph with its shapes.
        inputs: names of the model's inputs.
        outputs: and of its outputs.
        separable: the convolutions that could be separated.
        found: the estimate of the model as it is.
        target: whose passes and precisions are asked for.
    """
    kernels = {kernel.name: kernel for kernel in found.kernels}
    ranks = {layer.name: layer for layer in separable}
    ends = _behind(main, outputs)
    result = []
    for node in main.nodes:
        name = node.name or (node.output[0] if node.output else "")
        kernel, product = kernels.get(name), _product(node, main, inputs, ends)
        if kernel is None or product is None:
            continue
        price = _Price(target.hardware, found.runtime, kernel.precision, kernel.us, product)
        result.append(_choices(name, price, ranks.get(name), target))
    return tuple(result)


@dataclass(frozen=True)
class _Price:
    """Prices other forms of one layer by what they differ from the layer as it stands alone.

    The layer's kernel may hold more than the layer, which stays: an activation, the addition after it.
    """

    hardware: Hardware
    runtime: str
    precision: str
    us: float
    product: _Product

    def ms(self, forms: Sequence[_Product], precision: str | None = None) -> float:
        now = self._us(self.product, self.precision)
        then = sum(self._us(form, precision or self.precision) for form in forms)
        device = self.hardware.device
        launches = (len(forms) - 1) * (device.launch_us if device else 0.0)
        # Scaled, where the layer alone is priced higher than the kernel that it is in.
        whole = self.us * then / now if now > self.us else self.us - now + then
        return (whole + launches) / 1000

    def _us(self, product: _Product, precision: str) -> float:
        return float(kernel_us(product.work(precision), self.hardware, self.runtime))


def _choices(name: str, price: _Price, separable: SeparableLayer | None, target: Target) -> LayerChoices:
    hardware, product = target.hardware, price.product
    half = product.halved() if "prune_filters" in target.recipe else None
    separated: dict[int, float] = {}
    if separable is not None and _may_separate(separable, product) and "separate_convolutions" in target.recipe:
        separated = {at.rank: price.ms(product.separated(at.rank, at.form)) for at in separable.ranks}
    int8 = None
    if _takes_int8(hardware, price.runtime) and price.precision != INT8:
        int8 = price.ms((product,), INT8)
    return LayerChoices(
        name=name,
        ms=price.us / 1000,
        half_channels=price.ms((half,)) if half else None,
        rank_1=separated.get(1),
        rank_2=separated.get(2),
        int8=int8,
    )


def _takes_int8(hardware: Hardware, runtime: str) -> bool:
    """Whether an int8 graph runs in int8 there: a runtime that fuses nothing runs Q and DQ as operators."""
    peaks = hardware.device.peak_tops if hardware.device else {}
    fused = any(model.name == runtime and model.fused for model in hardware.runtimes)
    return hardware.int8 is not None and fused and INT8 in peaks


def _may_separate(layer: SeparableLayer, product: _Product) -> bool:
    return layer.operator == "Conv" and product.groups == 1 and not layer.reads_input


def _product(node: onnx.NodeProto, scope: Scope, inputs: Collection[str], ends: Collection[str]) -> _Product | None:
    """The sizes of a product with stored weights; None for other nodes and where a size is unknown."""
    if node.op_type not in CONVOLUTIONS | MATRIX_PRODUCTS or not node.output:
        return None
    weight, written = _known(scope, weight_name(node)), _known(scope, node.output[0])
    if weight is None or written is None or source(weight_name(node), scope) is None or 0 in weight:
        return None
    reads_input, writes_output = node.input[0] in inputs, node.output[0] in ends
    if node.op_type in CONVOLUTIONS:
        if len(weight) < 3 or len(written) != len(weight):
            return None
        groups = attribute(node, "group", 1)
        strides = next((tuple(a.ints) for a in node.attribute if a.name == "strides"), (1,) * (len(weight) - 2))
        return _Product(
            weight[1] * groups, weight[0], weight[2:], strides, groups, written[2:], written[0], reads_input,
            writes_output,
        )  # fmt: skip
    if len(weight) != 2 or not written:
        return None
    features = prod(weight) // written[-1]
    return _Product(features, written[-1], (), (), 1, (), prod(written[:-1]), reads_input, writes_output)


def _known(scope: Scope, name: str) -> tuple[int, ...] | None:
    shape = scope.shapes.get(name)
    if shape is None or None in shape:
        return None
    return tuple(size for size in shape if size is not None)


# What stands between a layer and the model's output without mixing channels: the layer's channels are the output's.
_KEEPS_CHANNELS = {
    "Add", "AveragePool", "Cast", "Clip", "DequantizeLinear", "Dropout", "Flatten", "GlobalAveragePool", "Identity",
    "LogSoftmax", "MaxPool", "Mul", "QuantizeLinear", "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Softmax",
    "Squeeze", "Sub", "Tanh",
}  # fmt: skip


def _behind(scope: Scope, outputs: Collection[str]) -> set[str]:
    """The tensors whose channels are those of an output."""
    found, pending = set(outputs), list(outputs)
    while pending:
        node = scope.producers.get(pending.pop())
        if node is not None and node.op_type in _KEEPS_CHANNELS:
            fresh = [name for name in node.input if name and name not in found]
            found.update(fresh)
            pending.extend(fresh)
    return found


def totals(choices: Sequence[LayerChoices]) -> Iterator[tuple[str, float]]:
    """Predicted milliseconds of all layers together for each form that any has, each layer in it where that pays."""
    for form in FORMS:
        prices = [(choice.ms, getattr(choice, form)) for choice in choices]
        if any(price is not None for _, price in prices):
            yield form, sum(now if price is None else min(now, price) for now, price in prices)


def choices_as_json(choices: Sequence[LayerChoices]) -> list[dict[str, Any]]:
    """All layers as plain JSON values; ``predicted`` has the forms that apply, in milliseconds."""
    return [
        {
            "name": choice.name,
            "ms": choice.ms,
            "predicted": {form: price for form in FORMS if (price := getattr(choice, form)) is not None},
        }
        for choice in choices
    ]
