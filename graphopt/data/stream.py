"""Turn the blocks of a reader into samples: one feed at a time, joined to batches where the model's batch is fixed."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from graphopt.data.arrange import arrange, feed
from graphopt.data.block import Block, Reader
from graphopt.data.fit import batch_size
from graphopt.data.sample import Array, DataWarning, Sample, Wanted
from graphopt.errors import DataError
from graphopt.runtime import TensorSpec


def samples(
    blocks: Reader,
    specs: Sequence[TensorSpec],
    wanted: Wanted,
    warn: bool = False,
) -> Generator[Sample, None, None]:
    """Yield the wanted samples of a reader, each fitted to the model.

    Args:
        blocks: starts the reader anew.
        specs: the model's inputs.
        wanted: tells by its index whether a sample is wanted; the index counts feeds of the model.
        warn: whether to warn of samples at the end that do not fill a batch.

    Raises:
        DataError: the data does not fit the model; names file, key and sample.
    """
    with closing(blocks()) as reader:
        yield from _samples(reader, specs, wanted, warn)


def _samples(reader: Iterator[Block], specs: Sequence[TensorSpec], wanted: Wanted, warn: bool) -> Iterator[Sample]:
    batch = batch_size(specs)
    seen = 0  # single samples; a feed that is a whole batch counts as many
    pending: list[tuple[dict[str, Array], Any]] = []
    labelled: bool | None = None
    for block in reader:
        if block.single and batch == 1 and not wanted(seen):
            seen += 1
            continue
        layout = arrange(block, specs)
        if labelled is not None and labelled != (block.labels is not None):
            raise DataError(f"{block.where}: {'has no' if labelled else 'has a'} label, unlike the data before it")
        labelled = block.labels is not None
        step = 1 if layout.single else batch
        for row in range(layout.rows):
            index, place = divmod(seen, batch)
            if place and not layout.single:
                raise DataError(f"{block.where}: a whole batch among single samples; give one or the other")
            seen += step
            if not wanted(index):
                continue
            inputs, label = feed(block, layout, specs, row)
            if step == batch:
                yield Sample(inputs, label, step)
                continue
            pending.append((inputs, label))
            if place == batch - 1:
                yield _join(pending)
                pending = []
    if warn:
        _warn_of_rest(seen, batch)


def count(blocks: Reader, specs: Sequence[TensorSpec]) -> int:
    """Count the samples of a reader from its headers alone, and warn of those that do not fill a batch.

    Raises:
        DataError: a header does not fit the model.
    """
    batch = batch_size(specs)
    seen = 0
    with closing(blocks()) as reader:
        for block in reader:
            if block.single:
                seen += 1
                continue
            layout = arrange(block, specs)
            seen += layout.rows * (1 if layout.single else batch)
    _warn_of_rest(seen, batch)
    return seen // batch


def _warn_of_rest(seen: int, batch: int) -> None:
    rest = seen % batch
    if rest:
        warnings.warn(
            f"the model's batch size is fixed to {batch}: the last {rest} of {seen} samples do not fill a batch "
            "and are left out",
            DataWarning,
            stacklevel=2,
        )


def _join(rows: Sequence[tuple[dict[str, Array], Any]]) -> Sample:
    inputs = {name: np.concatenate([feed[name] for feed, _ in rows]) for name in rows[0][0]}
    labels = [label for _, label in rows]
    if labels[0] is None:
        return Sample(inputs, None, len(rows))
    return Sample(inputs, np.asarray(labels) if all(isinstance(label, int) for label in labels) else labels, len(rows))
