"""Random feeds, for latency only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from graphopt.data.fit import is_float, resolve
from graphopt.data.sample import Array, DataSource, Sample, Wanted
from graphopt.errors import UsageError
from graphopt.runtime import TensorSpec


def random_feeds(
    specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]] | None = None, *, seed: int = 0, count: int = 1
) -> DataSource:
    """Return ``count`` random feeds: normal floats, integers and booleans of 0 and 1, empty texts.

    A dynamic first axis becomes 1. The source is marked ``synthetic``: no accuracy verdict is ever based on it.

    Raises:
        UsageError: another axis is dynamic and ``shapes`` does not fix it.
    """
    resolved = resolve(specs, shapes or {})
    sizes = {spec.name: _size(spec) for spec in resolved}

    def read(wanted: Wanted) -> Iterator[Sample]:
        for index in range(count):
            if wanted(index):
                generator = np.random.default_rng([seed, index])
                yield Sample({spec.name: _draw(spec, sizes[spec.name], generator) for spec in resolved})

    return DataSource(read, "random data", False, lambda: count, synthetic=True)


def _size(spec: TensorSpec) -> tuple[int, ...]:
    dims = spec.shape
    if dims is None or not all(isinstance(dim, int) for dim in dims[1:]):
        example = ",".join(
            str(dim) if isinstance(dim, int) else "1" if axis == 0 else "224" for axis, dim in enumerate(dims or ("?",))
        )
        raise UsageError(
            f"input {spec.name!r} has dynamic dimensions; say what to feed, e.g. --input-shape {spec.name}:{example}"
        )
    return tuple(dim if isinstance(dim, int) else 1 for dim in dims)


def _draw(spec: TensorSpec, size: tuple[int, ...], generator: np.random.Generator) -> Array:
    if spec.dtype == object:
        return np.full(size, "", dtype=object)
    if is_float(spec.dtype):
        return generator.standard_normal(size, np.float32).astype(spec.dtype)
    return generator.integers(0, 2, size).astype(spec.dtype)
