"""What was said differently in older operator sets: the steps of ``opset_lowering``, by operator and version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import dtype_of, onnx_dtype
from graphopt.passes.opset_steps import Input, State, average_pool, ceil_mode
from graphopt.passes.opset_types import type_named

Step: TypeAlias = Callable[[State], State | str]


def _fixed(state: State, slot: int, name: str) -> list[Any] | None:
    """The values of an input as a list, None where it is left out. Raises KeyError where they are computed."""
    if slot >= len(state.inputs) or state.inputs[slot] is None:
        return None
    values = state.values(slot)
    if values is None:
        raise KeyError(name)
    found: list[Any] = values.reshape(-1).tolist()
    return found


def _as_attribute(slot: int, name: str) -> Step:
    """A step that makes an attribute of a fixed input."""

    def step(state: State) -> State | str:
        try:
            values = _fixed(state, slot, name)
        except KeyError:
            return f"the {name} are computed"
        if values is None:
            return state
        return replace(state.having(**{name: values}), inputs=state.inputs[:slot])

    return step


def _reduction(state: State) -> State | str:
    state_or_reason = _as_attribute(1, "axes")(state)
    if isinstance(state_or_reason, str):
        return state_or_reason
    if state_or_reason.attrs.get("axes") or not state.attrs.get("noop_with_empty_axes", 0):
        # An empty list meant all axes, as no list does.
        given = state_or_reason if state_or_reason.attrs.get("axes") else state_or_reason.without("axes")
        return given.without("noop_with_empty_axes")
    return "it reduces nothing"


def _split(state: State) -> State | str:
    """An even number of pieces needs no saying; uneven ones are spelled out."""
    if "num_outputs" not in state.attrs:
        return state
    shape, count = state.shape(0), int(state.attrs["num_outputs"])
    axis = int(state.attrs.get("axis", 0))
    size = None if shape is None else shape[axis]
    if not isinstance(size, int):
        return "whether its pieces are equal is not known"
    plain = state.without("num_outputs")
    if size % count == 0:
        return plain
    piece = -(-size // count)
    return plain.reading(np.asarray([*[piece] * (count - 1), size - piece * (count - 1)], np.int64))


def _clip(state: State) -> State | str:
    attrs: dict[str, float] = {}
    for slot, name in ((1, "min"), (2, "max")):
        try:
            values = _fixed(state, slot, name)
        except KeyError:
            return f"its {name} is computed"
        if values is not None:
            attrs[name] = float(values[0])
    return replace(state.having(**attrs), inputs=state.inputs[:1])


def _pad_axes(state: State) -> State | str:
    """Amounts for some axes become amounts for all."""
    if len(state.inputs) < 4 or state.inputs[3] is None:
        return replace(state, inputs=state.inputs[:3])
    shape = state.shape(0)
    try:
        pads, axes = _fixed(state, 1, "pads"), _fixed(state, 3, "axes")
    except KeyError as error:
        return f"its {error.args[0]} are computed"
    if shape is None or pads is None or axes is None:
        return "the number of axes is not known"
    rank = len(shape)
    every = [0] * (2 * rank)
    for number, axis in enumerate(axes):
        every[axis % rank], every[axis % rank + rank] = pads[number], pads[number + len(axes)]
    return state.reading(np.asarray(every, np.int64), *state.inputs[2:3])


def _pad_amounts(state: State) -> State | str:
    try:
        pads, value = _fixed(state, 1, "amounts"), _fixed(state, 2, "value")
    except KeyError as error:
        return f"its {error.args[0]} are computed"
    return replace(state.having(pads=pads or [], value=float(value[0]) if value else 0.0), inputs=state.inputs[:1])


def _dropout(state: State) -> State | str:
    """In inference, where it does nothing, its ratio does not matter."""
    training = state.values(2) if len(state.inputs) > 2 and state.inputs[2] is not None else np.asarray(False)
    if training is None or training.any():
        return "it may be in training mode"
    if any(state.reads[1:]):
        return "its mask is used, whose type changed"
    return replace(state.without("seed"), inputs=state.inputs[:1], outputs=state.outputs[:1])


def _batch_normalization(state: State) -> State | str:
    if any(state.outputs[1:]):
        return "its statistics are used"
    return state if not state.attrs.get("training_mode", 0) else "it is in training mode"


def _softmax(state: State) -> State | str:
    """It ran over all axes from the one given on."""
    axis, shape = int(state.attrs.get("axis", -1)), state.shape(0)
    if axis == -1 or (shape is not None and all(size == 1 for size in shape[axis % len(shape) + 1 :])):
        return state.having(axis=axis)
    return "it ran over all axes from the one given on"


def _resize_axes(state: State) -> State | str:
    """Scales or sizes of some axes become those of all."""
    axes = state.attrs.get("axes")
    if axes is None:
        return state
    shape = state.shape(0)
    if shape is None or state.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it resizes some axes only"
    inputs = list(state.inputs)
    if len(inputs) > 1 and inputs[1] is not None:
        return "it has a region of interest for some axes only"
    for slot, every in ((2, [1.0] * len(shape)), (3, list(shape))):
        if slot >= len(inputs) or inputs[slot] is None:
            continue
        values = state.values(slot)
        if values is None:
            return "what it resizes some axes by is computed"
        for axis, value in zip(axes, values.tolist(), strict=False):
            every[axis] = value
        if any(not isinstance(each, (int, float)) for each in every):
            return "the sizes of the axes that it leaves are not known"
        inputs[slot] = np.asarray(every, values.dtype) if values.size else inputs[slot]
    return replace(state.without("axes"), inputs=tuple(inputs))


def _resize_modes(state: State) -> State | str:
    if state.attrs.get("coordinate_transformation_mode") == "half_pixel_symmetric":
        return "there was no mode half_pixel_symmetric"
    return state


def _resize_inputs(state: State) -> State | str:
    """All inputs had to be there, if only empty."""
    inputs: list[Input] = [*state.inputs, None, None][: max(len(state.inputs), 3)]
    for slot in (1, 2):
        inputs[slot] = np.asarray([], np.float32) if inputs[slot] is None else inputs[slot]
    return replace(state, inputs=tuple(inputs))


def _reshape(state: State) -> State | str:
    if not state.attrs.get("allowzero", 0):
        return state.without("allowzero")
    shape = state.values(1)
    if shape is None or (shape == 0).any():
        return "it takes a 0 in its target as a size"
    return state.without("allowzero")


def _to_float8(name: str) -> Step:
    """A step that takes an attribute away which says something of eight-bit floats only."""

    def step(state: State) -> State | str:
        produced = type_named(state, state.names[0]) or ""
        return state if "float8" in produced else state.without(name)

    return step


def _quantized_type(state: State) -> State | str:
    """The type of the result was that of the zero point."""
    wanted = int(state.attrs.get("output_dtype", 0))
    plain = state.without("output_dtype")
    if not wanted or (len(state.inputs) > 2 and state.inputs[2] is not None):
        return plain
    scale = state.shape(1)
    if scale is None or any(not isinstance(size, int) for size in scale):
        return "the shape of its scale is not known"
    zeros = np.zeros([int(size or 0) for size in scale], onnx.helper.tensor_dtype_to_np_dtype(wanted))
    return plain.reading(state.inputs[1], zeros)


def _dequantized_type(state: State) -> State | str:
    """The type of the result was that of the scale."""
    wanted = int(state.attrs.get("output_dtype", 0))
    scale = state.dtype(1) if not isinstance(state.inputs[1], gs.Constant) else dtype_of(state.inputs[1])
    if wanted and (scale is None or onnx_dtype(scale) != wanted):
        return "its result has another type than its scale"
    return state.without("output_dtype")


def _one_scale(state: State) -> State | str:
    scale = state.shape(1)
    return state.without("axis") if scale is not None and not scale else "it has a scale for each channel"


def _grid_sample(state: State) -> State | str:
    mode = state.attrs.get("mode", "linear")
    return state.having(mode={"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode))


def _undilated(state: State) -> State:
    dilations = state.attrs.get("dilations")
    return state.without("dilations") if dilations and all(each == 1 for each in dilations) else state


def _roi_align(state: State) -> State | str:
    if state.attrs.get("coordinate_transformation_mode", "half_pixel") != "output_half_pixel":
        return "it did not shift by half a pixel"
    return state.without("coordinate_transformation_mode")


def _shape(state: State) -> State | str:
    return state if state.attrs.get("start", 0) == 0 else "it gave the sizes of all axes"


def _constant(state: State) -> State | str:
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for form in (name, f"{name}s"):
            if form in state.attrs:
                return state.without(form).having(value=np.asarray(state.attrs[form], dtype))
    return state


def _refused(reason: str) -> Step:
    return lambda state: reason


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")


def _modulus(state: State) -> State | str:
    """Floats that follow the sign of the divisor came with opset 28; before, fmod had to be said of them."""
    if state.attrs.get("fmod", 0):
        return state
    dtype = state.dtype(0)
    return state if dtype is not None and dtype.kind in "iu" else "its floats follow the sign of the divisor"


STEPS: Mapping[tuple[str, int], Step] = {
    ("Mod", 28): _modulus,
    ("AveragePool", 22): average_pool,
    ("MaxPool", 22): ceil_mode,
    ("QuantizeLinear", 21): _quantized_type,
    ("DequantizeLinear", 23): _dequantized_type,
    ("GridSample", 20): _grid_sample,
    ("AveragePool", 19): lambda state: average_pool(_undilated(state)),
    ("Cast", 19): _to_float8("saturate"),
    ("Cast", 24): _to_float8("round_mode"),
    ("CastLike", 19): _to_float8("saturate"),
    ("CastLike", 24): _to_float8("round_mode"),
    ("QuantizeLinear", 19): _to_float8("saturate"),
    ("Resize", 19): _resize_modes,
    **{(f"Reduce{name}", 18): _reduction for name in _REDUCTIONS},
    ("LpPool", 18): _undilated,
    ("Pad", 18): _pad_axes,
    ("Resize", 18): _resize_axes,
    ("Split", 18): _split,
    ("RoiAlign", 16): _roi_align,
    ("BatchNormalization", 15): _batch_normalization,
    ("Shape", 15): _shape,
    ("BatchNormalization", 14): _batch_normalization,
    ("Reshape", 14): _reshape,
    ("DequantizeLinear", 13): _one_scale,
    ("Hardmax", 13): _softmax,
    ("LogSoftmax", 13): _softmax,
    ("QuantizeLinear", 13): _one_scale,
    ("ReduceSum", 13): _reduction,
    ("Resize", 13): _resize_inputs,
    ("Softmax", 13): _softmax,
    ("Split", 13): _as_attribute(1, "split"),
    ("Squeeze", 13): _as_attribute(1, "axes"),
    ("Unsqueeze", 13): _as_attribute(1, "axes"),
    ("Constant", 12): _constant,
    ("Dropout", 12): _dropout,
    ("Clip", 11): _clip,
    ("Pad", 11): _pad_amounts,
    ("Resize", 11): _refused("how it rounds was not said"),
}
