"""Fashion-MNIST as NumPy arrays, read from the IDX files of the data set.

Source: Zalando Research, https://github.com/zalandoresearch/fashion-mnist (MIT
licence); on Debian the package ``dataset-fashion-mnist`` installs the four
files into ``DEFAULT_FOLDER``.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]

DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package puts the files."""

_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
_IDX_UNSIGNED_BYTE = 0x08


def read_pixels(split: Split, folder: Path = DEFAULT_FOLDER) -> NDArray[np.uint8]:
    """Return the images of a split as pixels 0..255, shape [count, 1, 28, 28]."""
    pixels = _read_idx(folder / f"{_PREFIX[split]}-images-idx3-ubyte.gz")
    return pixels[:, np.newaxis]


def read_labels(split: Split, folder: Path = DEFAULT_FOLDER) -> NDArray[np.int64]:
    """Return the class numbers 0..9 of a split, shape [count]."""
    return _read_idx(folder / f"{_PREFIX[split]}-labels-idx1-ubyte.gz").astype(np.int64)


def to_model_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what the nets take: pixel / 255 as float32, same shape."""
    return pixels.astype(np.float32) / np.float32(255)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one gzipped IDX file of unsigned bytes.

    The header is two zero bytes, the element type, the number of axes, then one
    big-endian 32-bit length for each axis.
    """
    content = gzip.decompress(path.read_bytes())
    if content[:2] != b"\0\0" or content[2] != _IDX_UNSIGNED_BYTE:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    axes = content[3]
    header = 4 + 4 * axes
    shape = tuple(int(length) for length in np.frombuffer(content[4:header], dtype=">u4"))
    return np.frombuffer(content[header:], dtype=np.uint8).reshape(shape)
