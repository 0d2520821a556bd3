"""Factors of a convolution by truncated singular value decomposition: where every fit to data starts.

For each input channel (``depthwise_first``) or filter (``pointwise_first``) its taps against the other side, as in
network decoupling (Guo et al. 2018, arXiv 1808.05517); the rows of taps against the columns for ``spatial`` (Jaderberg
et al. 2014, arXiv 1405.3866). What is cut off is least in squares of weights, or of what they give on data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from graphopt.passes.separable.factors import Array, Factors, Form, Geometry

# Directions that the data hardly uses count as having at least this share of the mean power: weighing must not blow
# up what float32 then rounds.
_LEAST_POWER = 1e-4


def geometry_of(node: onnx.NodeProto, weight_shape: Sequence[int] | None) -> Geometry | str:
    """Return the sizes of a convolution's weights, or why it cannot be separated, in words.

    Args:
        node: any node; only ONNX's own Conv and ConvTranspose can be separated.
        weight_shape: shape of its constant weights; None where they are computed.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "ConvTranspose"):
        return f"{node.op_type} is no float convolution"
    if weight_shape is None:
        return "its weights are computed"
    shape = tuple(int(size) for size in weight_shape)
    if len(shape) < 3:
        return "its weights have no kernel"
    if 0 in shape:
        return "its weights are empty"
    groups = next((int(each.i) for each in node.attribute if each.name == "group"), 1)
    if groups < 1 or shape[0] % groups:
        return f"its {shape[0]} channels do not split into {groups} groups"
    if node.op_type == "Conv":
        found = Geometry(groups, channels=shape[1], filters=shape[0] // groups, kernel=shape[2:])
    else:
        found = Geometry(groups, channels=shape[0] // groups, filters=shape[1], kernel=shape[2:])
    if found.taps == 1:
        return "it is pointwise already"
    if groups > 1 and found.channels == 1:
        return "it is depthwise already"
    return found


def decompose(matrix: Array, geometry: Geometry, form: Form, rank: int, gram: Array | None = None) -> Factors:
    """Return the factors of a rank that come closest to given weights.

    Args:
        matrix: weights in the common form of ``recovery``, [groups, taps and channels, filters of a group].
        geometry: their sizes.
        form: which factors.
        rank: number of terms; at ``geometry.full_rank(form)`` the weights are met but for rounding to float32.
        gram: second moments of what a filter sees, [groups, taps and channels, taps and channels]; closest is then
            what differs least on such data. Exact where channels are uncorrelated (``depthwise_first``) or where the
            moments are a product of those of taps and of channels (the other forms), else near. Ignored at full rank.

    Raises:
        ValueError: the rank is none that the form can have, or weights or moments are not finite.
    """
    full = geometry.full_rank(form)
    if not 1 <= rank <= full:
        raise ValueError(f"rank {rank} is not between 1 and {full}, the full rank of {form}")
    if not (np.isfinite(matrix).all() and (gram is None or np.isfinite(gram).all())):
        raise ValueError("weights or moments are not finite")
    split = matrix.astype(np.float64).reshape(geometry.groups, geometry.taps, geometry.channels, geometry.filters)
    moments = None
    if gram is not None and rank < full:
        sizes = (geometry.taps, geometry.channels)
        moments = gram.astype(np.float64, copy=False).reshape(geometry.groups, *sizes, *sizes)
    if form == "depthwise_first":
        first, second = _depthwise_first(split, rank, moments)
    elif form == "pointwise_first":
        first, second = _pointwise_first(split, rank, moments)
    else:
        first, second = _spatial(split, geometry.kernel[0], rank, moments)
    return Factors(form, geometry, _float32(first), _float32(second))


def _depthwise_first(split: Array, rank: int, moments: Array | None) -> tuple[Array, Array]:
    kernels = split.transpose(0, 2, 1, 3)  # [groups, channels, taps, filters]
    left = None if moments is None else np.einsum("gtcuc->gctu", moments)
    first, second = _truncated(kernels, rank, left, None)
    return first.transpose(0, 3, 1, 2), second.transpose(0, 2, 1, 3)


def _pointwise_first(split: Array, rank: int, moments: Array | None) -> tuple[Array, Array]:
    kernels = split.transpose(0, 3, 2, 1)  # [groups, filters, channels, taps]
    if moments is None:
        first, second = _truncated(kernels, rank, None, None)
    else:
        channels, taps = np.einsum("gtctd->gcd", moments), np.einsum("gtcuc->gtu", moments)
        first, second = _truncated(kernels, rank, channels[:, None], taps[:, None])
    return first.transpose(0, 3, 2, 1), second.transpose(0, 2, 1, 3)


def _spatial(split: Array, rows: int, rank: int, moments: Array | None) -> tuple[Array, Array]:
    groups, taps, channels, filters = split.shape
    columns = taps // rows
    unfolded = split.reshape(groups, rows, columns, channels, filters).transpose(0, 1, 3, 2, 4)
    kernels = unfolded.reshape(groups, rows * channels, columns * filters)
    left, behind = None, None
    if moments is not None:
        apart = moments.reshape(groups, rows, columns, channels, rows, columns, channels)
        left = np.einsum("gabcdbe->gacde", apart).reshape(groups, rows * channels, rows * channels)
        behind = _root(np.einsum("gabcadc->gbd", apart))
        kernels = _along_columns(kernels, columns, behind[0])
    first, second = _truncated(kernels, rank, left, None)
    if behind is not None:
        second = _along_columns(second, columns, behind[1])
    second = second.reshape(groups, rank, columns, filters)
    return first.reshape(groups, rows, channels, rank).transpose(0, 3, 2, 1), second.transpose(0, 1, 3, 2)


def _along_columns(matrices: Array, columns: int, factor: Array) -> Array:
    """Multiply what lies along the columns of taps in [groups, anything, columns and filters]."""
    split = matrices.reshape(*matrices.shape[:2], columns, -1)
    result: Array = np.einsum("gxbf,gbd->gxdf", split, factor, optimize=True)
    return result.reshape(matrices.shape)


def _truncated(matrices: Array, rank: int, left: Array | None, right: Array | None) -> tuple[Array, Array]:
    """Split matrices [..., a, b] into [..., a, rank] and [..., rank, b] of equal power.

    Args:
        matrices: what to split.
        rank: number of terms.
        left: second moments of what the rows meet, [..., a, a]; all alike where None.
        right: the same of the columns, [..., b, b].
    """
    before = None if left is None else _root(left)
    behind = None if right is None else _root(right)
    weighed = matrices if before is None else before[0] @ matrices
    weighed = weighed if behind is None else weighed @ behind[0]
    # The eigenvectors of the smaller side are a whole orthonormal basis: nothing is lost to squaring at full rank.
    if weighed.shape[-2] <= weighed.shape[-1]:
        basis = _leading(weighed @ weighed.swapaxes(-1, -2), rank)
        first, second = basis, basis.swapaxes(-1, -2) @ weighed
        power = np.linalg.norm(second, axis=-1)
    else:
        basis = _leading(weighed.swapaxes(-1, -2) @ weighed, rank)
        first, second = weighed @ basis, basis.swapaxes(-1, -2)
        power = np.linalg.norm(first, axis=-2)
    first = first if before is None else before[1] @ first
    second = second if behind is None else second @ behind[1]
    return _balanced(first, second, power)


def _balanced(first: Array, second: Array, power: Array) -> tuple[Array, Array]:
    """Give both factors of each term the same norm; a term without power is zero in both."""
    own, other = np.linalg.norm(first, axis=-2), np.linalg.norm(second, axis=-1)
    alive = (power > 0) & (own > 0) & (other > 0)
    scale = np.where(alive, np.sqrt(other / np.where(alive, own, 1.0)), 0.0)
    back = np.where(alive, 1.0 / np.where(alive, scale, 1.0), 0.0)
    return first * scale[..., None, :], second * back[..., :, None]


def _leading(gram: Array, rank: int) -> Array:
    """Eigenvectors of the ``rank`` largest eigenvalues, [..., a, rank], the largest first, with a sign of their own."""
    vectors = np.linalg.eigh(gram)[1][..., ::-1][..., :rank]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=-2, keepdims=True), axis=-2)
    fixed: Array = vectors * np.where(largest < 0, -1.0, 1.0)
    return fixed


def _root(moments: Array) -> tuple[Array, Array]:
    """The square roots of second moments [..., a, a] and their inverses; of what is never used, the identity."""
    power, axes = np.linalg.eigh(moments)
    mean = np.maximum(power, 0).mean(axis=-1, keepdims=True)
    root = np.sqrt(np.where(mean > 0, np.maximum(power, _LEAST_POWER * mean), 1.0))
    turned = axes.swapaxes(-1, -2)
    return (axes * root[..., None, :]) @ turned, (axes / root[..., None, :]) @ turned


def _float32(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32)
