"""The kernels of a runtime that builds an engine.

Activations, normalizations and additions run inside the kernel before them, what only renames data is gone, Q/DQ is
absorbed and Concat's inputs are written where they belong. What is assumed follows NVIDIA's 'Developer Guide' of
TensorRT, section 'Types of Fusions'; which tactic a version really takes is not known here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import onnx

from graphopt.latency.kernels import Kernel, work_of
from graphopt.latency.reading import Reader, name_of
from graphopt.latency.views import is_engine_view
from graphopt.latency.work import PRODUCTS

_GATE_LENGTH = 4  # nodes between x and x * f(x): HardSwish written out is Add, Clip, Div
_MOST_READS = 4  # a tensor that is read more often, or a node that reads more tensors, is not looked at closely


@dataclass
class _Group:
    """Nodes that run in one kernel; ``order`` is that of the heads."""

    order: int
    head: onnx.NodeProto
    product: bool
    size: float
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    added: bool = False


@dataclass(frozen=True)
class _Plan:
    """A graph without its views.

    Attributes:
        read: the graph.
        root: tensor -> the tensor that it renames.
        readers: root tensor -> the nodes that read it or a view of it.
        quantized: root tensors that are stored as integers.
        integer_reads: names of tensors that DequantizeLinear writes, and of views of them.
        outputs: root tensors of the model's outputs.
    """

    read: Reader
    root: dict[str, str]
    readers: dict[str, list[onnx.NodeProto]]
    quantized: set[str]
    integer_reads: set[str]
    outputs: frozenset[str]

    def of(self, name: str) -> str:
        return self.root.get(name, name)

    def operands(self, node: onnx.NodeProto) -> list[str]:
        """Root tensors that the node reads, constants left out."""
        return list(dict.fromkeys(self.of(name) for name in self.read.computed(node.input)))

    def bytes(self, name: str, node: onnx.NodeProto) -> float:
        """Bytes that the node reads or writes of a tensor."""
        return self.read.taken(name, node) * (1 if name in self.quantized else self.read.width(name))


def fused_kernels(read: Reader, outputs: frozenset[str]) -> list[Kernel]:
    """The kernels of one graph; ``outputs`` are the model's."""
    plan = _plan(read, outputs)
    made_by: dict[str, _Group] = {}
    groups: list[_Group] = []
    placed: set[str] = set()
    for node in read.working:
        if is_engine_view(node, plan.read):
            _absorb(node, plan, made_by)
            continue
        kind = read.kind(node)
        if kind in ("constant", "control_flow"):
            continue
        group = _joined(node, kind, plan, made_by)
        if group is None and node.op_type == "Concat" and (host := _placed(node, plan, made_by, placed)) is not None:
            group = host
        elif group is None:
            group = _Group(len(groups), node, kind in PRODUCTS, read.elements(node.output[0], node))
            groups.append(group)
            group.nodes.append(node)
        else:
            group.nodes.append(node)
            group.added |= node.op_type == "Add" and len(plan.operands(node)) > 1
        group.names.append(name_of(node))
        made_by.update(dict.fromkeys(node.output, group))
    return [_kernel(group, plan) for group in groups]


def _plan(read: Reader, outputs: frozenset[str]) -> _Plan:
    root: dict[str, str] = {}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    quantized: set[str] = set()
    integer_reads: set[str] = set()
    float_reads: set[str] = set()
    for node in read.working:
        if node.input and is_engine_view(node, read):
            source = root.get(node.input[0], node.input[0])
            root.update(dict.fromkeys(node.output[:1], source))
            if node.op_type == "QuantizeLinear":
                quantized.add(source)
            else:
                integer_reads.update(node.output if node.op_type == "DequantizeLinear" else ())
                if node.op_type != "DequantizeLinear" and node.input[0] in integer_reads:
                    integer_reads.update(node.output)
            continue
        for name in read.computed(node.input):
            source = root.get(name, name)
            readers[source].append(node)
            if name not in integer_reads:
                float_reads.add(source)
    ends = frozenset(root.get(name, name) for name in outputs)
    for node in read.scope.nodes:  # DequantizeLinear on a weight is no work, but says that its reader is an integer one
        if node.op_type == "DequantizeLinear" and node.output[0] in read.known:
            integer_reads.add(node.output[0])
    return _Plan(read, root, readers, quantized - float_reads - ends, integer_reads, ends)


def _absorb(node: onnx.NodeProto, plan: _Plan, made_by: dict[str, _Group]) -> None:
    group = made_by.get(plan.of(node.input[0])) if node.input else None
    if group is not None:
        group.names.append(name_of(node))


def _joined(node: onnx.NodeProto, kind: str, plan: _Plan, made_by: dict[str, _Group]) -> _Group | None:
    """The kernel that the node runs in, or None where it starts one."""
    pointwise = kind == "elementwise" or node.op_type == "BatchNormalization"
    if not pointwise or len(node.output) != 1:
        return None
    size = plan.read.elements(node.output[0], node)
    operands = plan.operands(node)
    if len(operands) > _MOST_READS:
        return None
    hosts = [made_by[name] for name in operands if name in made_by]
    for group in sorted(hosts, key=lambda group: -group.order):  # the last has all other operands before it
        own = [name for name in operands if made_by.get(name) is group]
        outside = [name for name in operands if made_by.get(name) is not group]
        if group.size != size or not _accepts(group, plan):
            continue
        if outside and (node.op_type != "Add" or group.added or plan.read.elements(outside[0], node) != size):
            continue
        if all(_stays_inside(name, node, plan) for name in own):
            return group
    return None


def _accepts(group: _Group, plan: _Plan) -> bool:
    return group.product or group.head.op_type == "BatchNormalization" or plan.read.kind(group.head) == "elementwise"


def _stays_inside(name: str, node: onnx.NodeProto, plan: _Plan) -> bool:
    """Whether nothing but ``node``, and what leads to a product with ``name`` itself, reads the tensor."""
    if name in plan.outputs or name in plan.quantized:
        return False
    if len(plan.readers[name]) > _MOST_READS:
        return False
    readers = {id(reader): reader for reader in plan.readers[name]}
    if len(readers) == 1:
        return True
    if len(readers) != 2:
        return False
    return any(_leads_to(first, second, plan) for first, second in _both_ways(list(readers.values())))


def _both_ways(pair: list[onnx.NodeProto]) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    return [(pair[0], pair[1]), (pair[1], pair[0])]


def _leads_to(start: onnx.NodeProto, end: onnx.NodeProto, plan: _Plan) -> bool:
    """Whether a short chain of pointwise nodes of one operand each goes from ``start`` to ``end``."""
    node = start
    for _ in range(_GATE_LENGTH):
        if plan.read.kind(node) != "elementwise" or len(plan.operands(node)) != 1:
            return False
        after = plan.readers[plan.of(node.output[0])]
        if len(after) != 1:
            return False
        if after[0] is end:
            return True
        node = after[0]
    return False


def _placed(node: onnx.NodeProto, plan: _Plan, made_by: dict[str, _Group], placed: set[str]) -> _Group | None:
    """The kernel before a Concat whose inputs are all written in place; each can be so in one Concat only."""
    operands = plan.operands(node)
    free = all(name in made_by and name not in placed and name not in plan.outputs for name in operands)
    if not free or not operands or len(operands) != len([name for name in node.input if name]):
        return None
    placed.update(operands)
    return made_by[operands[-1]]


def _kernel(group: _Group, plan: _Plan) -> Kernel:
    written = {name: node for node in group.nodes for name in node.output if name}
    taken = {name: node for node in group.nodes for name in plan.operands(node) if name not in written}
    members = {id(node) for node in group.nodes}
    leaving = {
        name: node
        for name, node in written.items()
        if name in plan.outputs or not plan.readers.get(name) or any(id(r) not in members for r in plan.readers[name])
    }
    traffic = sum(plan.bytes(name, node) for name, node in (*taken.items(), *leaving.items()))
    head = group.head
    precision = plan.read.type_of(head.output[0])
    operands = [name for name in head.input[:2] if name]
    if group.product and len(operands) == 2 and all(name in plan.integer_reads for name in operands):
        precision = "int8"
    pieces = len(head.output) if head.op_type == "Split" else 1  # an engine takes each of them out by itself
    work = work_of(head, plan.read, precision, traffic / pieces)
    return Kernel(name_of(head), tuple(dict.fromkeys(group.names)), (work,) * pieces)
