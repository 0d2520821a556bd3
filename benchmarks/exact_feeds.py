"""Inputs to compare two models on: two batch sizes and two image sizes where the model leaves them open."""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[np.generic]
Shape = tuple[int | str | None, ...]

BATCHES = (1, 3, 2)
# Sizes of open height and width: multiples of 32, which detectors ask for; the third feed changes both.
IMAGES = ((96, 128), (96, 128), (128, 64))
LENGTHS = (64, 64, 96)  # other open axes
# Networks that take only certain sizes: the open axes of each input in order, one tuple a feed.
OPEN_AXES: dict[str, dict[str, tuple[tuple[int, ...], ...]]] = {
    "ddddocr_common": {"input1": ((96,), (160,))},
    "ddddocr_common_old": {"input1": ((96,), (160,))},
    "ppocr_cls": {"x": ((1, 48, 192), (3, 48, 192))},
    "ppocr_rec": {"x": ((1, 48, 160), (3, 48, 160), (2, 48, 96))},
    "ppocr6_rec": {"x": ((1, 160), (3, 160), (2, 96))},
    "silero_16k_op15": {"input": ((1, 576), (3, 576)), "state": ((1,), (3,))},
    "silero_half": {"input": ((1, 576), (3, 576)), "state": ((1,), (3,))},
    "silero_op18_ifless": {"input": ((1, 576), (3, 576), (2, 288)), "state": ((1,), (3,), (2,))},
    "silero_vad": {"input": ((1, 576), (3, 576), (2, 288)), "state": ((1,), (3,), (2,))},
    "silero_16k_sequence": {"input": ((1,), (5,))},
}
# Whole-number inputs: the values of each feed where it is a scalar, else the range.
SCALARS = {"sr": (16000, 16000, 8000)}
INTEGERS = (0, 257)


def inputs(model: onnx.ModelProto) -> dict[str, tuple[np.dtype[np.generic], Shape]]:
    """What a caller feeds: dtype and declared shape by name."""
    known = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, tuple[np.dtype[np.generic], Shape]] = {}
    for value in model.graph.input:
        if value.name not in known:
            tensor = value.type.tensor_type
            dims = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim
            )
            shape = tuple(None if isinstance(size, int) and size < 0 else size for size in dims)
            found[value.name] = (np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), shape)
    return found


def _open_sizes(shape: Shape, turn: int) -> list[int]:
    """Sizes for the open axes of an input, by their place."""
    images = list(IMAGES[turn])
    sizes = []
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            continue
        if axis == 0 or (isinstance(size, str) and "batch" in size.lower()):
            sizes.append(BATCHES[turn])
        elif len(shape) == 4 and images:
            sizes.append(images.pop(0))
        else:
            sizes.append(LENGTHS[turn])
    return sizes


def _filled(shape: Shape, sizes: Sequence[int]) -> tuple[int, ...]:
    left = iter(sizes)
    return tuple(size if isinstance(size, int) else next(left) for size in shape)


def feeds(model: onnx.ModelProto, name: str) -> Iterator[dict[str, Array]]:
    """Two feeds or three, always the same ones for a name."""
    specs = inputs(model)
    known = OPEN_AXES.get(name, {})
    turns = min((len(sizes) for sizes in known.values()), default=3)
    if all(isinstance(size, int) for _, shape in specs.values() for size in shape):
        turns = 2
    for turn in range(turns):
        rng = np.random.default_rng(zlib.crc32(f"{name} {turn}".encode()))
        yield {
            each: _values(
                rng, each, dtype, _filled(shape, known[each][turn] if each in known else _open_sizes(shape, turn)), turn
            )
            for each, (dtype, shape) in specs.items()
        }


def _pictures(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Rows of dark strokes on a bright ground, and some noise: what detectors answer to, unlike noise alone."""
    pictures = 1.0 + 0.1 * rng.standard_normal(shape)
    height, width = shape[2:]
    for picture in pictures:
        for top in range(8, max(height - 12, 9), 24):
            for left in range(6, max(width - 6, 7), 5):
                stroke = rng.integers(0, 3)
                picture[:, top + stroke : top + 12 - stroke, left : left + 1 + stroke] -= 2.0
                picture[:, top + 5 * stroke : top + 5 * stroke + 2, left : left + 4] -= 2.0 * (stroke > 0)
    return pictures.clip(-1.5, 1.5)


def _values(
    rng: np.random.Generator, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], turn: int
) -> Array:
    if dtype.kind in "iu":
        if name in SCALARS:
            return np.full(shape, SCALARS[name][turn], dtype)
        return rng.integers(*INTEGERS, size=shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, size=shape).astype(dtype)
    if len(shape) == 4 and shape[1] == 3:
        return _pictures(rng, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
