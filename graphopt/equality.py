"""Proves that an exact pass was one: the outputs before and after, compared to float rounding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphopt import runtime

Array = npt.NDArray[Any]

# Largest difference that rounding explains, relative to the largest magnitude of the output. Folding changes the
# order of sums; over some hundred layers that adds up to about a thousand units in the last place of float32.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}

# How much larger a difference may be than what ONNX Runtime's own optimizations make of the model as it was.
ROUNDINGS = 8

# Whole numbers that come from rounded floats (arg-max, quantized values) may tip over at a tie: this share of them.
TIPPED = 1e-3


def why_different(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Iterable[Mapping[str, Array]], threads: int = 1
) -> str | None:
    """Run both models without ONNX Runtime's optimizations and say how their outputs differ; None: not at all.

    With its optimizations ONNX Runtime would fold by itself what the pass folded, and both sides would run the same.

    Args:
        before: the model before the pass.
        after: the model after it.
        feeds: inputs of the model by name; none leaves only the check that ONNX Runtime accepts ``after``.
        threads: intra-op threads.

    Raises:
        UnsupportedModelError: ONNX Runtime does not load or run one of the models.
    """
    names = [output.name for output in before.graph.output]
    if [output.name for output in after.graph.output] != names:
        return f"the outputs are {[output.name for output in after.graph.output]} instead of {names}"
    changed = runtime.session(after, threads=threads, optimize=False)
    original: Any = None
    for feed in feeds:
        original = original or runtime.session(before, threads=threads, optimize=False)
        expected, repeated = runtime.run(original, feed), runtime.run(original, feed)
        found = runtime.run(changed, feed)
        rounded = None
        for name in names:
            difference = _why_unequal(expected[name], found[name])
            if not difference:
                continue
            # A model that draws random numbers differs from itself; no pass can be blamed for that.
            if _why_unequal(expected[name], repeated[name]):
                continue
            rounded = rounded or runtime.run(runtime.session(before, threads=threads), feed)
            if not _is_rounding(expected[name], found[name], rounded[name]):
                return f"output '{name}' {difference}"
    return None


def _is_rounding(expected: Any, found: Any, rounded: Any) -> bool:
    """Whether a difference is no more than ONNX Runtime's own optimizations make of the same model, and a bit.

    Where an output is tiny beside what it is computed from (a sigmoid of -12), any other order of sums shows.
    """
    arrays = (expected, found, rounded)
    if not all(isinstance(each, np.ndarray) and each.dtype.name in TOLERANCE for each in arrays):
        return False
    if len({(each.dtype, each.shape) for each in arrays}) > 1 or not all(np.isfinite(each).all() for each in arrays):
        return False
    old, new, other = (each.astype(np.float64) for each in arrays)
    return bool(np.abs(old - new).max() <= ROUNDINGS * np.abs(old - other).max())


def _why_unequal(expected: Any, found: Any) -> str | None:
    if not isinstance(expected, np.ndarray):
        return _why_unequal_values(expected, found)
    if not isinstance(found, np.ndarray) or expected.dtype != found.dtype:
        return f"has the type {getattr(found, 'dtype', type(found).__name__)} instead of {expected.dtype}"
    if expected.shape != found.shape:
        return f"has the shape {found.shape} instead of {expected.shape}"
    if not expected.size:
        return None
    if expected.dtype.name not in TOLERANCE:
        tipped = float(np.mean(expected != found))
        return f"differs in {tipped:.2%} of its values" if tipped > TIPPED else None
    return _why_beyond_rounding(expected, found)


def _why_beyond_rounding(expected: Array, found: Array) -> str | None:
    old, new = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True) or not np.isfinite(new[finite]).all():
        return "has infinite or undefined values in other places"
    if not finite.any():
        return None
    largest = float(np.abs(old[finite]).max())
    error = float(np.abs(old[finite] - new[finite]).max())
    if error <= TOLERANCE[expected.dtype.name] * largest + np.finfo(np.float32).tiny:
        return None
    return f"is off by {error:.3g} where its largest value is {largest:.3g}"


def _why_unequal_values(expected: Any, found: Any) -> str | None:
    """Compare what is no tensor: sequences, maps, an absent optional."""
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"has {len(found)} elements instead of {len(expected)}"
        differences = (_why_unequal(old, new) for old, new in zip(expected, found, strict=True))
        return next((difference for difference in differences if difference), None)
    if isinstance(expected, dict) and isinstance(found, dict):
        if expected.keys() != found.keys():
            return "has other keys"
        return _why_unequal(np.array(list(expected.values())), np.array([found[key] for key in expected]))
    return None if expected == found else f"is {found!r} instead of {expected!r}"
