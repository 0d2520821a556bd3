"""Read ``.npy`` and ``.npz`` files row by row, without ever unpickling or decompressing a whole array into memory.

The ``.npy`` format: NumPy Enhancement Proposal 1 and ``numpy.lib.format``.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from graphopt.data.block import ArrayColumn, Column
from graphopt.data.sample import MAX_SAMPLE_BYTES, Array
from graphopt.errors import DataError

_READ_ERRORS = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile)
_CHUNK = 1 << 20


class NpyStream:
    """One ``.npy`` member of an open archive, read forwards row by row.

    Raises:
        DataError: not an ``.npy`` file, Python objects inside, or a header that does not fit the file's size.
    """

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> None:
        self._archive, self._member, self.where = archive, member, where
        self._stream: IO[bytes] = self._open()
        try:
            self.shape, self.fortran, self.dtype = read_header(self._stream, where)
            self._start = self._stream.tell()
            self._next = 0
            self._check_size(member.file_size - self._start)
        except DataError:
            self._stream.close()
            raise

    def row(self, index: int) -> Array:
        """Return one row; cheap when indices ascend."""
        if index < self._next:
            self._rewind()
        size = prod(self.shape[1:]) * self.dtype.itemsize
        data = self._read((index - self._next) * size, size)
        self._next = index + 1
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:])

    def whole(self) -> Array:
        """Return the whole array."""
        if self._next:
            self._rewind()
        self._next = self.shape[0] if self.shape else 1
        data = self._read(0, prod(self.shape) * self.dtype.itemsize)
        return np.frombuffer(data, self.dtype).reshape(self.shape)

    def to_disk(self) -> Array:
        """Decompress into an unnamed temporary file and map it: for column-major arrays, whose rows are scattered."""
        with tempfile.TemporaryFile(prefix="graphopt-") as file:
            left = prod(self.shape) * self.dtype.itemsize
            while left:
                data = self._read(0, min(left, _CHUNK))
                file.write(data)
                left -= len(data)
            file.flush()
            return np.memmap(file, self.dtype, mode="r", shape=self.shape, order="F")

    def _check_size(self, held: int) -> None:
        declared = prod(self.shape) * self.dtype.itemsize
        if declared != held:
            raise DataError(
                f"{self.where}: the header declares shape {self.shape} and dtype {self.dtype}, {declared} bytes, "
                f"but the file holds {held}; it is truncated or damaged, write it again"
            )

    def close(self) -> None:
        """Close the member; the archive stays open."""
        self._stream.close()

    def _rewind(self) -> None:
        self._stream.close()
        self._stream = self._open()
        self._stream.read(self._start)
        self._next = 0

    def _open(self) -> IO[bytes]:
        try:
            return self._archive.open(self._member)
        except _READ_ERRORS as error:
            raise DataError(f"{self.where}: {error}") from error

    def _read(self, skip: int, size: int) -> bytes:
        if size > MAX_SAMPLE_BYTES:
            raise DataError(f"{self.where}: one sample of {size} bytes; the most is {MAX_SAMPLE_BYTES}")
        try:
            while skip:
                step = len(self._stream.read(min(skip, _CHUNK)))
                if not step:
                    break
                skip -= step
            data = self._stream.read(size) if not skip else b""
        except _READ_ERRORS as error:
            raise DataError(f"{self.where}: cannot be read: {error}; the file is damaged, write it again") from error
        if len(data) != size or skip:
            raise DataError(f"{self.where}: ends before the array does; the file is truncated, write it again")
        return data


def read_header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an ``.npy`` stream.

    Returns:
        shape, whether the array is column-major, and dtype.
    """
    try:
        version = npy_format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = npy_format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = npy_format.read_array_header_2_0(stream)
        else:
            raise DataError(f"{where}: .npy format version {version} (structured data); save plain arrays")
    except _READ_ERRORS as error:
        raise DataError(f"{where}: not a readable .npy array: {error}") from error
    if dtype.hasobject:
        raise DataError(f"{where}: holds pickled Python objects, which are never read; save an array of numbers")
    if dtype.names is not None or any(size < 0 for size in shape):
        raise DataError(f"{where}: not a plain array of numbers (dtype {dtype}, shape {shape})")
    return tuple(shape), fortran and len(shape) > 1, dtype


@contextmanager
def open_npz(path: Path) -> Iterator[Mapping[str, Column]]:
    """Open an ``.npz`` file; yield key -> column, readable while the context lasts.

    Raises:
        DataError: not a zip file, members that are no arrays, or names that point outside the archive.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file: {_reason(error)}; write it with numpy.savez") from error
    with archive, ExitStack() as opened:
        columns: dict[str, Column] = {}
        for member in archive.infolist():
            key = _key(path, member)
            where = f"{path}: key {key!r}"
            if key in columns:
                raise DataError(f"{where} is there twice; write the file again")
            stream = NpyStream(archive, member, where)
            opened.callback(stream.close)
            columns[key] = ArrayColumn(stream.to_disk()) if stream.fortran and 0 not in stream.shape else stream
        if not columns:
            raise DataError(f"{path}: holds no arrays")
        yield columns


def open_npy(path: Path) -> Column:
    """Map an ``.npy`` file.

    Raises:
        DataError: not an ``.npy`` file, Python objects inside, or shorter than its header says.
    """
    try:
        with path.open("rb") as stream:
            shape, _, dtype = read_header(stream, str(path))
            held = path.stat().st_size - stream.tell()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {_reason(error)}") from error
    declared = prod(shape) * dtype.itemsize
    if held < declared:
        raise DataError(f"{path}: the header declares {declared} bytes, the file holds {held}; it is truncated")
    if not declared or not shape:
        return ArrayColumn(np.load(path, allow_pickle=False))
    return ArrayColumn(np.load(path, mmap_mode="r", allow_pickle=False))


def _key(path: Path, member: zipfile.ZipInfo) -> str:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    # Nothing is ever extracted; a colon is refused only where it ends a drive, for TensorFlow's inputs are named "x:0".
    if name.is_absolute() or ".." in name.parts or re.match("[A-Za-z]:/", str(name)):
        raise DataError(f"{path}: the member {member.filename!r} points outside the archive; refused")
    if name.suffix != ".npy":
        raise DataError(f"{path}: the member {member.filename!r} is not an .npy array; write it with numpy.savez")
    return member.filename.removesuffix(".npy")


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
