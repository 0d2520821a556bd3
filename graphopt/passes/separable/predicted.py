"""How long a convolution would take, whole and in each separable form, on a device that is not at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from graphopt.cache import Store
from graphopt.graph.cost import scopes
from graphopt.latency import estimate
from graphopt.passes.quantize_int8.kernels import Feed
from graphopt.passes.quantize_int8.prices import Predicted, float_precision
from graphopt.passes.quantize_int8.units import Role
from graphopt.passes.separable.times import LEAST_SHARE, FormTimes, cut_into_units
from graphopt.targets.schema import Hardware


class PredictedTimes(FormTimes):
    """Times of pieces by the latency model (docs/latency.md); see ``FormTimes``.

    Args:
        hardware: facts about the target; needs a ``device``.
        int8: whether layers may run in int8.
        store: not written to.
    """

    def __init__(self, hardware: Hardware, int8: bool, store: Store) -> None:
        super().__init__(None, 1, store)
        self._hardware = hardware
        self._int8 = int8

    def model(self, model: onnx.ModelProto) -> float:
        """Microseconds of a small model, each layer in its better precision."""
        return self._predicted(model, {})

    def net(self, model: onnx.ModelProto, feed: Feed) -> float:
        """Microseconds of a whole model for one input, each layer in its better precision."""
        return self._predicted(model, {name: tuple(values.shape) for name, values in feed.items()})

    def _predicted(self, model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> float:
        in_float = 1e3 * estimate(model, with_float_precision(self._hardware), shapes=shapes).ms
        if not self._int8:
            return in_float
        cut = cut_into_units(model)
        if cut is None:
            return in_float
        model, units = cut
        sizes = {
            name: tuple(size for size in shape if size is not None)
            for name, shape in scopes(model, shapes)[0].shapes.items()
            if shape is not None and None not in shape
        }
        times = Predicted(units, sizes, self._hardware).units
        heavy = [times[unit.index] for unit in units.all if unit.role is Role.HEAVY and unit.index in times]
        saved = sum(max(time.float32 - time.int8, 0.0) for time in heavy if time.int8 is not None)
        return max(in_float - saved, LEAST_SHARE * in_float)


def with_float_precision(hardware: Hardware) -> Hardware:
    """The target with its float layers in the type that they will have once the model is written for it."""
    if not hardware.runtimes:
        return hardware
    first = replace(hardware.runtimes[0], precision=float_precision(hardware))
    return replace(hardware, runtimes=(first, *hardware.runtimes[1:]))
