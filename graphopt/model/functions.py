"""Judge the calls between a model's local functions: a small file can expand to more nodes than any machine holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

import onnx

from graphopt.errors import InvalidModelError, UnsupportedModelError
from graphopt.model.walk import Body

MAX_CALLS = 64
"""Functions that call each other in a chain."""

FunctionKey: TypeAlias = tuple[str, str, str]  # domain, name, overload


def function_key(function: onnx.FunctionProto) -> FunctionKey:
    """What a node must carry in domain, op_type and overload to call the function."""
    return function.domain, function.name, function.overload


def vet_calls(model: onnx.ModelProto, all_bodies: Iterable[Body], max_nodes: int) -> None:
    """Refuse functions that recurse, chain too deep, or expand to more than ``max_nodes`` nodes.

    Raises:
        InvalidModelError: a function is defined twice or calls itself.
        UnsupportedModelError: too deep, or too many nodes.
    """
    calls: dict[FunctionKey, Counter[FunctionKey]] = {}
    for function in model.functions:
        if function_key(function) in calls:
            raise InvalidModelError(f"function {_name(function_key(function))} is defined twice")
        calls[function_key(function)] = Counter()
    own: Counter[FunctionKey] = Counter()
    main: Counter[FunctionKey] = Counter()
    for body in all_bodies:
        callees = Counter((node.domain, node.op_type, node.overload) for node in body.proto.node)
        local = Counter({key: times for key, times in callees.items() if key in calls})
        if body.function is None:
            main += local
        else:
            calls[function_key(body.function)] += local
            own[function_key(body.function)] += len(body.proto.node)
    expanded = _expanded_sizes(calls, own)
    if sum(times * expanded[key] for key, times in main.items()) > max_nodes:
        raise UnsupportedModelError(f"with its functions expanded the model has more than {max_nodes:,} nodes")


def _expanded_sizes(
    calls: dict[FunctionKey, Counter[FunctionKey]], own: Counter[FunctionKey]
) -> dict[FunctionKey, int]:
    """Nodes of each function with everything it calls expanded; callees before callers, so no recursion here."""
    sizes: dict[FunctionKey, int] = {}
    chain: dict[FunctionKey, int] = {}
    pending = list(calls)
    while pending:
        waiting = []
        for key in pending:
            callees = calls[key]
            if any(callee not in sizes for callee in callees):
                waiting.append(key)
                continue
            sizes[key] = own[key] + sum(times * sizes[callee] for callee, times in callees.items())
            chain[key] = 1 + max((chain[callee] for callee in callees), default=0)
            if chain[key] > MAX_CALLS:
                raise UnsupportedModelError(f"functions call each other more than {MAX_CALLS} deep, at {_name(key)}")
        if len(waiting) == len(pending):
            raise InvalidModelError(f"function {_name(waiting[0])} calls itself, directly or through another")
        pending = waiting
    return sizes


def _name(key: FunctionKey) -> str:
    return f"{key[0]}::{key[1]}"
