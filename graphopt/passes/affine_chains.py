"""Runs of affine nodes: each the only reader of the one before, along one axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, TensorType, is_op, shape_of, sole_consumer
from graphopt.passes.affine import Affine, Link, compose, read_link
from graphopt.passes.base import Skip


@dataclass(frozen=True)
class Chain:
    """Affine nodes in a row.

    Attributes:
        links: the nodes, the first applied first.
        rank: number of axes of the tensors in between, None if unknown.
    """

    links: tuple[Link, ...]
    rank: int | None

    @property
    def source(self) -> gs.Tensor:
        """What the first node reads."""
        return self.links[0].source

    @property
    def target(self) -> gs.Tensor:
        """What the last node writes."""
        return self.links[-1].node.outputs[0]

    @property
    def axis(self) -> int | None:
        """The axis of the channels, None where all elements are treated alike."""
        return next((link.axis for link in self.links if link.axis is not None), None)

    @cached_property
    def affine(self) -> Affine:
        """The map of the whole chain."""
        return compose(self.links)

    @property
    def has_batchnorm(self) -> bool:
        """Whether one of the nodes is a BatchNormalization."""
        return any(link.is_batchnorm for link in self.links)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the constants."""
        return self.links[0].dtype

    @property
    def where(self) -> str:
        """A name for reports: that of the first BatchNormalization, else of the first node."""
        node = next((link.node for link in self.links if link.is_batchnorm), self.links[0].node)
        return str(node.name or node.outputs[0].name)

    def may_widen(self, types: Mapping[str, TensorType]) -> bool:
        """Whether a constant might broadcast the source from one channel to several."""
        first = next((link for link in self.links if link.affine.channels > 1), None)
        if first is None or first.is_batchnorm:
            return False
        known = types.get(self.source.name)
        if known is None or known.shape is None or first.axis is None or first.axis >= len(known.shape):
            return True
        return known.shape[first.axis] != first.affine.channels


def find_chains(index: Index, types: Mapping[str, TensorType]) -> tuple[list[Chain], list[Skip]]:
    """Find all chains, none sharing a node, and the BatchNormalizations that are no fixed maps, with why."""
    ranks = _ranks(index, types)
    open_chains: dict[int, list[Link]] = {}
    skipped: list[Skip] = []
    found: list[list[Link]] = []
    for home in index.graphs:
        for node in home.nodes:
            link = read_link(node, ranks, index)
            if link is None:
                continue
            if isinstance(link, str):
                skipped.append(Skip(node.name or node.outputs[0].name, link))
                continue
            before = open_chains.pop(id(link.source), None)
            if before is not None and _continues(index, before, link):
                before.append(link)
                links = before
            else:
                links = [link]
                found.append(links)
            open_chains[id(node.outputs[0])] = links
    return [Chain(tuple(links), ranks.get(id(links[-1].node.outputs[0]))) for links in found], skipped


def _continues(index: Index, before: list[Link], link: Link) -> bool:
    if sole_consumer(index, link.source) is not link.node:
        return False
    axes = {one.axis for one in (*before, link)} - {None}
    channels = {one.affine.channels for one in (*before, link)} - {1}
    return len(axes) < 2 and len(channels) < 2 and len({one.dtype for one in (*before, link)}) < 2


def _ranks(index: Index, types: Mapping[str, TensorType]) -> dict[int, int]:
    """Number of axes by ``id`` of a tensor: inferred, or told by the weights of a convolution before it."""
    ranks: dict[int, int] = {}
    for home in index.graphs:
        tensors = [*home.inputs, *(tensor for node in home.nodes for tensor in node.outputs)]
        for tensor in tensors:
            known = types.get(tensor.name)
            if known is not None and known.shape is not None:
                ranks[id(tensor)] = len(known.shape)
        for node in home.nodes:
            if not node.outputs or id(node.outputs[0]) in ranks:
                continue
            rank = _own_rank(node, ranks)
            if rank is not None:
                ranks[id(node.outputs[0])] = rank
    return ranks


def _own_rank(node: gs.Node, ranks: Mapping[int, int]) -> int | None:
    if is_op(node, "Conv", "ConvTranspose"):
        shape = shape_of(node.inputs[1])
        return None if shape is None else len(shape)
    if is_op(node, "Gemm"):
        return 2
    if is_op(node, "BatchNormalization", "Relu"):
        return ranks.get(id(node.inputs[0]))
    if is_op(node, "Add", "Sub", "Mul", "Div") and any(isinstance(tensor, gs.Constant) for tensor in node.inputs):
        shapes = [() if isinstance(tensor, gs.Constant) else None for tensor in node.inputs]
        rank = ranks.get(id(node.inputs[shapes.index(None)])) if None in shapes else None
        other = next(shape_of(tensor) or () for tensor in node.inputs if isinstance(tensor, gs.Constant))
        return None if rank is None else max(rank, len(other))
    return None
