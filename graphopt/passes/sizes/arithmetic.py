"""Small tensors followed through the graph where only some of their elements are known.

Exporters compute target shapes at run time: ``Shape -> Gather -> Mul -> Concat -> Reshape``. With a dynamic batch the
first element stays open while all others are fixed. Each tensor is held as its elements: a number where it is known,
a formula in open sizes (``symbolic_sizes``) where it is not. A tensor all of whose elements are numbers is a constant,
whatever it was computed from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import TensorType, is_op, onnx_dtype, values_of
from graphopt.graph.values import StoredSparse
from graphopt.passes.sizes.symbolic import UNKNOWN, Open, Size, product, quotient, symbol

# Shapes and indices are short; longer tensors are data, and none of this module's business.
MAX_ELEMENTS = 256
Element: TypeAlias = int | float | bool | Open
Rule: TypeAlias = "Callable[[ShapeArithmetic, gs.Node], Partial | Sequence[Partial] | None]"
DTYPES = {
    onnx_dtype(dtype): np.dtype(dtype) for dtype in (np.int64, np.int32, np.float32, np.float64, np.bool_)
}  # fmt: skip


class Unknown(Exception):  # noqa: N818 (not an error: a rule gives up)
    """Raised by a rule that cannot tell anything."""


@dataclass(frozen=True)
class Partial:
    """A small tensor: its shape, its elements in order, and its dtype."""

    shape: tuple[int, ...]
    items: tuple[Element, ...]
    dtype: np.dtype[Any]

    @property
    def known(self) -> bool:
        """Whether every element is a number."""
        return not any(isinstance(item, Open) for item in self.items)

    def values(self) -> np.ndarray[Any, Any]:
        """The elements as numbers; all must be known. Raises OverflowError where they do not fit the dtype."""
        return np.array(self.items, dtype=self.dtype).reshape(self.shape)

    def numbers(self) -> list[int]:
        """The elements as Python integers. Raises Unknown where one is not known."""
        found = [item for item in self.items if isinstance(item, int)]
        if len(found) < len(self.items):
            raise Unknown
        return found

    def array(self) -> np.ndarray[Any, np.dtype[np.object_]]:
        """The elements as an array of objects."""
        flat = np.empty(len(self.items), dtype=object)
        flat[:] = self.items
        return flat.reshape(self.shape)


def partial_of(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> Partial:
    """Take an array of objects."""
    return Partial(array.shape, tuple(array.ravel().tolist()), dtype)


@dataclass
class ShapeArithmetic:
    """What is known of the small tensors of one model.

    Attributes:
        opset: of the default domain.
        types: inferred types by tensor name, every open size with a symbol of its own.
        rules: by operator.
        found: ``id`` of a tensor -> what is known of its elements, for those computed from shapes.
        solved: sizes that inference knows by a symbol only, by that symbol.
    """

    opset: int
    types: Mapping[str, TensorType]
    rules: Mapping[str, Rule]
    found: dict[int, Partial] = field(default_factory=dict)
    solved: dict[str, Size] = field(default_factory=dict)
    _constants: dict[int, Partial | None] = field(default_factory=dict)
    _fresh: Iterator[int] = field(default_factory=itertools.count)

    def of(self, tensor: gs.Tensor) -> Partial | None:
        """What is known of a tensor's elements; None if nothing."""
        found = self.found.get(id(tensor))
        if found is not None or type(tensor) is not gs.Constant:
            return found
        if id(tensor) not in self._constants:
            self._constants[id(tensor)] = _stored(tensor)
        return self._constants[id(tensor)]

    def dims(self, tensor: gs.Tensor) -> list[Size] | None:
        """The sizes of a tensor; None where the rank is unknown."""
        known = self.types.get(tensor.name)
        if known is None or known.shape is None:
            return None
        return [
            size if isinstance(size, int) else self._named(size if size is not None else f"{tensor.name}@{axis}")
            for axis, size in enumerate(known.shape)
        ]

    def _named(self, name: str) -> Size:
        found = self.solved.get(name)
        return symbol(name) if found is None else found

    def input(self, node: gs.Node, slot: int) -> Partial:
        """What is known of an input. Raises Unknown where nothing is, or it is left out."""
        if slot >= len(node.inputs) or node.inputs[slot].is_empty():
            raise Unknown
        found = self.of(node.inputs[slot])
        if found is None:
            raise Unknown
        return found

    def optional(self, node: gs.Node, slot: int) -> list[int] | None:
        """The integers of an input, all of which must be known; None where it is left out."""
        if slot >= len(node.inputs) or node.inputs[slot].is_empty():
            return None
        return self.input(node, slot).numbers()

    def setting(self, node: gs.Node, slot: int, name: str, since: int) -> list[int] | None:
        """What an attribute said before opset ``since`` and an input says from there on."""
        if self.opset >= since:
            return self.optional(node, slot)
        given = node.attrs.get(name)
        return None if given is None else [int(item) for item in given]

    def visit(self, node: gs.Node) -> None:
        """Work out what is known of the outputs of ``node``; its producers must have been visited."""
        rule = self.rules.get(node.op)
        if rule is None or not is_op(node, node.op):
            return
        if node.op == "Reshape" and len(node.inputs) == 2:
            self._learn(node)
        if node.op not in {"Shape", "Size"} and not any(id(tensor) in self.found for tensor in node.inputs):
            return  # Constants only are evaluated by the runtime itself.
        try:
            result = rule(self, node)
        except (Unknown, IndexError, ValueError, TypeError, OverflowError, ZeroDivisionError):
            return  # The node would fail at run time as well, or is beyond these rules; the runtime says which.
        if result is None:
            return
        results = [result] if isinstance(result, Partial) else result
        for tensor, each in zip(node.outputs, results, strict=False):
            if len(each.items) <= MAX_ELEMENTS and len(each.items) == math.prod(each.shape):
                self.found[id(tensor)] = each

    def _learn(self, node: gs.Node) -> None:
        """Learn from the target of a Reshape what the symbols stand for that inference gave its result.

        Inference carries symbols on, so that what comes after is known as well, without inferring it again.
        """
        known = self.types.get(node.outputs[0].name)
        if known is None or known.shape is None or all(isinstance(size, int) for size in known.shape):
            return
        target, source = self.of(node.inputs[1]), self.dims(node.inputs[0])
        if target is None or source is None or len(target.items) != len(known.shape):
            return
        sizes: list[Size | None] = []
        for axis, item in enumerate(target.items):
            if item == 0 and not node.attrs.get("allowzero", 0):
                sizes.append(source[axis] if axis < len(source) else None)
            else:
                is_size = (isinstance(item, int) and item >= 0) or (isinstance(item, Open) and item.is_size)
                sizes.append(item if is_size else None)  # type: ignore[arg-type]
        if sizes.count(None) == 1 and target.items[sizes.index(None)] == -1:
            whole, part = product(source), product([size for size in sizes if size is not None])
            sizes[sizes.index(None)] = None if whole is None or part is None else quotient(whole, part)
        for axis, (size, known_as) in enumerate(zip(sizes, known.shape, strict=True)):
            name = f"{node.outputs[0].name}@{axis}" if known_as is None else known_as
            if size is not None and isinstance(name, str) and name not in self.solved and size != symbol(name):
                self.solved[name] = size

    def unknown(self) -> Open:
        """An integer of which nothing is known."""
        return symbol(f"{UNKNOWN}{next(self._fresh)}")


def _stored(tensor: gs.Constant) -> Partial | None:
    held = tensor._values
    if isinstance(held, StoredSparse) or math.prod(held.shape) > MAX_ELEMENTS:
        return None
    if np.dtype(held.dtype) not in DTYPES.values():
        return None
    values = values_of(tensor)
    return None if values is None else Partial(values.shape, tuple(values.ravel().tolist()), values.dtype)
