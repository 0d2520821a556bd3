"""What the rules of ``simplify_reshapes`` ask and do: one graph under edit, with its sizes and shape values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    add_node,
    constant,
    is_op,
    replace_uses,
    set_input,
    set_output,
    types_of,
    values_of,
    variable,
)
from graphopt.passes.movement.reshape_sizes import KnownSizes, Sizes
from graphopt.passes.movement.reshape_values import SmallValues, small_values

# Tensors with more readers than this are not searched for one of them; ``finish`` takes care of it.
_MANY = 64


@dataclass
class Editor:
    """One graph under edit. What is known of sizes and values is worked out when first asked for.

    Attributes:
        index: of the graph.
        opset: of the default domain.
        counts: edits so far by kind.
    """

    index: Index
    opset: int
    counts: Counter[str] = field(default_factory=Counter)
    _dead: dict[int, gs.Node] = field(default_factory=dict)
    _crowded: dict[int, gs.Tensor] = field(default_factory=dict)
    _ints: dict[tuple[int, ...], gs.Constant] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> KnownSizes:
        """The sizes of all tensors."""
        self.finish()
        known = KnownSizes(self.opset, types_of(self.index.graph, distinct=True))
        for home in self.index.graphs:
            known.solve(home.nodes)
        return known

    @cached_property
    def values(self) -> SmallValues:
        """What is known of the elements of small integer tensors."""
        self.finish()
        return small_values(self.sizes, self.index.graphs)

    def of(self, tensor: gs.Tensor) -> Sizes | None:
        """The sizes of a tensor; None where its rank is unknown."""
        return self.sizes.of(tensor)

    def dtype(self, tensor: gs.Tensor) -> int:
        """The ONNX element type; 0 where it is unknown."""
        known = self.sizes.types.get(tensor.name)
        return 0 if known is None else known.dtype

    def is_dead(self, node: gs.Node) -> bool:
        """Whether nothing reads the node any more, as found by an edit."""
        return id(node) in self._dead

    def producer(self, tensor: gs.Tensor, reader: gs.Node, *ops: str) -> gs.Node | None:
        """The node that computes ``tensor`` beside its reader, if it is one of ``ops``."""
        if len(tensor.inputs) != 1:
            return None
        node = tensor.inputs[0]
        if not is_op(node, *ops) or self.index.home(node) is not self.index.home(reader):
            return None
        return node

    def is_private(self, tensor: gs.Tensor) -> bool:
        """Whether one node reads the tensor, once, and it is no output."""
        return len(tensor.outputs) == 1 and not self.index.is_output(tensor)

    def constants(self, node: gs.Node, slot: int, name: str, since: int) -> list[int] | None:
        """Integers that an attribute held before opset ``since`` and a constant input holds from there on."""
        if self.opset < since:
            given = node.attrs.get(name)
            return None if given is None else [int(item) for item in given]
        if slot >= len(node.inputs) or node.inputs[slot].is_empty():
            return None
        values = values_of(node.inputs[slot])
        return None if values is None or values.dtype.kind not in "iu" else [int(item) for item in values.flat]

    def has(self, node: gs.Node, slot: int, name: str, since: int) -> bool:
        """Whether the attribute or input is given at all."""
        if self.opset < since:
            return name in node.attrs
        return slot < len(node.inputs) and not node.inputs[slot].is_empty()

    def ints(self, values: Sequence[int], like: str) -> gs.Constant:
        """A vector of int64, the same one for equal values."""
        key = tuple(values)
        if key not in self._ints:
            self._ints[key] = constant(self.index, like, np.array(key, dtype=np.int64))
        return self._ints[key]

    def new_tensor(self, like: gs.Tensor, sizes: Sizes | None) -> gs.Variable:
        """A new tensor of the same dtype."""
        made = variable(self.index, f"{like.name}_moved")
        made.dtype = like.dtype
        if sizes is not None:
            self.sizes.made[made.name] = sizes
        return made

    def add(
        self, op: str, inputs: Sequence[gs.Tensor], output: gs.Tensor, attrs: Mapping[str, Any], beside: gs.Node
    ) -> gs.Node:
        """Make a node in the graph that ``beside`` stands in."""
        home = self.index.home(beside)
        return add_node(self.index, op, inputs, [output], attrs, prefix=f"{output.name}_{op.lower()}", home=home)

    def rewrite(self, node: gs.Node, op: str, inputs: Sequence[gs.Tensor], attrs: Mapping[str, Any]) -> None:
        """Let a node compute its output in another way."""
        old = list(node.inputs)
        for slot, tensor in enumerate(inputs):
            if slot >= len(node.inputs) or node.inputs[slot] is not tensor:
                set_input(self.index, node, slot, tensor)
        for tensor in list(node.inputs)[len(inputs) :]:
            _forget(tensor, node)
            list.__delitem__(node.inputs, -1)
        node.op = op
        if node.attrs != attrs:
            node.attrs = dict(attrs)
        self.index.touch(self.index.home(node))
        self._sweep(old)

    def bypass(self, node: gs.Node, source: gs.Tensor) -> None:
        """Let the readers of a node read ``source``, its equal; an output of the graph gets an Identity."""
        if self.index.is_output(node.outputs[0]):
            self.rewrite(node, "Identity", [source], {})
            return
        replace_uses(self.index, node.outputs[0], source)
        self._bury(node)

    def hand_over(self, node: gs.Node, to: gs.Node, slot: int) -> None:
        """Let another node write the output of one that goes, instead of its own at ``slot``."""
        result = node.outputs[0]
        set_output(self.index, node, 0, variable(self.index, f"{result.name}_unused"))
        set_output(self.index, to, slot, result)
        self._bury(node)

    def release(self, tensor: gs.Tensor) -> None:
        """Note that a reader of ``tensor`` is gone: what computed it may be dead."""
        self._sweep([tensor])

    def finish(self) -> None:
        """Take out what is dead, and sort."""
        for tensor in self._crowded.values():
            alive = [node for node in tensor.outputs if id(node) not in self._dead]
            list.clear(tensor.outputs)
            list.extend(tensor.outputs, alive)
        self._crowded.clear()
        gone = [node for node in self._dead.values() if not self.index.is_dropped(node)]
        if gone:
            self.index.drop(gone)
        self.index.finish()

    def _bury(self, node: gs.Node) -> None:
        """Cut a dead node off from what it reads, and with it whatever only it read."""
        self._sweep(self._cut(node))

    def _cut(self, node: gs.Node) -> list[gs.Tensor]:
        self._dead[id(node)] = node
        inputs = list(node.inputs)
        for tensor in inputs:
            if len(tensor.outputs) <= _MANY:
                _forget(tensor, node)
            else:
                self._crowded[id(tensor)] = tensor
        list.clear(node.inputs)
        return inputs

    def _sweep(self, tensors: Sequence[gs.Tensor]) -> None:
        """Bury what computed tensors that nothing reads any more."""
        pending = list(tensors)
        while pending:
            tensor = pending.pop()
            if tensor.outputs or len(tensor.inputs) != 1 or tensor.is_empty() or self.index.is_output(tensor):
                continue
            node = tensor.inputs[0]
            if id(node) in self._dead or any(output.outputs or self.index.is_output(output) for output in node.outputs):
                continue
            # What a body reads is not cut here.
            if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
                continue
            pending += self._cut(node)


Rule: TypeAlias = Callable[[Editor, gs.Node], bool]


def _forget(tensor: gs.Tensor, node: gs.Node) -> None:
    """Take one mention of ``node`` out of the readers of ``tensor``, by identity."""
    for position, other in enumerate(tensor.outputs):
        if other is node:
            list.__delitem__(tensor.outputs, position)
            return
