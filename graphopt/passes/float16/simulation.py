"""A float32 model that answers as one in float16 does: everything is rounded on the way.

ONNX Runtime's CPU provider computes most operators on float16 in float32 and leaves out the Casts between two of them:
``Conv(1000 * x)`` and ``Conv(x / 1000)`` in float16 give x back where a device overflows (tried, 1.31, with and without
its optimizations). So a float16 model that is run there says nothing of its accuracy. A Cast to float16 and one back,
written out after each node that computes in float16, stay. Nodes whose results are rounded if their inputs are
(Reshape, Relu, MaxPool) need none.

Sums inside a node are in float32: what a device makes of them is its own affair (see ``ranges``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    add_node,
    constant,
    export_graph,
    import_graph,
    infer_again,
    is_constant,
    is_op,
    remove_unused,
    set_input,
    set_output,
    sole_producer,
    values_of,
    variable,
    walk,
)
from graphopt.passes.float16.sites import MOVES, Site, find_sites
from graphopt.passes.float16.write import HALF, SINGLE, round_scales, rounded


def simulate(model: onnx.ModelProto, half: Collection[int]) -> onnx.ModelProto:
    """Write a float32 model that rounds what the sites ``half`` read and write to float16."""
    work = import_graph(model)
    index = Index(work.gs)
    every = find_sites(work.gs)
    round_scales(index, every, half)
    sites = [site for site in every if site.number in half]
    _round_constants(index, sites)
    written = {id(site.node.outputs[slot]) for site in sites for slot in site.writes}
    homes = {id(tensor): home for home in walk(work.gs) for tensor in home.inputs}
    entering: dict[int, list[tuple[Site, int]]] = {}
    tensors: dict[int, gs.Tensor] = {}
    for site in sites:
        for slot in site.reads:
            tensor = site.node.inputs[slot]
            # Integer kernels read the integers themselves.
            integers = any(is_op(node, "DequantizeLinear") for node in tensor.inputs)
            if not is_constant(tensor) and id(tensor) not in written and not integers:
                entering.setdefault(id(tensor), []).append((site, slot))
                tensors[id(tensor)] = tensor
    for site in sites:
        if site.node.op in MOVES:
            continue
        for slot in site.writes:
            tensor = site.node.outputs[slot]
            exact = variable(index, f"{tensor.name}_exact", tensor)
            set_output(index, site.node, slot, exact)
            _round_trip(index, exact, tensor, index.home(site.node))
    for key, uses in entering.items():
        tensor = tensors[key]
        producer = sole_producer(tensor)
        narrow = variable(index, f"{tensor.name}_rounded", tensor)
        home = homes.get(key, work.gs) if producer is None else index.home(producer)
        _round_trip(index, tensor, narrow, home)
        for site, slot in uses:
            set_input(index, site.node, slot, narrow)
    index.finish()
    infer_again(work.gs)
    remove_unused(work.gs)
    return export_graph(work)


def _round_constants(index: Index, sites: Sequence[Site]) -> None:
    made: dict[int, gs.Constant] = {}
    for site in sites:
        for slot in site.reads:
            tensor = site.node.inputs[slot]
            values = values_of(tensor) if is_constant(tensor) else None
            if values is None:
                continue
            if id(tensor) not in made:
                made[id(tensor)] = constant(index, f"{tensor.name}_rounded", rounded(values))
            set_input(index, site.node, slot, made[id(tensor)])


def _round_trip(index: Index, source: gs.Tensor, target: gs.Tensor, home: gs.Graph) -> None:
    """Let ``target`` be ``source`` rounded to float16."""
    narrow = variable(index, f"{target.name}_float16")
    add_node(index, "Cast", [source], [narrow], {"to": HALF}, prefix=f"{target.name}_narrow", home=home)
    add_node(index, "Cast", [narrow], [target], {"to": SINGLE}, prefix=f"{target.name}_widen", home=home)
