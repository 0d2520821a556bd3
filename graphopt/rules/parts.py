"""What a view of a model is made of: tensors, nodes and inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx

Shape: TypeAlias = tuple[int | str | None, ...]
_A = onnx.AttributeProto


@dataclass(eq=False, slots=True)
class Tensor:
    """A tensor: where it comes from and who reads it.

    Attributes:
        name: its name.
        producer: the node that writes it.
        readers: the nodes that read it, in graph order, those of bodies inside included; once for each input.
        stored: the initializer it is, or the value of the Constant node that writes it.
        is_input: whether the caller feeds it.
        is_output: whether the graph or body returns it.
    """

    name: str
    producer: Node | None = None
    readers: list[Node] = field(default_factory=list)
    stored: onnx.TensorProto | None = None
    is_input: bool = False
    is_output: bool = False


@dataclass(eq=False, slots=True)
class Node:
    """A node.

    Attributes:
        op: operator; ``domain::Operator`` outside ONNX's own domain.
        name: its name, else that of its first output.
        inputs: None where an optional input is left out.
        outputs: None where an optional output is left out.
        attributes: as stored.
        depth: how many If, Loop or Scan nodes surround it.
    """

    op: str
    name: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    attributes: Mapping[str, onnx.AttributeProto]
    depth: int = 0

    def input(self, index: int) -> Tensor | None:
        """The input at a position, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def output(self, index: int = 0) -> Tensor | None:
        """The output at a position, None where it is left out."""
        return self.outputs[index] if index < len(self.outputs) else None

    def integer(self, name: str, default: int) -> int:
        """An integer attribute; ``default`` where it is absent or of another kind."""
        found = self.attributes.get(name)
        return int(found.i) if found is not None and found.type == _A.INT else default

    def number(self, name: str, default: float) -> float:
        """A float attribute; ``default`` where it is absent or of another kind."""
        found = self.attributes.get(name)
        return float(found.f) if found is not None and found.type == _A.FLOAT else default

    def text(self, name: str, default: str) -> str:
        """A text attribute; ``default`` where it is absent or of another kind."""
        found = self.attributes.get(name)
        return found.s.decode("utf-8", "replace") if found is not None and found.type == _A.STRING else default

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers; None where it is absent or of another kind."""
        found = self.attributes.get(name)
        return tuple(found.ints) if found is not None and found.type == _A.INTS else None


@dataclass(frozen=True)
class Input:
    """A declared input of the model.

    Attributes:
        name: its name.
        shape: None where not even the rank is declared.
        is_tensor: False for sequences, maps and optionals.
    """

    name: str
    shape: Shape | None
    is_tensor: bool


def declared_shape(info: onnx.ValueInfoProto) -> Shape | None:
    """Shape of an input or output; None where not even the rank is declared, or it is no tensor."""
    if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param or None
        for dim in info.type.tensor_type.shape.dim
    )
