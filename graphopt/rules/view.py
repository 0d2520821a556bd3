"""A model prepared for checks: who writes and reads each tensor, constants, shapes and types. Read only.

Built once for all rules, in time linear in the size of the graph. Bodies of If, Loop and Scan are part of it, and they
see the tensors around them; functions of the model are expanded where they are called. Nothing here trusts the model:
what is missing, contradictory or of the wrong kind is None or empty, never an exception.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import onnx.shape_inference

from graphopt.graph.cost.shapes import use_standard_operators
from graphopt.model.skeleton import copy_model
from graphopt.rules.building import DEFAULT_DOMAINS, bodies, build, declaration, declare_dense
from graphopt.rules.parts import Input, Node, Shape, Tensor, declared_shape

Array: TypeAlias = npt.NDArray[Any]

# Bytes up to which a tensor goes along to shape inference: sizes, axes and scales are far smaller.
_SMALL = 16 * 1024
_BODIES = ("then_branch", "else_branch", "body")
_ONE_VALUE = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}


class View:
    """A model as checks see it.

    Attributes:
        nodes: all nodes, each before those of its bodies.
        tensors: all tensors, in the order in which they are first seen.
        inputs: what the caller feeds; initializers that are listed as inputs are left out.
        opset: version of ONNX's own operators, 0 where none is imported.
        domains: versions of the other domains that are imported.
    """

    nodes: tuple[Node, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[Input, ...]
    opset: int
    domains: Mapping[str, int]

    def __init__(self, model: onnx.ModelProto) -> None:
        versions = {entry.domain: entry.version for entry in model.opset_import}
        self.opset = max((versions.get(domain, 0) for domain in DEFAULT_DOMAINS), default=0)
        self.domains = {name: version for name, version in versions.items() if name not in DEFAULT_DOMAINS}
        self.model = _expanded(model) if model.functions else model
        built = build(self.model.graph)
        self.nodes, self.tensors, self._bodies = tuple(built.nodes), tuple(built.tensors), built.bodies
        given = {tensor.name for tensor in model.graph.initializer}
        self.inputs = tuple(
            Input(info.name, declared_shape(info), info.type.WhichOneof("value") in (None, "tensor_type"))
            for info in model.graph.input
            if info.name not in given
        )
        self._values: dict[Tensor, Array | None] = {}

    def shape(self, tensor: Tensor | None) -> Shape | None:
        """Shape by ONNX's inference: an integer, a symbol or None an axis; None where the rank is unknown."""
        if tensor is None:
            return None
        if tensor.stored is not None:
            return tuple(tensor.stored.dims)
        found = self._types.get(tensor)
        return found[1] if found else None

    def dtype(self, tensor: Tensor | None) -> int:
        """``onnx.TensorProto`` data type; 0 where it is unknown."""
        if tensor is None:
            return 0
        if tensor.stored is not None:
            return int(tensor.stored.data_type)
        found = self._types.get(tensor)
        return found[0] if found else 0

    def is_constant(self, tensor: Tensor | None) -> bool:
        """Whether the model fixes the value: an initializer or a Constant, with Casts and Identities behind it."""
        return self.constant_root(tensor) is not None

    def constant_root(self, tensor: Tensor | None) -> Tensor | None:
        """The initializer or Constant that ``tensor`` is a Cast or Identity of; None where there is none."""
        for _ in range(8):
            if tensor is None or tensor.stored is not None:
                return tensor
            node = tensor.producer
            if node is not None and node.op == "Constant":
                return tensor
            if node is None or node.op not in ("Cast", "Identity"):
                return None
            tensor = node.input(0)
        return None

    def is_fixed(self, tensor: Tensor | None) -> bool:
        """Whether the model fixes the value: a constant, or computed from constants alone."""
        return tensor is not None and tensor in self._fixed

    def values(self, tensor: Tensor | None) -> Array | None:
        """Values of a constant as stored; None where they are not fixed by the model or not loaded."""
        root = self.constant_root(tensor)
        if root is None:
            return None
        if root not in self._values:
            self._values[root] = _values(root)
        return self._values[root]

    @cached_property
    def _fixed(self) -> frozenset[Tensor]:
        """All tensors that follow from constants alone, whatever the order of the nodes."""
        pending = {node: sum(1 for tensor in node.inputs if tensor is not None) for node in self.nodes}
        found = [tensor for tensor in self.tensors if tensor.stored is not None and tensor.producer is None]
        found += [tensor for node in self.nodes if node.op == "Constant" for tensor in node.outputs if tensor]
        fixed = set(found)
        while found:
            for node in found.pop().readers:
                pending[node] -= 1
                if pending[node] or any(name in node.attributes for name in _BODIES):
                    continue
                fresh = [tensor for tensor in node.outputs if tensor is not None and tensor not in fixed]
                fixed.update(fresh)
                found += fresh
        return frozenset(fixed)

    @cached_property
    def _types(self) -> Mapping[Tensor, tuple[int, Shape | None]]:
        """Type and shape by tensor; empty where inference finds nothing."""
        skeleton = copy_model(self.model, _without_values)
        use_standard_operators(skeleton.graph)
        declare_dense(skeleton.graph)
        try:
            typed = onnx.shape_inference.infer_shapes(skeleton, strict_mode=False, data_prop=True)
        except Exception:  # a broken model, for which onnx raises what it likes; declared types are all there is
            typed = skeleton
        if len(graphs := list(bodies(typed.graph))) != len(self._bodies):
            return {}
        types: dict[Tensor, tuple[int, Shape | None]] = {}
        for scope, graph in zip(self._bodies, graphs, strict=True):
            for info in (*graph.output, *graph.value_info, *graph.input):
                if info.type.HasField("tensor_type") and (tensor := scope.get(info.name)) is not None:
                    types[tensor] = (info.type.tensor_type.elem_type, declared_shape(info))
        return types


def _values(tensor: Tensor) -> Array | None:
    stored = tensor.stored
    try:
        if stored is not None:
            external = stored.data_location == onnx.TensorProto.EXTERNAL
            return None if external else np.asarray(onnx.numpy_helper.to_array(stored))
        attributes = tensor.producer.attributes if tensor.producer is not None else {}
        for name, dtype in _ONE_VALUE.items():
            if name in attributes:
                return np.asarray(onnx.helper.get_attribute_value(attributes[name]), dtype=dtype)
    except Exception:  # data that does not fit the declared shape or type: the checker's to tell
        return None
    return None


def _without_values(tensor: onnx.TensorProto) -> onnx.TensorProto | None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) * 8 > _SMALL:
        return declaration(tensor.name, tensor.data_type, tensor.dims)
    return None


def _expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions written out, large constants without values; as it is where that fails."""
    try:
        return onnx.inliner.inline_local_functions(copy_model(model, _without_values))
    except Exception:  # functions that call each other in circles, or miss what they call: the checker's to tell
        return model


__all__ = ["Array", "Input", "Node", "Shape", "Tensor", "View"]
