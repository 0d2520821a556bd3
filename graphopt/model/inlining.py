"""Expand calls of a model's own functions, so that passes see what they compute.

A call becomes the nodes of the function: parameters take the caller's names, everything inside is named anew, and
attributes that refer to the caller's take those, else the function's defaults. onnx's inliner is not used: in 1.23 it
forgets the defaults of a call within a subgraph, and makes a function that returns its own input a cycle.

Left as they are: functions that need another version of an operator than the model imports; functions that a runtime
may have a kernel for (``com.microsoft``, or a schema of their name); calls that hand a subgraph to a function;
functions that are not well formed. Functions that nothing calls any more go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx.defs

from graphopt.model.functions import FunctionKey, function_key
from graphopt.model.skeleton import copy_field

_A = onnx.AttributeProto
_ALIASES = {"ai.onnx": ""}


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with calls of its functions expanded; ``model`` itself where there are none to expand.

    ``model`` is never written to. Its functions must not call themselves.
    """
    if not model.functions:
        return model
    versions = {_ALIASES.get(entry.domain, entry.domain): entry.version for entry in model.opset_import}
    usable: dict[FunctionKey, onnx.FunctionProto] = {}
    for function in model.functions:
        more = _versions_to_add(function, versions)
        if more is not None and _is_well_formed(function):
            versions.update(more)
            usable[function_key(function)] = function
    if not any(_call_key(node) in usable for node in _all_nodes(model.graph.node)):
        return model
    result = onnx.ModelProto()
    _copy(model, result, leave_out={"graph", "functions", "opset_import"})
    expansion = _Expansion(usable, _names_in(model.graph))
    expansion.copy_graph(model.graph, result.graph, _Frame())
    result.opset_import.extend(model.opset_import)
    imported = {_ALIASES.get(entry.domain, entry.domain) for entry in model.opset_import}
    used = {_ALIASES.get(node.domain, node.domain) for node in _all_nodes(result.graph.node)}
    for domain in sorted(used - imported):
        if domain in versions:
            result.opset_import.add(domain=domain, version=versions[domain])
    result.functions.extend(_called(model.functions, result.graph))
    return result


@dataclass(frozen=True)
class _Frame:
    """Where a node stands: the names and attributes of the call it belongs to, if any.

    Attributes:
        names: what tensors are called here; a name that is not in it stays.
        attributes: what attributes that refer to the caller's stand for; None outside of functions.
        prefix: begins all names made here.
        calls: the functions being expanded.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, onnx.AttributeProto] | None = None
    prefix: str = ""
    calls: tuple[FunctionKey, ...] = ()

    def name(self, name: str) -> str:
        return self.names.get(name, name)

    def within(self, names: Mapping[str, str]) -> _Frame:
        return _Frame({**self.names, **names}, self.attributes, self.prefix, self.calls)


@dataclass
class _Expansion:
    """Copies graphs and expands calls on the way."""

    functions: Mapping[FunctionKey, onnx.FunctionProto]
    names: set[str]
    counts: dict[str, int] = field(default_factory=dict)

    def fresh(self, wanted: str) -> str:
        name = wanted
        while name in self.names:
            self.counts[wanted] = self.counts.get(wanted, 0) + 1
            name = f"{wanted}_{self.counts[wanted]}"
        self.names.add(name)
        return name

    def copy_graph(self, source: onnx.GraphProto, target: onnx.GraphProto, frame: _Frame) -> None:
        """Copy a graph; within a function its tensors are named anew."""
        if frame.attributes is None:
            _copy(source, target, leave_out={"node"})
        else:
            own = [tensor.name for tensor in source.initializer]
            own += [tensor.values.name for tensor in source.sparse_initializer]
            own += [info.name for info in source.input]
            own += [name for node in source.node for name in node.output if name]
            frame = frame.within({name: self.fresh(frame.prefix + name) for name in dict.fromkeys(own)})
            _copy(source, target, leave_out={"node", "quantization_annotation"})
            for item in (*target.initializer, *target.input, *target.output, *target.value_info):
                item.name = frame.name(item.name)
            for sparse in target.sparse_initializer:
                sparse.values.name = frame.name(sparse.values.name)
        for node in source.node:
            self.put(node, target, frame)

    def put(self, node: onnx.NodeProto, target: onnx.GraphProto, frame: _Frame) -> None:
        """Copy a node into a graph, or what it calls."""
        made = onnx.NodeProto()
        _copy(node, made, leave_out={"attribute"})
        if frame.attributes is not None:
            made.ClearField("input")
            made.ClearField("output")
            made.input.extend(frame.name(name) for name in node.input)
            made.output.extend(frame.name(name) for name in node.output)
            if node.name:
                made.name = self.fresh(frame.prefix + node.name)
        for attribute in node.attribute:
            self._put_attribute(attribute, made, frame)
        key = _call_key(made)
        function = self.functions.get(key)
        if function is None or key in frame.calls or not _fits(made, function):
            target.node.append(made)
        else:
            self._expand(made, function, target, frame)

    def _put_attribute(self, attribute: onnx.AttributeProto, made: onnx.NodeProto, frame: _Frame) -> None:
        if attribute.ref_attr_name and frame.attributes is not None:
            value = frame.attributes.get(attribute.ref_attr_name)
            if value is not None:
                copied = made.attribute.add()
                copied.CopyFrom(value)
                copied.name = attribute.name
            return
        copied = made.attribute.add()
        _copy(attribute, copied, leave_out={"g", "graphs"})
        if attribute.HasField("g"):
            copied.g.SetInParent()
            self.copy_graph(attribute.g, copied.g, frame)
        for graph in attribute.graphs:
            self.copy_graph(graph, copied.graphs.add(), frame)

    def _expand(
        self, call: onnx.NodeProto, function: onnx.FunctionProto, target: onnx.GraphProto, frame: _Frame
    ) -> None:
        prefix = f"{call.name or next(name for name in call.output if name)}/"
        names = dict.fromkeys(function.input, "") | dict(zip(function.input, call.input, strict=False))
        results = dict(zip(function.output, call.output, strict=False))
        handed_on = [(names[name], result) for name, result in results.items() if name in names and result]
        for name in dict.fromkeys(name for node in function.node for name in node.output if name):
            names[name] = results.get(name) or self.fresh(prefix + name)
        attributes = {attribute.name: attribute for attribute in (*function.attribute_proto, *call.attribute)}
        inside = _Frame(names, attributes, prefix, (*frame.calls, function_key(function)))
        for node in function.node:
            self.put(node, target, inside)
        for source, result in handed_on:
            target.node.add(op_type="Identity", name=self.fresh(f"{prefix}{result}"), input=[source], output=[result])


def _fits(call: onnx.NodeProto, function: onnx.FunctionProto) -> bool:
    """Whether a call can be expanded: nothing too many, no subgraph handed over, nothing left out that is returned."""
    if len(call.input) > len(function.input) or len(call.output) > len(function.output) or not any(call.output):
        return False
    if any(attribute.type in {_A.GRAPH, _A.GRAPHS} for attribute in call.attribute):
        return False
    given = dict(zip(function.input, call.input, strict=False))
    return all(given.get(name) for name in function.output if name in set(function.input))


def _is_well_formed(function: onnx.FunctionProto) -> bool:
    """Whether each result is named once, and computed once or an input; and no default is a graph."""
    written = [name for node in function.node for name in node.output if name]
    inputs, outputs = set(function.input), set(function.output)
    return (
        not any(attribute.type in {_A.GRAPH, _A.GRAPHS} for attribute in function.attribute_proto)
        and len(set(written)) == len(written)
        and len(inputs) == len(function.input)
        and len(outputs) == len(function.output)
        and not inputs & set(written)
        and outputs <= inputs | set(written)
    )


def _versions_to_add(function: onnx.FunctionProto, versions: Mapping[str, int]) -> dict[str, int] | None:
    """The operator sets that a model must import beside ``versions`` for the function's nodes to mean the same.

    None where that is impossible, or where a runtime may know the function better than its body tells.
    """
    domain = _ALIASES.get(function.domain, function.domain)
    if not domain or domain.startswith("com.microsoft") or onnx.defs.has(function.name, domain=domain):
        return None
    own = {_ALIASES.get(entry.domain, entry.domain): entry.version for entry in function.opset_import}
    more: dict[str, int] = {}
    for node in _all_nodes(function.node):
        used = _ALIASES.get(node.domain, node.domain)
        wanted = own.get(used)
        if wanted is None:
            return None
        if used not in versions:
            more[used] = wanted
        elif versions[used] != wanted and _since(node.op_type, used, versions[used]) != _since(
            node.op_type, used, wanted
        ):
            return None
    return more


def _since(op: str, domain: str, version: int) -> object:
    """The version that an operator's meaning dates from; something unequal to everything where that is unknown."""
    if not onnx.defs.has(op, domain=domain, max_inclusive_version=version):
        return object()
    return onnx.defs.get_schema(op, domain=domain, max_inclusive_version=version).since_version


def _called(functions: Iterable[onnx.FunctionProto], graph: onnx.GraphProto) -> list[onnx.FunctionProto]:
    """The functions that the graph still calls, directly or through one another."""
    by_key = {function_key(function): function for function in functions}
    pending = [_call_key(node) for node in _all_nodes(graph.node)]
    found: set[FunctionKey] = set()
    while pending:
        key = pending.pop()
        if key in by_key and key not in found:
            found.add(key)
            pending += [_call_key(node) for node in _all_nodes(by_key[key].node)]
    return [function for key, function in by_key.items() if key in found]


def _call_key(node: onnx.NodeProto) -> FunctionKey:
    return node.domain, node.op_type, node.overload


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of their subgraphs."""
    pending = [nodes]
    while pending:
        for node in pending.pop():
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g.node)
                pending += [graph.node for graph in attribute.graphs]


def _names_in(graph: onnx.GraphProto) -> set[str]:
    """All names of tensors and nodes in a graph and its subgraphs."""
    names: set[str] = set()
    pending = [graph]
    while pending:
        current = pending.pop()
        for item in (*current.initializer, *current.input, *current.output, *current.value_info):
            names.add(item.name)
        names.update(tensor.values.name for tensor in current.sparse_initializer)
        for node in current.node:
            names.update((node.name, *node.input, *node.output))
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += attribute.graphs
    return names


def _copy(source: Any, target: Any, leave_out: set[str]) -> None:
    """Copy every set field of one message into an empty one, but those named."""
    for descriptor, value in source.ListFields():
        if descriptor.name not in leave_out:
            copy_field(target, descriptor.name, value)
