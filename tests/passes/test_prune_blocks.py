"""Residual blocks: which are found, that taking one out equals a branch of zeros, and which go first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_same, feeds, model, ops, outputs

from graphopt.errors import DataError, UsageError
from graphopt.graph import import_graph, infer_types, verify
from graphopt.passes.base import Candidate, Context, Declined, Goals
from graphopt.passes.blocks.drop import without_blocks
from graphopt.passes.blocks.find import Block, find_blocks
from graphopt.passes.prune_blocks import PruneBlocks
from graphopt.targets import load_target

PADS = "<pads = [1, 1, 1, 1]>"
# Two blocks with an activation behind each, and one with a gate (squeeze-and-excitation) and nothing behind.
NET = f"""g (float[N,4,6,6] x) => (float[N,3] y)
  <float[4,4,3,3] k, float[4,4,3,3] a, float[4,4,3,3] b, float[4,4,3,3] c, float[4,4,1,1] d, float[4,4,1,1] e,
   float[4,3] w> {{
  s = Conv{PADS}(x, k)
  a1 = Conv{PADS}(s, a)  a2 = Relu(a1)  a3 = Conv{PADS}(a2, b)  [one] ta = Add(a3, s)  ra = Relu(ta)
  c1 = Conv{PADS}(ra, c)  [two] tc = Add(ra, c1)  rc = Relu(tc)
  d1 = Conv(rc, d)  p = GlobalAveragePool(d1)  q = Conv(p, e)  h = Sigmoid(q)  m = Mul(d1, h)  [three] td = Add(rc, m)
  g = GlobalAveragePool(td)  f = Flatten(g)  y = MatMul(f, w) }}"""


def blocks_of(proto: onnx.ModelProto) -> tuple[Block, ...]:
    types = infer_types(proto)
    integers = {name for name, found in types.items() if found.dtype == onnx.TensorProto.INT64}
    return find_blocks(import_graph(proto).gs, None, integers).all


def zeroed(proto: onnx.ModelProto, blocks: Sequence[Block]) -> onnx.ModelProto:
    """The whole model with the branches of blocks times zero."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    changed.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "nothing"))
    wanted = {block.output: block for block in blocks}
    nodes = []
    for node in changed.graph.node:
        block = wanted.get(node.output[0])
        if block is not None:
            branch = node.input[1 - block.slot]
            nodes.append(onnx.helper.make_node("Mul", [branch, "nothing"], [f"{branch} of {block.name}"]))
            node.input[1 - block.slot] = f"{branch} of {block.name}"
        nodes.append(node)
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


def samples(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"x": np.random.default_rng(seed).normal(size=(1, 4, 6, 6)).astype(np.float32)}
        for seed in range(first, first + count)
    ]


def context(**more: Any) -> Context:
    given = {"calibration": samples(24), "selection": samples(8, 100), "goals": Goals(to_threshold=True)}
    return Context(load_target("cpu").hardware, **(given | more))


def candidates(proto: onnx.ModelProto, given: Context | None = None, **options: Any) -> list[Candidate]:
    """All candidates; each is valid, and the model is untouched."""
    before = proto.SerializeToString(deterministic=True)
    found = list(PruneBlocks(**options).candidates(proto, given or context()))
    for candidate in found:
        verify(candidate.model)
    assert proto.SerializeToString(deterministic=True) == before
    return found


def taken_out(candidate: Candidate) -> list[str]:
    return [entry["block"] for entry in candidate.report.details["taken_out"]]


def test_blocks_are_found_in_order() -> None:
    found = blocks_of(model(NET))
    assert [block.name for block in found] == ["one", "two", "three"]
    assert [block.stream for block in found] == ["s", "ra", "rc"]
    assert [block.layers for block in found] == [("a1", "a3"), ("c1",), ("d1", "q")]
    assert [block.nodes for block in found] == [3, 1, 5]


@settings(derandomize=True, deadline=None, max_examples=8)
@given(chosen=st.sets(st.integers(0, 2)))
def test_taking_blocks_out_equals_branches_of_zeros(chosen: set[int]) -> None:
    proto = model(NET)
    blocks = [block for number, block in enumerate(blocks_of(proto)) if number in chosen]
    smaller = without_blocks(proto, blocks)
    verify(smaller)
    assert_same(outputs(zeroed(proto, blocks), feeds(proto)), outputs(smaller, feeds(proto)))
    assert len(smaller.graph.node) == len(proto.graph.node) - sum(block.nodes + 1 for block in blocks)
    left = {name for node in smaller.graph.node for name in node.output}
    assert left <= {name for node in proto.graph.node for name in node.output}, "tensors keep their names"


def test_a_block_at_an_output_leaves_the_output_its_name() -> None:
    proto = model("g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { b = MatMul(x, w)  y = Add(b, x) }")
    smaller = without_blocks(proto, blocks_of(proto))
    assert ops(smaller) == ["Identity"]
    assert_same({"y": feeds(proto)["x"]}, outputs(smaller, feeds(proto)))


KINDS = {
    "dropout and identity on either way": """g (float[N,4] x) => (float[N,4] y) <float[4,4] w> {
      i = Identity(x)  d = Dropout(x)  b = MatMul(d, w)  e = Dropout(b)  y = Add(i, e) }""",
    "layer scale": """g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4] scale> {
      b = MatMul(x, w)  c = Mul(scale, b)  y = Add(x, c) }""",
    "Sum": "g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { b = MatMul(x, w)  y = Sum(x, b) }",
    "transposed stream": """g (float[N,4,6] x) => (float[N,6,4] y) <float[3,4,1] w, float[3,4] v> {
      c = Conv(x, w)  t = Transpose<perm = [0, 2, 1]>(c)  b = MatMul(t, v)  s = Transpose<perm = [0, 2, 1]>(x)
      y = Add(s, b) }""",
    "sizes computed before the block": """g (float[N,4] x) => (float[N,4] y, int64[2] n) <float[4,4] w> {
      n = Shape(x)  r = Relu(x)  b = MatMul(r, w)  c = Reshape(b, n)  y = Add(r, c) }""",
    "weights from a generator": """g (float[N,4] x) => (float[N,4] y) <int64[2] n = {4, 4}> {
      w = ConstantOfShape<value = float[1] {2}>(n)  b = MatMul(x, w)  y = Add(x, b) }""",
    "recurrent": """g (float[5,N,4] x) => (float[5,N,4] y) <float[1,16,4] w, float[1,16,4] r, int64[1] one = {1}> {
      h = LSTM<hidden_size = 4>(x, w, r)  b = Squeeze(h, one)  y = Add(b, x) }""",
    "attention": """g (float[N,5,4] x) => (float[N,5,4] y) <float[4,4] q, float[4,4] k, float[4,4] v> {
      a = MatMul(x, q)  b = MatMul(x, k)  c = MatMul(x, v)  t = Transpose<perm = [0, 2, 1]>(b)  s = MatMul(a, t)
      p = Softmax(s)  o = MatMul(p, c)  y = Add(x, o) }""",
}


@pytest.mark.parametrize("text", KINDS.values(), ids=list(KINDS))
def test_kinds_of_blocks(text: str) -> None:
    proto = model(text)
    blocks = blocks_of(proto)
    assert [block.output for block in blocks] == ["y"]
    assert_same(outputs(zeroed(proto, blocks), feeds(proto)), outputs(without_blocks(proto, blocks), feeds(proto)))


def test_a_block_inside_a_block_is_one_too() -> None:
    proto = model(
        """g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v> {
        a = MatMul(x, w)  b = MatMul(a, v)  [inner] c = Add(a, b)  [outer] y = Add(x, c) }"""
    )
    blocks = blocks_of(proto)
    assert [block.name for block in blocks] == ["inner", "outer"]
    assert_same(outputs(zeroed(proto, blocks), feeds(proto)), outputs(without_blocks(proto, blocks), feeds(proto)))


NEITHER = "neither operand is computed from the other alone"
NO_BLOCKS = {
    "projection": ("a = MatMul(x, w)  b = MatMul(x, v)  y = Add(a, b)", NEITHER),
    "branch is read elsewhere": ("a = MatMul(x, w)  z = Relu(a)  b = MatMul(a, v)  y = Add(x, b)", NEITHER),
    "branch is an output": ("z = MatMul(x, w)  y = Add(x, z)", NEITHER),
    "branch reads more than the stream": ("r = Relu(x)  s = MatMul(x, w)  b = Mul(r, s)  y = Add(r, b)", NEITHER),
    "no layer": ("b = Relu(x)  y = Add(x, b)", "its branch holds no layer with weights"),
}


@pytest.mark.parametrize(("body", "reason"), NO_BLOCKS.values(), ids=list(NO_BLOCKS))
def test_leaves_alone(body: str, reason: str) -> None:
    more = "" if "z = " not in body else ", float[N,4] z"
    proto = model(f"g (float[N,4] x) => (float[N,4] y{more}) <float[4,4] w, float[4,4] v> {{ {body} }}")
    found = find_blocks(import_graph(proto).gs, None)
    assert not found.all
    assert [(skip.where, skip.reason) for skip in found.skipped] == [("y", reason)]


def test_a_branch_that_widens_the_stream_stays() -> None:
    proto = model(
        """g (float[N,4,6,6] x) => (float[N,4,6,6] y) <float[4,4,1,1] w, float[1,1,3,3] v> {
        p = GlobalAveragePool(x)  c = Conv(p, w)  b = Expand(c, n)  y = Add(p, b) }""".replace("float[1,1,3,3] v",
        "int64[4] n = {1, 4, 6, 6}")
    )  # fmt: skip
    with pytest.raises(Declined, match="no residual block") as declined:
        candidates(proto)
    assert declined.value.report.skipped[0].reason == "its branch widens the stream from [1, 4, 1, 1] to [1, 4, 6, 6]"


def test_as_many_blocks_as_asked_for_go_and_later_candidates_keep_more() -> None:
    found = candidates(model(NET), blocks=2)
    assert [candidate.report.changes for candidate in found] == [2, 1]
    assert found[0].label == "2 of 3 residual blocks taken out"
    assert taken_out(found[1]) == taken_out(found[0])[:1]
    assert found[0].report.details["macs"] < found[1].report.details["macs"] < 1
    assert found[0].faster


def test_blocks_that_do_nothing_go_first() -> None:
    proto = model(NET, c=np.full((4, 4, 3, 3), 1e-4))
    (candidate,) = candidates(proto, blocks=1)
    assert taken_out(candidate) == ["two"]
    assert candidate.report.details["sqnr_db"] > 50


def test_what_a_block_adds_linearly_is_made_up_for_by_the_layers_behind() -> None:
    """Without an activation, y = (x + x w) v is x (v + w v)."""
    proto = model(
        """g (float[N,4] x) => (float[N,3] y) <float[4,4] w, float[4,3] v> {
        b = MatMul(x, w)  s = Add(x, b)  y = MatMul(s, v) }"""
    )
    fed = [{"x": np.random.default_rng(seed).normal(size=(1, 4)).astype(np.float32)} for seed in range(200)]
    (candidate,) = candidates(proto, context(calibration=fed, selection=fed[:4]), blocks=1)
    assert ops(candidate.model).count("MatMul") == 1
    assert candidate.report.details["sqnr_db"] > 60
    assert candidate.report.details["refitted_layers"] == 1


def test_budgets_of_multiply_adds() -> None:
    proto = model(NET)
    (candidate,) = candidates(proto, max_macs=0.75)
    assert candidate.report.details["macs"] <= 0.75
    (same,) = candidates(proto, context(goals=Goals(max_macs=0.75)))
    assert taken_out(same) == taken_out(candidate)
    with pytest.raises(Declined, match=r"no more than 75.0% of the multiply-adds as it is"):
        candidates(proto, context(goals=Goals(max_macs=0.75, original_macs=10**9)))
    with pytest.raises(Declined, match=r"1.0% of the multiply-adds cannot be reached: without all 3 .* are left"):
        candidates(proto, max_macs=0.01)


def test_accuracy_decides_where_no_budget_is_set() -> None:
    """The lectures' rule: go on until the accuracy asked for is lost."""
    proto = model(NET, c=np.full((4, 4, 3, 3), 1e-4))
    lost = Goals(max_drop=0.01, to_threshold=True, drop=lambda one: 0.0 if len(one.graph.node) > 15 else 0.5)
    (candidate, *more) = candidates(proto, context(goals=lost))
    assert taken_out(candidate) == ["two"]
    assert not more


def test_nothing_is_done_unasked() -> None:
    with pytest.raises(Declined, match="nothing asks for fewer blocks"):
        candidates(model(NET), context(goals=Goals()))


def test_excluded_blocks_stay() -> None:
    (candidate, *_) = candidates(model(NET), blocks=3, exclude="one two")
    assert taken_out(candidate) == ["three"]
    assert [skip.where for skip in candidate.report.skipped] == ["one", "two"]
    with pytest.raises(UsageError, match="names no residual block: four"):
        candidates(model(NET), exclude="four")


def test_the_same_model_gives_the_same_bytes() -> None:
    first, second = (candidates(model(NET), blocks=1)[0].model for _ in range(2))
    assert first == second


def test_data_is_needed() -> None:
    with pytest.raises(DataError, match="no sample"):
        candidates(model(NET), context(calibration=[]))


@pytest.mark.parametrize("options", [{"blocks": -1}, {"max_macs": 1.5}, {"blocks": 1, "max_macs": 0.5}, {"samples": 0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"prune_blocks.{next(iter(options))}"):
        PruneBlocks(**options)
