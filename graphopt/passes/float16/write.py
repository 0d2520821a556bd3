"""The graph in float16: tensors, constants, attributes, and one Cast for each tensor that both precisions want."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph import (
    Index,
    TensorType,
    WorkGraph,
    add_node,
    constant,
    export_graph,
    import_graph,
    infer_again,
    is_constant,
    remove_unused,
    replace_uses,
    set_input,
    set_output,
    sole_producer,
    types_of,
    values_of,
    variable,
    walk,
)
from graphopt.passes.float16.ranges import QUANTIZERS, half_scales, to_half
from graphopt.passes.float16.sites import Site, find_sites

HALF, SINGLE = int(onnx.TensorProto.FLOAT16), int(onnx.TensorProto.FLOAT)
_TYPED_BY = {"Cast": "to", "EyeLike": "dtype", "RandomNormal": "dtype", "RandomNormalLike": "dtype",
             "RandomUniform": "dtype", "RandomUniformLike": "dtype", "Multinomial": "dtype"}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A model partly in float16.

    Attributes:
        model: the model.
        casts: how many Casts between the two precisions were added.
    """

    model: onnx.ModelProto
    casts: int


def write_half(model: onnx.ModelProto, half: Collection[int], *, keep_io: bool) -> Written:
    """Write a model in which some sites compute in float16.

    Args:
        model: the float32 model; not edited.
        half: numbers of the sites.
        keep_io: whether inputs and outputs of the model stay float32.
    """
    work = import_graph(model)
    index, sites = Index(work.gs), find_sites(work.gs)
    round_scales(index, sites, half)
    writer = _Writer(work, index, keep_io)
    writer.write([site for site in sites if site.number in half])
    remove_unused(work.gs)
    return Written(export_graph(work), writer.casts)


@dataclass
class _Writer:
    work: WorkGraph
    index: Index
    keep_io: bool
    casts: int = 0
    _constants: dict[int, gs.Constant] = field(default_factory=dict)
    _inner: set[int] = field(default_factory=set)

    def write(self, sites: Sequence[Site]) -> None:
        """Turn the sites to float16, with all they read and write."""
        graph = self.work.gs
        types = types_of(graph)
        self._inner = {id(tensor) for home in walk(graph) if home is not graph for tensor in home.outputs}
        inputs = {id(tensor): home for home in walk(graph) for tensor in home.inputs}
        follows = {(id(site.node), slot) for site in sites for slot in site.reads}
        made = [site.node.outputs[slot] for site in sites for slot in site.writes]
        read = {
            id(tensor): tensor
            for site in sites
            for tensor in (site.node.inputs[slot] for slot in site.reads)
            if not is_constant(tensor)
        }
        written = {id(tensor) for tensor in made}
        for site in sites:
            self._attributes(site)
            for slot in site.reads:
                if is_constant(site.node.inputs[slot]):
                    set_input(self.index, site.node, slot, self._constant(site.node.inputs[slot]))
        for tensor in made:
            self._made(tensor, follows)
        for key, tensor in read.items():
            if key in written:
                continue
            home = inputs.get(key)
            if home is graph and not self.keep_io:
                self._turn(tensor, follows, home)
            else:
                producer = sole_producer(tensor)
                at = home if producer is None else self.index.home(producer)
                self._give(tensor, self._cast(tensor, HALF, at), follows)
        self._drop_idle_casts(sites, types)
        self.index.finish()
        infer_again(graph)

    def _drop_idle_casts(self, sites: Sequence[Site], types: Mapping[str, TensorType]) -> None:
        """Let readers of a Cast that was there before read what it casts, where both are float16 now."""
        for site in sites:
            if site.node.op != "Cast" or int(site.node.attrs.get("to", 0)) != HALF:
                continue
            source, target = site.node.inputs[0], site.node.outputs[0]
            found = types.get(source.name)
            was_half = found is not None and found.dtype == HALF
            if (site.reads or was_half) and not self.index.is_output(target):
                replace_uses(self.index, target, source)

    def _made(self, tensor: gs.Tensor, follows: set[tuple[int, int]]) -> None:
        """Let a tensor that a site writes be float16, and float32 beside it for those who want that."""
        producer = sole_producer(tensor)
        assert producer is not None, "sites write it"
        home = self.index.home(producer)
        named = self.index.is_output(tensor)
        if named and (self.keep_io or id(tensor) in self._inner):
            slot = next(slot for slot, each in enumerate(producer.outputs) if each is tensor)
            narrow = variable(self.index, f"{tensor.name}_float16", tensor)
            narrow.dtype = np.dtype(np.float16)
            set_output(self.index, producer, slot, narrow)
            self._give(tensor, narrow, follows)
            self._add_cast(narrow, tensor, SINGLE, home)
        else:
            self._turn(tensor, follows, home)

    def _turn(self, tensor: gs.Tensor, follows: set[tuple[int, int]], home: gs.Graph | None) -> None:
        """Make a tensor float16; who wants float32 reads a Cast of it."""
        others = [(node, slot) for node, slot in _uses(tensor) if (id(node), slot) not in follows]
        if others:
            wide = self._cast(tensor, SINGLE, home)
            for node, slot in others:
                set_input(self.index, node, slot, wide)
        if tensor.dtype is not None or not tensor.inputs:
            tensor.dtype = np.dtype(np.float16)

    def _give(self, tensor: gs.Tensor, narrow: gs.Tensor, follows: set[tuple[int, int]]) -> None:
        """Let the sites that read a tensor read its float16 form."""
        for node, slot in _uses(tensor):
            if (id(node), slot) in follows:
                set_input(self.index, node, slot, narrow)

    def _cast(self, tensor: gs.Tensor, to: int, home: gs.Graph | None) -> gs.Tensor:
        word = "float16" if to == HALF else "float32"
        made = variable(self.index, f"{tensor.name}_{word}", tensor)
        made.dtype = np.dtype(word)
        self._add_cast(tensor, made, to, home)
        return made

    def _add_cast(self, source: gs.Tensor, target: gs.Tensor, to: int, home: gs.Graph | None) -> None:
        add_node(self.index, "Cast", [source], [target], {"to": to}, prefix=f"{target.name}_cast", home=home)
        self.casts += 1

    def _constant(self, tensor: gs.Tensor) -> gs.Constant:
        if id(tensor) not in self._constants:
            values = values_of(tensor)
            assert values is not None, "it was looked at before"
            self._constants[id(tensor)] = constant(self.index, f"{tensor.name}_float16", to_half(values))
        return self._constants[id(tensor)]

    def _attributes(self, site: Site) -> None:
        """Attributes that say what type a node makes."""
        node = site.node
        if not site.writes:
            return
        if node.op in _TYPED_BY and (_TYPED_BY[node.op] in node.attrs or node.op == "RandomNormal"):
            node.attrs[_TYPED_BY[node.op]] = HALF
        elif node.op == "RandomUniform":
            node.attrs["dtype"] = HALF
        elif node.op == "ConstantOfShape":
            given: Any = node.attrs.get("value")
            values = np.zeros(1, np.float32) if given is None else np.asarray(given.values)
            node.attrs["value"] = gs.Constant("value", to_half(values))
        elif node.op == "DequantizeLinear" and node.attrs.get("output_dtype", 0):
            node.attrs["output_dtype"] = HALF


def round_scales(index: Index, sites: Sequence[Site], half: Collection[int]) -> None:
    """Give Q and DQ of one scale the very same one still, as float16 holds it, where any of them computes in float16.

    Else integers would be read with another step than they were written with, and what a Concat joins would have two.
    """
    scales = {site.number: scale for site in sites if (scale := _scale(site)) is not None}
    touched = {scale.tobytes() for number, scale in scales.items() if number in half}
    made: dict[bytes, gs.Constant] = {}
    for site in sites:
        scale = scales.get(site.number)
        if scale is None or (key := scale.tobytes()) not in touched:
            continue
        narrow = half_scales(scale).astype(np.float32)
        if not np.array_equal(narrow, scale):
            if key not in made:
                made[key] = constant(index, f"{site.node.inputs[1].name}_rounded", narrow)
            set_input(index, site.node, 1, made[key])


def _scale(site: Site) -> npt.NDArray[Any] | None:
    """The constant float32 scale of a Q or DQ."""
    values = values_of(site.node.inputs[1]) if site.node.op in QUANTIZERS else None
    return values if values is not None and values.dtype == np.float32 else None


def _uses(tensor: gs.Tensor) -> list[tuple[gs.Node, int]]:
    """The nodes that read a tensor, with the slots."""
    nodes = {id(node): node for node in tensor.outputs}
    return [(node, slot) for node in nodes.values() for slot, each in enumerate(node.inputs) if each is tensor]


def rounded(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Values as float16 holds them, in float32."""
    return to_half(values).astype(np.float32)
