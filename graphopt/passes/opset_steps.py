"""What changed in operators between operator set versions, and how a node is carried over.

A node goes from one version of its operator to the next by a *step*: a function of its state that gives the new state,
or says why there is none. Where no step is listed, the schemas must prove that nothing changed for this node: the same
inputs and outputs, and no attribute but new ones with a default (``unchanged``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
import onnx_graphsurgeon as gs

from graphopt.graph import TensorType, shape_of, values_of

Input: TypeAlias = gs.Tensor | npt.NDArray[Any] | None


_FLOATS = frozenset({np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)})


@dataclass(frozen=True)
class State:
    """A node on its way from one operator set version to another.

    Attributes:
        inputs: arrays among them are constants to be made, None is an input left out.
        outputs: whether each output has a name.
        reads: whether each output is read by anything, or given out.
        types: inferred types by tensor name.
        names: names of the outputs, to look up their types by; empty ones are left out.
    """

    op: str
    attrs: Mapping[str, Any]
    inputs: tuple[Input, ...]
    outputs: tuple[bool, ...]
    reads: tuple[bool, ...]
    types: Mapping[str, TensorType]
    names: tuple[str, ...] = ()

    def shape(self, slot: int) -> tuple[int | str | None, ...] | None:
        """Inferred shape of an input; None where the rank is unknown."""
        given = self.inputs[slot]
        if isinstance(given, np.ndarray):
            return tuple(given.shape)
        if isinstance(given, gs.Constant):
            return shape_of(given)
        found = None if given is None else self.types.get(given.name)
        return None if found is None else found.shape

    def dtype(self, slot: int) -> np.dtype[Any] | None:
        """Inferred dtype of an input."""
        given = self.inputs[slot]
        found = self.types.get(given.name) if isinstance(given, gs.Tensor) else None
        return None if found is None or not found.dtype else np.dtype(onnx.helper.tensor_dtype_to_np_dtype(found.dtype))

    def values(self, slot: int) -> npt.NDArray[Any] | None:
        """The values of an input, where they are fixed."""
        given = self.inputs[slot] if slot < len(self.inputs) else None
        return values_of(given) if isinstance(given, gs.Tensor) else given

    def without(self, *names: str) -> State:
        """The state without some attributes."""
        return replace(self, attrs={name: value for name, value in self.attrs.items() if name not in names})

    def having(self, **attrs: Any) -> State:
        """The state with some attributes set."""
        return replace(self, attrs={**self.attrs, **attrs})

    def reading(self, *inputs: Input) -> State:
        """The state with its first input and these after it."""
        return replace(self, inputs=(self.inputs[0], *inputs))


Step: TypeAlias = Callable[[State], State | str]


def carry(state: State, current: int, wanted: int) -> State | str:
    """Carry a node from one operator set version to a later one; a text says why it cannot be."""
    now = current
    while True:
        following = _next_version(state.op, now)
        if following is None or following > wanted:
            known = following is not None or schema_of(state.op, now) is not None
            return state if known else f"{state.op} is not known at opset {now}"
        step = STEPS.get((state.op, following))
        result = step(state) if step is not None else unchanged(state, following)
        if isinstance(result, str):
            return f"{state.op} of opset {following}: {result}"
        state, now = result, following


def unchanged(state: State, following: int) -> State | str:
    """The state as it is, if this version of its operator means the same by it as the one before."""
    change = _change(state.op, following)
    if isinstance(change, str):
        return change
    defaults, known = change
    silent = sorted(defaults - set(state.attrs))
    if silent:
        return f"the default of {silent[0]} changed"
    gone = sorted(set(state.attrs) - known)
    return f"the attribute {gone[0]} is no more" if gone else state


@lru_cache(maxsize=4096)
def _change(op: str, following: int) -> tuple[frozenset[str], frozenset[str]] | str:
    """Attributes whose default changed at a version of an operator, and all that it knows; or why it is another."""
    before, after = schema_of(op, following - 1), schema_of(op, following)
    if before is None or after is None or after.deprecated:
        return "it is no more"
    for old, new in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        if [each.option for each in old] != [each.option for each in new]:
            return "its inputs or outputs changed"
    known: Mapping[str, Any] = before.attributes
    attributes: Mapping[str, Any] = after.attributes
    for name, attribute in attributes.items():
        if name not in known and attribute.required:
            return f"it needs the attribute {name}"
    changed = {
        name
        for name, attribute in attributes.items()
        if name in known and str(attribute.default_value) != str(known[name].default_value)
    }
    return frozenset(changed), frozenset(attributes)


@lru_cache(maxsize=4096)
def schema_of(op: str, version: int) -> onnx.defs.OpSchema | None:
    """The operator as of an operator set version; None where there is none."""
    if not onnx.defs.has(op, max_inclusive_version=version):
        return None
    return onnx.defs.get_schema(op, max_inclusive_version=version)


@lru_cache(maxsize=4096)
def _next_version(op: str, version: int) -> int | None:
    """The first version after ``version`` at which the operator changed."""
    schema = schema_of(op, version)
    newest = onnx.defs.onnx_opset_version()
    for later in range(version + 1, newest + 1):
        found = schema_of(op, later)
        if found is not None and (schema is None or found.since_version != schema.since_version):
            return later
    return None


def _axes_to_input(state: State) -> State | str:
    axes = state.attrs.get("axes")
    return state if axes is None else state.without("axes").reading(np.asarray(axes, np.int64))


def _split_sizes(state: State) -> State | str:
    split = state.attrs.get("split")
    return state if split is None else state.without("split").reading(np.asarray(split, np.int64))


def _split_count(state: State) -> State | str:
    if len(state.inputs) > 1 and state.inputs[1] is not None:
        return state
    return state.having(num_outputs=len(state.outputs))


def _clip_bounds(state: State) -> State | str:
    dtype = state.dtype(0)
    if not {"min", "max"} & set(state.attrs):
        return state
    if dtype is None:
        return "the dtype that its bounds must have is not known"
    greatest = float(np.finfo(np.float32).max)
    low, high = state.attrs.get("min", -greatest), state.attrs.get("max", greatest)
    bounds = [
        None if abs(value) >= greatest and (value < 0) == below else np.asarray(value, dtype)
        for value, below in ((low, True), (high, False))
    ]
    while bounds and bounds[-1] is None:
        bounds.pop()
    return state.without("min", "max").reading(*bounds)


def _pad_amounts(state: State) -> State | str:
    pads, value = state.attrs.get("pads"), state.attrs.get("value", 0.0)
    inputs: list[Input] = [np.asarray(pads, np.int64)]
    if value != 0.0:
        dtype = state.dtype(0)
        if dtype is None:
            return "the dtype that its value must have is not known"
        inputs.append(np.asarray(value, dtype))
    return state.without("pads", "value").reading(*inputs)


def _slice_bounds(state: State) -> State | str:
    names = [name for name in ("starts", "ends", "axes") if name in state.attrs]
    return state.without(*names).reading(*(np.asarray(state.attrs[name], np.int64) for name in names))


def _top_k(state: State) -> State | str:
    return state.without("k").reading(np.asarray([state.attrs["k"]], np.int64))


def _dropout(state: State) -> State | str:
    if any(state.reads[1:]):
        return "its mask is used, whose dtype and values changed"
    # In inference, which it is without a third input, the ratio does not matter.
    return replace(state.without("ratio"), outputs=state.outputs[:1])


def _batch_normalization(state: State) -> State | str:
    if any(state.outputs[1:]):
        return "its statistics are used"
    if state.attrs.get("spatial", 1) != 1:
        return "spatial = 0 is no more"
    return state.without("spatial")


def _flattening(state: State) -> State | str:
    """Softmax and its kin ran over all axes from ``axis`` on."""
    shape, axis = state.shape(0), int(state.attrs.get("axis", 1))
    if axis == -1:
        return state
    if shape is None or not -len(shape) <= axis < len(shape):
        return "it ran over all axes from the one given on, and the number of axes is not known"
    axis %= len(shape)
    wide = [each for each in range(axis, len(shape)) if shape[each] != 1]
    if len(wide) > 1:
        return "it ran over all axes from the one given on, which it does no more"
    return state.having(axis=wide[0] if wide else len(shape) - 1)


def _upsample_scales(state: State) -> State | str:
    return state.without("scales").reading(np.asarray(state.attrs["scales"], np.float32))


def _upsample_to_resize(state: State) -> State | str:
    return replace(state, op="Resize")


def _resize_modes(state: State) -> State | str:
    scales = state.values(1)
    mode = state.attrs.get("mode", "nearest")
    if scales is None or not scales.size or (mode == "nearest" and (scales < 1).any()):
        return "how it rounds depends on whether it shrinks, which its scales do not tell"
    resized = state.having(mode=mode, coordinate_transformation_mode="asymmetric")
    if mode == "nearest":
        resized = resized.having(nearest_mode="floor")
    dtype = state.dtype(0)
    if dtype is None or dtype.kind != "f":
        return "the dtype is not known to be a float"
    return resized.reading(np.asarray([], np.float32), state.inputs[1])


def _resize_inputs(state: State) -> State | str:
    if state.attrs.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        return "the mode tf_half_pixel_for_nn is no more"
    inputs = list(state.inputs)
    for slot in (1, 2):
        values = state.values(slot) if slot < len(inputs) and inputs[slot] is not None else None
        needed = slot == 1 and state.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        if values is not None and not values.size and not needed:
            inputs[slot] = None
    while inputs and inputs[-1] is None:
        inputs.pop()
    return replace(state, inputs=tuple(inputs))


def _deconvolution(state: State) -> State | str:
    if state.attrs.get("auto_pad", "NOTSET") in {"SAME_UPPER", "SAME_LOWER"}:
        return "where auto_pad puts an odd padding changed"
    return state


def ceil_mode(state: State) -> State | str:
    """Windows that start behind the data, in the padding, were counted or not: only where there are none."""
    if not state.attrs.get("ceil_mode", 0):
        return state
    kernel = list(state.attrs.get("kernel_shape", []))
    rank = len(kernel)
    strides, dilations = state.attrs.get("strides") or [1] * rank, state.attrs.get("dilations") or [1] * rank
    ends = (state.attrs.get("pads") or [0] * 2 * rank)[rank:]
    if state.attrs.get("auto_pad", "NOTSET") != "NOTSET" or any(
        end + stride > (size - 1) * dilation + 1
        for end, stride, size, dilation in zip(ends, strides, kernel, dilations, strict=True)
    ):
        return "with ceil_mode, a window may lie in the padding alone, which counts no more"
    return state


def average_pool(state: State) -> State | str:
    """What the last window is divided by, with ``ceil_mode``, changed at 19 and 22: only where there is no doubt."""
    result = ceil_mode(state)
    if isinstance(result, str) or not state.attrs.get("ceil_mode", 0):
        return result
    return (
        "with ceil_mode, what the last window is divided by changed" if state.attrs.get("count_include_pad") else state
    )


def _roi_align(state: State) -> State | str:
    return state.having(coordinate_transformation_mode="output_half_pixel")


def _grid_sample(state: State) -> State | str:
    mode = state.attrs.get("mode", "bilinear")
    return state.having(mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _scatter(state: State) -> State | str:
    return replace(state, op="ScatterElements")


def _group_normalization(state: State) -> State | str:
    shape, groups = state.shape(0), int(state.attrs["num_groups"])
    scale, bias = state.values(1), state.values(2)
    channels = None if shape is None or len(shape) < 2 else shape[1]
    if scale is None or bias is None or not isinstance(channels, int):
        return "its scale and bias were one a group, and cannot be spread over channels that are not known"
    return state.reading(*(np.repeat(values, channels // groups) for values in (scale, bias)))


def _refused(reason: str) -> Step:
    return lambda state: reason


# Operators that ONNX Runtime 1.31 has CPU kernels for up to the version before 22 only.
_NO_KERNEL = (
    "GlobalLpPool",
    "MaxRoiPool",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "RoiAlign",
)
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
STEPS: Mapping[tuple[str, int], Step] = {
    ("Upsample", 9): _upsample_scales,
    ("Upsample", 10): _upsample_to_resize,
    ("BatchNormalization", 9): _batch_normalization,
    ("Scan", 9): _refused("it has no batch any more"),
    ("Dropout", 10): _dropout,
    ("Slice", 10): _slice_bounds,
    ("TopK", 10): _top_k,
    ("Clip", 11): _clip_bounds,
    ("ConvTranspose", 11): _deconvolution,
    ("Gemm", 11): lambda state: state,
    ("Pad", 11): _pad_amounts,
    ("Resize", 11): _resize_modes,
    ("Scatter", 11): _scatter,
    ("Dropout", 12): _dropout,
    ("Erf", 13): lambda state: state if state.dtype(0) in _FLOATS else "it is for floats alone",
    ("Hardmax", 13): _flattening,
    ("LogSoftmax", 13): _flattening,
    ("ReduceSum", 13): _axes_to_input,
    ("Resize", 13): _resize_inputs,
    ("Softmax", 13): _flattening,
    ("Split", 13): _split_sizes,
    ("Squeeze", 13): _axes_to_input,
    ("Unsqueeze", 13): _axes_to_input,
    ("BatchNormalization", 14): _batch_normalization,
    ("RoiAlign", 16): _roi_align,
    **{(f"Reduce{name}", 18): _axes_to_input for name in _REDUCTIONS},
    ("OptionalHasElement", 18): lambda state: state,
    ("Pad", 18): lambda state: state,
    ("Split", 18): _split_count,
    ("AveragePool", 19): average_pool,
    ("GridSample", 20): _grid_sample,
    ("GroupNormalization", 21): _group_normalization,
    ("AveragePool", 22): average_pool,
    ("MaxPool", 22): ceil_mode,
    **{(op, 22): _refused("ONNX Runtime 1.31 has no kernel for it") for op in _NO_KERNEL},
}
