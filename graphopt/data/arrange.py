"""Decide how the arrays of a block become feeds of the model.

Where the first axis counts samples (``FILE.npz``), a row is one rank below the model's input (a batch axis of 1 is
added) or has the input's rank (the row is fed as it is).

Elsewhere an array of the input's rank is a feed; it is split into single samples where all inputs have the same
leading size and the model's batch axis is dynamic or fixed. One rank below is a single sample. A feed with one
label for several rows stays whole: its first axis is not a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.data.block import Block, Column
from graphopt.data.fit import agrees, check_dtype, convert, show, wants
from graphopt.data.sample import Array, as_label
from graphopt.errors import DataError
from graphopt.runtime import TensorSpec


@dataclass(frozen=True)
class Layout:
    """How a block is fed.

    Attributes:
        columns: model input -> column.
        rows: number of feeds in the block.
        by_row: a feed is a row of the columns; otherwise the columns as a whole are the only feed.
        lift: inputs that get a batch axis of 1 in front.
        single: each feed is one sample, so that feeds may be joined to batches.
    """

    columns: Mapping[str, Column]
    rows: int
    by_row: bool
    lift: frozenset[str]
    single: bool


def arrange(block: Block, specs: Sequence[TensorSpec]) -> Layout:
    """Choose the layout; names, shapes, dtypes and the number of labels are checked before anything is read.

    Raises:
        DataError: they do not fit the model; the message names file and key.
    """
    columns = _by_input(block, specs)
    for spec in specs:
        check_dtype(columns[spec.name].dtype, spec, block.where)
    layout = _counted(block, columns, specs) if block.counted else _fed(block, columns, specs)
    if layout.by_row and block.labels is not None and np.shape(block.labels)[:1] != (layout.rows,):
        given = np.shape(block.labels)[0] if np.ndim(block.labels) else 1
        raise DataError(f"{block.where}: {given} labels for {layout.rows} samples; give one for each sample")
    return layout


def feed(block: Block, layout: Layout, specs: Sequence[TensorSpec], row: int) -> tuple[dict[str, Array], Any]:
    """Read one feed and its label.

    Raises:
        DataError: the file is damaged, or values cannot be fed (NaN, infinity, overflow).
    """
    where = f"{block.where}: sample {row}" if layout.by_row else block.where
    inputs = {}
    for spec in specs:
        column = layout.columns[spec.name]
        array = column.row(row) if layout.by_row else column.whole()
        inputs[spec.name] = convert(array[np.newaxis] if spec.name in layout.lift else array, spec, where)
    label = block.labels[row] if layout.by_row and block.labels is not None else block.labels
    return inputs, as_label(label)


def _by_input(block: Block, specs: Sequence[TensorSpec]) -> dict[str, Column]:
    names = [spec.name for spec in specs]
    if len(names) == 1 and len(block.columns) == 1:
        return {names[0]: next(iter(block.columns.values()))}
    missing = [name for name in names if name not in block.columns]
    extra = [name for name in block.columns if name not in names]
    wrong = [f"no array named {', '.join(map(repr, missing))}"] if missing else []
    wrong += [f"{', '.join(map(repr, extra))} is no input of the model"] if extra else []
    if wrong:
        raise DataError(f"{block.where}: {'; '.join(wrong)}. The model wants {wants(specs)}")
    return {name: block.columns[name] for name in names}


def _counted(block: Block, columns: Mapping[str, Column], specs: Sequence[TensorSpec]) -> Layout:
    counts = {column.shape[:1] for column in columns.values()}
    if len(counts) != 1 or () in counts:
        said = ", ".join(f"{name!r} {show(column.shape)}" for name, column in columns.items())
        raise DataError(f"{block.where}: the first axis counts samples and must be the same in all arrays: {said}")
    lift = set()
    for spec in specs:
        row = columns[spec.name].shape[1:]
        if spec.shape is None or (spec.shape and agrees(row, spec.shape[1:])):
            lift.add(spec.name)
        elif not agrees(row, spec.shape):
            want = show(("samples", *spec.shape[1:]))
            raise DataError(
                f"{block.where}: {spec.name!r} has shape {show(columns[spec.name].shape)}, the model wants "
                f"{wants([spec])}: give an array of shape {want}, whose first axis counts samples"
            )
    single = len(lift) == len(specs)
    _check_batch(block, columns, specs, lift, single)
    return Layout(columns, counts.pop()[0], True, frozenset(lift), single)


def _fed(block: Block, columns: Mapping[str, Column], specs: Sequence[TensorSpec]) -> Layout:
    shapes = {spec.name: columns[spec.name].shape for spec in specs}
    lift = {spec.name for spec in specs if spec.shape and len(shapes[spec.name]) == len(spec.shape) - 1}
    for spec in specs:
        rest = spec.shape[1:] if spec.shape else spec.shape
        shape = shapes[spec.name] if spec.name in lift or not spec.shape else shapes[spec.name][1:]
        wrong_rank = spec.shape and spec.name not in lift and len(shapes[spec.name]) != len(spec.shape)
        if wrong_rank or not agrees(shape, rest):
            raise DataError(
                f"{block.where}: {spec.name!r} has shape {show(shapes[spec.name])}, the model wants {wants([spec])}"
            )
    if lift:
        single = len(lift) == len(specs)
        _check_batch(block, columns, specs, lift, single)
        return Layout(columns, 1, False, frozenset(lift), single)
    count = _shared_count(block, shapes, specs)
    if count is not None:
        return Layout(columns, count, True, frozenset(shapes), True)
    _check_batch(block, columns, specs, lift, False)
    return Layout(columns, 1, False, frozenset(), False)


def _shared_count(block: Block, shapes: Mapping[str, tuple[int, ...]], specs: Sequence[TensorSpec]) -> int | None:
    """Return the size of the batch axis that all arrays share; None where the first axis cannot be a batch."""
    if any(not spec.shape for spec in specs):
        return None
    sizes = {shape[0] for shape in shapes.values()}
    declared = {spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else None for spec in specs}
    if len(sizes) != 1 or len(declared) != 1:
        return None
    count = sizes.pop()
    labels = block.labels
    one_for_all = labels is not None and (np.ndim(labels) == 0 or np.shape(labels)[0] != count)
    return None if one_for_all else count


def _check_batch(
    block: Block, columns: Mapping[str, Column], specs: Sequence[TensorSpec], lift: set[str], single: bool
) -> None:
    """Check the first axis too, of feeds that cannot be joined to batches."""
    if single:
        return
    for spec in specs:
        shape = columns[spec.name].shape[1:] if block.counted else columns[spec.name].shape
        full = (1, *shape) if spec.name in lift else shape
        if not agrees(full, spec.shape):
            raise DataError(f"{block.where}: {spec.name!r} has shape {show(full)}, the model wants {wants([spec])}")
