"""Judge a parsed model before anything large is allocated: versions, size, operators, order, validity.

In this order, each check relying on the ones before it:

1. there is a graph with nodes and outputs, and the IR and opset versions are known to the installed onnx;
2. subgraphs and functions nest no deeper, and nodes are no more, than the caps below; functions do not recurse;
3. every operator is a standard one at its opset, one of ONNX Runtime's (``com.microsoft``), or a function of the model;
4. nodes are in topological order, or can be brought into it;
5. onnx's checker accepts the model without its large tensors.
"""

from __future__ import annotations

import onnx
from onnx import defs

from graphopt.errors import InvalidModelError, ModelError, UnsupportedModelError
from graphopt.model.functions import vet_calls
from graphopt.model.order import sort_nodes
from graphopt.model.skeleton import for_checker
from graphopt.model.versions import initializers_are_constants, raise_ir_version
from graphopt.model.walk import Body, bodies, label

MAX_DEPTH = 30
"""Levels of If, Loop and Scan; protobuf itself stops at 100 messages, which is 31 levels."""
MAX_NODES = 10_000_000
"""Nodes of the model with its functions expanded."""
OLDEST_IR = 3
GUARANTEED_OPSET = 7


def vet_structure(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Check and, where it is out of order, sort ``model`` in place; return warnings, and what had to be mended.

    The domain ``ai.onnx`` becomes ``""``, its canonical spelling, so that later code has one to compare with. A
    negative dimension, which some exporters write for a size that is open, is cleared: open is what it then says.

    Raises:
        ModelError: not an ONNX graph.
        InvalidModelError: not a usable one; names the node where there is one.
        UnsupportedModelError: versions, operators or sizes beyond what is known here.
    """
    _vet_presence(model)
    all_bodies = _vet_nesting(model)
    _vet_names(all_bodies)
    _canonical_domains(model, all_bodies)
    _open_negative_dimensions(model.graph)
    warnings = _vet_versions(model)
    vet_calls(model, all_bodies, MAX_NODES)
    _vet_operators(model, all_bodies)
    # Innermost last in the walk: sorting replaces the protobufs of the subgraphs inside, so go from there outwards.
    mended = []
    moved = [body.where for body in reversed(all_bodies) if sort_nodes(body)]
    if moved:
        mended.append(f"the nodes of {', '.join(moved[::-1])} were not in topological order and have been sorted")
    if initializers_are_constants(model) and _initializers_beside_inputs(model):
        raise_ir_version(model, 4)
        mended.append("IR version 3 wants initializers among the inputs; read as IR version 4, where they need not be")
    check(model)
    return warnings, mended


def check(model: onnx.ModelProto) -> None:
    """Run onnx's checker on the model without its large tensors, so that any size can be checked.

    Raises:
        InvalidModelError: with the checker's reason.
    """
    try:
        onnx.checker.check_model(for_checker(model))
    except onnx.checker.ValidationError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InvalidModelError(f"not a valid ONNX model: {' '.join(lines).replace('==> Context:', 'In:')}") from error


def _vet_presence(model: onnx.ModelProto) -> None:
    if not model.HasField("graph") and not model.ir_version:
        raise ModelError("not an ONNX model: it has neither a graph nor an IR version")
    if not model.graph.node or not model.graph.output:
        missing = "nodes" if not model.graph.node else "outputs"
        raise InvalidModelError(f"empty graph: it has no {missing}, so there is nothing to run")


def _vet_nesting(model: onnx.ModelProto) -> list[Body]:
    found: list[Body] = []
    nodes = 0
    for body in bodies(model):
        if body.depth > MAX_DEPTH:
            raise UnsupportedModelError(
                f"{body.where} is nested {body.depth} levels deep; at most {MAX_DEPTH} are read"
            )
        nodes += len(body.proto.node)
        if nodes > MAX_NODES:
            raise UnsupportedModelError(f"the model has more than {MAX_NODES:,} nodes")
        found.append(body)
    return found


def _vet_names(all_bodies: list[Body]) -> None:
    """Refuse names that are not UTF-8: protobuf hands them out as bytes, which no later code expects."""
    for body in all_bodies:
        names: list[str] = []
        for node in body.proto.node:
            names += (node.op_type, node.domain, node.name, node.overload, *node.input, *node.output)
            names += [attribute.name for attribute in node.attribute]
        if isinstance(body.proto, onnx.GraphProto):
            for values in (body.proto.input, body.proto.output, body.proto.value_info, body.proto.initializer):
                names += [value.name for value in values]
        wrong = next((name for name in names if not isinstance(name, str)), None)
        if wrong is not None:
            raise InvalidModelError(f"a name in {body.where} is not UTF-8 text: {wrong!r}; the file is damaged")


def _canonical_domains(model: onnx.ModelProto, all_bodies: list[Body]) -> None:
    for imports in (model.opset_import, *(function.opset_import for function in model.functions)):
        for opset in imports:
            if opset.domain == "ai.onnx":
                opset.domain = ""
    for body in all_bodies:
        for node in body.proto.node:
            if node.domain == "ai.onnx":
                node.domain = ""


def _open_negative_dimensions(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.Clear()


def _vet_versions(model: onnx.ModelProto) -> list[str]:
    upgrade = "upgrade with `pip install --upgrade onnx onnxruntime`, or export for an older version"
    if model.ir_version > onnx.IR_VERSION:
        raise UnsupportedModelError(
            f"IR version {model.ir_version} is newer than {onnx.IR_VERSION}, the newest that the installed onnx "
            f"{onnx.__version__} knows; {upgrade}"
        )
    if model.ir_version < OLDEST_IR:
        raise UnsupportedModelError(
            f"IR version {model.ir_version} is older than {OLDEST_IR} (ONNX 1.0, 2017); export the model again"
        )
    if not model.opset_import:
        raise InvalidModelError("no opset is imported, so no operator has a meaning; the file is cut short or damaged")
    for imports in (model.opset_import, *(function.opset_import for function in model.functions)):
        known: dict[str, int] = {}
        for opset in imports:
            if known.setdefault(opset.domain, opset.version) != opset.version:
                raise InvalidModelError(f"domain {opset.domain or 'ai.onnx'!r} is imported in two versions")
            newest = defs.onnx_opset_version() if opset.domain == "" else None
            if newest is not None and opset.version > newest:
                raise UnsupportedModelError(
                    f"opset {opset.version} is newer than {newest}, the newest that the installed onnx "
                    f"{onnx.__version__} knows; {upgrade}"
                )
            if not 1 <= opset.version < 2**31:
                raise InvalidModelError(
                    f"opset version {opset.version} of domain {opset.domain or 'ai.onnx'!r} is impossible"
                )
    default = next((opset.version for opset in model.opset_import if opset.domain == ""), GUARANTEED_OPSET)
    if default < GUARANTEED_OPSET:
        return [f"opset {default} is older than {GUARANTEED_OPSET}, the oldest that ONNX Runtime guarantees to run"]
    return []


def _vet_operators(model: onnx.ModelProto, all_bodies: list[Body]) -> None:
    functions = {(function.domain, function.name, function.overload) for function in model.functions}
    known: dict[tuple[str, str, int], str | None] = {}
    for body in all_bodies:
        imports = {opset.domain: opset.version for opset in (body.function or model).opset_import}
        for node in body.proto.node:
            if (node.domain, node.op_type, node.overload) in functions:
                continue
            if node.domain not in imports:
                domain = node.domain or "ai.onnx"
                raise UnsupportedModelError(f"node {label(node)} in {body.where}: domain {domain!r} is not imported")
            key = (node.domain, node.op_type, imports[node.domain])
            if key not in known:
                known[key] = _why_unknown(*key)
            reason = known[key]
            if reason:
                raise UnsupportedModelError(f"node {label(node)} in {body.where}: {reason}")


def _why_unknown(domain: str, op_type: str, version: int) -> str | None:
    if domain == "com.microsoft":
        return None
    if domain == "com.microsoft.nchwc":
        return (
            "its domain 'com.microsoft.nchwc' is written by ONNX Runtime's optimizer for one kind of CPU; "
            "give the model that was optimized instead"
        )
    if domain != "" and not domain.startswith("ai.onnx"):
        return (
            f"unknown operator domain {domain!r}. Custom operators are not loaded; only standard operators, "
            "ONNX Runtime's own (com.microsoft) and functions inside the model can be carried through"
        )
    try:
        schema = defs.get_schema(op_type, version, domain)
    except defs.SchemaError:
        return (
            f"unknown operator {op_type!r}: domain {domain or 'ai.onnx'!r} has none of that name at version {version}"
        )
    if schema.deprecated:
        return f"operator {op_type!r} is no longer part of opset {version}; the model declares a wrong opset"
    return None


def _initializers_beside_inputs(model: onnx.ModelProto) -> bool:
    inputs = {value.name for value in model.graph.input}
    return any(tensor.name not in inputs for tensor in model.graph.initializer)
