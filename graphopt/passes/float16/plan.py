"""Which nodes compute in float16: those for which it saves more time than the Casts around them take.

A minimum cut (Picard & Ratliff 1975), as for int8: the source side is float16. A node in float32 pays what float16
would have saved it, by bytes moved and multiply-adds; a tensor between the two precisions pays for one Cast, however
many read it. A float16 graph input or output would change the model's interface, so they pay, too, unless told not to.
What DequantizeLinear writes must have the precision of what reads it: a Cast between them would keep a runtime from
seeing an integer layer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.graph import Index, is_constant, is_op, shape_of, walk
from graphopt.passes.float16.ranges import Ranges
from graphopt.passes.float16.sites import Site
from graphopt.passes.layout.mincut import Network
from graphopt.targets.schema import Device, Hardware

_NEVER = 1e15
_HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What is assumed of a device that the profile says nothing of: about that of a small module.
_BANDWIDTH = 100e9
_LAUNCH_US = 5.0
CASTS_COST_MORE = "the Casts around it would take longer than it saves"


@dataclass(frozen=True)
class Prices:
    """What things cost on a device, in microseconds.

    Attributes:
        byte: moving one byte.
        mac: what float16 saves for one multiply-add.
        launch: starting a kernel.
    """

    byte: float
    mac: float
    launch: float


def prices(hardware: Hardware) -> Prices:
    """Prices by the device's data sheet."""
    device: Device | None = hardware.device
    if device is None:
        return Prices(1e6 / _BANDWIDTH, 0.0, _LAUNCH_US)
    single, half = device.peak_tops.get("float32"), device.peak_tops.get("float16")
    saved = 2 * (1 / (single * 1e6) - 1 / (half * 1e6)) if single and half else 0.0
    return Prices(1e6 / (device.bandwidth_gb_s * 1e9), max(saved, 0.0), device.launch_us)


def choose(
    sites: Sequence[Site],
    reasons: Mapping[int, str],
    ranges: Ranges,
    index: Index,
    costs: Prices,
    *,
    keep_io: bool,
) -> frozenset[int]:
    """Return the numbers of the sites that compute in float16.

    Args:
        sites: all nodes that read or write float32.
        reasons: numbers of those that must compute in float32.
        ranges: tells shapes.
        index: of the graph.
        costs: what time things take.
        keep_io: whether inputs and outputs of the model stay float32.
    """
    network = Network()
    sizes = _Sizes(ranges)
    place = {id(site.node): network.add_node() for site in sites}
    for site in sites:
        if site.number in reasons:
            network.drain(place[id(site.node)], _NEVER)
        else:
            network.feed(place[id(site.node)], _saved(site, sizes, costs))
    for tensor, writer, readers, fixed in _tensors(sites, index, keep_io=keep_io):
        cost = costs.launch + 6 * costs.byte * sizes.elements(tensor)
        _connect(
            network,
            None if writer is None else place[id(writer.node)],
            [place[id(reader.node)] for reader in readers],
            _NEVER if any(is_op(node, "DequantizeLinear") for node in tensor.inputs) else cost,
            fixed=fixed,
        )
    side = network.source_side()
    if side is None:  # a network too tangled to cut: all that may
        return frozenset(site.number for site in sites if site.number not in reasons)
    return frozenset(site.number for site in sites if place[id(site.node)] in side)


def heavy(sites: Sequence[Site], numbers: Collection[int]) -> int:
    """How many of the sites are convolutions or matrix products."""
    return sum(site.node.op in _HEAVY for site in sites if site.number in numbers)


class _Sizes:
    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges

    def elements(self, tensor: gs.Tensor) -> int:
        shape = shape_of(tensor) if isinstance(tensor, gs.Constant) else self._ranges.shape(tensor)
        return math.prod(size if isinstance(size, int) else 1 for size in shape or ())


def _saved(site: Site, sizes: _Sizes, costs: Prices) -> float:
    """Microseconds that float16 saves at a node, without Casts."""
    node = site.node
    tensors = [*(node.inputs[slot] for slot in site.reads), *(node.outputs[slot] for slot in site.writes)]
    saved = 2 * costs.byte * sum(sizes.elements(tensor) for tensor in tensors)
    if node.op in _HEAVY and len(node.inputs) > 1:
        made, weights = sizes.elements(node.outputs[0]), node.inputs[1]
        shape = shape_of(weights) if isinstance(weights, gs.Constant) else None
        depth = math.prod(size for size in (shape or ())[1:] if isinstance(size, int)) if node.op == "Conv" else 0
        if node.op != "Conv" and shape and isinstance(shape[0], int):
            depth = shape[0]
        saved += costs.mac * made * max(depth, 1)
    return saved


def _tensors(
    sites: Sequence[Site], index: Index, *, keep_io: bool
) -> list[tuple[gs.Tensor, Site | None, list[Site], bool]]:
    """Each float32 tensor with the site that decides on its precision, those it must suit, and whether it is fixed.

    A fixed tensor is needed in float32 by something whose precision is not to be chosen; one without a writer comes
    in float32 from such a thing.
    """
    writers: dict[int, Site] = {id(site.node.outputs[slot]): site for site in sites for slot in site.writes}
    readers: dict[int, dict[int, Site]] = {}
    tensors: dict[int, gs.Tensor] = {}
    follows: set[tuple[int, int]] = set()
    for site in sites:
        for slot in site.reads:
            tensor = site.node.inputs[slot]
            if not is_constant(tensor):
                tensors[id(tensor)] = tensor
                readers.setdefault(id(tensor), {})[site.number] = site
                follows.add((id(site.node), id(tensor)))
        for slot in site.writes:
            tensors[id(site.node.outputs[slot])] = site.node.outputs[slot]
    inputs = {id(tensor) for tensor in index.graph.inputs}
    outer = {id(tensor) for tensor in index.graph.outputs}
    given_out = {id(tensor) for home in walk(index.graph) for tensor in home.outputs}
    if not keep_io:
        given_out -= outer
    found = []
    for key, tensor in tensors.items():
        writer = writers.get(key)
        others = any((id(node), key) not in follows for node in tensor.outputs)
        if writer is None and key in inputs and not keep_io:
            continue  # it comes in the precision that its readers want
        found.append((tensor, writer, list(readers.get(key, {}).values()), others or key in given_out))
    return found


def _connect(network: Network, writer: int | None, readers: Sequence[int], cost: float, *, fixed: bool) -> None:
    """Let a Cast be paid for where a tensor is written in one precision and read in the other."""
    if writer is None:
        gate = network.add_node()
        network.drain(gate, cost)
        for reader in readers:
            network.connect(reader, gate, _NEVER)
        return
    if fixed:
        network.drain(writer, cost)
    elif readers:
        narrow = network.add_node()
        network.connect(writer, narrow, cost)
        for reader in readers:
            network.connect(narrow, reader, _NEVER)
    if readers:
        wide = network.add_node()
        network.connect(wide, writer, cost)
        for reader in readers:
            network.connect(reader, wide, _NEVER)
