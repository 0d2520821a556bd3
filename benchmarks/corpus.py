"""The benchmark corpus: networks and their samples, built once into a cache directory.

    python -m benchmarks.corpus [--cache benchmarks/.cache] [--models resnet50,ppocr_rec]

For each case the cache holds `NAME.onnx`, `NAME.calib.npz` and `NAME.eval.npz` (one array per model input, first axis
= samples, optional `labels`); the recogniser's true texts lie beside its samples, as .json. Every tool reads the same
files. Building needs what measuring does not: torch and torchvision for the torchvision nets (`pip install
torch==2.14.1 torchvision==0.29.1`), Pillow for text, and pip itself, which fetches the OCR wheel.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

CACHE = Path(__file__).parent / ".cache"
ROOT = Path(__file__).parent.parent
TORCH = ("resnet50", "mobilenet_v2", "shufflenet_v2_x1_0", "efficientnet_b0", "densenet121", "vgg16_bn")
OCR = ("ppocr_rec", "ppocr_det", "ppocr_cls")
ZOO = ("plain", "mobilenet", "resnet20", "shufflenet", "densenet", "mobilenetv3")
NAMES = (*ZOO, *TORCH, *OCR)
# Calibration and evaluation samples are drawn from different seeds, so they are disjoint.
SEED_CALIBRATION, SEED_EVALUATION = 1, 2
COUNTS = {"torch": (64, 64), "ppocr_rec": (256, 400), "ppocr_det": (64, 64), "ppocr_cls": (256, 400)}


@dataclass(frozen=True)
class Case:
    """One network of the benchmark with its files."""

    name: str
    model: Path
    calibration: Path
    evaluation: Path
    accuracy: str  # "top1" (labels), "lines" (texts), "sqnr" (random weights), "cosine"

    def texts(self, samples: Path) -> Path:
        """True texts of the lines in `samples`; the recogniser only."""
        return samples.with_suffix(".json")


def case(name: str, cache: Path = CACHE, zoo: Path = ROOT / "models") -> Case:
    """Where the files of `name` are; they need not exist yet."""
    if name in ZOO:
        test = cache / "fashion_mnist.eval.npz"
        return Case(name, zoo / f"{name}.onnx", zoo / "fashion_mnist_calibration.npz", test, "top1")
    accuracy = {"ppocr_rec": "lines", "ppocr_det": "cosine", "ppocr_cls": "top1"}.get(name, "sqnr")
    model, calibration, evaluation = (cache / f"{name}{suffix}" for suffix in (".onnx", ".calib.npz", ".eval.npz"))
    return Case(name, model, calibration, evaluation, accuracy)


def load(path: Path, count: int | None = None) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays of an `.npz`, never unpickled; the first `count` samples."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name][:count] for name in arrays.files}


def _save(path: Path, **arrays: npt.NDArray[np.generic]) -> None:
    """Atomic, so that an interrupted build leaves no half file in the cache."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def _build_torch(item: Case, cache: Path) -> None:
    from benchmarks import images

    if not item.model.is_file():
        from benchmarks import torchnets  # needs PyTorch, which what is in the cache does not

        torchnets.export(item.name, item.model)
    for path, seed, count in zip(
        (item.calibration, item.evaluation), (SEED_CALIBRATION, SEED_EVALUATION), COUNTS["torch"], strict=True
    ):
        shared = cache / f"images_{path.name.split('.')[1]}.npz"  # one file for all six nets
        if not shared.is_file():
            _save(shared, input=np.stack(list(images.images(seed, count))))
        if not path.is_file():
            os.link(shared, path)


def _wheel(cache: Path) -> Path:
    from benchmarks import ocr

    with tempfile.TemporaryDirectory(dir=cache) as folder:
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, ocr.PACKAGE]
        subprocess.run(download, check=True)
        (found,) = Path(folder).glob("*.whl")
        return found.replace(cache / found.name)


def _build_ocr(item: Case, cache: Path) -> None:
    from benchmarks import ocr

    if not item.model.is_file():
        wheel = next(iter(cache.glob("rapidocr_onnxruntime-*.whl")), None) or _wheel(cache)
        ocr.extract(wheel, item.name, item.model)
    for path, seed, count in zip(
        (item.calibration, item.evaluation), (SEED_CALIBRATION, SEED_EVALUATION), COUNTS[item.name], strict=True
    ):
        if path.is_file():
            continue
        if item.name == "ppocr_rec":
            rows, texts = ocr.lines(seed, count)
            ocr.save_texts(item.texts(path), texts)
            _save(path, x=rows)
        elif item.name == "ppocr_cls":
            rows, labels = ocr.directions(seed, count)
            _save(path, x=rows, labels=labels)
        else:
            _save(path, x=ocr.pages(seed, count))


def _build_zoo(item: Case) -> None:
    if not item.evaluation.is_file():
        partial = item.evaluation.with_suffix(".partial.npz")
        subprocess.run([sys.executable, "-m", "models.samples", "--full", str(partial)], check=True, cwd=ROOT)
        partial.replace(item.evaluation)


def build(name: str, cache: Path = CACHE) -> Case:
    """Make sure that the files of `name` exist in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    item = case(name, cache)
    if name in TORCH:
        _build_torch(item, cache)
    elif name in OCR:
        _build_ocr(item, cache)
    elif name in ZOO:
        _build_zoo(item)
    else:
        raise ValueError(f"unknown model {name!r}; choose from {', '.join(NAMES)}")
    return item


def main() -> None:
    """Build the chosen cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--models", default=",".join((*TORCH, *OCR)), help="comma-separated; default: all but the zoo")
    options = parser.parse_args()
    for name in options.models.split(","):
        print(name, build(name, options.cache.resolve()).model, flush=True)


if __name__ == "__main__":
    main()
