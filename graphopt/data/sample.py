"""One sample, and the re-iterable stream of samples that everything else reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Feed: TypeAlias = Mapping[str, Array]
Wanted: TypeAlias = Callable[[int], bool]

# A declared size beyond this is a damaged or hostile file, not a sample.
MAX_SAMPLE_BYTES = 1 << 30


class DataWarning(UserWarning):
    """Data that could not be used, e.g. the samples left over when the model's batch size is fixed."""


@dataclass(frozen=True)
class Sample:
    """One feed of the model, with what it should answer.

    Attributes:
        inputs: input name -> array in the model's dtype, with the leading batch axis.
        label: a class index for ``top1`` and ``top5``; anything else for a custom metric; None where there is none.
            An array of ``count`` class indices when the feed holds several samples.
        count: samples in the feed; 1 unless the model's batch axis is fixed to more.
    """

    inputs: Feed
    label: Any = None
    count: int = 1


def everything(index: int) -> bool:
    """Want every sample."""
    return True


@dataclass(frozen=True)
class DataSource:
    """Samples that can be read any number of times, always the same and in the same order, in fixed memory.

    Attributes:
        read: yields the samples whose index is wanted; the others are skipped unread where the format allows.
        description: where the samples come from, for messages and reports.
        labelled: whether every sample has a label.
        size: returns how many samples there are, None while that is unknown (a stream not yet read to its end).
        limit: most samples to yield.
        synthetic: random numbers, for latency only; never a basis for an accuracy verdict.
    """

    read: Callable[[Wanted], Iterator[Sample]]
    description: str
    labelled: bool
    size: Callable[[], int | None]
    limit: int | None = None
    synthetic: bool = False

    def __iter__(self) -> Iterator[Sample]:
        return islice(self.read(everything), self.limit)

    @property
    def length(self) -> int | None:
        """Number of samples (feeds of the model); None while unknown."""
        return self.size()

    @property
    def feeds(self) -> Feeds:
        """The inputs alone, for calibration: labels cannot leak into it."""
        return Feeds(self)

    def only(self, wanted: Wanted, *, description: str, size: int | None, limit: int | None = None) -> DataSource:
        """Return the source restricted to the wanted indices, ``limit`` of them at most."""

        def read(also: Wanted) -> Iterator[Sample]:
            return self.read(lambda index: wanted(index) and also(index))

        return replace(self, read=read, description=description, size=lambda: size, limit=limit)


@dataclass(frozen=True)
class Feeds:
    """Re-iterable feeds of a source, without its labels."""

    source: DataSource

    def __iter__(self) -> Iterator[Feed]:
        for sample in self.source:
            yield sample.inputs

    @property
    def length(self) -> int | None:
        """Number of feeds; None while unknown."""
        return self.source.length


def as_label(value: Any) -> Any:
    """Return a class index as int, whatever integer type it came in; leave every other label as it is."""
    if value is None or isinstance(value, (str, bytes)):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "iub" and array.size == 1:
        return int(array.reshape(-1)[0])
    if array.dtype.kind == "U" and array.ndim == 0:
        return str(array)
    return value if array.dtype.hasobject else array
