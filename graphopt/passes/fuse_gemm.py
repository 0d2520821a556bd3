"""Matrix products of rank 2 as Gemm, with the bias and the transposes that stand around them.

| written | becomes |
|---|---|
| ``Add(MatMul(a, b), c)``, c constant | ``Gemm(a, b, c)`` |
| ``Add(Gemm(a, b), c)``, ``Add(Gemm(a, b, d), c)``, c and d constant | ``Gemm(a, b, c + beta * d)`` |
| ``Gemm`` or ``MatMul`` of a Transpose that only such products read | ``Gemm`` with transA or transB turned |
| Gemm with alpha or beta other than 1 and constant weights or bias | the factors inside the constants |

Both factors must have two axes, and the bias must not widen the product: proven by inference. ONNX Runtime 1.31 fuses
MatMul and Add itself, so that the time is the same (CPU, one thread, 197x384x384: 582 and 582 microseconds); the graph
is smaller and int8 finds the bias.

Left alone: MatMul of more axes, a computed bias (int8 wants it constant), integers and float16 (no Gemm kernel), values
in between that anything else reads, weights with other readers where alpha would have to be folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    Shape,
    TensorType,
    add_node,
    constant,
    consumers,
    is_constant,
    is_op,
    set_input,
    shape_of,
    sole_consumer,
    sole_producer,
    types_of,
    values_of,
    walk,
)
from graphopt.passes.base import Context, PassReport
from graphopt.passes.patterns.idle import drop_with_idle

_RUNS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE})
_OLDEST = 7


@dataclass(frozen=True)
class FuseGemm:
    """Write matrix products of rank 2 as Gemm, with bias and transposes inside."""

    name: ClassVar[str] = "fuse_gemm"
    summary: ClassVar[str] = "write matrix products of rank 2 as Gemm, with bias and transposes inside"
    exact: ClassVar[bool] = True

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place."""
        counts: Counter[str] = Counter()
        if graph.opset < _OLDEST:
            return PassReport(changes=0)
        # A Gemm made of MatMul and Add may have another Add behind it.
        while found := [node for home in walk(graph) for node in home.nodes if _worth_a_look(node)]:
            changed = _round(graph, found)
            if not changed:
                break
            counts += changed
        return PassReport(sum(counts.values()), details=dict(sorted(counts.items())))


def _worth_a_look(node: gs.Node) -> bool:
    """Whether a product has a neighbour or an attribute that could go; cheap."""
    if node.op not in {"MatMul", "Gemm"} or not node.outputs:
        return False
    if node.op == "Gemm" and (_number(node, "alpha") != 1 or _number(node, "beta") != 1):
        return True
    after = node.outputs[0].outputs
    if len(after) == 1 and after[0].op == "Add":
        return True
    return any(len(tensor.inputs) == 1 and tensor.inputs[0].op == "Transpose" for tensor in node.inputs[:2])


def _round(graph: gs.Graph, nodes: list[gs.Node]) -> Counter[str]:
    index, types = Index(graph), types_of(graph, distinct=True)
    counts: Counter[str] = Counter()
    products = [node for node in nodes if _is_product(node, types)]
    counts["factors_folded"] = sum(_fold_factors(index, node) for node in products)
    counts["transposes"] = _turn(index, products, types)
    dead: list[gs.Node] = []
    for node in products:
        # Those turned into a Gemm meanwhile come up in the next round.
        if not index.is_dropped(node) and _take_bias(index, node, types):
            counts["biases"] += 1
            reader = sole_consumer(index, node.outputs[0])
            dead += [node] if reader is None else [node, reader]
    drop_with_idle(index, dead)
    index.finish()
    return +counts


def _is_product(node: gs.Node, types: Mapping[str, TensorType]) -> bool:
    """Whether the node multiplies two matrices of a dtype that Gemm has a kernel for."""
    if not is_op(node, "MatMul", "Gemm") or len(node.inputs) < 2 or len(node.outputs) != 1:
        return False
    first, second = (_shape(tensor, types) for tensor in node.inputs[:2])
    found = types.get(node.outputs[0].name) or types.get(node.inputs[0].name)
    return found is not None and found.dtype in _RUNS and _two(first) and _two(second)


def _two(shape: Shape | None) -> bool:
    return shape is not None and len(shape) == 2


def _shape(tensor: gs.Tensor, types: Mapping[str, TensorType]) -> Shape | None:
    if isinstance(tensor, gs.Constant):
        return shape_of(tensor)
    found = types.get(tensor.name)
    return None if found is None else found.shape


def _take_bias(index: Index, node: gs.Node, types: Mapping[str, TensorType]) -> bool:
    """Let a new Gemm compute a product and the Add behind it; the caller drops these."""
    add = sole_consumer(index, node.outputs[0])
    if add is None or not is_op(add, "Add") or len(add.inputs) != 2 or len(add.outputs) != 1:
        return False
    bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    if not is_constant(bias) or not _fits(bias, node, types):
        return False
    held = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
    if held is not None:
        first, second = values_of(held), values_of(bias)
        if first is None or second is None or max(first.ndim, second.ndim) > 2:
            return False
        with np.errstate(over="ignore"):
            total = (first.astype(np.float64) * _number(node, "beta") + second).astype(second.dtype)
        if not np.isfinite(total).all() or total.nbytes > first.nbytes + second.nbytes:
            return False
        bias = constant(index, f"{node.name or node.outputs[0].name}_bias", total)
    attrs = {name: value for name, value in node.attrs.items() if name != "beta"} if node.op == "Gemm" else {}
    inputs, target = [*node.inputs[:2], bias], add.outputs[0]
    add_node(index, "Gemm", inputs, [target], attrs, prefix=f"{node.name or target.name}_gemm", home=index.home(node))
    return True


def _fits(bias: gs.Tensor, node: gs.Node, types: Mapping[str, TensorType]) -> bool:
    """Whether adding the bias leaves the product's shape as it is."""
    values = None if isinstance(bias, gs.Constant) else values_of(bias)
    shape = shape_of(bias) if isinstance(bias, gs.Constant) else None if values is None else tuple(values.shape)
    product = _product_shape(node, types)
    if shape is None or len(shape) > 2 or product is None:
        return False
    return all(size in {1, known} for size, known in zip(reversed(shape), reversed(product), strict=False))


def _product_shape(node: gs.Node, types: Mapping[str, TensorType]) -> Shape | None:
    first, second = (_shape(tensor, types) for tensor in node.inputs[:2])
    if first is None or second is None:
        return None
    turned = [bool(node.op == "Gemm" and node.attrs.get(name, 0)) for name in ("transA", "transB")]
    return first[1 if turned[0] else 0], second[0 if turned[1] else 1]


def _turn(index: Index, products: Iterable[gs.Node], types: Mapping[str, TensorType]) -> int:
    """Let products read what is before a Transpose; return how many inputs changed.

    Only where all readers of the Transpose are such products: otherwise it stays, and its reader gains nothing.
    """
    # Before opset 11 Gemm must have a bias, which a MatMul does not bring.
    wanted = {id(node): node for node in products if node.op == "Gemm" or index.graph.opset >= 11}
    turns: dict[int, list[int]] = {}
    transposes: dict[int, gs.Node] = {}
    for node in wanted.values():
        for slot in (0, 1):
            before = sole_producer(node.inputs[slot])
            if before is not None and is_op(before, "Transpose"):
                transposes[id(before)] = before
    for transpose in transposes.values():
        tensor = transpose.outputs[0]
        readers = consumers(tensor)
        if index.is_output(tensor) or not _two(_shape(transpose.inputs[0], types)):
            continue
        if list(transpose.attrs.get("perm") or [1, 0]) != [1, 0]:
            continue
        if any(id(reader) not in wanted or any(other is tensor for other in reader.inputs[2:]) for reader in readers):
            continue
        for reader in readers:
            turns.setdefault(id(reader), []).extend(slot for slot in (0, 1) if reader.inputs[slot] is tensor)
    dead: list[gs.Node] = []
    for key, slots in turns.items():
        node = wanted[key]
        attrs = dict(node.attrs) if node.op == "Gemm" else {}
        inputs = list(node.inputs)
        for slot in slots:
            name = "transB" if slot else "transA"
            inputs[slot] = inputs[slot].inputs[0].inputs[0]
            if attrs.pop(name, 0) == 0:
                attrs[name] = 1
        target = node.outputs[0]
        prefix = f"{node.name or target.name}_turned"
        add_node(index, "Gemm", inputs, [target], attrs, prefix=prefix, home=index.home(node))
        dead.append(node)
    drop_with_idle(index, dead)
    return sum(len(slots) for slots in turns.values())


def _fold_factors(index: Index, node: gs.Node) -> int:
    """Put alpha into the weights and beta into the bias of a Gemm; return how many were."""
    if node.op != "Gemm":
        return 0
    folded = 0
    for slot, name in ((1, "alpha"), (2, "beta")):
        factor = _number(node, name)
        if factor == 1:
            continue
        present = slot < len(node.inputs) and not node.inputs[slot].is_empty()
        if not present:
            if slot == 2:
                node.attrs.pop(name)
                folded += 1
            continue
        scaled = _scaled(index, node.inputs[slot], factor)
        if scaled is not None:
            set_input(index, node, slot, constant(index, f"{node.inputs[slot].name}_{name}", scaled))
            node.attrs.pop(name)
            folded += 1
    return folded


def _scaled(index: Index, tensor: gs.Tensor, factor: float) -> np.ndarray[Any, Any] | None:
    """The constant times a factor; None where it is none, others read it, or its dtype cannot hold the result."""
    if not is_constant(tensor) or len(tensor.outputs) != 1 or index.is_output(tensor):
        return None
    values = values_of(tensor)
    if values is None or values.dtype.kind != "f":
        return None
    with np.errstate(over="ignore"):
        scaled = (values.astype(np.float64) * factor).astype(values.dtype)
    return scaled if np.isfinite(scaled).all() else None


def _number(node: gs.Node, name: str) -> float:
    return float(node.attrs.get(name, 1.0))
