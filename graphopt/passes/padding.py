"""Padding as nodes state it: what a Pad adds, and which operators can add it themselves.

Absorbed exactly, all without ``ceil_mode``, for that counts windows of the padded tensor:

- Conv pads with zeros, in any number.
- AveragePool pads with zeros that count (``count_include_pad``), if it has no padding of its own that does not.
- MaxPool ignores its padding: that is the same as padding with the lowest value, or with anything that no value falls
  below, as long as every window holds a value; so only with less padding than the window is wide, and without dilation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import TensorType, is_op, sole_producer, values_of

Types = Mapping[str, TensorType]
_DEFAULT = (None, "", "ai.onnx")
# Their values are never below zero; NaN passes through.
_NON_NEGATIVE = frozenset({"Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus", "Sqrt"})


@dataclass(frozen=True)
class Padding:
    """What a constant Pad adds before and after each axis, with which value; nothing is negative."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.before)

    @property
    def spatial(self) -> bool:
        """Whether batch and channels are left alone, and there is more."""
        return self.rank > 2 and not any(self.before[:2]) and not any(self.after[:2])


def read_padding(node: gs.Node, opset: int, types: Types) -> Padding | None:
    """What a Pad adds; None where that is not fixed, not constant padding, or cuts."""
    if not is_op(node, "Pad") or node.attrs.get("mode", "constant") != "constant" or not node.inputs:
        return None
    if opset < 11:
        pads, axes = np.asarray(node.attrs.get("pads", ())), None
        value: float | None = float(node.attrs.get("value", 0.0))
    else:
        given, fill = _values(node, 1), _values(node, 2)
        if given is None or (_has(node, 2) and fill is None) or (fill is not None and fill.size != 1):
            return None
        pads, axes = given, _values(node, 3)
        value = 0.0 if fill is None else _number(fill)
        if _has(node, 3) and axes is None:
            return None
    if pads.ndim != 1 or pads.size % 2 or not pads.size or (pads < 0).any() or value is None:
        return None
    count = pads.size // 2
    if axes is None:
        return Padding(tuple(pads[:count].tolist()), tuple(pads[count:].tolist()), value)
    found = types.get(node.inputs[0].name)
    if found is None or found.shape is None:
        return None
    rank = len(found.shape)
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes.tolist()):
        if not -rank <= axis < rank:
            return None
        before[axis] += int(pads[place])
        after[axis] += int(pads[count + place])
    return Padding(tuple(before), tuple(after), value)


def _number(fill: npt.NDArray[Any]) -> float | None:
    """The one number of an array, exactly; None for NaN and for what is no number."""
    if fill.dtype.kind in "biu":
        return int(fill.reshape(-1)[0])
    if fill.dtype.kind not in "fV":
        return None
    number = float(fill.reshape(-1)[0])
    return None if np.isnan(number) else number


def absorbed(node: gs.Node, tensor: gs.Tensor, padding: Padding, types: Types) -> dict[str, object] | None:
    """The attributes with which ``node``, which reads the padded ``tensor``, pads by itself; None where it cannot."""
    rule = _ABSORBERS.get(node.op) if node.domain in _DEFAULT else None
    if rule is None or not padding.spatial or [read is tensor for read in node.inputs].count(True) != 1:
        return None
    found = types.get(tensor.inputs[0].inputs[0].name)
    if found is not None and found.shape is not None and 0 in found.shape:
        return None
    if node.inputs[0] is not tensor or node.attrs.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        return None
    own = list(node.attrs.get("pads") or [0] * (2 * (padding.rank - 2)))
    if node.attrs.get("auto_pad", "NOTSET") == "VALID":
        own = [0] * len(own)
    if len(own) != 2 * (padding.rank - 2) or any(size < 0 for size in own):
        return None
    added = (*padding.before[2:], *padding.after[2:])
    total = [mine + more for mine, more in zip(own, added, strict=True)]
    changes = rule(node, padding, own, total, types)
    return None if changes is None else {**changes, "auto_pad": "NOTSET", "pads": total}


def _conv(node: gs.Node, padding: Padding, own: list[int], total: list[int], types: Types) -> dict[str, object] | None:
    return {} if padding.value == 0 else None


def _average(
    node: gs.Node, padding: Padding, own: list[int], total: list[int], types: Types
) -> dict[str, object] | None:
    if padding.value != 0 or not _plain_pool(node, total):
        return None
    if any(own) and not node.attrs.get("count_include_pad", 0):
        return None
    return {"count_include_pad": 1}


def _max(node: gs.Node, padding: Padding, own: list[int], total: list[int], types: Types) -> dict[str, object] | None:
    if not _plain_pool(node, total) or any(not tensor.is_empty() for tensor in node.outputs[1:]):
        return None
    producer = sole_producer(node.inputs[0])
    assert producer is not None
    source = producer.inputs[0]
    if not _has_value_in_every_window(node, source, total, types):
        return None
    if padding.value == 0 and _is_non_negative(source, types):
        return {}
    return {} if padding.value <= _lowest(source, types) else None


def _plain_pool(node: gs.Node, total: list[int]) -> bool:
    """Whether every window is a full box of cells that the padding does not fill."""
    kernel = node.attrs.get("kernel_shape") or []
    if node.attrs.get("ceil_mode", 0) or any(step != 1 for step in node.attrs.get("dilations") or ()):
        return False
    return 2 * len(kernel) == len(total) and all(size < kernel[place % len(kernel)] for place, size in enumerate(total))


def _has_value_in_every_window(node: gs.Node, source: gs.Tensor, total: list[int], types: Types) -> bool:
    """Whether no window can hold padding only, which takes an empty axis where pads are less than the window."""
    kernel = node.attrs["kernel_shape"]
    count = len(kernel)
    if all(total[place] + total[count + place] < kernel[place] for place in range(count)):
        return True
    found = types.get(source.name)
    if found is None or found.shape is None or len(found.shape) != count + 2:
        return False
    return all(isinstance(size, int) and size > 0 for size in found.shape[2:])


def _is_non_negative(tensor: gs.Tensor, types: Types) -> bool:
    """Whether no value is below zero, by the operator that computes it or by its type."""
    if _lowest(tensor, types) == 0:
        return True
    producer = sole_producer(tensor)
    if producer is None or producer.domain not in _DEFAULT:
        return False
    if producer.op == "Clip":
        if "min" in producer.attrs:
            return bool(producer.attrs["min"] >= 0)
        least = _values(producer, 1)
        return least is not None and least.size == 1 and bool((least >= 0).all())
    return producer.op in _NON_NEGATIVE


def _lowest(tensor: gs.Tensor, types: Types) -> float:
    """The lowest finite value of the tensor's type; minus infinity where it is unknown."""
    found = types.get(tensor.name)
    if found is None or found.dtype == onnx.TensorProto.UNDEFINED:
        return -np.inf
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(found.dtype))
    if dtype.kind in "iu" and dtype.isbuiltin == 1:
        return float(np.iinfo(dtype).min)
    return float(np.finfo(dtype).min) if dtype.kind == "f" else -np.inf


def _has(node: gs.Node, slot: int) -> bool:
    return slot < len(node.inputs) and not node.inputs[slot].is_empty()


def _values(node: gs.Node, slot: int) -> npt.NDArray[Any] | None:
    return values_of(node.inputs[slot]) if _has(node, slot) else None


_Rule = Callable[[gs.Node, Padding, list[int], list[int], Types], dict[str, object] | None]
_ABSORBERS: Mapping[str, _Rule] = {"AveragePool": _average, "Conv": _conv, "MaxPool": _max}
