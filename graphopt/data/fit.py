"""Fit values to a model's inputs: shapes and dtypes, and words for what the model wants.

Integers go to integers and floats to floats, value by value without overflow (float64 is rounded to float32);
booleans go to any number. Integers are not turned into floats: whether pixels of 0..255 mean that, or 0..1, or
something normalised, is known to whoever trained the model, and a wrong guess would calibrate on nonsense in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphopt.data.sample import Array
from graphopt.errors import DataError, UsageError
from graphopt.runtime import TensorSpec


def resolve(specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> tuple[TensorSpec, ...]:
    """Replace declared shapes by those that the user gave.

    Raises:
        UsageError: a shape is for an unknown input, or contradicts what the model declares.
    """
    names = [spec.name for spec in specs]
    for name in shapes:
        if name not in names:
            raise UsageError(f"input shape for {name!r}: the model's inputs are {', '.join(names)}")
    resolved = []
    for spec in specs:
        shape = shapes.get(spec.name)
        if shape is None:
            resolved.append(spec)
            continue
        if not agrees(shape, spec.shape):
            raise UsageError(
                f"input shape {show(shape)} for {spec.name!r}: the model declares {show(spec.shape or ())}"
            )
        resolved.append(replace(spec, shape=tuple(shape)))
    return tuple(resolved)


def batch_size(specs: Sequence[TensorSpec]) -> int:
    """Return the fixed batch size that all inputs share, or 1 where samples are fed singly."""
    leading = {spec.shape[0] if spec.shape else None for spec in specs}
    size = leading.pop() if len(leading) == 1 else None
    return size if isinstance(size, int) and size > 1 else 1


def agrees(shape: Sequence[int], declared: Sequence[int | str | None] | None) -> bool:
    """Whether an array of this shape fits the declared one; symbols fit every size, no shape fits everything."""
    if declared is None:
        return True
    if len(shape) != len(declared):
        return False
    return all(not isinstance(want, int) or have == want for have, want in zip(shape, declared, strict=True))


def check_dtype(have: np.dtype[Any], spec: TensorSpec, where: str) -> None:
    """Check that ``have`` may become the input's dtype.

    Raises:
        DataError: it may not; the message says what to do instead.
    """
    want = spec.dtype
    text, wants_text = have.kind in "UO", want.kind == "O"
    if have == want or (text and wants_text):
        return
    if not text and not wants_text:
        if have.kind == "b" or (have.kind in "iu" and want.kind in "iu"):
            return
        if is_float(have) and is_float(want):
            return
    advice = ""
    if have.kind in "iu" and is_float(want):
        advice = "; convert it as the model was trained, e.g. array.astype('float32') / 255"
    elif is_float(have) and want.kind in "iu":
        advice = f"; if it holds indices, save them as {want}"
    said = "text" if wants_text else want
    raise DataError(f"{where}: input {spec.name!r} wants {said}, the data is {have}{advice}")


def convert(array: Array, spec: TensorSpec, where: str) -> Array:
    """Return ``array`` in the input's dtype and row-major; ``where`` says which sample it is.

    Raises:
        DataError: NaN, infinity, or a value that the dtype cannot hold.
    """
    if spec.dtype == object:
        return array.astype(object)
    floating = is_float(array.dtype)
    if floating and not np.isfinite(array).all():
        kind = "NaN" if np.isnan(array).any() else "an infinite value"
        first = [int(axis) for axis in np.argwhere(~np.isfinite(array))[0]]
        raise DataError(f"{where}: input {spec.name!r} holds {kind}, first at {first}; clean the data")
    if array.dtype == spec.dtype:
        return np.asarray(array, order="C")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(spec.dtype, order="C")
    if not (np.isfinite(cast).all() if floating else np.array_equal(cast, array)):
        raise DataError(
            f"{where}: input {spec.name!r} holds values that {spec.dtype} cannot hold (it is {array.dtype})"
        )
    return cast


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is a floating-point type; bfloat16 and its kin, which numpy calls void, included."""
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.names is None and "float" in dtype.name)


def show(shape: Sequence[Any]) -> str:
    """Write a shape for a message; an unnamed dimension is ``?``."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def wants(specs: Sequence[TensorSpec]) -> str:
    """Say what the model wants to be fed."""
    return ", ".join(
        f"{spec.name!r} {'text' if spec.dtype.kind == 'O' else spec.dtype}{show(spec.shape) if spec.shape else ''}"
        for spec in specs
    )
