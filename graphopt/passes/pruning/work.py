"""One pruning of one model: what is measured once, and the models that are cut from it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np
import onnx

from graphopt.channels import Dependencies, cut, dependency_groups, select
from graphopt.errors import UsageError
from graphopt.graph.cost import cost
from graphopt.passes.base import Context, Feed, Origin
from graphopt.passes.pruning.alignment import ladders
from graphopt.passes.pruning.curves import Curve
from graphopt.passes.pruning.importance import DATA_FREE as WITHOUT_SAMPLES
from graphopt.passes.pruning.importance import curves
from graphopt.passes.pruning.moments import collect_moments
from graphopt.passes.pruning.path import Path, Step
from graphopt.passes.pruning.plan import plan_path
from graphopt.passes.pruning.readers import find_readers
from graphopt.passes.pruning.remaining import Kept, composed, widths
from graphopt.passes.pruning.result import Pruned, fit_summary
from graphopt.passes.pruning.sensitivity import sensitivities
from graphopt.passes.pruning.settings import Settings
from graphopt.passes.pruning.times import Target, costs
from graphopt.recovery import DATA_FREE, Recorded, RefitOptions, Refitted, record, refit, synthetic_feeds

__all__ = ["Pruned", "Pruning", "Settings", "fit_summary"]

# Random samples where there are none.
NOISE_SAMPLES = 512
# Models for a price that are held, for prices that lead to the same plan.
REMEMBERED = 4


@dataclass
class _State:
    """A model on the way, and the plans that lead on from it."""

    model: onnx.ModelProto
    macs: int
    kept: Kept
    dependencies: Dependencies
    curves: Mapping[int, Curve]
    path: Path
    time: float


@dataclass
class Pruning:
    """Measures a model once and cuts it as far as asked.

    Layers are refitted towards what the model of ``context.origin`` answers, where there is one, else ``model`` itself.

    Attributes:
        model: the model to cut.
        settings: how to prune.
        context: samples, threads, progress.
    """

    model: onnx.ModelProto
    settings: Settings
    context: Context
    dependencies: Dependencies = field(init=False)
    macs: int = field(init=False)
    _samples: list[Feed] = field(init=False)
    _sensitivity: dict[str, float] | None = None
    _recorded: Recorded | None = None
    _first: _State | None = None
    _done: dict[tuple[int, bool], Pruned] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dependencies = dependency_groups(self.model, self.context.shapes)
        self.macs = self.count(self.model)
        self._samples = self._drawn()

    @property
    def origin(self) -> Origin:
        """The model whose answers are right, and what the model to cut has left of it."""
        return self.context.origin or Origin(self.model)

    def count(self, model: onnx.ModelProto) -> int:
        """Multiply-adds of a model.

        Raises:
            UsageError: sizes are not known.
        """
        found = cost(model, shapes=self.context.shapes)
        if found.macs is None:
            raise UsageError(
                f"the multiply-adds are not known: {found.unknown[0]}; give --input-shape NAME:1,3,224,224"
            )
        return found.macs

    @property
    def path(self) -> Path:
        """The plans for the model."""
        return self._start().path

    @property
    def time(self) -> float:
        """Predicted nanoseconds of the model."""
        return self._start().path.time

    def smallest(self) -> float:
        """The least share of the multiply-adds that any plan leaves."""
        return self.path.steps[-1].macs

    def cut_only(self, share: float) -> onnx.ModelProto:
        """Return the model cut to a share of its multiply-adds in one step, without recovery: for the clock."""
        state = self._start()
        return self._cut(state, state.path.within(share))[0]

    def prune_evenly(self, share: float) -> Pruned:
        """Cut a share of the channels of every group, as near as the counts that kernels reward allow, and recover."""
        state = self._start()
        kept: dict[int, int] = {}
        for ladder in ladders(self.dependencies, self.settings.multiple, finer=self._finer):
            row = int(np.argmin(np.abs(ladder.counts - ladder.counts[0] * (1 - share))))
            if row and all(number in state.curves for number in ladder.groups):
                kept |= {number: int(count) for number, count in zip(ladder.groups, ladder.kept[row], strict=True)}
        return replace(self._pruned(state, Step(kept, 1.0, 1.0, 0.0)), predicted_speedup=None)

    def step_at(self, price: float) -> Step:
        """The plan that a price leads to (see ``at_price``): predicted shares of time and multiply-adds, and noise."""
        return self.path.at_price(price)

    def at_price(self, price: float, *, recover: bool = True) -> Pruned:
        """Cut as far as it pays where one unit of noise is worth ``price``, in one step, and recover.

        Args:
            price: what a noise-to-signal power of 1 at the model's outputs must save, as a share of the predicted time
                of the whole of ``model``: at a price of 20 the cut may add 1 % of noise for each 20 % of the time.
                Noise is predicted (sensitivity times loss, summed over layers; see ``Curve.harm`` for what it counts).
            recover: whether to refit what is left, where the settings say so.

        Returns:
            the model itself where nothing pays. Made once for a plan, however many prices lead to it.
        """
        state = self._start()
        step = self.step_at(price)
        key = self.path.steps.index(step), recover
        if key not in self._done:
            found = self._pruned(state, step, recover)
            while len(self._done) >= REMEMBERED:
                del self._done[next(iter(self._done))]
            self._done[key] = found
        return self._done[key]

    def prune_to(self, share: float) -> Pruned:
        """Cut to a share of the multiply-adds, in equal steps on a logarithmic scale, with recovery after each."""
        state = self._start()
        fits = None
        for number in range(1, self.settings.steps + 1):
            goal = share ** (number / self.settings.steps) * self.macs
            state, fits = self._advance(state, goal, last=number == self.settings.steps)
        return self._result(state, fits)

    def close(self) -> None:
        """Give memory and files back."""
        if self._recorded is not None:
            self._recorded.close()

    def _pruned(self, state: _State, step: Step, recover: bool = True) -> Pruned:
        """Cut to a plan and recover; the model as it is where the plan keeps all."""
        if not step.kept:
            return self._result(state, None)
        smaller, kept = self._cut(state, step)
        fits = self._recovered(smaller, kept) if recover else None
        model = fits.model if fits is not None else smaller
        return self._result(replace(state, model=model, macs=self.count(smaller), kept=kept, time=step.time), fits)

    def _result(self, state: _State, fits: Refitted | None) -> Pruned:
        narrower = widths(self.dependencies, state.kept)
        return Pruned(state.model, state.macs, narrower, state.kept, 1 / state.time, fits)

    def _start(self) -> _State:
        if self._first is None:
            self._first = self._planned(self.model, self.macs, {}, self.dependencies, 1.0)
        return self._first

    def _planned(
        self, model: onnx.ModelProto, macs: int, kept: Kept, dependencies: Dependencies, time: float
    ) -> _State:
        """Measure what channels matter in a model, and plan."""
        numbers = [group.number for group in dependencies if not self.settings.exclude & set(group.writers)]
        found = self._curves(dependencies, numbers)
        steps = ladders(dependencies, self.settings.multiple, finer=self._finer)
        int8 = self.context.goals.int8_follows and self.context.hardware.int8 is not None
        hardware = self.context.hardware if self.context.hardware.device is not None else None
        price = costs(dependencies, Target(self.settings.multiple, int8, hardware), self.context.shapes)
        path = plan_path(dependencies, found, price, steps, price=self.settings.price, scope=self.settings.scope)
        return _State(model, macs, kept, dependencies, found, path, time)

    def _curves(self, dependencies: Dependencies, numbers: Sequence[int]) -> dict[int, Curve]:
        if self.settings.criterion in WITHOUT_SAMPLES:
            return curves(dependencies, self.settings.criterion, groups=numbers)
        threads = self._threads()
        self.context.progress("prune_filters: importance", 0, 0)
        moments = collect_moments(
            dependencies, find_readers(dependencies), self._samples, threads=threads, seed=self.context.seed
        )
        if self._sensitivity is None:
            self._sensitivity = sensitivities(
                dependencies.model,
                moments,
                self._samples,
                macs=self.macs,
                threads=threads,
                progress=lambda done, total: self.context.progress("prune_filters: sensitivity", done, total),
            )
        return curves(dependencies, self.settings.criterion, moments, self._sensitivity, groups=numbers)

    def _advance(self, state: _State, goal: float, *, last: bool) -> tuple[_State, Refitted | None]:
        """Cut a model to ``goal`` multiply-adds at most, and recover it; plan on from there unless it is the last."""
        if state.macs <= goal:
            return state, None
        smaller, kept, step = state.model, state.kept, state.path.steps[-1]
        macs = state.macs
        for found in _from(state.path, goal / state.macs):
            step = found
            smaller, kept = self._cut(state, step)
            macs = self.count(smaller)
            if macs <= goal:
                break
        fits = self._recovered(smaller, kept)
        model = fits.model if fits is not None else smaller
        time = state.time * step.time
        if last:
            return _State(model, macs, kept, state.dependencies, state.curves, state.path, time), fits
        dependencies = dependency_groups(model, self.context.shapes)
        return self._planned(model, macs, kept, dependencies, time), fits

    def _cut(self, state: _State, step: Step) -> tuple[onnx.ModelProto, Kept]:
        remove = {number: state.dependencies[number].size - count for number, count in step.kept.items()}
        scores = {number: state.curves[number].scores() for number in remove}
        done = cut(state.dependencies, select(state.dependencies, scores, remove))
        return done.model, composed(state.kept, done.kept)

    def _recovered(self, smaller: onnx.ModelProto, kept: Kept) -> Refitted | None:
        if self.settings.recovery == "none":
            return None
        options = DATA_FREE if self.settings.recovery == "data_free" else RefitOptions()
        if self._recorded is None:
            self.context.progress("prune_filters: what the original answers", 0, 0)
            self._recorded = record(
                self.origin.model, self._samples, options=options, threads=self._threads(), seed=self.context.seed
            )
        return refit(
            self.origin.model,
            smaller,
            composed(self.origin.kept, kept),
            (),
            options=options,
            threads=self._threads(),
            seed=self.context.seed,
            progress=lambda what, done, total: self.context.progress(f"prune_filters: {what}", done, total),
            recorded=self._recorded,
        )

    def _drawn(self) -> list[Feed]:
        if self.context.calibration is not None and self.settings.recovery != "data_free":
            feeds: Iterable[Feed] = self.context.calibration
            if self.context.goals.drop is None and self.context.selection is not None:
                feeds = chain(feeds, self.context.selection)  # nothing is chosen by them
            return list(islice(feeds, self.settings.samples))
        if self.settings.recovery == "data_free":
            return list(synthetic_feeds(self.model, NOISE_SAMPLES, shapes=self.context.shapes, seed=self.context.seed))
        return []

    @property
    def _finer(self) -> bool:
        """Whether counts between the kernels' multiples are worth having: kernels of devices pad them."""
        return self.context.hardware.device is None

    def _threads(self) -> int:
        return max(self.context.threads, self.context.jobs)


def _from(path: Path, share: float) -> Collection[Step]:
    """The plan for a share of the multiply-adds, then smaller ones: real counts may lie a little above planned ones."""
    first = path.steps.index(path.at(macs=share))
    return (path.within(share), *path.steps[first:])
