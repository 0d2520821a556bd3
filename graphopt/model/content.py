"""Size and hash of a model in memory, of any size."""

from __future__ import annotations

import hashlib

import onnx

from graphopt.model.skeleton import SMALL, copy_model, external_reference
from graphopt.model.tensors import is_external, stored_bytes
from graphopt.model.walk import tensors

EXTERNAL_THRESHOLD = 1_500_000_000
"""Bytes of weights above which a model is not serialised whole; protobuf itself stops at 2 GB."""


def model_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all tensors held in memory, structure not counted."""
    return sum(stored_bytes(tensor) for tensor, _ in tensors(model))


def content_hash(model: onnx.ModelProto) -> tuple[hashlib._Hash, int]:
    """Running SHA-256 of a model in memory, and the bytes that went into it.

    Up to ``EXTERNAL_THRESHOLD`` bytes of weights these are the deterministic serialisation of the model; above, that of
    its skeleton followed by the values of the large tensors in graph order.
    """
    if model_bytes(model) <= EXTERNAL_THRESHOLD:
        content = model.SerializeToString(deterministic=True)
        return hashlib.sha256(content), len(content)
    large: list[onnx.TensorProto] = []
    skeleton = copy_model(model, lambda tensor: _set_aside(tensor, large))
    content = skeleton.SerializeToString(deterministic=True)
    digest, size = hashlib.sha256(content), len(content)
    for tensor in large:
        values = tensor.raw_data
        digest.update(values)
        size += len(values)
    return digest, size


def _set_aside(tensor: onnx.TensorProto, large: list[onnx.TensorProto]) -> onnx.TensorProto | None:
    if not tensor.HasField("raw_data") or is_external(tensor) or stored_bytes(tensor) <= SMALL:
        return None
    large.append(tensor)
    return external_reference(tensor)
