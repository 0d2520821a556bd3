"""Read folders of images: class sub-folders (``0_cat/``, or named in ``classes.txt``), or images without classes."""

from __future__ import annotations

import re
from collections.abc import Generator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.data.block import Block, natural
from graphopt.data.objects import ONLY_INPUT
from graphopt.data.preprocess import Preprocess, image_array
from graphopt.data.sample import Array
from graphopt.errors import DataError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageColumn:
    """One image file, decoded when it is first asked for."""

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, path: Path, block: Preprocess) -> None:
        self._path, self._block = path, block

    @cached_property
    def _array(self) -> Array:
        from PIL import Image

        try:
            with Image.open(self._path) as image:
                return image_array(image, self._block)
        except (
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
            Image.DecompressionBombWarning,
        ) as error:
            raise DataError(f"{self._path}: cannot be read as an image: {error}") from error

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width in the layout that the preprocessing gives."""
        return tuple(self._array.shape)

    def row(self, index: int) -> Array:
        """Return one row."""
        return np.asarray(self._array[index])

    def whole(self) -> Array:
        """Return the decoded image."""
        return self._array


def list_images(folder: Path) -> list[tuple[Path, int | None]]:
    """Return the images of a folder with their class index, in a stable order; None where there are no classes.

    Raises:
        DataError: sub-folders whose class index is not known, or images both inside and outside sub-folders.
    """
    flat = _images_in(folder)
    by_class = [(child, _images_in(child)) for child in _sorted(folder) if child.is_dir()]
    by_class = [(child, images) for child, images in by_class if images]
    if flat and by_class:
        raise DataError(f"{folder}: images both in it and in its sub-folders; put all of them into class sub-folders")
    if flat:
        return [(path, None) for path in flat]
    index = _class_indices(folder, [child.name for child, _ in by_class])
    return [(path, index[child.name]) for child, images in by_class for path in images]


def image_blocks(images: list[tuple[Path, int | None]], block: Preprocess) -> Generator[Block, None, None]:
    """Yield one block for each image."""
    for path, label in images:
        yield Block(str(path), {ONLY_INPUT: ImageColumn(path, block)}, label, single=True)


def check_pillow() -> None:
    """Check that Pillow is installed.

    Raises:
        DataError: it is not.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError("reading images needs Pillow: pip install 'graphopt[images]'") from error


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: natural(path.name))


def _images_in(folder: Path) -> list[Path]:
    return [path for path in _sorted(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]


def _class_indices(folder: Path, names: list[str]) -> dict[str, int]:
    listing = folder / "classes.txt"
    if listing.is_file():
        classes = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise DataError(f"{listing}: names no class {', '.join(map(repr, unknown))}; one folder name a line")
        return {name: classes.index(name) for name in names}
    indices = {}
    for name in names:
        number = re.match(r"(\d+)(?:[_\- .]|$)", name)
        if number is None:
            raise DataError(
                f"{folder}: which class is the sub-folder {name!r}? Begin its name with the class index "
                f"(0_{name}), or list the folders in {listing.name}, one a line in the order of the model's classes"
            )
        indices[name] = int(number[1])
    return indices
