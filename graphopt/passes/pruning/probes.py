"""Models in which one layer does without some of its inputs, refitted: what the pruned network will look like there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from graphopt.passes.pruning.moments import Moments
from graphopt.passes.pruning.readers import Reader
from graphopt.passes.pruning.rows import matrix, unmatrix
from graphopt.passes.pruning.weights import Weights

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Refit:
    """A layer without some of its inputs.

    Attributes:
        weight: its weight, rows of those inputs zero, the others refitted; shape of the original.
        shift: what its outputs must be shifted by for their mean to stay, [outputs of the weight].
        loss: squared error over the power of the layer's output (about its mean, outputs weighed by their scale).
    """

    weight: npt.NDArray[Any]
    shift: npt.NDArray[Any]
    loss: float


def refit_without(moments: Moments, weights: Weights, gone: Indices) -> Refit:
    """Refit a layer without channels ``gone`` of each block, by the moments of what it reads.

    Args:
        moments: those of the layer.
        weights: constants of the model.
        gone: [blocks, count], channels of each block.
    """
    reader = moments.reader
    stored = weights[reader.weight]
    whole = matrix(reader, stored).astype(np.float64)
    blocks, taps, channels, outputs = whole.shape
    fitted = whole.copy()
    error = 0.0
    for block in range(blocks):
        inverse = moments.inverse[block].astype(np.float64)
        if moments.taps is None:
            at = (np.arange(taps)[:, None] * channels + gone[block]).reshape(-1)
            flat = whole[block].reshape(taps * channels, outputs)
        else:
            at = gone[block]
            flat = whole[block].transpose(1, 0, 2).reshape(channels, taps * outputs)
        solved = np.linalg.solve(inverse[np.ix_(at, at)], flat[at])
        update = flat - inverse[:, at] @ solved
        update[at] = 0
        if moments.taps is None:
            fitted[block] = update.reshape(taps, channels, outputs)
            error += float(np.sum(flat[at] * solved * np.square(moments.scale[block])))
        else:
            fitted[block] = update.reshape(channels, taps, outputs).transpose(1, 0, 2)
            lost = flat[at].reshape(-1, taps, outputs)
            spread = np.einsum("st,cto->cso", moments.taps, solved.reshape(-1, taps, outputs))
            error += float(np.sum(lost * spread * np.square(moments.scale[block])))
    shift = np.einsum("gtc,gtco->go", moments.mean, whole - fitted)
    if reader.form == "scatter":
        shift = shift.reshape(blocks, -1, int(np.prod(stored.shape[2:]))).mean(axis=2)
    return Refit(
        unmatrix(reader, fitted, stored.shape).astype(stored.dtype),
        shift.reshape(-1).astype(stored.dtype),
        error / max(moments.energy, 1e-30),
    )


def with_layer(model: onnx.ModelProto, reader: Reader, refit: Refit) -> onnx.ModelProto:
    """Return a copy of ``model`` in which one layer computes with other weights and a shifted bias."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    position, node = next((i, each) for i, each in enumerate(graph.node) if reader.name in each.output)
    weight, shift, before = "graphopt_probe_weight", "graphopt_probe_shift", "graphopt_probe_output"
    graph.initializer.append(numpy_helper.from_array(refit.weight, weight))
    node.input[0 if reader.form == "left" else 1] = weight
    factor = 1.0
    if node.op_type == "Gemm":
        factor = next((each.f for each in node.attribute if each.name == "alpha"), 1.0)
    values = refit.shift * refit.shift.dtype.type(factor)
    if reader.form in ("window", "scatter"):
        dims = max(1, refit.weight.ndim - 2)
        values = values.reshape(-1, *[1] * dims)
    elif reader.form == "left":
        values = values[:, None]
    graph.initializer.append(numpy_helper.from_array(values, shift))
    node.output[0] = before
    graph.node.insert(position + 1, onnx.helper.make_node("Add", [before, shift], [reader.name]))
    return result


def cheapest(moments: Moments, weights: Weights, share: float) -> Indices:
    """The share of each block's channels that alone cost the layer least, [blocks, count]; at least one of each."""
    reader = moments.reader
    owned = [np.zeros(0, dtype=np.int64)] * reader.blocks
    for owner in reader.owners:
        found = owner.columns.reshape(-1)
        owned[owner.block] = np.union1d(owned[owner.block], found[found >= 0])
    count = min(len(each) for each in owned)
    count = max(1, int(count * share)) if count else 0
    whole = matrix(reader, weights[reader.weight]).astype(np.float64) * moments.scale[:, None, None, :]
    picked = []
    for block, each in enumerate(owned):
        diagonal = np.diagonal(moments.inverse[block])
        power = np.square(whole[block]).sum(axis=2)
        cost = (power / (diagonal.reshape(power.shape) if moments.taps is None else diagonal)).sum(axis=0)
        picked.append(each[np.argsort(cost[each], kind="stable")[:count]])
    return np.array(picked, dtype=np.int64)
