"""Read directories of ``.npy`` and ``.npz`` files, one sample or one batch each.

A file ``labels.npy`` holds one class index for each sample of the other files, in the order of their names
(``x_2`` before ``x_10``); an ``.npz`` file may instead hold its own ``labels``.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from graphopt.data.block import Block, Column, natural
from graphopt.data.npz import open_npy, open_npz
from graphopt.data.objects import ONLY_INPUT, check_labels
from graphopt.data.sample import Array
from graphopt.errors import DataError

LABELS = "labels.npy"


def list_arrays(folder: Path) -> list[Path]:
    """Return the ``.npy`` and ``.npz`` files of a folder in order, ``labels.npy`` left out."""
    files = [path for path in folder.iterdir() if path.suffix in (".npy", ".npz") and path.name != LABELS]
    return sorted(files, key=lambda path: natural(path.name))


def file_blocks(folder: Path, files: Sequence[Path], ranks: dict[str, int]) -> Generator[Block, None, None]:
    """Yield one block for each file.

    Args:
        folder: where ``labels.npy`` may stand.
        files: the files in order.
        ranks: rank of each model input, which tells a batch from a sample.

    Raises:
        DataError: a file is damaged, or ``labels.npy`` does not count as many labels as there are samples.
    """
    listing = folder / LABELS
    labels: Array | None = check_labels(open_npy(listing).whole(), str(listing)) if listing.is_file() else None
    used = 0
    for path in files:
        if path.suffix == ".npz":
            with open_npz(path) as columns:
                inputs = {key: column for key, column in columns.items() if key != "labels"}
                if labels is not None and len(inputs) != len(columns):
                    raise DataError(f"{path}: has 'labels' of its own beside {listing}; keep one of them")
                own = columns["labels"].whole() if "labels" in columns else None
                count = _count(inputs, ranks)
                yield Block(str(path), inputs, own if labels is None else _next(labels, used, count, listing))
                used += count
            continue
        if len(ranks) > 1:
            raise DataError(
                f"{path}: an .npy file holds one array and the model has the inputs {', '.join(ranks)}; "
                "save .npz files with one array for each"
            )
        inputs = {ONLY_INPUT: open_npy(path)}
        count = _count(inputs, ranks)
        yield Block(str(path), inputs, None if labels is None else _next(labels, used, count, listing))
        used += count
    if labels is not None and used != len(labels):
        raise DataError(f"{listing}: {len(labels)} labels for {used} samples; give one for each sample")


def _count(columns: dict[str, Column], ranks: dict[str, int]) -> int:
    name, column = next(iter(columns.items()))
    rank = ranks.get(name, next(iter(ranks.values())))
    return column.shape[0] if column.shape and len(column.shape) == rank else 1


def _next(labels: Array, used: int, count: int, listing: Path) -> Array:
    taken: Array = labels[used : used + count]
    if len(taken) != count:
        raise DataError(f"{listing}: {len(labels)} labels, but there are more samples; give one for each")
    return taken
