"""Decides how far several approximate passes go together, under one accuracy budget.

All priced passes are told the same price, the share of the model's time that one unit of noise at the outputs is worth:
so what is cut or replaced is what costs least accuracy for its time, whichever pass it belongs to (the Lagrangian of
the common knapsack). The price falls until the accuracy asked for is used up, as measured on selection samples, less
what the passes behind that have no price (quantization) need. Predictions err, so mixtures compete: all priced passes
together, each alone, none. Those that hold are timed with all that follows on them, and the fastest comes first; where
it does not hold on the evaluation samples, the next follows, or a gentler one of the same mixture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from graphopt.composition.finishing import WORTH, Finished, finish, finish_without
from graphopt.composition.mixtures import Mixed, Mixer
from graphopt.composition.prices import Tried, search_price
from graphopt.composition.telling import step_of, step_without
from graphopt.exact import PROPAGATED, told
from graphopt.passes.base import ApproximatePass, Context, Declined, Dial, Pass, Priced, quantizes
from graphopt.stages import StageRunner, Step

# Models tried on the way to a price, by the model's multiply-adds: (up to, trials for all passes together, for each
# other mixture). Every trial is a recovery of the whole model and a run over the selection samples.
TRIALS = ((2e8, 7, 4), (1e9, 6, 4), (float("inf"), 4, 0))
# What passes without a price may use up of the accuracy before others get less than half of it.
MOST_RESERVED = 0.5
# Where quantization makes a model less than so many times as fast, most of it stays in float and is timed so.
MOSTLY_INT8 = 1.2
# By how much the price rises where a mixture does not hold, and how often for the passes behind it.
GENTLER = 1.25
RETRIES = 3
# Models refused on the evaluation samples before what is left without quantization has its turn.
BEFORE_LAST_RESORT = 3


def composable(passes: Sequence[Pass], context: Context) -> bool:
    """Whether passes that follow each other share one budget: open-ended ones first, and a metric to spend."""
    priced = [isinstance(one, Priced) for one in passes]
    return (
        any(priced)
        and all(one.open_ended(context.goals) for one in passes if isinstance(one, Priced))
        and len(passes) > 1
        and not any(one.exact for one in passes)
        and priced == sorted(priced, reverse=True)
        and context.goals.drop is not None
        and context.calibration is not None
    )


def compose(
    passes: Sequence[ApproximatePass],
    current: onnx.ModelProto,
    runner: StageRunner,
    refusals: list[str],
    give_up: Callable[[], bool],
) -> Iterator[Step]:
    """Yield models that the passes make together, the fastest that holds first; last the model without them.

    Args:
        passes: as ``composable`` wants them.
        current: the model before them.
        runner: judges and counts.
        refusals: why earlier models do not hold; the caller appends the verdict on the last step.
        give_up: asked before each model; True ends the search.

    Raises:
        DataError: the data do not fit the model.
        UsageError: an option of a pass does not fit the model.
    """
    started = time.perf_counter()
    search = _Search(passes, current, runner)
    refused = 0
    try:
        pool = search.finalists()
        while pool and not give_up():
            best = pool.pop(0)
            told = len(refusals)
            yield step_of(best, passes, search.mixer, search.idle, runner, refusals, started)
            refusals[told:] = [f"{_label(best)}: {refusal}" for refusal in refusals[told:]]
            following = search.gentler(best)
            if following is not None:
                pool = _ranked([*pool, following])
            refused += 1
            if (refused >= BEFORE_LAST_RESORT or not pool) and (spared := search.last_resort()) is not None:
                pool = [spared, *pool]
        yield step_without(
            current, passes, {**search.alone, **search.idle}, runner, [*refusals, *search.problems], started
        )
    finally:
        search.mixer.close()


def _label(finished: Finished) -> str:
    return " and ".join(finished.mixed.parts) or "without cutting or replacing layers"


@dataclass
class _Search:
    """One search.

    Attributes:
        passes: as ``composable`` wants them.
        current: the model before them.
        runner: judges and counts.
        mixer: makes mixtures.
        idle: why a priced pass has no part in any mixture.
        alone: why a pass behind the mixtures does nothing to the model as it is.
        problems: why mixtures do not hold.
    """

    passes: Sequence[ApproximatePass]
    current: onnx.ModelProto
    runner: StageRunner
    mixer: Mixer = field(init=False)
    idle: dict[str, str] = field(init=False, default_factory=dict)
    alone: dict[str, str] = field(init=False, default_factory=dict)
    problems: list[str] = field(init=False, default_factory=list)
    _plain: Finished | None = field(init=False, default=None)
    _tried: dict[tuple[str, ...], Tried] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.mixer = Mixer(self.current)

    @property
    def context(self) -> Context:
        return self.runner.context

    @property
    def _behind(self) -> list[ApproximatePass]:
        """The passes without a price."""
        return [one for one in self.passes if not isinstance(one, Priced)]

    def _quantizing(self) -> set[str]:
        """Names of the passes behind that quantize."""
        return {one.name for one in self._behind if quantizes(one)}

    def finalists(self) -> list[Finished]:
        """Models of each mixture that hold on the selection samples, the fastest first."""
        drop = self.context.goals.drop
        assert drop is not None, "composable asks for it"
        plain = self._plain = self._finished(Mixed(self.current))
        for one, each in zip(self._behind, plain.followed, strict=True):
            self.alone[one.name] = each.reason
        goals = replace(self.context.goals, int8_follows=bool(self._quantizing()) and self._pays(plain))
        self.mixer.dials.update(self._dials(replace(self.context, goals=goals)))
        allowed = self.context.goals.max_drop
        allowed -= min(self._used(plain), MOST_RESERVED * allowed)
        found = [plain] if plain.model is not self.current else []
        around = None
        for number, (names, trials) in enumerate(self._mixtures()):
            self.context.progress(f"finding out how far {' and '.join(names)} may go", number, 0)
            tried = search_price(
                lambda price, names=names: self.mixer.mix(names, price),  # type: ignore[misc]
                lambda made: drop(made.model),
                allowed,
                trials,
                around,
            )
            self._tried[names] = tried
            around = around or tried.price
            found += self._best_of(tried)
        return _ranked(_distinct(found))

    def _pays(self, plain: Finished) -> bool:
        """Whether the passes behind make the model so much faster by themselves that what is left runs in int8.

        By the clock of this machine; what a device runs in int8 is known.
        """
        if self.context.hardware.device is not None:
            return bool(self._quantizing() & plain.took(self._behind))
        speedup = self.context.goals.speedup
        if plain.model is self.current or speedup is None:
            return False
        return plain.speedup >= MOSTLY_INT8 * speedup(self.current)

    def _used(self, plain: Finished) -> float:
        """By how much the passes behind make the metric fall by themselves."""
        whole = self.runner.judge.trial(self.current, self.current, faster=False).metric
        left = plain.followed[-1].trial if plain.followed else None
        return 0.0 if whole is None or left is None or left.metric is None else max(whole - left.metric, 0.0)

    def gentler(self, refused: Finished) -> Finished | None:
        """A gentler model of the same mixture that holds on the selection samples; None: there is none."""
        if not refused.mixed.parts:
            return None
        return self._first_that_holds(self.mixer.mix(refused.mixed.names, refused.mixed.price * GENTLER))

    def last_resort(self) -> Finished | None:
        """What follows on the model as it is without what quantizes, once; None: that is nothing, or came before."""
        plain, self._plain = self._plain, None
        names = self._quantizing()
        if plain is None or not names & plain.took(self._behind):
            return None
        judge = self.runner.judge
        found = finish_without(names, Mixed(self.current), self.current, self._behind, self.context, judge)
        return None if found.problem is not None or found.model is self.current else found

    def _mixtures(self) -> Iterator[tuple[tuple[str, ...], int]]:
        """Names of the priced passes of each mixture, and how many models to try of it."""
        macs = self.runner.costs.of(self.current).macs or 0
        _, together, apart = next(row for row in TRIALS if macs <= row[0])
        names = tuple(self.mixer.dials)
        if names:
            yield names, together
        if len(names) > 1 and apart:
            yield from (((name,), apart) for name in names if self._had_part(name))

    def _had_part(self, name: str) -> bool:
        """Whether a pass did anything in a mixture tried before."""
        return any(name in made.parts and len(made.parts) > 1 for each in self._tried.values() for made in each.mixes)

    def _best_of(self, tried: Tried) -> list[Finished]:
        """The boldest model of a search that holds with what follows on it, and another where it might be faster.

        What follows was allowed for as much as it costs the whole model; on a bolder one that holds without it, it may
        cost less, or have no part in it.
        """
        bolder = tried.beyond(self.context.goals.max_drop)
        finished = None if bolder is None else self._finished(bolder)
        found = [finished] if finished is not None and finished.problem is None else []
        if found and all(each.candidate is not None for each in found[0].followed):
            return found
        best = self._first_that_holds(tried.mixes[0]) if tried.mixes else None
        return found if best is None else [*found, best]

    def _first_that_holds(self, mixed: Mixed) -> Finished | None:
        """A mixture, or a gentler one, that still holds with what follows on it."""
        for _ in range(RETRIES):
            if not mixed.parts:
                return None
            finished = self._finished(mixed)
            if finished.problem is None:
                return finished
            self.problems.append(f"{_label(finished)}: {finished.problem}")
            mixed = self.mixer.mix(mixed.names, mixed.price * GENTLER)
        return None

    def _finished(self, mixed: Mixed) -> Finished:
        return finish(mixed, self.current, self._behind, self.context, self.runner.judge)

    def _dials(self, context: Context) -> Mapping[str, Dial]:
        """Open the priced passes; what has nothing to offer is noted in ``idle``."""
        dials: dict[str, Dial] = {}
        for one in self.passes:
            if not isinstance(one, Priced):
                continue
            reason = self.runner.judge.why_unjudged(one.needs)
            try:
                dial = None if reason else one.dial(self.current, context)
            except Declined as declined:
                reason, dial = str(declined), None
            except PROPAGATED:
                raise
            except Exception as error:  # a pass that fails costs only itself; the report names it
                reason, dial = told(error), None
            if dial is None:
                self.idle[one.name] = reason or "it has nothing to offer"
            else:
                dials[one.name] = dial
        return dials


def _ranked(found: Sequence[Finished]) -> list[Finished]:
    """The fastest first, where every pass that took part must be worth it."""
    return sorted(found, key=lambda each: -each.speedup / WORTH ** len(each.mixed.parts))


def _distinct(found: Sequence[Finished]) -> list[Finished]:
    """Leave out mixtures in which nothing but what another one has took part."""
    kept: dict[tuple[tuple[str, ...], float], Finished] = {}
    for each in found:
        kept.setdefault((tuple(each.mixed.parts), each.mixed.price), each)
    return list(kept.values())
