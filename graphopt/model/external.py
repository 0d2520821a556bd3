"""Tensors whose values lie in a file beside the model: judged first, read afterwards.

A model may come from anyone, and each external tensor names a file to open. Accepted is only: a regular file with one
name (no hard link), inside the model's folder, reached without ``..`` and without any symbolic link below that
folder, that holds the whole range of bytes, which is exactly what the tensor's shape and type need. All tensors are
judged before the first byte is read or allocated.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import onnx
from onnx import TensorProto

from graphopt.errors import LfsPointerError, ModelError, UnsafeModelError
from graphopt.model.filetype import LFS_POINTER
from graphopt.model.tensors import byte_count, is_external, vet_dims
from graphopt.model.walk import tensors

COPY_HINT = "copy the real file into the model's folder"


@dataclass(frozen=True)
class DataFile:
    """A vetted data file. Device, inode and size are compared again when it is opened to be read."""

    path: Path
    device: int
    inode: int
    size: int


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor and the vetted range of bytes that holds its values."""

    tensor: onnx.TensorProto
    file: DataFile
    offset: int
    length: int


@dataclass(frozen=True)
class ExternalData:
    """What a model keeps outside itself: tensors found, the files they are in, and the files that are absent."""

    tensors: tuple[ExternalTensor, ...]
    files: tuple[DataFile, ...]
    absent: tuple[str, ...]


def vet_external(model: onnx.ModelProto, folder: Path | None, *, may_be_absent: bool = False) -> ExternalData:
    """Judge every external tensor of ``model``; reads and allocates nothing.

    Args:
        model: parsed, its structure vetted.
        folder: the model's folder; None for a model that does not come from a file.
        may_be_absent: list missing files instead of refusing them.

    Raises:
        UnsafeModelError: a location, a file or a range that is not accepted.
        ModelError: a data file is missing, or its folder is unknown.
    """
    found: list[ExternalTensor] = []
    files: dict[str, DataFile | None] = {}
    for tensor, where in tensors(model):
        if not is_external(tensor):
            continue
        location, offset, length = _reference(tensor, where)
        if location not in files:
            files[location] = _vet_file(folder, location, where, may_be_absent)
        file = files[location]
        if file is None:
            continue
        if offset + length > file.size:
            if _is_pointer(file):
                raise LfsPointerError(
                    f"{where} is stored in {location!r}, which is a Git LFS pointer, not the data itself; fetch it "
                    "with `git lfs pull`"
                )
            raise UnsafeModelError(
                f"{where} claims bytes {offset:,} to {offset + length:,} of {location!r}, which has only "
                f"{file.size:,}; the data file is cut short or belongs to another model"
            )
        found.append(ExternalTensor(tensor, file, offset, length))
    present = sorted({file for file in files.values() if file is not None}, key=lambda file: str(file.path))
    return ExternalData(tuple(found), tuple(present), tuple(sorted(name for name, file in files.items() if not file)))


def load_external(data: ExternalData, *, up_to: int | None = None) -> None:
    """Read vetted tensors into memory; they are external no longer. ``up_to``: only those of at most so many bytes.

    Raises:
        ModelError: the data file changed or cannot be read, or the machine has less memory than the tensors need.
    """
    wanted = [item for item in data.tensors if up_to is None or item.length <= up_to]
    needed, memory = sum(item.length for item in wanted), _physical_memory()
    if memory is not None and needed > memory:
        raise ModelError(f"the external tensors need {needed:,} bytes, more than this machine's {memory:,} of memory")
    for file in data.files:
        inside = [item for item in wanted if item.file == file]
        if not inside:
            continue
        with open_vetted(file) as stream:
            for item in inside:
                stream.seek(item.offset)
                content = stream.read(item.length)
                if len(content) != item.length:
                    raise ModelError(f"{file.path} became shorter while it was read")
                item.tensor.ClearField("external_data")
                item.tensor.ClearField("data_location")
                item.tensor.raw_data = content


@contextmanager
def open_vetted(file: DataFile) -> Iterator[BinaryIO]:
    """Open a data file for reading, sure that it is still the one that was judged."""
    try:
        # O_NONBLOCK: a pipe put in the file's place must not make us wait.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(file.path, flags), "rb") as stream:
            status = os.fstat(stream.fileno())
            if (status.st_dev, status.st_ino, status.st_size) != (file.device, file.inode, file.size):
                raise UnsafeModelError(f"{file.path} was replaced or changed while the model was read")
            yield stream
    except OSError as error:
        raise ModelError(f"{file.path} cannot be read: {error.strerror or error}") from error


def _is_pointer(file: DataFile) -> bool:
    with open_vetted(file) as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER


def _reference(tensor: onnx.TensorProto, where: str) -> tuple[str, int, int]:
    """Location, offset and length that an external tensor declares, judged without looking at the disk."""
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise UnsafeModelError(f"{where} gives {entry.key!r} of its external data twice")
        entries[entry.key] = entry.value
    location = entries.get("location", "")
    _vet_location(location, where)
    if tensor.data_type == TensorProto.STRING:
        raise UnsafeModelError(f"{where} holds strings, which cannot be stored in an external file")
    vet_dims(tensor)
    expected = byte_count(tensor)
    offset = _number(entries.get("offset", "0"), "offset", where)
    length = _number(entries["length"], "length", where) if "length" in entries else expected
    if length != expected:
        raise UnsafeModelError(
            f"{where} of shape {list(tensor.dims)} needs {expected:,} bytes, "
            f"but its external data has length {length:,}"
        )
    return location, offset, length


def _vet_location(location: str, where: str) -> None:
    # Both path syntaxes, so that a model is as safe on Windows as it was found to be here.
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if not location or "\0" in location or not posix.parts:
        raise UnsafeModelError(f"{where} is external, but names no file")
    if posix.is_absolute() or windows.drive or windows.root:
        raise UnsafeModelError(
            f"{where} points to the absolute path {location!r}; only files beside the model are read"
        )
    if ".." in posix.parts or ".." in windows.parts:
        raise UnsafeModelError(f"{where} points outside the model's folder: {location!r}")


def _number(text: str, key: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise UnsafeModelError(f"{where} has the impossible {key} {text!r} in its external data")
    return int(text)


def _vet_file(folder: Path | None, location: str, where: str, may_be_absent: bool) -> DataFile | None:
    if folder is None:
        if may_be_absent:
            return None
        raise ModelError(
            f"{where} is stored in the file {location!r}, but the model was not given as a path, so its folder is "
            "unknown; give the path, or load the external data first"
        )
    path = folder
    parts = PurePosixPath(location).parts
    for index, part in enumerate(parts):
        path = path / part
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            if may_be_absent:
                return None
            raise ModelError(f"{where} is stored in {location!r}, which is not beside the model ({path})") from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{where} is stored in {location!r}, which cannot be read: {error}") from error
        if stat.S_ISLNK(status.st_mode):
            raise UnsafeModelError(f"{where} is stored in {location!r}, but {path} is a symbolic link; {COPY_HINT}")
        if index < len(parts) - 1 and not stat.S_ISDIR(status.st_mode):
            raise UnsafeModelError(f"{where} is stored in {location!r}, but {path} is not a folder")
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeModelError(f"{where} is stored in {location!r}, which is not a regular file")
    if status.st_nlink > 1:
        raise UnsafeModelError(
            f"{where} is stored in {location!r}, which is a hard link: another path shares its content; {COPY_HINT}"
        )
    return DataFile(path, status.st_dev, status.st_ino, status.st_size)


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
