"""What depends on what: channels that are cut together, groups of channels alike, and what cannot be cut and why.

A *channel* is the smallest thing that can be cut: everything in the model that must go together, as one filter of a
convolution, its BatchNorm parameters, and the slices of all weights that read it. On a residual stream one channel runs
through a whole stage. A *group* holds channels that touch the same places and so may be chosen between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import networkx as nx
import numpy as np
import numpy.typing as npt
import onnx

Indices: TypeAlias = npt.NDArray[np.int64]

# What a parameter is to a channel: "writes": a filter that computes it (weight rows and biases of Conv, Gemm, MatMul);
# "reads": input slices of the weights that consume it; "follows": per-channel parameters on the way (BatchNorm, PRelu,
# scales of Q/DQ, constants added or multiplied).
Role: TypeAlias = Literal["writes", "reads", "follows"]

# Group number -> positions in the group of the channels that are cut.
Selection: TypeAlias = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Member:
    """A parameter of which every channel of a group has its slice.

    Attributes:
        node: name of the node that reads the parameter (its first output where it has no name).
        operator: the node's operator.
        input: which input of the node the parameter is.
        parameter: name of the constant.
        axis: axis of the parameter that is cut.
        role: what the parameter is to the channels.
        indices: indices along ``axis``, [channels of the group, indices of each channel].
    """

    node: str
    operator: str
    input: int
    parameter: str
    axis: int
    role: Role
    indices: Indices = field(repr=False)


@dataclass(frozen=True)
class TensorAxis:
    """A computed tensor in which every channel of a group has its indices.

    Attributes:
        tensor: its name.
        axis: the axis that becomes shorter.
        indices: indices along ``axis``, [channels of the group, indices of each channel].
    """

    tensor: str
    axis: int
    indices: Indices = field(repr=False)


@dataclass(frozen=True)
class Group:
    """Channels that are alike: any of them can be cut in place of another.

    Attributes:
        number: position in ``Dependencies.groups``.
        name: for people: the layers that write the channels.
        size: how many channels.
        members: the parameters that are cut.
        tensors: the tensors that become narrower.
        parameters: elements of parameters that go with one channel, other groups left whole.
        keep: least number of channels that must remain for every tensor to have one.
    """

    number: int
    name: str
    size: int
    members: tuple[Member, ...] = field(repr=False)
    tensors: tuple[TensorAxis, ...] = field(repr=False)
    parameters: int = 0
    keep: int = 1

    @property
    def writers(self) -> tuple[str, ...]:
        """Names of the nodes whose filters compute the channels."""
        return tuple(dict.fromkeys(member.node for member in self.members if member.role == "writes"))

    @property
    def readers(self) -> tuple[str, ...]:
        """Names of the nodes whose weights consume the channels."""
        return tuple(dict.fromkeys(member.node for member in self.members if member.role == "reads"))

    def __str__(self) -> str:
        lines = [f"group {self.number}: {self.size} channels of {self.name}, at least {self.keep} must stay"]
        for role, verb in (("writes", "written by"), ("follows", "followed by"), ("reads", "read by")):
            lines += [
                f"  {verb} {member.parameter} axis {member.axis} of {member.node} ({member.operator})"
                for member in self.members
                if member.role == role
            ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Balance:
    """A grouped convolution: each of its blocks must lose the same number of channels.

    Attributes:
        node: name of the convolution.
        side: whether the blocks are of what it reads or of what it writes.
        blocks: for each block of channels, group number -> how often each position of the group occurs in it
            (array of the group's size); groups that do not occur are left out.
        extra: channels in each block that cannot be cut.
    """

    node: str
    side: Literal["reads", "writes"]
    blocks: tuple[Mapping[int, Indices], ...]
    extra: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fixed:
    """Channels of a layer that cannot be cut.

    Attributes:
        node: name of the layer that writes them.
        parameter: name of its weight.
        axis: axis of the weight that holds them.
        indices: which ones.
        reason: why, in words a user can act on; names the operator or tensor at fault.
    """

    node: str
    parameter: str
    axis: int
    indices: Indices
    reason: str


@dataclass(frozen=True)
class Dependencies:
    """All groups of a model. Iterates over ``groups``.

    Attributes:
        model: the model they were found in; not to be edited.
        groups: what can be cut, in the order of the graph.
        fixed: what cannot, and why.
        balances: what grouped convolutions ask for.
        graph: networkx graph of channel axes: nodes ("tensor" | "parameter", name, axis), edges the couplings with the
            operator that makes them as attribute ``why``.
        share: share of convolution (and of all Conv/Gemm/MatMul) parameters that lie in groups: ``{"convolution": ...,
            "all": ...}``.
        shapes: the shapes of inputs that were asked for, by name.
    """

    model: onnx.ModelProto = field(repr=False)
    groups: tuple[Group, ...]
    fixed: tuple[Fixed, ...] = ()
    balances: tuple[Balance, ...] = ()
    graph: nx.Graph = field(default_factory=nx.Graph)
    share: Mapping[str, float] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] | None = None

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Group:
        return self.groups[number]

    def __str__(self) -> str:
        lines = [str(group) for group in self.groups]
        lines += [
            f"cannot be cut: {len(fixed.indices)} channels of {fixed.node}, {fixed.reason}" for fixed in self.fixed
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Cut:
    """A model with channels cut out.

    Attributes:
        model: the smaller model. Tensors that were in the original and are still there keep their names.
        kept: tensor name -> axis -> which indices of the original remain, in their order in the smaller tensor; only
            tensors that became narrower.
    """

    model: onnx.ModelProto
    kept: Mapping[str, Mapping[int, Indices]]
