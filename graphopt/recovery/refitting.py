"""Refit a changed net, layer after layer, towards what the original gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from graphopt.errors import UnsupportedModelError, UsageError
from graphopt.recovery.behind import Behind, behind
from graphopt.recovery.changes import same_filters, unchanged
from graphopt.recovery.goals import Kept, remaining_filters, rows_of
from graphopt.recovery.layers import Layer, Weights, find_layers, read_weights, write_weights
from graphopt.recovery.least_squares import Rows, fit
from graphopt.recovery.net import Net
from graphopt.recovery.normals import collect
from graphopt.recovery.options import RefitOptions
from graphopt.recovery.record import Feed, Recorded, record
from graphopt.recovery.restrictions import Fitted, Restriction
from graphopt.recovery.runner import Runner
from graphopt.recovery.store import Store

# Noise to signal that float32 gives by itself: nothing to recover.
EXACT = 1e-11
TOO_FEW = "there are too few samples, or they make it NaN or infinite"


@dataclass(frozen=True)
class LayerFit:
    """What became of one layer.

    Attributes:
        layer: the tensor that it writes.
        before: squared error of its output over the squared output of the original, on held-out samples, before its
            refit and after those of the layers before it; None where it was not measured.
        after: the same with the refitted weights, before the held-out samples were added to the fit; ``before``
            where it was left alone.
        ridge: the ridge that was chosen; infinity where only the bias was changed; None in a restricted layer.
        reason: why it was left alone, in words; empty where it was refitted.
    """

    layer: str
    before: float | None = None
    after: float | None = None
    ridge: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Refitted:
    """A refitted model.

    Attributes:
        model: the model.
        fits: what was done to each layer.
        restricted: for each restricted layer that was fitted, what its restriction made.
    """

    model: onnx.ModelProto
    fits: tuple[LayerFit, ...]
    restricted: Mapping[str, Fitted] = field(default_factory=dict)


def refit(
    original: onnx.ModelProto,
    changed: onnx.ModelProto,
    kept: Kept,
    feeds: Iterable[Feed],
    *,
    options: RefitOptions = RefitOptions(),  # noqa: B008, frozen
    layers: Collection[str] | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    recorded: Recorded | None = None,
    restrictions: Mapping[str, Restriction] | None = None,
) -> Refitted:
    """Give the layers of a changed model weights with which it answers like the original again.

    Layer after layer, in the order of the graph, each is fed by the already refitted net and fitted by ridge least
    squares towards the output that the layer of the same name has in the original on the same samples (He et al.
    2017, arXiv 1707.06168). A layer whose error on held-out samples does not fall stays as it is.

    Args:
        original: the model whose answers are right.
        changed: the model to refit; not written to.
        kept: which indices of the original's tensors remain, for tensors that became narrower (``channels.Cut.kept``).
        feeds: samples; each feeds the model once. Not read where ``recorded`` is given.
        options: see ``RefitOptions``.
        layers: tensors written by the layers that may be refitted; all by default.
        threads: intra-op threads.
        seed: seed of the choice of positions.
        progress: called with (what, done, total).
        recorded: what ``record`` made of the original and the samples, to be used again.
        restrictions: families of weights in which layers must end, by the tensor they write; these layers are refitted
            in any case, and their weights in the model are those of ``Refitted.restricted``. Where one could not be
            fitted, its ``LayerFit`` says why, and its weights are as they were.

    Raises:
        UsageError: a restricted layer does not exist.
        DataError: there is something to refit but no sample, or no room for activations.
        UnsupportedModelError: ONNX Runtime cannot run the original.
    """
    net = Net(changed)
    found, refused = find_layers(net)
    fits = {name: LayerFit(name, reason=reason) for name, reason in refused.items()}
    bound = dict(restrictions or {})
    for name in bound.keys() - {layer.name for layer in found} - refused.keys():
        raise UsageError(f"there is no layer that writes '{name}'")
    written = {**kept, **{name: kept.get(name, {}) for name in bound}}
    untouched = _untouched(original if recorded is None else recorded.net, net, found, written, options) - bound.keys()
    fits.update({name: LayerFit(name, reason="nothing up to it was changed") for name in untouched})
    following = {layer.name for layer in found if layer.kind != "normalization"}
    found = tuple(layer for layer in found if layer.name not in untouched)
    if recorded is None:
        names = {layer.name for layer in found if layers is None or layer.name in layers or layer.name in bound}
        names -= {layer.name for layer in found if layer.kind == "normalization" and layer.input in following}
        known = record(original, feeds, options=options, layers=names, threads=threads, seed=seed)
    else:
        known = recorded
    todo: list[tuple[Layer, Behind]] = []
    for layer in found:
        if layers is not None and layer.name not in layers and layer.name not in bound:
            continue
        reason = _reason(known, layer, kept, following, options)
        if reason:
            fits[layer.name] = LayerFit(layer.name, reason=reason)
            continue
        after = behind(net, layer)
        if after.sum is not None and not (
            options.residual and known.has_sum(layer.name) and known.targets[layer.name].sum == after.sum
        ):
            after = Behind(after.factor, after.shift)
        todo.append((layer, after))
    store = Store(options.memory // 2)
    for name in net.inputs:
        for batch in range(known.batches if name in known.inputs else 0):
            store.put(name, batch, known.inputs.get(name, batch))
    wanted = [name for layer, after in todo for name in _wanted(layer, after)]
    runner = Runner(net, store, known.batches, wanted, threads)
    made: dict[str, Fitted] = {}
    for number, (layer, after) in enumerate(todo):
        fits[layer.name] = _refit_layer(net, runner, known, kept, layer, after, options, bound.get(layer.name), made)
        for name in _wanted(layer, after):
            runner.release(name)
        progress("refit", number + 1, len(todo))
    store.close()
    if recorded is None:
        known.close()
    order = {name: number for number, step in enumerate(net.steps) for node in step for name in node.output}
    return Refitted(net.to_model(), tuple(sorted(fits.values(), key=lambda each: order[each.layer])), made)


def _untouched(
    original: onnx.ModelProto | Net, net: Net, layers: Sequence[Layer], kept: Kept, options: RefitOptions
) -> frozenset[str]:
    """Layers whose input and filters are the original's, and with them nothing to make up for."""
    old = original if isinstance(original, Net) else Net(original)
    same = unchanged(old, net, kept)
    before = {layer.name: layer for layer in find_layers(old)[0]}
    names: set[str] = set()
    for layer in layers:
        twin = before.get(layer.name)
        if twin is None or layer.input not in same or twin.input != layer.input:
            continue
        operand = behind(net, layer).operand if options.residual else None
        # What reads a whole tensor can only have lost filters.
        remaining = next(iter(kept.get(layer.name, {}).values()), None)
        if (operand is None or operand in same) and same_filters(old, net, twin, layer, remaining):
            names.add(layer.name)
    return frozenset(names)


def _wanted(layer: Layer, after: Behind) -> list[str]:
    return [layer.input] if after.operand is None else [layer.input, after.operand]


def _reason(known: Recorded, layer: Layer, kept: Kept, following: Collection[str], options: RefitOptions) -> str:
    """Why a layer cannot be refitted; empty where it can."""
    if layer.kind == "normalization":
        if not options.normalization:
            return "normalizations are left alone"
        if layer.input in following:
            return "the layer before it is refitted"
    if not known.has(layer.name):
        return "the original has no layer of this name"
    width = known.shape(layer.name, 0)[-1]
    indices = remaining_filters(kept, layer.name, len(known.shape(layer.name, 0)), layer.channel_axis)
    if (width if indices is None else len(indices)) != layer.outputs:
        return f"it has {layer.outputs} outputs, the original's layer {width}, and it is not known which remain"
    return ""


def _refit_layer(
    net: Net,
    runner: Runner,
    known: Recorded,
    kept: Kept,
    layer: Layer,
    after: Behind,
    options: RefitOptions,
    restriction: Restriction | None,
    made: dict[str, Fitted],
) -> LayerFit:
    """Refit one layer; what its restriction makes goes into ``made``."""
    try:
        runner.reach(_wanted(layer, after))
    except UnsupportedModelError as error:
        return LayerFit(layer.name, reason=str(error))
    weights = read_weights(net, layer)
    rows = rows_of(net, runner.store, known, kept, layer, after, weights)
    if restriction is not None:
        return _restrict(net, layer, weights, rows, restriction, made)
    total = sum(len(known.places(layer.name, batch)) for batch in range(known.batches))
    free = weights.matrix != 0 if options.keep_zeros else None
    outcome = fit(rows, options.ridges, primal=total > layer.unknowns, free=free)
    if outcome is None:
        return LayerFit(layer.name, reason=TOO_FEW)
    change = outcome.change
    if outcome.before < EXACT:
        return LayerFit(layer.name, outcome.before, outcome.before, reason="its output is the original's")
    if change is None:
        reason = "no other weights come closer to the original"
        return LayerFit(layer.name, outcome.before, outcome.before, reason=reason)
    write_weights(net, layer, Weights(weights.matrix + change.matrix, weights.bias + change.bias.reshape(-1)))
    return LayerFit(layer.name, outcome.before, outcome.after, change.ridge)


def _restrict(
    net: Net,
    layer: Layer,
    weights: Weights,
    rows: Iterator[Rows],
    restriction: Restriction,
    made: dict[str, Fitted],
) -> LayerFit:
    seen = collect(rows, weights)
    if seen is None:
        return LayerFit(layer.name, reason=TOO_FEW)
    fitted = restriction.fit(seen.fitting, seen.held_out)
    matrix = np.asarray(fitted.matrix(), dtype=np.float32)
    before, after = seen.held_out.error(weights.matrix), seen.held_out.error(matrix)
    if not (np.isfinite(matrix).all() and np.isfinite(after)):
        return LayerFit(layer.name, before, before, reason="the weights found for it are not finite")
    write_weights(net, layer, Weights(matrix, seen.bias(matrix)))
    made[layer.name] = fitted
    return LayerFit(layer.name, before, after)
