"""The nodes that are to take one node's place, drafted first and written only when the draft is complete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import Index, Shape, TensorType, add_node, constant, dtype_of, shape_of, values_of, variable

Array: TypeAlias = npt.NDArray[Any]
# Constants made, by dtype, shape and bytes: equal ones are one.
Made: TypeAlias = dict[tuple[str, tuple[int, ...], bytes], gs.Constant]


class CannotWriteError(Exception):
    """A form does not hold for this node; the message is the reason, for the reader of the report."""


@dataclass(frozen=True)
class Result:
    """The output of one drafted node, by its number."""

    step: int


Value: TypeAlias = gs.Tensor | Array | Result


@dataclass(frozen=True)
class _Step:
    op: str
    inputs: tuple[Value, ...]
    attrs: Mapping[str, Any]


@dataclass
class Draft:
    """Facts about a node, and the nodes drafted to take its place.

    Attributes:
        node: the node.
        opset: version of the default operator set that the drafted nodes are written in.
        types: inferred types by tensor name.
        index: of the graph that the node stands in.
    """

    node: gs.Node
    opset: int
    types: Mapping[str, TensorType]
    index: Index
    _steps: list[_Step] = field(default_factory=list)

    def input(self, slot: int) -> gs.Tensor | None:
        """An input of the node; None where it is left out."""
        if slot >= len(self.node.inputs) or self.node.inputs[slot].is_empty():
            return None
        found: gs.Tensor = self.node.inputs[slot]
        return found

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.node.attrs.get(name, default)

    def shape(self, slot: int) -> Shape | None:
        """Shape of an input; None where the rank is not known."""
        tensor = self.input(slot)
        if isinstance(tensor, gs.Constant):
            return shape_of(tensor)
        found = None if tensor is None else self.types.get(tensor.name)
        return None if found is None else found.shape

    def rank(self, slot: int) -> int:
        """Number of axes of an input. Raises CannotWriteError where it is not known."""
        shape = self.shape(slot)
        if shape is None:
            raise CannotWriteError("the number of axes is not known")
        return len(shape)

    def sizes(self, slot: int) -> tuple[int, ...]:
        """Sizes of all axes of an input but the first, the batch. Raises CannotWriteError where one is open."""
        shape = self.shape(slot)
        if shape is None or any(not isinstance(size, int) for size in shape[1:]):
            raise CannotWriteError("its sizes are not known")
        return tuple(size for size in shape[1:] if isinstance(size, int))

    def dtype(self, slot: int) -> np.dtype[Any]:
        """Dtype of an input. Raises CannotWriteError where it is not known."""
        tensor = self.input(slot)
        if isinstance(tensor, gs.Constant):
            return np.dtype(dtype_of(tensor))
        found = None if tensor is None else self.types.get(tensor.name)
        if found is None or not found.dtype:
            raise CannotWriteError("the data type is not known")
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(found.dtype))

    def values(self, slot: int) -> Array | None:
        """Values of an input, where they are fixed."""
        tensor = self.input(slot)
        return None if tensor is None else values_of(tensor)

    def fixed(self, slot: int, what: str) -> Array:
        """Values of an input. Raises CannotWriteError where they are computed."""
        found = self.values(slot)
        if found is None:
            raise CannotWriteError(f"its {what} is computed")
        return found

    def scalar(self, value: float, slot: int = 0) -> Array:
        """A constant of no axes in the dtype of an input."""
        return np.asarray(value, self.dtype(slot))

    def op(self, op: str, *inputs: Value, **attrs: Any) -> Result:
        """Draft a node."""
        self._steps.append(_Step(op, inputs, attrs))
        return Result(len(self._steps) - 1)

    def reduce(self, op: str, value: Value, axes: Sequence[int], *, keepdims: bool = True) -> Result:
        """Draft a reduction; where its axes stand depends on the opset."""
        as_input = self.opset >= (13 if op == "ReduceSum" else 18)
        if as_input:
            return self.op(op, value, np.asarray(axes, np.int64), keepdims=int(keepdims))
        return self.op(op, value, axes=list(axes), keepdims=int(keepdims))

    def unsqueeze(self, value: Value, axes: Sequence[int]) -> Result:
        """Draft an Unsqueeze."""
        if self.opset >= 13:
            return self.op("Unsqueeze", value, np.asarray(axes, np.int64))
        return self.op("Unsqueeze", value, axes=list(axes))

    def squeeze(self, value: Value, axes: Sequence[int]) -> Result:
        """Draft a Squeeze."""
        if self.opset >= 13:
            return self.op("Squeeze", value, np.asarray(axes, np.int64))
        return self.op("Squeeze", value, axes=list(axes))

    def reshape(self, value: Value, shape: Sequence[int]) -> Result:
        """Draft a Reshape; 0 keeps the size of that axis."""
        return self.op("Reshape", value, np.asarray(shape, np.int64))

    def cast(self, value: Value, dtype: np.dtype[Any] | type[np.generic]) -> Result:
        """Draft a Cast."""
        return self.op("Cast", value, to=int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def clip(self, value: Value, low: Array, high: Array) -> Result:
        """Draft a Clip to two scalars."""
        if self.opset >= 11:
            return self.op("Clip", value, low, high)
        return self.op("Clip", value, min=float(low), max=float(high))

    def only_output(self) -> None:
        """Raise CannotWriteError where another output than the first is read."""
        rest = [tensor for tensor in self.node.outputs[1:] if not tensor.is_empty()]
        if any(tensor.outputs or self.index.is_output(tensor) for tensor in rest):
            raise CannotWriteError("another output than the first is read")

    def write(self, made: Made) -> None:
        """Write the drafted nodes; the last one writes what the node writes."""
        index = self.index
        home, target = index.home(self.node), self.node.outputs[0]
        name = self.node.name or target.name
        results: list[gs.Tensor] = []

        def tensor(value: Value) -> gs.Tensor:
            if isinstance(value, Result):
                return results[value.step]
            if isinstance(value, gs.Tensor):
                return value
            key = (value.dtype.str, value.shape, value.tobytes())
            if key not in made:
                made[key] = constant(index, f"{name}_constant", value)
            return made[key]

        for number, step in enumerate(self._steps):
            prefix = f"{name}_{step.op}"
            last = number == len(self._steps) - 1
            result = target if last else variable(index, prefix)
            add_node(index, step.op, list(map(tensor, step.inputs)), [result], step.attrs, prefix=prefix, home=home)
            results.append(result)


Form: TypeAlias = Callable[[Draft], None]
