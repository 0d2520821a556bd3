"""Keep arrays on disk: what arrives once is read many times, and memory does not grow with its length.

The file has no name on systems that allow it, so nothing is left behind, not even by a killed process.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from graphopt.data.sample import Array, Sample, Wanted
from graphopt.errors import DataError

# A key that no model input has.
_ON_DISK = "<label>"


class ArrayLog:
    """An append-only file of records, each a mapping of arrays; read back in any order. Safe between threads."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="graphopt-")  # noqa: SIM115, closed by the finalizer
        self._close = weakref.finalize(self, self._file.close)
        self._records: list[int] = []  # where each record starts; 8 bytes a record is all that stays in memory
        self._size = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._records)

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self._size

    def append(self, record: Mapping[str, Array]) -> None:
        """Write one record; text arrays (dtype object) are kept as text.

        Raises:
            DataError: the temporary folder is full or not writable.
        """
        with self._lock:
            try:
                start = self._file.seek(0, 2)
                np.lib.format.write_array(self._file, np.asarray(list(record), dtype=np.str_), allow_pickle=False)
                for array in record.values():
                    self._write(array)
                self._file.flush()
                self._size = self._file.tell()
            except OSError as error:
                raise DataError(
                    f"cannot keep samples in {tempfile.gettempdir()}: {error.strerror or error}; "
                    "free some space, or point TMPDIR to another folder"
                ) from error
            self._records.append(start)

    def read(self, index: int) -> dict[str, Array]:
        """Return record ``index``."""
        with self._lock:
            self._file.seek(self._records[index])
            names = np.lib.format.read_array(self._file, allow_pickle=False)
            return {str(name): self._read() for name in names}

    def _write(self, array: Array) -> None:
        # numpy's own format does not know bfloat16 and its kin, nor text of dtype object: the dtype goes beside.
        stored = array.astype(np.str_) if array.dtype == object else array
        if stored.dtype.kind == "V":
            stored = np.ascontiguousarray(stored).view(np.dtype(f"u{stored.dtype.itemsize}"))
        np.lib.format.write_array(self._file, np.asarray(array.dtype.name), allow_pickle=False)
        np.lib.format.write_array(self._file, np.asarray(stored, order="C"), allow_pickle=False)

    def _read(self) -> Array:
        name = str(np.lib.format.read_array(self._file, allow_pickle=False))
        stored: Array = np.lib.format.read_array(self._file, allow_pickle=False)
        if name == "object":
            return stored.astype(object)
        if stored.dtype.kind == "u" and stored.dtype.name != name:
            import ml_dtypes

            return stored.view(np.dtype(getattr(ml_dtypes, name)))
        return stored


class Spool:
    """Samples of a one-shot stream: pulled when first needed, kept on disk, read from there afterwards."""

    def __init__(self, start: Callable[[], Iterator[Sample]]) -> None:
        self._start = start
        self._stream: Iterator[Sample] | None = None
        self._log = ArrayLog()
        self._ended = False
        self._error: BaseException | None = None
        self._labels: list[tuple[Any, int]] = []
        self._lock = threading.Lock()

    def __call__(self, wanted: Wanted) -> Iterator[Sample]:
        """Yield the wanted samples; pulls no further than the caller reads."""
        index = 0
        while self._reach(index):
            if wanted(index):
                label, count = self._labels[index]
                record = self._log.read(index)
                if _ON_DISK in record:
                    label = record.pop(_ON_DISK)
                yield Sample(record, label, count)
            index += 1

    def size(self) -> int | None:
        """Return the number of samples, None until the stream was read to its end."""
        return len(self._log) if self._ended else None

    def _reach(self, index: int) -> bool:
        with self._lock:
            return index < len(self._log) or self._pull()

    def _pull(self) -> bool:
        if self._error is not None:
            raise self._error
        if self._ended:
            return False
        try:
            if self._stream is None:
                self._stream = self._start()
            sample = next(self._stream, None)
            if sample is None:
                self._ended = True
                return False
            self._keep(sample)
        except BaseException as error:
            # A generator that raised is at its end: without this, the next reader would take a part for the whole.
            self._error = error
            raise
        return True

    def _keep(self, sample: Sample) -> None:
        record, label = dict(sample.inputs), sample.label
        if isinstance(label, np.ndarray) and label.dtype != object:
            record[_ON_DISK], label = label, None
        self._labels.append((label, sample.count))
        self._log.append(record)
