"""Read ONNX test data directories: ``test_data_set_*/input_*.pb``, one TensorProto each, as the ONNX backend tests do.

Source: onnx/docs and ``onnx.backend.test``: ``input_0.pb`` is the first graph input, and so on.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from graphopt.data.block import ArrayColumn, Block, Column, natural
from graphopt.data.sample import MAX_SAMPLE_BYTES, Array
from graphopt.errors import DataError


def list_sets(folder: Path) -> list[Path]:
    """Return the data sets of a folder in order: its ``test_data_set_*``, or itself where it holds ``input_0.pb``."""
    if (folder / "input_0.pb").is_file():
        return [folder]
    sets = [child for child in folder.glob("test_data_set_*") if child.is_dir()]
    return sorted(sets, key=lambda path: natural(path.name))


def set_blocks(sets: Sequence[Path], names: Sequence[str]) -> Generator[Block, None, None]:
    """Yield one block for each data set; ``names`` are the model's inputs in order.

    Raises:
        DataError: a file is missing, damaged or holds no tensor.
    """
    for folder in sets:
        files = sorted(folder.glob("input_*.pb"), key=lambda path: natural(path.name))
        if not files:
            raise DataError(f"{folder}: holds no input_*.pb")
        if len(files) != len(names):
            raise DataError(f"{folder}: {len(files)} input_*.pb for the model's inputs {', '.join(names)}")
        columns: dict[str, Column] = {}
        for position, path in enumerate(files):
            tensor = _read(path)
            name = tensor.name if tensor.name in names and tensor.name not in columns else names[position]
            try:
                columns[name] = ArrayColumn(_decode_text(onnx.numpy_helper.to_array(tensor)))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}: not a readable tensor: {error}") from error
        yield Block(str(folder), columns)


def _read(path: Path) -> onnx.TensorProto:
    try:
        if path.stat().st_size > MAX_SAMPLE_BYTES:
            raise DataError(f"{path}: larger than {MAX_SAMPLE_BYTES} bytes")
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise DataError(f"{path}: not a TensorProto; sequences, maps and optional inputs are not supported") from error
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise DataError(f"{path}: refers to data outside the file; refused")
    return tensor


def _decode_text(array: Array) -> Array:
    if array.dtype != object:
        return array
    flat = [item.decode("utf-8") if isinstance(item, bytes) else item for item in array.flat]
    return np.array(flat, dtype=object).reshape(array.shape)
