"""Write a model so that a reader finds the old file or the new one, whole, and never anything between."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper

from graphopt.errors import OutputError
from graphopt.model.content import EXTERNAL_THRESHOLD, model_bytes
from graphopt.model.skeleton import copy_model, external_reference
from graphopt.model.tensors import is_external, stored_bytes
from graphopt.model.transaction import Transaction
from graphopt.model.walk import tensors

ALIGNMENT = 4096
"""Bytes that offsets in the data file are multiples of, so that runtimes can map it (onnx.proto, external_data)."""
EXTERNAL_MINIMUM = 1024
"""Bytes from which a tensor moves to the data file; smaller ones (shapes, scales) stay in the model."""


@dataclass(frozen=True)
class SavedModel:
    """What was written.

    Attributes:
        path: the model file.
        data_path: its external data file; None when everything is in the model file.
        size: bytes of both.
        sha256: hex digest of the model file followed by the data file, as ``read`` computes it.
    """

    path: Path
    data_path: Path | None
    size: int
    sha256: str


def save(
    model: onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    external_data_threshold: int = EXTERNAL_THRESHOLD,
    protect: Iterable[str | os.PathLike[str]] = (),
    beside: Mapping[Path, bytes] | None = None,
) -> SavedModel:
    """Write ``model`` atomically and deterministically; the model is not changed.

    Files are written under temporary names in the same folder, synced, and renamed: the data file first, the model
    last. On any error or interruption everything new is removed and what was there before stays.

    Args:
        model: its weights in memory.
        path: where to; a file there is replaced, together with the data file that it referred to.
        external_data_threshold: bytes of tensors above which they go to ``<name>.data`` beside the model.
        protect: files that must not be overwritten, whatever path or link leads to them.
        beside: other files that belong to the model, and what is in them: written with it or not at all.

    Raises:
        OutputError: the folder cannot be written, the disk is full, the path is not a plain file or is protected, or
            the model holds external or more than 2 GB of non-movable tensors.
    """
    path = Path(path)
    data_path = path.with_name(path.name + ".data")
    protected = [Path(file) for file in protect]
    external = model_bytes(model) > external_data_threshold
    beside = beside or {}
    _vet_destinations([*([path, data_path] if external else [path]), *beside], protected)
    unloaded = next((where for tensor, where in tensors(model) if is_external(tensor)), None)
    if unloaded:
        raise OutputError(f"{path}: {unloaded} is not in memory; read the model with its weights before saving it")

    moved: list[onnx.TensorProto] = []
    if external:
        layout = _Layout(data_path.name)
        model = copy_model(model, layout.place)
        moved = layout.moved
    try:
        content = model.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise OutputError(f"{path}: the model cannot be written as one protobuf of at most 2 GB: {error}") from error

    digest = hashlib.sha256(content)
    with _reported(path), Transaction() as transaction:
        data_size = 0
        if moved:
            data_size = transaction.write(data_path, _data_chunks(moved), digest)
        elif _is_data_of(data_path, path) and not any(_same_file(data_path, file) for file in protected):
            transaction.remove(data_path)
        for file, held in beside.items():
            transaction.write(file, [held])
        transaction.write(path, [content])
        transaction.commit()
    return SavedModel(path, data_path if moved else None, len(content) + data_size, digest.hexdigest())


class _Layout:
    """Assigns each large tensor its place in the data file; collects the tensors in that order."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.moved: list[onnx.TensorProto] = []
        self.end = 0

    def place(self, tensor: onnx.TensorProto) -> onnx.TensorProto | None:
        length = stored_bytes(tensor)
        if tensor.data_type == TensorProto.STRING or length < EXTERNAL_MINIMUM:
            return None
        offset = -(-self.end // ALIGNMENT) * ALIGNMENT
        self.end = offset + length
        self.moved.append(tensor)
        return external_reference(tensor, location=self.location, offset=offset, length=length)


def _data_chunks(moved: list[onnx.TensorProto]) -> Iterator[bytes]:
    position = 0
    for tensor in moved:
        padding = -position % ALIGNMENT
        raw = tensor.raw_data if tensor.HasField("raw_data") else _raw(tensor)
        yield bytes(padding)
        yield raw
        position += padding + len(raw)


def _raw(tensor: onnx.TensorProto) -> bytes:
    return numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into ones that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            why = "no space left; free some or choose another path"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            why = f"the folder {path.parent} is not writable; choose another path"
        else:
            why = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {why}") from error


def _vet_destinations(destinations: list[Path], protect: list[Path]) -> None:
    for destination in destinations:
        with _reported(destination):
            folder = destination.parent
            if not folder.is_dir():
                raise OutputError(f"{destination} cannot be written: there is no folder {folder}; create it first")
            for file in protect:
                if _same_file(destination, file):
                    raise OutputError(
                        f"{destination} would overwrite {file}, which belongs to the input; choose another path"
                    )
            if destination.is_dir():
                raise OutputError(f"{destination} is a folder; give the name of a file")
            if destination.exists() and not stat.S_ISREG(destination.stat().st_mode):
                raise OutputError(f"{destination} is not a regular file and is not replaced")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them does not exist: then only the names can be the same
        return os.path.realpath(one) == os.path.realpath(other)


def _is_data_of(data_path: Path, path: Path) -> bool:
    """Whether the model now at ``path`` keeps tensors in ``data_path``, so that replacing it leaves that file stale."""
    if not data_path.exists() or not path.exists():
        return False
    previous = onnx.ModelProto()
    try:
        previous.ParseFromString(path.read_bytes())
    except (DecodeError, OSError):
        return False
    return any(
        is_external(tensor)
        and any(entry.key == "location" and entry.value == data_path.name for entry in tensor.external_data)
        for tensor, _ in tensors(previous)
    )
