"""What each layer of a model may become: time, multiply-adds and noise of every option worth having."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx

from graphopt import runtime
from graphopt.data import random_feeds
from graphopt.graph.cost import cost
from graphopt.passes.base import Context, Feed, Skip, kernel_multiple
from graphopt.passes.separable.factors import Form
from graphopt.passes.separable.losses import Loss, losses, sensitivities, typical
from graphopt.passes.separable.measuring import LEAST_SAVING, Timed, at_rank, faster, macs_of
from graphopt.passes.separable.places import Place
from graphopt.passes.separable.ranks import Choice, Option, Totals
from graphopt.passes.separable.settings import Settings
from graphopt.passes.separable.times import FormTimes
from graphopt.recovery.layers import read_weights
from graphopt.recovery.net import Net
from graphopt.recovery.restrictions import Normal

Normals: TypeAlias = Iterable[tuple[str, Normal, Normal]]
# Inputs of a filter (channels times taps) up to which samples tell what ranks lose. Of wider layers the weights alone
# do, which is a little pessimistic: moments of 4,608 inputs and a dozen fits to them took two minutes.
MOST_INPUTS = 1536
# Channels that kernels compute at a time where the target does not tell.
MULTIPLE = 16


@dataclass(frozen=True)
class Measured:
    """What a model's layers may become.

    Attributes:
        choices: the layers with options.
        totals: time and multiply-adds of the whole model.
        skipped: layers without an option, and why.
    """

    choices: tuple[Choice, ...]
    totals: Totals
    skipped: tuple[Skip, ...] = ()


def measure(
    model: onnx.ModelProto,
    places: Sequence[Place],
    settings: Settings,
    times: FormTimes,
    samples: Sequence[Feed],
    moments: Callable[[Collection[str]], Normals],
    context: Context,
) -> Measured:
    """Measure what every layer may become.

    Args:
        model: the model.
        places: its convolutions that can be separated.
        settings: with a rank, every layer gets options of that rank only; else those that are faster.
        times: measures them.
        samples: calibration samples; none: losses are those of the weights alone, and all layers count alike.
        moments: second moments of layers by the tensors that they write, one after the other.
        context: threads, progress, target.
    """
    totals = Totals(
        _model_time(model, times, samples, context) if not settings.rank else 1.0, _known_macs(model, context)
    )
    options: dict[str, list[Timed]] = {}
    skips: list[Skip] = []
    multiple = kernel_multiple(context, MULTIPLE)
    for number, place in enumerate(places):
        context.progress("separate_convolutions: measuring kernels", number, len(places))
        if settings.rank:
            found = at_rank(place, times, settings.forms, settings.layout, settings.rank)
        else:
            least = LEAST_SAVING * totals.time
            found = faster(place, times, settings.forms, settings.layout, multiple, least)
        if found:
            options[place.name] = found
        else:
            skips.append(Skip(place.node, _why_not(place, times, settings)))
    chosen = [place for place in places if place.name in options]
    lost = _all_losses(model, chosen, options, samples, moments, context)
    noise = dict.fromkeys(options, 1.0)
    if samples and not settings.rank:
        noise = sensitivities(
            model,
            chosen,
            {name: typical(each.values()) for name, each in lost.items()},
            samples,
            macs=totals.macs,
            threads=max(context.threads, context.jobs),
            progress=lambda done, total: context.progress("separate_convolutions: sensitivity", done, total),
        )
    choices = [
        Choice(
            place.name,
            0.0 if settings.rank else times.whole(place.piece),
            macs_of(place.piece),
            tuple(
                _option(each, lost[place.name][each.form, each.rank].loss, noise[place.name])
                for each in options[place.name]
            ),
        )
        for place in chosen
    ]
    return Measured(tuple(choices), totals, tuple(skips))


def _option(timed: Timed, loss: float, sensitivity: float) -> Option:
    return Option(timed.form, timed.rank, timed.layout, timed.time, timed.macs, loss * sensitivity, loss)


def _all_losses(
    model: onnx.ModelProto,
    places: Sequence[Place],
    options: Mapping[str, Sequence[Timed]],
    samples: Sequence[Feed],
    moments: Callable[[Collection[str]], Normals],
    context: Context,
) -> dict[str, dict[tuple[Form, int], Loss]]:
    net = Net(model)
    by_name = {place.name: place for place in places}
    found: dict[str, dict[tuple[Form, int], Loss]] = {}

    def add(name: str, known: tuple[Normal, Normal] | None) -> None:
        context.progress("separate_convolutions: what each rank loses", len(found), len(places))
        ranks: dict[Form, list[int]] = {}
        for each in options[name]:
            ranks.setdefault(each.form, []).append(each.rank)
        place = by_name[name]
        found[name] = losses(read_weights(net, place.layer).matrix, place.geometry, ranks, known)

    narrow = [place.name for place in places if place.layer.unknowns <= MOST_INPUTS]
    if samples and narrow:
        for name, fitting, held_out in moments(narrow):
            add(name, (fitting, held_out))
    for name in by_name:
        if name not in found:
            add(name, None)
    return found


def _why_not(place: Place, times: FormTimes, settings: Settings) -> str:
    if settings.rank:
        return "it cannot be written in any of the forms"
    whole = times.whole(place.piece)
    tried: list[float] = []
    for form in settings.forms:
        best = times.fastest(place.piece, place.geometry, form, 1)
        if best is not None:
            tried.append(best[0])
    if not tried:
        return "it cannot be written in any of the forms"
    if min(tried) >= whole:
        return f"it does not pay: at rank 1 it would take {min(tried):.0f} µs instead of {whole:.0f} µs"
    return f"it does not pay: {whole - min(tried):.0f} µs at most would be saved, next to nothing of the whole model"


def _model_time(model: onnx.ModelProto, times: FormTimes, samples: Sequence[Feed], context: Context) -> float:
    """Microseconds of the model for one sample, on random inputs where there is none."""
    if samples:
        return times.net(model, samples[0])
    drawn = random_feeds(runtime.input_specs(model), context.shapes, seed=context.seed)
    return times.net(model, next(iter(drawn.feeds)))


def _known_macs(model: onnx.ModelProto, context: Context) -> int:
    return cost(model, shapes=context.shapes).known_macs
