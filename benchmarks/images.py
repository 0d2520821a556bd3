"""Synthetic photographs-in-kind: smooth colour fields, edges and texture, ImageNet-normalised.

Random-weight networks have no notion of a right answer, so their images only need the statistics that matter to a
quantizer: strong low frequencies, some hard edges, a little texture and noise. Every image is a function of
(seed, index), so any number can be streamed without being stored.
"""

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

# ImageNet statistics per RGB channel, from the torchvision reference transforms.
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)


def _interpolation(source: int, size: int) -> FloatArray:
    """Matrix [size, source] of linear interpolation between `source` evenly spaced knots."""
    position = np.linspace(0, source - 1, size)
    left = np.minimum(position.astype(int), source - 2)
    weight = (position - left).astype(np.float32)
    matrix = np.zeros((size, source), np.float32)
    matrix[np.arange(size), left] = 1 - weight
    matrix[np.arange(size), left + 1] = weight
    return matrix


def _smooth_noise(rng: np.random.Generator, knots: int, size: int) -> FloatArray:
    """Three channels of Gaussian noise given on a coarse grid and interpolated to `size`."""
    matrix = _interpolation(knots, size)
    coarse = rng.standard_normal((3, knots, knots), np.float32)
    return np.asarray(matrix @ coarse @ matrix.T, np.float32)


def image(seed: int, index: int, size: int = 224) -> FloatArray:
    """One image [3, size, size], ImageNet-normalised, determined by `seed` and `index`."""
    rng = np.random.default_rng((seed, index))
    pixels = 0.45 + 0.2 * rng.standard_normal((3, 1, 1), np.float32)
    for knots, share in ((3, 0.22), (9, 0.12), (33, 0.06), (size // 2, 0.03)):
        pixels = pixels + share * rng.uniform(0.3, 1.5) * _smooth_noise(rng, knots, size)
    rows, columns = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j].astype(np.float32)
    for _ in range(int(rng.integers(2, 8))):  # objects: ellipses and half planes with hard edges
        centre_y, centre_x, height, width = rng.uniform((0, 0, 0.05, 0.05), (1, 1, 0.4, 0.4))
        if rng.random() < 0.7:
            inside = ((rows - centre_y) / height) ** 2 + ((columns - centre_x) / width) ** 2 < 1
        else:
            inside = (rows - centre_y) * height + (columns - centre_x) * (width - 0.2) > 0
        colour = rng.uniform(0, 1, (3, 1, 1)).astype(np.float32)
        opacity = rng.uniform(0.4, 0.95)
        pixels = np.where(inside, (1 - opacity) * pixels + opacity * colour, pixels)
    pixels = np.round(np.clip(pixels, 0, 1) * 255) / 255  # as decoded from 8-bit files
    return np.asarray((pixels - MEAN) / STD, np.float32)


def images(seed: int, count: int, size: int = 224) -> Iterator[FloatArray]:
    """Stream `count` images [3, size, size]."""
    return (image(seed, index, size) for index in range(count))


class ImageFeeds:
    """Feeds `{"input": [1, 3, 224, 224]}` made anew on each pass, never stored; counts what making them costs."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.cpu_seconds = 0.0

    def __iter__(self) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
        for index in range(self.count):
            started = time.process_time()
            pixels = image(self.seed, index)[None]
            self.cpu_seconds += time.process_time() - started
            yield {"input": pixels}
