"""One model whose convolutions are to be separated: what is measured once, and the models that are made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice

import onnx

from graphopt.cache import Store
from graphopt.calibration.collect import shapes as observed_shapes
from graphopt.errors import UsageError
from graphopt.graph.cost import cost
from graphopt.graph.cost.shapes import scopes
from graphopt.passes.base import Context, Feed, Kept, Origin, Skip
from graphopt.passes.pruning.remaining import composed
from graphopt.passes.quantize_int8.kernels import machine
from graphopt.passes.separable.choosing import Measured, measure
from graphopt.passes.separable.decompose import decompose
from graphopt.passes.separable.factors import Factors
from graphopt.passes.separable.fit import LowRank
from graphopt.passes.separable.measuring import timed
from graphopt.passes.separable.places import Place, find_places, narrowed
from graphopt.passes.separable.predicted import PredictedTimes
from graphopt.passes.separable.ranks import Choice, Option, Plan, plan
from graphopt.passes.separable.settings import Settings
from graphopt.passes.separable.times import FormTimes
from graphopt.passes.separable.write import write
from graphopt.recovery import Recorded, RefitOptions, Refitted, normals, record, refit
from graphopt.recovery.layers import read_weights
from graphopt.recovery.net import Net


@dataclass(frozen=True)
class Separated:
    """A model with separated convolutions.

    Attributes:
        model: the model, recovered where there are samples.
        macs: its multiply-adds; None where they are not known.
        plan: what was chosen, by the tensor that each layer writes.
        failed: layers that were chosen and stay, and why.
        fits: what recovery did.
    """

    model: onnx.ModelProto
    macs: int | None
    plan: Plan
    failed: tuple[Skip, ...] = ()
    fits: Refitted | None = None


class Separation:
    """Measures a model once and separates its convolutions as far as asked.

    Layers are refitted towards what the model of ``context.origin`` answers, where there is one, else the model itself.

    Attributes:
        model: the model.
        settings: how to separate.
        context: samples, threads, progress.
        places: convolutions that can be separated.
        skipped: others with a kernel, and why they stay.
    """

    def __init__(self, model: onnx.ModelProto, settings: Settings, context: Context) -> None:
        self.model = model
        self.settings = settings
        self.context = context
        self._samples = self._drawn()
        self._net = Net(model)
        self.places, self.skipped = find_places(self._net, self._shapes(), settings.exclude)
        self._store = Store("kernels", machine())
        rules = context.hardware.int8 if context.goals.int8_follows else None
        if context.hardware.device is not None:
            self._times: FormTimes = PredictedTimes(context.hardware, rules is not None, self._store)
        else:
            self._times = FormTimes(rules, context.threads, self._store)
        self._recorded: Recorded | None = None

    @property
    def origin(self) -> Origin:
        """The model whose answers are right, and what the model has left of it."""
        return self.context.origin or Origin(self.model)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the model.

        Raises:
            UsageError: sizes are not known.
        """
        found = cost(self.model, shapes=self.context.shapes)
        if found.macs is None:
            raise UsageError(
                f"the multiply-adds are not known: {found.unknown[0]}; give --input-shape NAME:1,3,224,224"
            )
        return found.macs

    @cached_property
    def measured(self) -> Measured:
        """What each layer may become, measured when first asked for."""
        found = measure(
            self.model,
            self.places,
            self.settings,
            self._times,
            self._samples,
            lambda layers: normals(self.recorded, layers) if self.origin.model is self.model else (),
            self.context,
        )
        self._store.save()
        return found

    def separate(
        self, chosen: Plan, model: onnx.ModelProto | None = None, kept: Kept | None = None, *, recover: bool = True
    ) -> Separated:
        """Separate layers as planned, and recover.

        Args:
            chosen: what becomes of each layer.
            model: the model, or what another pass made of it by cutting channels.
            kept: what remains of the model's tensors in it.
            recover: whether to refit the layers, where there are samples.
        """
        model = self.model if model is None else model
        fits = None
        if recover and self._samples:
            fits = self._refitted(chosen, model, kept or {})
            factors = {name: each for name, each in fits.restricted.items() if isinstance(each, Factors)}
            model = fits.model
        else:
            factors = self._decomposed(chosen, model)
        reasons = {each.layer: each.reason for each in fits.fits} if fits else {}
        failed = tuple(
            Skip(self._node(name), reasons.get(name) or "its weights could not be fitted")
            for name in chosen.chosen
            if name not in factors
        )
        written = write(model, factors, {name: chosen.chosen[name].layout for name in factors})
        left = replace(chosen, chosen={name: option for name, option in chosen.chosen.items() if name in factors})
        return Separated(written, cost(written, shapes=self.context.shapes).macs, left, failed, fits)

    def plan_for(self, price: float, model: onnx.ModelProto) -> Plan:
        """What becomes of each layer where noise has a price, in a model that another pass may have cut channels of."""
        found = self.measured
        if model is self.model:
            return plan(found.choices, found.totals, price)
        places = narrowed(self.places, Net(model))
        choices = [self._narrowed(choice, places[choice.layer]) for choice in found.choices if choice.layer in places]
        self._store.save()
        return plan(choices, found.totals, price)

    def close(self) -> None:
        """Give memory and files back."""
        if self._recorded is not None:
            self._recorded.close()

    def _narrowed(self, choice: Choice, place: Place) -> Choice:
        """What a layer may become with fewer channels: timed anew, with the noise that it makes with all."""
        options: list[Option] = []
        whole = self._times.whole(place.piece)
        for option in choice.options:
            rank = option.rank
            if option.form == "spatial" or rank < place.geometry.full_rank(option.form):
                found = timed(place, self._times, option.form, rank, option.layout)
                if found is not None and found.time < whole:
                    options.append(replace(option, time=found.time, macs=found.macs))
        return Choice(choice.layer, whole, choice.macs, tuple(options))

    def _refitted(self, chosen: Plan, model: onnx.ModelProto, kept: Kept) -> Refitted:
        restrictions = {}
        places = {place.name: place for place in self.places}
        if model is not self.model:
            places = narrowed(self.places, Net(model))
        for name, option in chosen.chosen.items():
            if name in places:
                rank = min(option.rank, places[name].geometry.full_rank(option.form))
                restrictions[name] = LowRank(places[name].geometry, option.form, rank)
        return refit(
            self.origin.model,
            model,
            composed(self.origin.kept, kept),
            (),
            threads=self.threads,
            seed=self.context.seed,
            progress=lambda what, done, total: self.context.progress(f"separate_convolutions: {what}", done, total),
            recorded=self.recorded,
            restrictions=restrictions,
        )

    def _decomposed(self, chosen: Plan, model: onnx.ModelProto) -> dict[str, Factors]:
        net = Net(model)
        found = {}
        for name, place in narrowed(self.places, net).items():
            if name in chosen.chosen:
                option = chosen.chosen[name]
                rank = min(option.rank, place.geometry.full_rank(option.form))
                matrix = read_weights(net, place.layer).matrix
                found[name] = decompose(matrix, place.geometry, option.form, rank)
        return found

    @property
    def recorded(self) -> Recorded:
        """What the origin answers."""
        if self._recorded is None:
            self.context.progress("separate_convolutions: what the original answers", 0, 0)
            self._recorded = record(
                self.origin.model, self._samples, options=RefitOptions(), threads=self.threads, seed=self.context.seed
            )
        return self._recorded

    @property
    def threads(self) -> int:
        """Threads for what is not timed."""
        return max(self.context.threads, self.context.jobs)

    def _node(self, name: str) -> str:
        return next(place.node for place in self.places if place.name == name)

    def _drawn(self) -> list[Feed]:
        if self.context.calibration is None:
            return []
        feeds: Iterable[Feed] = self.context.calibration
        if self.context.goals.drop is None and self.context.selection is not None:
            feeds = chain(feeds, self.context.selection)  # nothing is chosen by them
        return list(islice(feeds, self.settings.samples))

    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of what convolutions read, and of other tensors of the main graph that are known."""
        names = [
            node.input[0]
            for node in self.model.graph.node
            if node.op_type in ("Conv", "ConvTranspose") and node.input[0] not in self._net.constants
        ]
        if self._samples and names:
            return observed_shapes(self.model, list(dict.fromkeys(names)), self._samples[0], self.context.threads)
        known = scopes(self.model, self.context.shapes)[0].shapes
        sizes = {name: [size for size in known.get(name, (None,)) if size is not None] for name in names}
        return {name: tuple(found) for name, found in sizes.items() if len(found) == len(known.get(name, (None,)))}
