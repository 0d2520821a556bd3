"""Open any data source of the contract."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from graphopt.data.block import Block, Reader
from graphopt.data.callables import is_function_name, load_function
from graphopt.data.fit import batch_size, resolve
from graphopt.data.folder import file_blocks, list_arrays
from graphopt.data.images import check_pillow, image_blocks, list_images
from graphopt.data.npz import open_npy, open_npz
from graphopt.data.objects import ONLY_INPUT, array_block, check_labels, item_blocks
from graphopt.data.preprocess import Source as PreprocessSource
from graphopt.data.preprocess import read_preprocess
from graphopt.data.sample import DataSource, Sample, Wanted, everything
from graphopt.data.spool import Spool
from graphopt.data.stream import count, samples
from graphopt.data.testdata import list_sets, set_blocks
from graphopt.errors import DataError
from graphopt.runtime import TensorSpec

Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any] | DataSource"

_EXPECTED = "give FILE.npz, a directory of .npy, .npz or images, an ONNX test data directory, or MODULE:FUNCTION"


def open_data(
    source: Source,
    inputs: Sequence[TensorSpec],
    *,
    preprocess: PreprocessSource = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> DataSource:
    """Open a data source and check its first sample against the model.

    Args:
        source: a SOURCE string or path, a mapping of arrays (first axis counts samples, ``labels`` optional), or any
            iterable of ``{name: array}`` or ``(inputs, label)``. What can be read only once is kept on disk.
        inputs: the model's inputs.
        preprocess: for images: a TOML file, a mapping or a ``Preprocess`` (see graphopt.data.preprocess).
        shapes: input name -> shape to use instead of the declared one, for dynamic inputs.

    Returns:
        a re-iterable source; each sample is one feed in the model's dtypes.

    Raises:
        DataError: the source cannot be read or does not fit the model.
        UsageError: ``shapes`` does not fit the model.
    """
    if isinstance(source, DataSource):
        return source
    specs = resolve(inputs, shapes or {})
    if not specs:
        raise DataError("the model has no inputs, so data cannot be fed to it")
    if isinstance(source, (str, os.PathLike)):
        return _open_named(os.fspath(source), specs, preprocess)
    if isinstance(source, np.ndarray):
        source = {specs[0].name: source}
    if isinstance(source, Mapping):
        block = array_block(source, "data")
        return _direct(lambda: (block for _ in range(1)), specs, "arrays")
    if isinstance(source, (list, tuple)):
        return _direct(lambda: item_blocks(lambda: source, "data"), specs, f"a {type(source).__name__}")
    if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        raise DataError(f"data is a {type(source).__name__}; {_EXPECTED}, a mapping of arrays, or an iterable")
    return _spooled(lambda: item_blocks(lambda: source, "data"), specs, f"a {type(source).__name__}")


def _open_named(name: str, specs: Sequence[TensorSpec], preprocess: PreprocessSource) -> DataSource:
    path = Path(name)
    if path.is_dir():
        return _open_folder(path, specs, preprocess)
    if path.is_file():
        if path.suffix not in (".npz", ".npy"):
            raise DataError(f"{path}: not a data source that is known; {_EXPECTED}")
        return _direct(lambda: _file(path), specs, str(path))
    if is_function_name(name):
        return _open_function(name, specs)
    raise DataError(f"{name}: no such file or directory; {_EXPECTED}")


def _open_folder(path: Path, specs: Sequence[TensorSpec], preprocess: PreprocessSource) -> DataSource:
    try:
        sets, arrays = list_sets(path), list_arrays(path)
        images = [] if sets or arrays else list_images(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if sets:
        names = [spec.name for spec in specs]
        return _direct(lambda: set_blocks(sets, names), specs, str(path))
    if arrays:
        ranks = {spec.name: len(spec.shape or ()) for spec in specs}
        return _direct(lambda: file_blocks(path, arrays, ranks), specs, str(path))
    if not images:
        raise DataError(f"{path}: holds no .npy, .npz, image or test_data_set_*; {_EXPECTED}")
    check_pillow()
    block = read_preprocess(preprocess)
    if block is None:
        raise DataError(
            f"{path}: images, and nothing says how the model wants them. Give a TOML file (--preprocess) such as\n"
            "  [preprocess]\n  size = [224, 224]\n  mean = [0.485, 0.456, 0.406]\n  std = [0.229, 0.224, 0.225]\n"
            '  layout = "NCHW"\n  colour = "RGB"'
        )
    return _direct(lambda: image_blocks(images, block), specs, str(path))


def _open_function(name: str, specs: Sequence[TensorSpec]) -> DataSource:
    function = load_function(name, DataError)
    return _spooled(lambda: item_blocks(lambda: _called(function, name), name), specs, name)


def _called(function: Callable[..., Any], name: str) -> Iterable[Any]:
    made = function()
    if isinstance(made, Mapping):
        block = array_block(made, name)
        count = next(iter(block.columns.values())).shape[0] if block.columns else 0
        labels = block.labels
        rows = ({key: column.row(row) for key, column in block.columns.items()} for row in range(count))
        return rows if labels is None else zip(rows, labels, strict=True)
    if not hasattr(made, "__iter__"):
        raise DataError(f"{name}: returned a {type(made).__name__}; yield {{input name: array}} or (inputs, label)")
    return made  # type: ignore[no-any-return]


def _file(path: Path) -> Generator[Block, None, None]:
    if path.suffix == ".npy":
        yield Block(str(path), {ONLY_INPUT: open_npy(path)}, counted=True)
        return
    with open_npz(path) as columns:
        inputs = {key: column for key, column in columns.items() if key != "labels"}
        labels = check_labels(columns["labels"].whole(), str(path)) if "labels" in columns else None
        yield Block(str(path), inputs, labels, counted=True)


def _direct(blocks: Reader, specs: Sequence[TensorSpec], description: str) -> DataSource:
    """Return a source that runs its reader anew each time it is iterated."""

    def read(wanted: Wanted) -> Iterator[Sample]:
        return samples(blocks, specs, wanted)

    with closing(samples(blocks, specs, everything)) as opened:
        first = next(opened, None)
    if first is None:
        raise _empty(description, specs)
    total = count(blocks, specs)
    return DataSource(read, description, first.label is not None, lambda: total)


def _spooled(blocks: Reader, specs: Sequence[TensorSpec], description: str) -> DataSource:
    spool = Spool(lambda: samples(blocks, specs, everything, warn=True))
    first = next(spool(everything), None)
    if first is None:
        raise _empty(description, specs)
    return DataSource(spool, description, first.label is not None, spool.size)


def _empty(description: str, specs: Sequence[TensorSpec]) -> DataError:
    batch = batch_size(specs)
    advice = f"; the model's batch size is fixed to {batch}, give at least as many samples" if batch > 1 else ""
    return DataError(f"{description}: holds no samples{advice}")
