"""Arrays by name and batch: in memory up to a bound, in temporary files beyond it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphopt.errors import DataError

Array: TypeAlias = npt.NDArray[Any]


class Store:
    """Keeps arrays until they are dropped.

    Arrays go to a file when those in memory have reached ``memory`` bytes; each name has a file of its own, which
    ``drop`` gives back. The files have no names on systems that allow it, so that nothing is left behind.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._used = 0
        self._arrays: dict[str, dict[int, Array]] = {}
        self._places: dict[str, dict[int, int]] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._shapes: dict[str, dict[int, tuple[int, ...]]] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def shape(self, name: str, batch: int) -> tuple[int, ...]:
        """Shape of an array."""
        return self._shapes[name][batch]

    def dtype(self, name: str) -> np.dtype[Any]:
        """Dtype of the arrays of a name."""
        return self._dtypes[name]

    def put(self, name: str, batch: int, array: Array) -> None:
        """Keep one array.

        Raises:
            DataError: the temporary folder is full or not writable.
        """
        self._shapes.setdefault(name, {})[batch] = array.shape
        self._dtypes[name] = array.dtype
        if self._used + array.nbytes <= self._memory or array.dtype == object:
            self._used += array.nbytes
            self._arrays.setdefault(name, {})[batch] = array
            return
        try:
            if name not in self._files:
                self._files[name] = tempfile.TemporaryFile(prefix="graphopt-")  # noqa: SIM115, closed by ``drop``
            file = self._files[name]
            self._places.setdefault(name, {})[batch] = file.seek(0, 2)
            np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
        except OSError as error:
            raise DataError(
                f"cannot keep activations in {tempfile.gettempdir()}: {error.strerror or error}; "
                "free some space, point TMPDIR to another folder, or use fewer samples"
            ) from error

    def get(self, name: str, batch: int) -> Array:
        """Return one array; not to be written to."""
        held = self._arrays.get(name, {}).get(batch)
        if held is not None:
            return held
        file = self._files[name]
        file.seek(self._places[name][batch])
        read: Array = np.lib.format.read_array(file, allow_pickle=False)
        return read

    def drop(self, names: Iterable[str]) -> None:
        """Forget all arrays of these names."""
        for name in names:
            self._used -= sum(array.nbytes for array in self._arrays.pop(name, {}).values())
            self._shapes.pop(name, None)
            self._places.pop(name, None)
            file = self._files.pop(name, None)
            if file is not None:
                file.close()

    def close(self) -> None:
        """Forget everything."""
        self.drop(list(self._shapes))
