"""Runs of affine nodes: each the only reader of the one before, along one axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph import Index, sole_consumer
from graphopt.passes.affine.maps import Affine, Link, compose, read_link
from graphopt.passes.affine.ranks import Knowledge
from graphopt.passes.base import Skip


@dataclass(frozen=True)
class Chain:
    """Affine nodes in a row.

    Attributes:
        links: the nodes, the first applied first.
        known: for the rank of the tensors in between.
    """

    links: tuple[Link, ...]
    known: Knowledge

    @property
    def source(self) -> gs.Tensor:
        """What the first node reads."""
        return self.links[0].source

    @property
    def target(self) -> gs.Tensor:
        """What the last node writes."""
        return self.links[-1].node.outputs[0]

    @cached_property
    def rank(self) -> int | None:
        """Number of axes, None if unknown."""
        return self.known.rank(self.target)

    @cached_property
    def axis(self) -> int | None:
        """The axis of the channels, None where all elements are treated alike."""
        return next((link.axis for link in self.links if link.axis is not None), None)

    @cached_property
    def affine(self) -> Affine:
        """The map of the whole chain."""
        return compose(self.links)

    @cached_property
    def has_batchnorm(self) -> bool:
        """Whether one of the nodes is a BatchNormalization."""
        return any(link.is_batchnorm for link in self.links)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the constants."""
        return self.links[0].dtype

    @property
    def nodes(self) -> list[gs.Node]:
        """The nodes."""
        return [link.node for link in self.links]

    @property
    def where(self) -> str:
        """A name for reports: that of the first BatchNormalization, else of the first node."""
        node = next((link.node for link in self.links if link.is_batchnorm), self.links[0].node)
        return str(node.name or node.outputs[0].name)

    def may_widen(self) -> bool:
        """Whether a constant might broadcast the source from one channel to several."""
        first = next((link for link in self.links if link.affine.channels > 1), None)
        if first is None or first.is_batchnorm:
            return False
        shape = self.known.shape(self.source)
        if shape is None or first.axis is None or first.axis >= len(shape):
            return True
        return shape[first.axis] != first.affine.channels


def find_chains(index: Index, candidates: Iterable[gs.Node], known: Knowledge) -> tuple[list[Chain], list[Skip]]:
    """Find all chains, none sharing a node, and the BatchNormalizations that are no fixed maps, with why.

    Args:
        index: of the whole model.
        candidates: all nodes that may be links, each after those that it reads.
        known: for ranks.
    """
    open_chains: dict[int, list[Link]] = {}
    skipped: list[Skip] = []
    found: list[list[Link]] = []
    for node in candidates:
        link = read_link(node, known.rank, index)
        if link is None:
            continue
        if isinstance(link, str):
            skipped.append(Skip(node.name or node.outputs[0].name, link))
            continue
        before = open_chains.pop(id(link.source), None) if open_chains else None
        if before is not None and _continues(index, before, link):
            before.append(link)
            links = before
        else:
            links = [link]
            found.append(links)
        open_chains[id(node.outputs[0])] = links
    return [Chain(tuple(links), known) for links in found], skipped


def _continues(index: Index, before: list[Link], link: Link) -> bool:
    if sole_consumer(index, link.source) is not link.node:
        return False
    axis = next((one.axis for one in before if one.axis is not None), link.axis)
    channels = next((one.affine.channels for one in before if one.affine.channels > 1), link.affine.channels)
    return link.axis in {None, axis} and link.affine.channels in {1, channels} and link.dtype == before[0].dtype
