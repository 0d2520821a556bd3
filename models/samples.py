"""Write samples of Fashion-MNIST as ``.npz`` files that graphopt takes as data.

``python -m models.samples`` writes the two files that lie beside this one:

- ``fashion_mnist_test.npz``: ``image`` and ``labels``, 200 test images a class
- ``fashion_mnist_calibration.npz``: ``image`` alone, 100 training images a class

``python -m models.samples --full OUT.npz`` writes all 10,000 test images with
their labels, for final scores and benchmarks.

``image`` is what the nets take: float32 [count, 1, 28, 28], pixel / 255. The
first images of each class are taken, in the order of the data set. The same
data set gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models import fashion_mnist

CLASSES = 10
TEST_SAMPLES = 2000
CALIBRATION_SAMPLES = 1000
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.samples", description="Write samples of Fashion-MNIST as .npz."
    )
    parser.add_argument("--full", type=Path, metavar="OUT.npz", help="the whole test set instead")
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEFAULT_FOLDER)
    options = parser.parse_args(arguments)
    if options.full is not None:
        write_full_test_set(options.full, options.data)
    else:
        write_samples(Path(__file__).parent, options.data)


def write_samples(folder: Path, data: Path = fashion_mnist.DEFAULT_FOLDER) -> None:
    """Write the labelled test sample and the unlabelled calibration sample into ``folder``."""
    labels = fashion_mnist.read_labels("test", data)
    chosen = first_of_each_class(labels, TEST_SAMPLES // CLASSES)
    pixels = fashion_mnist.read_pixels("test", data)[chosen]
    write_npz(
        folder / "fashion_mnist_test.npz",
        {"image": fashion_mnist.to_model_input(pixels), "labels": labels[chosen]},
    )
    labels = fashion_mnist.read_labels("train", data)
    chosen = first_of_each_class(labels, CALIBRATION_SAMPLES // CLASSES)
    pixels = fashion_mnist.read_pixels("train", data)[chosen]
    write_npz(
        folder / "fashion_mnist_calibration.npz",
        {"image": fashion_mnist.to_model_input(pixels)},
    )


def write_full_test_set(path: Path, data: Path = fashion_mnist.DEFAULT_FOLDER) -> None:
    """Write all 10,000 test images and their labels."""
    pixels = fashion_mnist.read_pixels("test", data)
    write_npz(
        path,
        {
            "image": fashion_mnist.to_model_input(pixels),
            "labels": fashion_mnist.read_labels("test", data),
        },
    )


def first_of_each_class(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the ascending indices of the first ``count`` images of every class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(CLASSES)]))


def write_npz(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """Write a compressed ``.npz`` whose bytes depend on the arrays alone.

    ``numpy.savez_compressed`` may date the members of the archive; here they
    carry a fixed date.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, content.getvalue())


if __name__ == "__main__":
    main()
