"""What follows on a mixture: passes without a price, each by its first candidate that holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import onnx

from graphopt.composition.mixtures import Mixed
from graphopt.exact import PROPAGATED, told
from graphopt.passes.base import (
    ApproximatePass,
    Candidate,
    Context,
    Declined,
    Origin,
    Pass,
    quantizes,
    vouches_for_float16,
)
from graphopt.stages import Judge, Trial, tried

log = logging.getLogger(__name__)

# Candidates tried of a pass behind a mixture. Gentler mixtures are the better way out of too low an accuracy.
MOST_CANDIDATES = 3
LEFT_OUT = "float16 without it is faster or all but as fast, or holds where both do not"
# How many times as fast a pass must make a model to be worth the accuracy that it takes.
WORTH = 1.02


@dataclass(frozen=True)
class Followed:
    """What a pass behind a mixture did.

    Attributes:
        candidate: what was kept; None where nothing was.
        trial: what it was found to be.
        reason: why nothing, or why not the first candidate.
        seconds: how long it took.
    """

    candidate: Candidate | None
    trial: Trial | None
    reason: str
    seconds: float


@dataclass(frozen=True)
class Finished:
    """A mixture with all that follows on it.

    Attributes:
        mixed: the mixture.
        followed: one for each pass behind it.
        model: the model after them.
        problem: why it does not hold on the selection samples; None when it does.
        speedup: how many times as fast as the original it is; 0 where it does not hold.
    """

    mixed: Mixed
    followed: tuple[Followed, ...]
    model: onnx.ModelProto
    problem: str | None
    speedup: float = 0.0

    def took(self, passes: Sequence[ApproximatePass]) -> set[str]:
        """Names of the passes behind it, ``passes``, that had a part."""
        return {one.name for one, each in zip(passes, self.followed, strict=True) if each.candidate is not None}


def finish(
    mixed: Mixed, before: onnx.ModelProto, passes: Sequence[ApproximatePass], context: Context, judge: Judge
) -> Finished:
    """Apply the passes behind a mixture and judge the result.

    Where what quantizes leaves float16 no accuracy, float16 without it is tried too, and taken unless clearly slower.

    Args:
        mixed: the mixture.
        before: the model before it.
        passes: passes that follow, in order.
        context: that of the run.
        judge: judges each candidate.
    """
    found = finish_without((), mixed, before, passes, context, judge)
    if found.problem is not None:
        return found
    names = in_the_way(passes, found.took(passes))
    if not names:
        return found
    other = finish_without(names, mixed, before, passes, context, judge)
    return found if found.speedup > WORTH * other.speedup else other


def in_the_way(passes: Sequence[Pass], took: Container[str]) -> list[str]:
    """Names of passes that quantized where float16 was refused; ``took``: names of those that had a part."""
    if not any(vouches_for_float16(one) and one.name not in took for one in passes):
        return []
    return [one.name for one in passes if quantizes(one) and one.name in took]


def finish_without(
    left_out: Container[str],
    mixed: Mixed,
    before: onnx.ModelProto,
    passes: Sequence[ApproximatePass],
    context: Context,
    judge: Judge,
) -> Finished:
    """The same as ``finish`` with passes of some names left out."""
    model = mixed.model
    problem = judge.trial(model, before, faster=True).problem if mixed.parts else None
    if problem is not None:
        return Finished(mixed, (), model, problem)
    followed: list[Followed] = []
    for one in passes:
        if one.name in left_out:
            followed.append(Followed(None, None, LEFT_OUT, 0.0))
            continue
        origin = Origin(before, mixed.kept) if mixed.parts else context.origin
        found = _follow(one, model, replace(context, origin=origin), judge)
        followed.append(found)
        if found.candidate is not None:
            model = found.candidate.model
    speedup = context.goals.speedup
    if any(vouches_for_float16(one) and each.candidate is None for one, each in zip(passes, followed, strict=True)):
        speedup = context.goals.without_float16 or speedup
    return Finished(mixed, tuple(followed), model, None, speedup(model) if speedup is not None else 1.0)


def _follow(one: ApproximatePass, model: onnx.ModelProto, context: Context, judge: Judge) -> Followed:
    started = time.perf_counter()
    refusals: list[str] = []
    candidates = one.candidates(model, context)
    try:
        for candidate in islice(candidates, MOST_CANDIDATES):
            judged, trial = tried(candidate, model, judge)
            if trial.problem is None:
                return Followed(judged, trial, "; ".join(refusals), time.perf_counter() - started)
            refusals.append(f"{candidate.label}: {trial.problem}" if candidate.label else trial.problem)
    except Declined as declined:
        refusals.append(str(declined))
    except PROPAGATED:
        raise
    except Exception as error:  # a pass that fails costs only itself; the report names it
        log.debug("%s failed", one.name, exc_info=error)
        refusals.append(told(error))
    return Followed(None, None, "; ".join(refusals) or "it found nothing to do", time.perf_counter() - started)
