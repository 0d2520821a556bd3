"""Read data that is already Python: mappings of arrays, and iterables of ``{name: array}`` or ``(inputs, label)``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import numpy as np

from graphopt.data.block import ArrayColumn, Block, Column
from graphopt.data.callables import said
from graphopt.errors import DataError, GraphoptError

ONLY_INPUT = "input"  # name of an array that came without one; a single-input model takes any name


def array_block(arrays: Mapping[str, Any], where: str) -> Block:
    """Return one block of arrays whose first axis counts samples; a key ``labels`` holds the labels."""
    columns = {str(name): ArrayColumn(_array(value, where)) for name, value in arrays.items() if name != "labels"}
    labels = arrays.get("labels")
    return Block(where, columns, None if labels is None else check_labels(np.asarray(labels), where), counted=True)


def item_blocks(start: Callable[[], Iterable[Any]], where: str) -> Generator[Block, None, None]:
    """Yield one block for each item of an iterable; what the user's code raises becomes a DataError."""
    try:
        items = iter(start())
    except GraphoptError:
        raise
    except Exception as failed:
        raise DataError(f"{where}: {said(failed)}") from failed
    index = 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except GraphoptError:
            raise
        except Exception as failed:
            raise DataError(f"{where}: item {index}: {said(failed)}") from failed
        yield _item_block(item, f"{where}: item {index}")
        index += 1


def check_labels(labels: Any, where: str) -> Any:
    """Check labels that stand one for each sample: class indices, or text for a custom metric.

    Raises:
        DataError: anything else, e.g. one-hot vectors.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iubU":
        advice = "; for one-hot rows save labels.argmax(axis=1)" if labels.ndim == 2 else ""
        raise DataError(
            f"{where}: 'labels' has shape {list(labels.shape)} and dtype {labels.dtype}; "
            f"give one integer for each sample{advice}"
        )
    return labels


def _item_block(item: Any, where: str) -> Block:
    label = None
    if isinstance(item, (tuple, list)):
        if len(item) != 2:
            raise DataError(f"{where}: a {type(item).__name__} of {len(item)}; give {{name: array}} or (inputs, label)")
        item, label = item
    arrays = dict(item) if isinstance(item, Mapping) else {ONLY_INPUT: item}
    if label is None:
        label = arrays.pop("labels", None)
    if not arrays:
        raise DataError(f"{where}: holds no arrays; give {{name: array}} or (inputs, label)")
    columns: dict[str, Column] = {str(name): ArrayColumn(_array(value, where)) for name, value in arrays.items()}
    return Block(where, columns, label)


def _array(value: Any, where: str) -> Any:
    try:
        array = np.asarray(value)
    except Exception as failed:  # a tensor of another library may raise anything
        raise DataError(f"{where}: cannot be read as an array: {said(failed)}") from failed
    if array.dtype == object and not all(isinstance(item, str) for item in array.flat):
        raise DataError(f"{where}: a {type(value).__name__} that is no array of numbers; give numpy arrays")
    return array
