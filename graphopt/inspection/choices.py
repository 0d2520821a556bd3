"""Where pruning, substitution or int8 would pay on a target: the predicted time of each layer in other forms.

Only what the target has is priced: int8 where it takes int8, cuts and separation where its recipe has the passes. What
the accuracy says, the passes find out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.graph.cost import Scope
from graphopt.inspection.products import Product, behind, product_of
from graphopt.inspection.separable import SeparableLayer
from graphopt.latency import Estimate, kernel_us
from graphopt.targets import Hardware, Target

INT8 = "int8"
# Fields of LayerChoices.
FORMS = ("half_channels", "rank_1", "rank_2", "int8")


@dataclass(frozen=True)
class LayerChoices:
    """Predicted milliseconds of one layer's kernel, as it is and in other forms; None where a form does not apply.

    Launches are left out, as in ``LayerTime``: where they bind the model, less is saved.

    Attributes:
        name: the layer.
        ms: as it is.
        half_channels: with half of its channels in and out; an input or output of the model keeps its own.
        rank_1, rank_2: as one or two pairs of depthwise and pointwise convolutions.
        int8: with inputs and weights in int8.
    """

    name: str
    ms: float
    half_channels: float | None
    rank_1: float | None
    rank_2: float | None
    int8: float | None


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
    ends = behind(main, outputs)
    result = []
    for node in main.nodes:
        name = node.name or (node.output[0] if node.output else "")
        kernel, product = kernels.get(name), product_of(node, main, inputs, ends)
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
    product: Product

    def ms(self, forms: Sequence[Product], precision: str | None = None) -> float:
        now = self._us(self.product, self.precision)
        then = sum(self._us(form, precision or self.precision) for form in forms)
        # Scaled, where the layer alone is priced higher than the kernel that it is in.
        return (self.us * then / now if now > self.us else self.us - now + then) / 1000

    def _us(self, product: Product, precision: str) -> float:
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


def _may_separate(layer: SeparableLayer, product: Product) -> bool:
    return layer.operator == "Conv" and product.groups == 1 and not layer.reads_input


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
