"""How right a model is on one sample, from 0 to 1; the metric is the mean over all samples.

``top1``, ``top5``: the label is the largest, or among the five largest, of the first output.
``agreement``: arg-max over the last axis of the first output equals the original's (the share of places, where the
output has more than two axes). ``cosine``: similarity to the original's outputs, mean over the numeric ones: the cosine
of float outputs, ``2ab / (a² + b²)`` of a float output of one element a sample, and the share of equal elements of
integer and boolean outputs.
``MODULE:FUNCTION``: a function ``metric(outputs, reference, label) -> float``, called once for each feed with the
outputs of the model and of the original as ``{output name: array}``; higher is better, on a scale of 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from graphopt.data.callables import is_function_name, load_function, said
from graphopt.data.sample import Array, Sample
from graphopt.errors import DataError, UsageError

Outputs: TypeAlias = Mapping[str, Array]
NAMES = ("auto", "top1", "top5", "agreement", "cosine")


@dataclass(frozen=True)
class Metric:
    """A metric with a name.

    Attributes:
        name: what the report calls it.
        score: (outputs, the original's outputs, sample) -> scores in 0..1, one for each sample of the feed.
        relative: measured against the original, whose own score is 1 by definition.
    """

    name: str
    score: Callable[[Outputs, Outputs, Sample], Array]
    relative: bool


def check_metric(name: str) -> None:
    """Check the name of a metric before any work is done.

    Raises:
        UsageError: there is no such metric.
    """
    if name not in NAMES and not is_function_name(name):
        raise UsageError(f"unknown metric {name!r}; choose {', '.join(NAMES)} or MODULE:FUNCTION")


def resolve_metric(name: str | Callable[..., float], labelled: bool, reference: Outputs) -> Metric:
    """Return the metric called ``name``.

    ``auto`` is ``top1`` for data with labels; else ``agreement`` where the first output is floating, with two axes
    and at least two columns; else ``cosine``.

    Args:
        name: its name, or a function as above.
        labelled: whether the samples have labels.
        reference: outputs of the original for one sample.

    Raises:
        UsageError: unknown name, or no such function.
        DataError: the metric needs labels and there are none.
    """
    if callable(name):
        return Metric(getattr(name, "__name__", "custom"), _custom(name, getattr(name, "__name__", "custom")), False)
    check_metric(name)
    if is_function_name(name):
        return Metric(name, _custom(load_function(name, UsageError), name), False)
    if name == "auto":
        first = next(iter(reference.values()))
        classes = first.ndim == 2 and first.shape[1] >= 2 and first.dtype.kind == "f"
        name = "top1" if labelled else "agreement" if classes else "cosine"
    if name in ("top1", "top5"):
        if not labelled:
            raise DataError(f"the metric {name} needs labels: a key 'labels' in the data, or images in class folders")
        places = 1 if name == "top1" else 5
        return Metric(name, lambda outputs, reference, sample: top_k(outputs, sample, places), False)
    if name == "agreement":
        return Metric(name, agreement, True)
    return Metric(name, cosine, True)


def top_k(outputs: Outputs, sample: Sample, places: int) -> Array:
    """Return 1 for each sample whose label is among the ``places`` largest scores, else 0.

    The first output holds scores [batch, classes] (axes of 1 may follow), or class indices [batch].

    Raises:
        DataError: the labels are no class indices, or the output holds no class scores.
    """
    name, scores = next(iter(outputs.items()))
    labels = np.asarray(sample.label)
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"the metric top{places} needs class indices as labels, these are {labels.dtype}; "
            "give another metric, e.g. MODULE:FUNCTION"
        )
    if scores.dtype.kind in "iu" and scores.size == labels.size:
        return np.asarray(scores.reshape(-1) == labels.reshape(-1), np.float64)
    if scores.ndim > 2 and labels.size == scores.shape[0] and max(scores.shape[2:]) == 1:
        scores = scores.reshape(scores.shape[:2])
    if scores.ndim < 1 or scores.size != labels.size * scores.shape[-1]:
        raise DataError(
            f"the metric top{places} needs class scores, but the output {name!r} has shape {list(scores.shape)} for "
            f"{labels.size} labels; give another metric, e.g. cosine or MODULE:FUNCTION"
        )
    rows, wanted = scores.reshape(-1, scores.shape[-1]), labels.reshape(-1)
    classes = rows.shape[1]
    if wanted.min() < 0 or wanted.max() >= classes:
        outside = wanted[(wanted < 0) | (wanted >= classes)][0]
        raise DataError(f"label {outside}: the model's output {name!r} has the classes 0 to {classes - 1}")
    if places == 1:
        hits = rows.argmax(axis=1) == wanted
    else:
        hits = (np.argsort(-rows, axis=1, kind="stable")[:, :places] == wanted[:, np.newaxis]).any(axis=1)
    return _row_means(hits, sample.count)


def agreement(outputs: Outputs, reference: Outputs, sample: Sample) -> Array:
    """Return for each sample the share of places where both models have the same arg-max over the last axis."""
    name, expected = next(iter(reference.items()))
    found = outputs[name]
    if expected.ndim == 0 or found.shape != expected.shape:
        return np.full(sample.count, float(np.array_equal(found, expected)))
    same = np.atleast_1d(found.argmax(axis=-1) == expected.argmax(axis=-1))
    rows = sample.count if same.size % sample.count == 0 else 1
    return _row_means(same, rows)


def cosine(outputs: Outputs, reference: Outputs, sample: Sample) -> Array:
    """Return for each sample the similarity to the original's outputs, mean over the numeric outputs.

    Float outputs: the cosine, in -1..1; of one element a sample ``2ab / (a² + b²)``, since the cosine of two numbers
    is their sign alone: the same form, but it sees the size. Two zeros are similar (1), a zero and another are not (0).
    Integer and boolean outputs: the share of equal elements; a cosine of indices has no meaning.
    """
    similarities = []
    for name, expected in reference.items():
        if expected.dtype.kind not in "fiub":
            continue
        found = outputs[name]
        rows = sample.count if expected.ndim and expected.shape[0] == sample.count else 1
        if found.shape != expected.shape:
            similarities.append(np.zeros(rows))
        elif expected.dtype.kind in "iub":
            same = (found == expected).reshape(rows, -1)
            similarities.append(same.mean(axis=1) if same.size else np.ones(rows))
        else:
            similarities.append(_float_similarity(_finite_rows(expected, rows), _finite_rows(found, rows)))
    if not similarities:
        raise DataError("the metric cosine needs a numeric output, the model has none; give MODULE:FUNCTION")
    if len({len(values) for values in similarities}) > 1:
        similarities = [values.mean(keepdims=True) for values in similarities]
    return np.asarray(np.mean(similarities, axis=0))


def _float_similarity(first: Array, second: Array) -> Array:
    """Return the similarity of each row of two float64 arrays [rows, elements]."""
    if first.shape[1] == 1:
        # Scaled, so that no square overflows.
        scale = np.maximum(np.abs(first), np.abs(second))
        first, second = (values / np.where(scale == 0, 1.0, scale) for values in (first, second))
        length = (np.square(first) + np.square(second)).sum(axis=1) / 2
    else:
        length = np.sqrt(np.square(first).sum(axis=1) * np.square(second).sum(axis=1))
    dot = (first * second).sum(axis=1)
    equal = (first == second).all(axis=1)
    return np.where(equal, 1.0, np.clip(dot / np.where(length == 0, 1.0, length), -1.0, 1.0))


def _finite_rows(values: Array, rows: int) -> Array:
    flat = values.astype(np.float64).reshape(rows, -1)
    return flat if np.isfinite(flat).all() else np.nan_to_num(flat)


def _row_means(values: Array, rows: int) -> Array:
    return np.asarray(values.astype(np.float64).reshape(rows, -1).mean(axis=1))


def _custom(function: Callable[..., Any], name: str) -> Callable[[Outputs, Outputs, Sample], Array]:
    def score(outputs: Outputs, reference: Outputs, sample: Sample) -> Array:
        try:
            value = float(function(outputs, reference, sample.label))
        except Exception as failed:  # the user's code may raise anything
            raise DataError(f"the metric {name} failed: {said(failed)}") from failed
        if not np.isfinite(value):
            raise DataError(f"the metric {name} returned {value}; return a number from 0 to 1")
        return np.asarray([value])

    return score
