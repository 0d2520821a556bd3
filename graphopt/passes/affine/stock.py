"""The constants that a pass makes: equal ones become one, and what was generated from a number is generated again."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable

import onnx_graphsurgeon as gs

from graphopt.graph import Index, add_node, constant, set_input, variable
from graphopt.passes.affine.ledger import released
from graphopt.passes.affine.uniform import Values, generator_of, is_uniform
from graphopt.passes.constants.regions import TENSOR_BYTES, node_bytes

_SMALL_BYTES = 16_384
# What a new name has more than the one it is made from, a few bytes at most.
_SUFFIX = 4


class Stock:
    """New constants for the nodes of one graph, kept as long as its index.

    Attributes:
        index: of the whole model.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._made: dict[Hashable, gs.Tensor] = {}

    def size(self, prefix: str, values: Values) -> int:
        """Bytes of a small constant in the file, 0 where it is made already."""
        made = self._made.get(_content(values))
        return 0 if made is not None and made.outputs else values.nbytes + len(prefix) + TENSOR_BYTES + _SUFFIX

    def constant(self, prefix: str, values: Values) -> gs.Tensor:
        """A small constant."""
        return self._make(_content(values), prefix, values, None)

    def growth(self, node: gs.Node, replaced: Iterable[tuple[int, Values | None]]) -> int:
        """Bytes gained when inputs of a node become new constants (None: that input stays)."""
        total = 0
        for slot, values in replaced:
            if values is None:
                continue
            old = node.inputs[slot] if slot < len(node.inputs) else None
            made = self._made.get(self._key(node, slot, values))
            generator = generator_of(old) if old is not None and is_uniform(values) else None
            if made is not None and made.outputs:
                total -= 0 if old is None else released(old)
            elif old is not None and generator is not None:
                # The shape is read again.
                one_more = len(old.outputs) > 1
                total += _SUFFIX + (node_bytes(generator) + TENSOR_BYTES + len(old.name) if one_more else 0)
            else:
                total -= 0 if old is None else released(old)
                name = (old.name if old is not None else "") or node.name or node.outputs[0].name
                total += values.nbytes + len(name) + TENSOR_BYTES + _SUFFIX
        return total

    def replace(self, node: gs.Node, slot: int, prefix: str, values: Values) -> None:
        """Let a node read new values at one input; appended where ``slot`` is the number of inputs."""
        old = node.inputs[slot] if slot < len(node.inputs) else None
        made = self._make(self._key(node, slot, values), prefix, values, old)
        set_input(self.index, node, slot, made)

    def _make(self, key: Hashable, prefix: str, values: Values, old: gs.Tensor | None) -> gs.Tensor:
        made = self._made.get(key) if key is not None else None
        if made is None:
            generator = generator_of(old) if old is not None and is_uniform(values) else None
            if old is None or generator is None:
                made = constant(self.index, prefix, values)
            else:
                made = variable(self.index, prefix, like=old)
                attrs = {"value": gs.Constant("", values.flat[:1].copy())}
                home = self.index.home(generator)
                add_node(self.index, "ConstantOfShape", generator.inputs, [made], attrs, prefix=prefix, home=home)
            if key is not None:
                self._made[key] = made
        return made

    def _key(self, node: gs.Node, slot: int, values: Values) -> Hashable:
        """What equal constants have in common; None where a constant is not shared."""
        old = node.inputs[slot] if slot < len(node.inputs) else None
        if old is not None and is_uniform(values):
            generator = generator_of(old)
            if generator is not None:
                home = self.index.home(generator)
                return id(generator.inputs[0]), id(home), values.dtype, values.flat[:1].tobytes()
        # Large ones are compared only where what they replace has other readers, which may need the same.
        if values.nbytes > _SMALL_BYTES and (old is None or len(old.outputs) == 1):
            return None
        return _content(values)


def _content(values: Values) -> Hashable:
    # New constants are written in the outermost graph: subgraphs may share them.
    content = values.tobytes()
    return values.dtype, values.shape, content if len(content) <= _SMALL_BYTES else hashlib.sha256(content).digest()
