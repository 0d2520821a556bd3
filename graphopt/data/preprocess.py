"""How an image becomes a model's input: ``x = (pixel * scale - mean) / std``, pixel in 0..255, for each channel.

The block is read from a TOML file, from a mapping, or from the model's ``metadata_props`` (key
``graphopt.preprocess``, the same TOML text)::

    [preprocess]
    size = [224, 224]             # height, width
    resize = 256                  # optional: shorter side first, then the centre of `size` is cut out
    fit = "stretch"               # without `resize`: "stretch", "crop" (cover, cut the centre) or "pad" (letterbox)
    interpolation = "bilinear"    # nearest, bilinear, bicubic, lanczos
    colour = "RGB"                # RGB, BGR or GRAY
    scale = 0.00392156862745098   # 1/255
    mean = [0.485, 0.456, 0.406]  # after scaling
    std = [0.229, 0.224, 0.225]
    layout = "NCHW"               # NCHW or NHWC
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from graphopt.data.sample import Array
from graphopt.errors import DataError

METADATA_KEY = "graphopt.preprocess"
Source: TypeAlias = "str | Path | Mapping[str, Any] | Preprocess | None"

_CHOICES = {
    "fit": ("stretch", "crop", "pad"),
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos"),
    "colour": ("RGB", "BGR", "GRAY"),
    "layout": ("NCHW", "NHWC"),
}


@dataclass(frozen=True)
class Preprocess:
    """The fields of the block above; ``size`` None keeps each image's own size, ``mean`` and ``std`` one a channel."""

    size: tuple[int, int] | None = None
    resize: int | None = None
    fit: str = "stretch"
    interpolation: str = "bilinear"
    colour: str = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"


def read_preprocess(source: Source) -> Preprocess | None:
    """Read the block from a TOML file or a mapping; None stays None.

    Raises:
        DataError: no such file, not TOML, or unknown or unfit values; names the file and the key.
    """
    if source is None or isinstance(source, Preprocess):
        return source
    if isinstance(source, Mapping):
        return _build(source, "preprocessing")
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return _parse(text, str(source))


def preprocess_of(model: onnx.ModelProto) -> Preprocess | None:
    """Return the block that the model carries in its metadata, None where it carries none.

    Raises:
        DataError: it carries one that cannot be read.
    """
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return _parse(entry.value, f"metadata {METADATA_KEY} of the model")
    return None


def image_array(image: Any, block: Preprocess) -> Array:
    """Turn a Pillow image into a float32 array of one sample, in the block's layout, without a batch axis."""
    from PIL import Image

    image = image.convert("L" if block.colour == "GRAY" else "RGB")
    method = getattr(Image.Resampling, block.interpolation.upper())
    if block.resize is not None:
        scale = block.resize / min(image.size)
        image = image.resize(tuple(max(1, round(side * scale)) for side in image.size), method)
    if block.size is not None:
        image = _to_size(image, block, method)
    pixels = np.asarray(image, np.float32)
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    if block.colour == "BGR":
        pixels = pixels[..., ::-1]
    mean, std = np.asarray(block.mean, np.float32), np.asarray(block.std, np.float32)
    scaled = (pixels * np.float32(block.scale) - mean) / std
    return np.ascontiguousarray(scaled.transpose(2, 0, 1) if block.layout == "NCHW" else scaled, np.float32)


def _to_size(image: Any, block: Preprocess, method: Any) -> Any:
    from PIL import Image, ImageOps

    height, width = block.size or image.size[::-1]
    if block.resize is not None:
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))
    if block.fit == "crop":
        return ImageOps.fit(image, (width, height), method)
    if block.fit == "stretch":
        return image.resize((width, height), method)
    scale = min(width / image.width, height / image.height)
    inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), method)
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return canvas


def _parse(text: str, where: str) -> Preprocess:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where}: not TOML: {error}") from error
    return _build(table.get("preprocess", table), where)


def _build(table: Any, where: str) -> Preprocess:
    known = [field.name for field in fields(Preprocess)]
    if not isinstance(table, Mapping):
        raise DataError(f"{where}: 'preprocess' is not a table; its keys are {', '.join(known)}")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise DataError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")
        values[key] = _value(key, value, where)
    block = Preprocess(**values)
    channels = 1 if block.colour == "GRAY" else 3
    for key in ("mean", "std"):
        given = getattr(block, key)
        if len(given) not in (1, channels):
            raise DataError(f"{where}: {key!r} has {len(given)} values, colour {block.colour} has {channels} channels")
    return block


def _value(key: str, value: Any, where: str) -> Any:
    if key in _CHOICES:
        said = str(value).upper() if key in ("colour", "layout") else str(value).lower()
        if said not in _CHOICES[key]:
            raise DataError(f"{where}: {key} = {value!r}; choose from {', '.join(_CHOICES[key])}")
        return said
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    if not numbers or not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        raise DataError(f"{where}: {key} = {value!r} is not a number or a list of numbers")
    if key in ("size", "resize"):
        if not all(isinstance(number, int) and 0 < number <= 1 << 16 for number in numbers):
            raise DataError(f"{where}: {key} = {value!r}; give whole numbers of pixels")
        if key == "resize" and len(numbers) == 1:
            return numbers[0]
        if key == "resize" or len(numbers) > 2:
            raise DataError(f"{where}: {key} = {value!r}; {'give one number' if key == 'resize' else 'height, width'}")
        return (numbers[0], numbers[-1])
    if key == "std" and not all(numbers):
        raise DataError(f"{where}: std = {value!r} divides by zero")
    return float(numbers[0]) if key == "scale" else tuple(map(float, numbers))
