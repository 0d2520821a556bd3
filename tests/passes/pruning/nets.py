"""Small nets and their groups, written down by hand so that these tests need no tracing."""

from __future__ import annotations

import numpy as np
import onnx

from graphopt.channels import Dependencies, Group, Member, TensorAxis
from tests.support import model

# Three convolutions; the first two can be cut, the last makes the output.
CHAIN = """g (float[1,3,16,16] x) => (float[1,8,16,16] y)
<float[{a},3,3,3] w1, float[{a}] b1, float[{b},{a},3,3] w2, float[8,{b},1,1] w3>
{{
  c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
  r1 = Relu(c1)
  c2 = Conv<pads=[1,1,1,1]>(r1, w2)
  r2 = Relu(c2)
  y = Conv(r2, w3)
}}"""


def chain(a: int = 32, b: int = 64) -> Dependencies:
    """``CHAIN`` with ``a`` and ``b`` channels."""
    proto = model(CHAIN.format(a=a, b=b))
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    first = _group(0, a, [("n0", 1, "w1", 0, "writes"), ("n0", 2, "b1", 0, "writes"), ("n2", 1, "w2", 1, "reads")])
    second = _group(1, b, [("n2", 1, "w2", 0, "writes"), ("n4", 1, "w3", 1, "reads")])
    return Dependencies(proto, (_with_tensors(first, ["c1", "r1"], 1), _with_tensors(second, ["c2", "r2"], 1)))


def _group(number: int, size: int, members: list[tuple[str, int, str, int, str]]) -> Group:
    every = np.arange(size)[:, None]
    listed = tuple(Member(node, "Conv", slot, name, axis, role, every) for node, slot, name, axis, role in members)  # type: ignore[arg-type]
    return Group(number, f"group {number}", size, listed, ())


def _with_tensors(group: Group, tensors: list[str], axis: int) -> Group:
    every = np.arange(group.size)[:, None]
    places = tuple(TensorAxis(name, axis, every) for name in tensors)
    return Group(group.number, group.name, group.size, group.members, places)


def samples(proto: onnx.ModelProto, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Smooth random inputs for a net with one input ``x``."""
    rng = np.random.default_rng(seed)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": rng.normal(size=shape).astype(np.float32).cumsum(axis=-1)} for _ in range(count)]
