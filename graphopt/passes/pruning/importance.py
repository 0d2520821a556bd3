"""How much each channel of a group matters, by several criteria, in a form in which groups compare.

- "l1", "l2": norm of all weights that write or read the channel (filters: Li et al. 2017, arXiv 1608.08710; summed over
  all layers that the channel runs through).
- "batchnorm": size of its BatchNormalization factors (Liu et al. 2017, arXiv 1708.06519).
- "activation": power of the channel where it is read times that of the readers' weights for it, as a share of the
  power of what they compute.
- "refit": what the readers lose when the channel goes and the others are refitted, one channel after another
  (``elimination``).

With samples the noise of every order is predicted from the readers' losses and their measured sensitivities, whatever
criterion the order comes from. Without, it is guessed: every reader suffers the square of the share of the scores given
up (measured curves are at least as convex; a straight line would have one group cut to the bone before the next).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from graphopt.channels import Dependencies, Group
from graphopt.errors import UsageError
from graphopt.passes.pruning.curves import Curve
from graphopt.passes.pruning.elimination import Factor, eliminate
from graphopt.passes.pruning.moments import Moments
from graphopt.passes.pruning.readers import Owner
from graphopt.passes.pruning.rows import matrix
from graphopt.passes.pruning.weights import Weights

Criterion: TypeAlias = Literal["l1", "l2", "batchnorm", "activation", "refit"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
DATA_FREE: frozenset[Criterion] = frozenset({"l1", "l2", "batchnorm"})

Floats = npt.NDArray[np.float64]


def curves(
    dependencies: Dependencies,
    criterion: Criterion,
    moments: Mapping[str, Moments] | None = None,
    sensitivity: Mapping[str, float] | None = None,
    least_share: float = 1 / 8,
    groups: Iterable[int] | None = None,
) -> dict[int, Curve]:
    """Find for every group the order of its channels and the predicted noise of giving them up.

    Args:
        dependencies: groups of the model.
        criterion: what orders the channels.
        moments: of every layer that reads channels, by name; "activation" and "refit" need them.
        sensitivity: noise at the outputs for each unit of error of a layer, by name; 1 where missing.
        least_share: no group gives up more than the rest.
        groups: numbers of the groups to look at; all unless told.

    Raises:
        UsageError: the criterion needs samples and there are none.
    """
    if criterion not in DATA_FREE and moments is None:
        raise UsageError(f"importance '{criterion}' needs samples: give --data, or use one of {sorted(DATA_FREE)}")
    weights = Weights(dependencies.model)
    found: dict[int, list[tuple[Moments, Owner]]] = {}
    for each in (moments or {}).values():
        for owner in each.reader.owners:
            found.setdefault(owner.group, []).append((each, owner))
    result: dict[int, Curve] = {}
    for group in dependencies if groups is None else [dependencies[number] for number in groups]:
        least = max(group.keep, int(np.ceil(group.size * least_share)))
        if least >= group.size:
            continue
        factors = [
            factor(each, owner, weights, (sensitivity or {}).get(each.reader.name, 1.0))
            for each, owner in found.get(group.number, ())
        ]
        result[group.number] = _curve(group, criterion, weights, factors, found.get(group.number, ()), least)
    return result


def _curve(
    group: Group,
    criterion: Criterion,
    weights: Weights,
    factors: Sequence[Factor],
    read: Sequence[tuple[Moments, Owner]],
    least: int,
) -> Curve:
    if criterion == "refit" and factors:
        found = eliminate(group.size, factors, least)
        return Curve(group.number, group.size, found.order, found.loss, "loss of the readers' refit")
    source = criterion
    scores: Floats | None = None
    if criterion == "activation" and read:
        scores = activation_scores(group, read, weights)
    elif criterion == "batchnorm":
        scores = batchnorm_scores(group, weights)
    if scores is None:
        source = criterion if criterion in ("l1", "l2") else "l2"
        scores = norm_scores(group, weights, 1 if criterion == "l1" else 2)
    order = np.argsort(scores, kind="stable")[: group.size - least]
    if factors:
        found = eliminate(group.size, factors, least, order.tolist())
        return Curve(group.number, group.size, found.order, found.loss, source)
    share = np.cumsum(np.square(scores)[order]) / max(float(np.square(scores).sum()), 1e-30)
    noise = max(len(group.readers), 1) * np.square(share)
    return Curve(group.number, group.size, order, np.concatenate([[0.0], noise]), source)


def factor(moments: Moments, owner: Owner, weights: Weights, sensitivity: float) -> Factor:
    """What one block of a reader loses with channels of one group, in noise at the outputs."""
    reader = moments.reader
    weight = matrix(reader, weights[reader.weight])[owner.block].astype(np.float64)
    weight = weight * moments.scale[owner.block]
    taps, channels, outputs = weight.shape
    columns = owner.columns
    missing = columns < 0
    if moments.taps is None:
        rows = (np.arange(taps)[None, :, None] * channels + np.maximum(columns, 0)[:, None, :]).reshape(
            len(columns), -1
        )
        empty = np.broadcast_to(missing[:, None, :], (len(columns), taps, columns.shape[1])).reshape(rows.shape)
        values = weight.reshape(taps * channels, outputs)[rows]
    else:
        rows, empty = np.maximum(columns, 0), missing
        values = _mixed(weight, moments.taps)[rows]
    inverse = moments.inverse[owner.block].astype(np.float64)[rows[:, :, None, None], rows[None, None]]
    if empty.any():
        inverse[empty] = 0
        inverse.transpose(2, 3, 0, 1)[empty] = 0
        at = np.nonzero(empty)
        inverse[at[0], at[1], at[0], at[1]] = 1
        values = np.where(empty[:, :, None], 0.0, values)
    # A layer whose output never changes loses nothing.
    worth = sensitivity / moments.energy if moments.energy > 0 else 0.0
    return Factor(owner.channels, inverse, _narrowed(values), worth)


def _mixed(weight: Floats, taps: npt.NDArray[Any]) -> Floats:
    """Weights [taps, channels, outputs] as [channels, taps * outputs] such that taps no longer correlate."""
    values, vectors = np.linalg.eigh(taps)
    root = (vectors * np.sqrt(np.maximum(values, 0))).T
    mixed = np.einsum("st,tco->cso", root, weight, optimize=True)
    return _narrowed(mixed.reshape(weight.shape[1], -1))


def _narrowed(values: Floats) -> Floats:
    """Weights with no more outputs than rows and the same products between rows: losses depend on nothing else."""
    flat = values.reshape(-1, values.shape[-1])
    if flat.shape[1] <= flat.shape[0]:
        return values
    square = flat @ flat.T
    eigenvalues, vectors = np.linalg.eigh(square)
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0))
    return np.asarray(root.reshape(*values.shape[:-1], -1))


def norm_scores(group: Group, weights: Weights, power: int) -> Floats:
    """Norm of all weights of each channel, each layer's scaled so that its mean square (or mean size) is 1."""
    total = np.zeros(group.size)
    for member in group.members:
        if member.role == "follows" or len(weights.shape(member.parameter) or ()) < 2:
            continue
        values = np.abs(weights[member.parameter].astype(np.float64)) ** power
        each = _along(values, member.axis, int(member.indices.max()) + 1)[member.indices].sum(axis=1)
        total += each / max(float(each.mean()), 1e-30)
    return total ** (1 / power)


def _along(values: Floats, axis: int, channels: int) -> Floats:
    """Sums of the slices of a weight along an axis.

    The weight of a grouped convolution counts its channels anew in every block: they are told apart by the block of
    the other channel axis that they belong to.
    """
    blocks = -(-channels // values.shape[axis])
    turned = np.moveaxis(values, axis, 0)
    if blocks == 1:
        return np.asarray(turned.reshape(len(turned), -1).sum(axis=1))
    split = turned.reshape(len(turned), blocks, -1).sum(axis=2)
    return np.asarray(split.T.reshape(-1))


def batchnorm_scores(group: Group, weights: Weights) -> Floats | None:
    """Size of each channel's BatchNormalization factors, summed; None where the group has none (folded or absent)."""
    total: Floats | None = None
    for member in group.members:
        if member.operator == "BatchNormalization" and member.input == 1:
            values = np.abs(weights[member.parameter].astype(np.float64))[member.indices].sum(axis=1)
            total = values if total is None else total + values
    return total


def activation_scores(group: Group, read: Iterable[tuple[Moments, Owner]], weights: Weights) -> Floats:
    """Power that each channel brings into its readers, as a share of what they compute; square root of the sum."""
    total = np.zeros(group.size)
    for moments, owner in read:
        weight = matrix(moments.reader, weights[moments.reader.weight])[owner.block].astype(np.float64)
        power = np.square(weight * moments.scale[owner.block]).sum(axis=2) * moments.power[owner.block]
        each = np.concatenate([power.sum(axis=0), [0.0]])[owner.columns].sum(axis=1)
        total[owner.channels] += each / max(moments.energy, 1e-30)
    return np.sqrt(total)
