"""Which indices of every tensor remain when some channels are cut, and the verbs with which surgery edits a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from graphopt.channels.groups import Indices
from graphopt.channels.labels import Field
from graphopt.channels.trace import Trace
from graphopt.errors import UnsupportedModelError
from graphopt.graph import Index, constant, set_input, values_of

# Axis -> the indices that remain, ascending; axes that stay whole are left out.
Kept = Mapping[int, Indices]


@dataclass(frozen=True)
class Narrowing:
    """What becomes of tensors and labels.

    Attributes:
        gone: for each label whether it is cut, [number of labels].
        kept: ``id`` of a tensor -> what remains of it; only tensors that become narrower.
        ragged: ``id`` of tensors that would not be rectangular any more: the inside of channel shuffles.
    """

    gone: npt.NDArray[np.bool_]
    kept: Mapping[int, Kept]
    ragged: frozenset[int]

    def of(self, tensor: gs.Tensor) -> Kept:
        """What remains of a tensor; empty: all."""
        return self.kept.get(id(tensor), {})


def narrow(trace: Trace, cut: frozenset[int]) -> Narrowing:
    """Work out what remains of every tensor when the classes ``cut`` go."""
    gone = np.isin(trace.labels.classes(np.arange(len(trace.labels))), sorted(cut))
    kept: dict[int, Kept] = {}
    ragged: set[int] = set()
    for key, fields in trace.fields.items():
        masks = [mask for mask in (np.asarray(gone[each]) for each in fields) if mask.any()]
        if not masks:
            continue
        removed: dict[int, npt.NDArray[np.bool_]] = {}
        for mask in masks:
            axes = _removed(mask)
            if axes is None:
                ragged.add(key)
                break
            for axis, out in axes.items():
                removed[axis] = out | removed.get(axis, out)
        else:
            kept[key] = {axis: np.flatnonzero(~out) for axis, out in sorted(removed.items())}
    return Narrowing(gone, kept, frozenset(ragged))


def _removed(mask: npt.NDArray[np.bool_]) -> dict[int, npt.NDArray[np.bool_]] | None:
    """Which indices along which axes go so that exactly the elements of ``mask`` do; None: no choice does that."""
    found: dict[int, npt.NDArray[np.bool_]] = {}
    covered = np.zeros_like(mask)
    for axis, size in enumerate(mask.shape):
        if size == 1:
            continue
        out = np.asarray(mask.all(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if out.any():
            found[axis] = out
            covered |= np.expand_dims(out, tuple(other for other in range(mask.ndim) if other != axis))
    return found if found and bool((covered == mask).all()) else None


@dataclass
class Surgery:
    """A graph on the table: what it was, what remains, and the constants made so far.

    Attributes:
        index: verbs for the graph.
        trace: what was known of it before.
        narrowing: what remains of its tensors.
    """

    index: Index
    trace: Trace
    narrowing: Narrowing
    _made: dict[tuple[object, ...], gs.Constant] = field(default_factory=dict)
    _origins: dict[int, tuple[gs.Tensor, gs.Constant]] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return int(self.index.graph.opset)

    def shape(self, tensor: gs.Tensor) -> tuple[int, ...]:
        """The shape that a tensor had."""
        if id(tensor) in self._origins:
            tensor = self._origins[id(tensor)][0]
        return self.trace.shapes[id(tensor)]

    def kept(self, tensor: gs.Tensor, axis: int) -> Indices | None:
        """What remains along one axis; None: all."""
        return self.narrowing.of(tensor).get(axis)

    def remaining(self, tensor: gs.Tensor, axis: int) -> Indices:
        """What remains along one axis, all of it where that is so."""
        kept = self.kept(tensor, axis)
        return np.arange(self.shape(tensor)[axis], dtype=np.int64) if kept is None else kept

    def size(self, tensor: gs.Tensor, axis: int) -> int:
        """The size that a tensor will have along one axis."""
        kept = self.kept(tensor, axis)
        if kept is not None:
            return len(kept)
        values = values_of(tensor)
        return self.shape(tensor)[axis] if values is None else int(values.shape[axis])

    def places(self, tensor: gs.Tensor, axis: int) -> Indices:
        """New index for each old one along one axis, -1 for those that go."""
        places = np.full(self.shape(tensor)[axis], -1, dtype=np.int64)
        remaining = self.remaining(tensor, axis)
        places[remaining] = np.arange(len(remaining))
        return places

    def is_cut(self, labels: Field) -> npt.NDArray[np.bool_]:
        """Which labels are cut."""
        return np.asarray(self.narrowing.gone[labels])

    def put(self, node: gs.Node, slot: int, values: npt.NDArray[Any]) -> None:
        """Let a node read other values in place of a constant; readers that get the same values share them."""
        old = node.inputs[slot] if slot < len(node.inputs) else None
        if id(old) in self._origins:
            old = self._origins[id(old)][0]  # cut along one axis before
        values = np.asarray(values, order="C")
        key = (id(old), str(values.dtype), values.shape, blake2b(values.reshape(-1).view(np.uint8).data).digest())
        made = self._made.get(key)
        if made is None:
            prefix = old.name if old is not None and old.name else f"{node.outputs[0].name}_sizes"
            made = self._made[key] = constant(self.index, prefix, values)
            if old is not None and old.name:
                self._origins[id(made)] = (old, made)
        set_input(self.index, node, slot, made)

    def values(self, node: gs.Node, slot: int) -> npt.NDArray[Any]:
        """The values of an input that does not depend on what is fed, or does so only where that does not matter."""
        found = values_of(node.inputs[slot])
        found = self.trace.values.get(node.inputs[slot].name) if found is None else found
        if found is None:
            raise UnsupportedModelError(f"input {slot} of {described(node)} has no values that could be cut")
        return found

    def keep_names(self) -> None:
        """Give constants the names of those whose place they took, where nobody reads these any more."""
        taken = {id(tensor) for tensor in self.index.graph.outputs}
        for old, made in self._origins.values():
            if made.outputs and not old.inputs and not old.outputs and id(old) not in taken:
                made.name = old.name
                taken.add(id(old))


def described(node: gs.Node) -> str:
    """A node in an error message."""
    return f"node '{node.name or node.outputs[0].name}' ({node.op})"


def integers(values: Sequence[int] | Indices) -> Indices:
    """Values for a shape input."""
    return np.asarray(values, dtype=np.int64)
