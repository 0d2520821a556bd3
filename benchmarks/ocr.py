"""The three PP-OCR networks of PyPI `rapidocr-onnxruntime`: their files, their inputs, and how text is read off.

Pre- and post-processing follow PP-OCR: pixels scaled to -1..1, lines resized to height 48 and padded with zeros on the
right; the recogniser's characters are in its metadata (blank first, space last) and decoded greedily (CTC).
"""

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

from benchmarks.text import line_image, page_image, sentence

FloatArray = npt.NDArray[np.float32]

PACKAGE = "rapidocr-onnxruntime==1.4.4"
FILES = {
    "ppocr_rec": "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "ppocr_det": "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    "ppocr_cls": "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
}
HEIGHT, REC_WIDTH, CLS_WIDTH, PAGE = 48, 320, 192, 320


def extract(wheel: Path, name: str, path: Path) -> None:
    """Copy one network out of the package's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        path.write_bytes(archive.read(FILES[name]))


def _normalise(picture: Image.Image) -> FloatArray:
    """[3, height, width] in -1..1, channels blue-green-red as the package feeds them."""
    pixels = np.asarray(picture, np.float32)[:, :, ::-1] / 255
    return np.ascontiguousarray((pixels.transpose(2, 0, 1) - 0.5) / 0.5)


def _line_input(picture: Image.Image, width: int) -> FloatArray:
    """A line resized to height 48, squeezed to `width` where longer, padded with zeros where shorter."""
    scaled = min(width, int(np.ceil(HEIGHT * picture.width / picture.height)))
    padded = np.zeros((3, HEIGHT, width), np.float32)
    padded[:, :, :scaled] = _normalise(picture.resize((scaled, HEIGHT), Image.Resampling.BILINEAR))
    return padded


def lines(seed: int, count: int) -> tuple[FloatArray, list[str]]:
    """Recogniser inputs [count, 3, 48, 320] and their true texts."""
    rows, texts = [], []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        texts.append(sentence(rng, 10, 26))
        rows.append(_line_input(line_image(texts[-1], rng), REC_WIDTH))
    return np.stack(rows), texts


def directions(seed: int, count: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Classifier inputs [count, 3, 48, 192], every second one upside down, and labels (1 = upside down)."""
    rows = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        picture = line_image(sentence(rng, 5, 18), rng)
        if index % 2:
            picture = picture.transpose(Image.Transpose.ROTATE_180)
        rows.append(_line_input(picture, CLS_WIDTH))
    return np.stack(rows), np.arange(count, dtype=np.int64) % 2


def pages(seed: int, count: int) -> FloatArray:
    """Detector inputs [count, 3, 320, 320]."""
    return np.stack([_normalise(page_image(np.random.default_rng((seed, index)), PAGE)) for index in range(count)])


def characters(model: Path) -> list[str]:
    """The recogniser's classes: blank, the metadata's characters, space."""
    metadata = {entry.key: entry.value for entry in onnx.load(str(model)).metadata_props}
    return ["", *metadata["character"].splitlines(), " "]


def decode(probabilities: FloatArray, classes: Sequence[str]) -> list[str]:
    """Greedy CTC: arg-max per column, repeats merged, blanks dropped. `probabilities` [count, columns, classes].

    Spaces at the ends are dropped: the network reads margins as spaces, which is no mistake.
    """
    best = probabilities.argmax(axis=2)
    keep = best != 0
    keep[:, 1:] &= best[:, 1:] != best[:, :-1]
    return ["".join(classes[code] for code in row[kept]).strip() for row, kept in zip(best, keep, strict=True)]


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance."""
    previous = list(range(len(second) + 1))
    for row, left in enumerate(first, 1):
        current = [row]
        for column, right in enumerate(second, 1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (left != right)))
        previous = current
    return previous[-1]


def text_scores(found: Iterable[str], truth: Sequence[str]) -> tuple[float, float]:
    """Share of lines read exactly, and character accuracy 1 - edits / true characters."""
    pairs = list(zip(found, truth, strict=True))
    right = sum(text == known for text, known in pairs) / len(pairs)
    edits = sum(edit_distance(text, known) for text, known in pairs)
    return right, 1 - edits / sum(map(len, truth))


def line_metric(truth: Sequence[str], classes: Sequence[str]) -> Callable[..., float]:
    """A metric for `graphopt.optimize`: 1 where a line is read exactly; labels are positions in `truth`."""

    def lines_right(outputs: Mapping[str, FloatArray], reference: Mapping[str, FloatArray], label: object) -> float:
        (probabilities,) = outputs.values()
        wanted = np.asarray(label, np.int64).reshape(-1)
        found = decode(probabilities, classes)
        return float(np.mean([text == truth[int(row)] for text, row in zip(found, wanted, strict=True)]))

    return lines_right


def save_texts(path: Path, texts: Sequence[str]) -> None:
    """True texts beside the samples, as a JSON list."""
    path.write_text(json.dumps(list(texts), indent=0) + "\n", encoding="utf-8")


def load_texts(path: Path) -> list[str]:
    """What `save_texts` wrote."""
    texts: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return texts
