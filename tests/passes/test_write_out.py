"""Operators that a target does not take are written as simpler ones; what has no such form stays."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_same, context, feeds, model, ops, outputs

from graphopt.exact import run_exact
from graphopt.graph import export_graph, import_graph, verify
from graphopt.passes import PASSES
from graphopt.passes.base import Context, PassReport
from graphopt.passes.fuse_activations import FuseActivations
from graphopt.passes.fuse_normalization import FuseNormalization
from graphopt.passes.fuse_padding import FusePadding
from graphopt.passes.write_out import WriteOut
from graphopt.passes.writing_out.forms import FORMS


def refusing(*operators: str, opset: int = 26) -> Context:
    """A context of hardware that does not take some operators."""
    usual = context()
    return replace(usual, hardware=replace(usual.hardware, written_out=operators, opset=(7, opset)))


def written(proto: onnx.ModelProto, *operators: str, opset: int = 26) -> tuple[onnx.ModelProto, PassReport]:
    """The model with operators written out: valid, and the same once more."""
    work = import_graph(proto)
    report = WriteOut().apply(work.gs, refusing(*operators, opset=opset))
    result = export_graph(work)
    verify(result)
    again = import_graph(result)
    assert WriteOut().apply(again.gs, refusing(*operators, opset=opset)).changes == 0
    return result, report


# Operator -> opset, nodes.
NETS = {
    "HardSwish": (14, "(float[N,3] x) => (float[N,3] y)", "y = HardSwish(x)"),
    "HardSigmoid": (13, "(float[N,3] x) => (float[N,3] y)", "y = HardSigmoid<alpha = 0.3>(x)"),
    "HardSigmoid before opset 11": (9, "(float[N,3] x) => (float[N,3] y)", "y = HardSigmoid(x)"),
    "Swish": (24, "(float[N,3] x) => (float[N,3] y)", "y = Swish<alpha = 1.7>(x)"),
    "Mish": (18, "(float[N,3] x) => (float[N,3] y)", "y = Mish(x)"),
    "Gelu": (20, "(float[N,3] x) => (float[N,3] y)", "y = Gelu(x)"),
    "Gelu by tanh": (20, "(float[N,3] x) => (float[N,3] y)", 'y = Gelu<approximate = "tanh">(x)'),
    "Celu": (13, "(float[N,3] x) => (float[N,3] y)", "y = Celu<alpha = 0.7>(x)"),
    "Celu, plain": (13, "(float[N,3] x) => (float[N,3] y)", "y = Celu(x)"),
    "Elu": (13, "(float[N,3] x) => (float[N,3] y)", "y = Elu<alpha = 0.7>(x)"),
    "LayerNormalization": (17, "(float[N,2,3] x) => (float[N,2,3] y)", "y = LayerNormalization(x, three, three)"),
    "LayerNormalization, two axes": (17, "(float[N,2,3] x) => (float[N,2,3] y)",
                                     "y = LayerNormalization<axis = 1, epsilon = 0.1>(x, two_three)"),
    "LayerNormalization, as of 18": (18, "(float[N,2,3] x) => (float[N,2,3] y)", "y = LayerNormalization(x, three)"),
    "RMSNormalization": (23, "(float[N,2,3] x) => (float[N,2,3] y)", "y = RMSNormalization(x, three)"),
    "GroupNormalization": (21, "(float[N,4,5,6] x) => (float[N,4,5,6] y)",
                           "y = GroupNormalization<num_groups = 2, epsilon = 0.01>(x, four, four)"),
    "GroupNormalization, computed scale": (21, "(float[N,4,5,6] x) => (float[N,4,5,6] y)",
                           "s = Abs(four)  y = GroupNormalization<num_groups = 2>(x, s, four)"),
    "MeanVarianceNormalization": (13, "(float[N,4,5,6] x) => (float[N,4,5,6] y)", "y = MeanVarianceNormalization(x)"),
    "LpNormalization": (13, "(float[N,4] x) => (float[N,4] y)", "r = Relu(x)  y = LpNormalization<axis = 1>(r)"),
    "LpNormalization, p=1": (13, "(float[N,4] x) => (float[N,4] y)", "y = LpNormalization<p = 1, axis = 0>(x)"),
    "DepthToSpace": (13, "(float[N,8,3,2] x) => (float[N,2,6,4] y)", "y = DepthToSpace<blocksize = 2>(x)"),
    "DepthToSpace, CRD": (13, "(float[N,8,3,2] x) => (float[N,2,6,4] y)",
                          'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)'),
    "SpaceToDepth": (13, "(float[N,3,4,6] x) => (float[N,12,2,3] y)", "y = SpaceToDepth<blocksize = 2>(x)"),
    "GlobalAveragePool": (13, "(float[N,3,4,6] x) => (float[N,3,1,1] y)", "y = GlobalAveragePool(x)"),
    "ReduceMean": (13, "(float[N,3,4,6] x) => (float[N,3] y)", "y = ReduceMean<axes = [-1, 2], keepdims = 0>(x)"),
    "ReduceMean, as of 18": (18, "(float[N,3,4,6] x) => (float[N,3,1,1] y)", "y = ReduceMean(x, spatial)"),
    "Hardmax": (13, "(float[N,3,5] x) => (float[N,3,5] y)", "r = Round(x)  y = Hardmax<axis = 1>(r)"),
    "OneHot": (13, "(int64[N,2] x) => (float[N,4,2] y)", "i = Sub(x, one)  y = OneHot<axis = 1>(i, depth, off_on)"),
    "Trilu": (14, "(float[N,3,4] x) => (float[N,3,4] y)", "y = Trilu<upper = 0>(x, one)"),
    "Trilu, upper": (14, "(float[N,3,4] x) => (float[N,3,4] y)", "y = Trilu(x)"),
    "CastLike": (15, "(float[N,3] x, int64[N] k) => (int64[N,3] y)", "y = CastLike(x, k)"),
    "Xor": (13, "(bool[N,3] x, bool[N,3] z) => (bool[N,3] y)", "y = Xor(x, z)"),
    "GreaterOrEqual": (13, "(float[N,3] x) => (bool[N,3] y)", "r = Round(x)  y = GreaterOrEqual(r, zero)"),
    "LessOrEqual": (13, "(float[N,3] x) => (bool[N,3] y)", "r = Round(x)  y = LessOrEqual(r, zero)"),
    "Sign": (13, "(float[N,3] x) => (float[N,3] y)", "r = Round(x)  y = Sign(r)"),
    "Einsum": (13, "(float[N,3,4] x, float[N,4,5] z) => (float[N,3,5] y)",
               'y = Einsum<equation = "bij,bjk->bik">(x, z)'),
}  # fmt: skip
CONSTANTS = """float[3] three, float[2,3] two_three, float[4] four, int64[2] spatial = {2, 3}, int64 one = {1},
    int64 depth = {4}, float[2] off_on = {-1, 3}, float zero = {0}"""


def net(opset: int, head: str, body: str) -> onnx.ModelProto:
    proto = model(f"g {head} <{CONSTANTS}> {{ {body} }}", opset=opset, ir_version=10)
    read = {tensor for node in proto.graph.node for tensor in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


def operator(case: str) -> str:
    return re.split("[ ,]", case)[0]


@pytest.mark.parametrize("case", NETS)
def test_each_form_computes_what_the_operator_does(case: str) -> None:
    proto, op = net(*NETS[case]), operator(case)
    after, report = written(proto, op)
    assert op not in ops(after), report.skipped
    assert dict(report.details) == {op: 1}
    fed = feeds(proto, batch=3)
    assert_same(outputs(proto, fed), outputs(after, fed))


def test_every_form_is_tested() -> None:
    assert {operator(case) for case in NETS} | {"LogSoftmax", "Shape", "Softmax"} == FORMS.keys()


def test_nothing_is_done_where_the_target_takes_everything() -> None:
    proto = net(*NETS["HardSwish"])
    assert ops(written(proto)[0]) == ["HardSwish"]


def test_a_form_that_holds_a_refused_operator_is_written_out_in_turn() -> None:
    after, report = written(net(*NETS["HardSwish"]), "HardSwish", "HardSigmoid")
    assert ops(after) == ["Mul", "Add", "Clip", "Mul"]
    assert dict(report.details) == {"HardSigmoid": 1, "HardSwish": 1}


@pytest.mark.parametrize(("case", "highest"), [("HardSwish", 13), ("Mish", 17), ("LayerNormalization", 13),
                                               ("RMSNormalization", 20), ("Trilu", 13), ("CastLike", 14),
                                               ("GroupNormalization", 20), ("Einsum", 11)])  # fmt: skip
def test_operators_that_came_after_what_the_target_takes(case: str, highest: int) -> None:
    proto = net(*NETS[case])
    after, _ = written(proto, opset=highest)
    assert case not in ops(after)
    fed = feeds(proto, batch=3)
    assert_same(outputs(proto, fed), outputs(after, fed))


def test_a_shape_of_some_axes_becomes_a_slice_of_it() -> None:
    proto = model("g (float[N,3,4] x) => (int64[2] y) { y = Shape<start = -2>(x) }", opset=15)
    after, _ = written(proto, opset=13)
    assert ops(after) == ["Shape", "Slice"]
    fed = feeds(proto)
    assert_same(outputs(proto, fed), outputs(after, fed))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_along_an_inner_axis_is_turned_around_for_old_operator_sets(op: str) -> None:
    proto = model(f"g (float[N,3,4] x) => (float[N,3,4] y) {{ y = {op}<axis = 1>(x) }}", opset=13)
    after, _ = written(proto, opset=11)
    assert ops(after) == ["Transpose", op, "Transpose"]
    fed = feeds(proto)
    assert_same(outputs(proto, fed), outputs(after, fed))


@pytest.mark.parametrize("op", ["Mish", "LayerNormalization"])
def test_half_precision_computes_as_the_operator_does(op: str) -> None:
    """LayerNormalization computes in float32 what it reads in float16: 300 squared is more than float16 holds."""
    inputs = {"Mish": "x", "LayerNormalization": "x, s"}[op]
    proto = model(f"g (float16[N,8] x) => (float16[N,8] y) <float16[8] s> {{ y = {op}({inputs}) }}", opset=18)
    if op == "Mish":
        del proto.graph.initializer[:]
    after, _ = written(proto, op)
    assert op not in ops(after)
    fed = {"x": (feeds(proto)["x"] * 300).astype(np.float16)}
    assert_same(outputs(proto, fed), outputs(after, fed), rtol=2e-3)


def test_nodes_in_subgraphs() -> None:
    text = """g (float[4] x, bool go) => (float[4] y) {
      y = If (go) <then_branch = t () => (float[4] p) { p = HardSwish(x) },
                   else_branch = e () => (float[4] q) { q = Identity(x) }> }"""
    proto = model(text)
    after, report = written(proto, "HardSwish")
    assert report.changes == 1
    fed = {"x": np.array([-4, -1, 1, 4], np.float32), "go": np.array(True)}
    assert_same(outputs(proto, fed), outputs(after, fed))


STAYS = {
    "GridSample": ("(float[1,2,3,4] x, float[1,5,5,2] z) => (float[1,2,5,5] y)", "y = GridSample(x, z)",
                   "there is no simpler form of it"),
    "DepthToSpace": ("(float[N,8,H,W] x) => (float[N,2,I,J] y)", "y = DepthToSpace<blocksize = 2>(x)",
                     "its sizes are not known"),
    "LayerNormalization": ("(float[N,3] x) => (float[N,3] y, float[N,1] m)",
                           "y, m = LayerNormalization(x, three)  n = Neg(m)",
                           "another output than the first is read"),
    "ReduceMean": ("(float[N,3,4] x) => (float[N,1,4] y)", "y = ReduceMean<axes = [1]>(x)",
                   "its mean is not over all axes but batch and channels"),
    "OneHot": ("(int64[N] x, int64 d) => (float[N,D] y)", "y = OneHot(x, d, off_on)", "its depth is computed"),
}  # fmt: skip


@pytest.mark.parametrize("op", STAYS)
def test_what_has_no_form_stays_and_is_reported(op: str) -> None:
    head, body, reason = STAYS[op]
    proto = net(17, head, body)
    after, report = written(proto, op)
    assert ops(after) == ops(proto)
    assert [reason in skip.reason for skip in report.skipped] == [True]


EQUATIONS = {
    "ij,jk->ik": ((2, 3), (3, 4)),
    "bhqd,bhkd->bhqk": ((2, 3, 4, 5), (2, 3, 6, 5)),
    "bqhd,bkhd->bhqk": ((2, 4, 3, 5), (2, 6, 3, 5)),
    "bhqk,bkhd->bqhd": ((2, 3, 4, 6), (2, 6, 3, 5)),
    "nctw,cd->ndtw": ((2, 3, 4, 5), (3, 6)),
    "nchw,chwo->no": ((2, 3, 4, 5), (3, 4, 5, 6)),
    "i,j->ij": ((2,), (3,)),
    "i,i->": ((4,), (4,)),
    "ij->ji": ((2, 3),),
    "ijk->j": ((2, 3, 4),),
    "ij,ij->ij": ((2, 3), (2, 3)),
    "ab,bc,cd->ad": ((2, 3), (3, 4), (4, 5)),
    "...i,ij->...j": ((2, 3, 4), (4, 5)),
    "bij,bj->bi": ((2, 3, 4), (2, 4)),
    "ij,k->i": ((2, 3), (4,)),
    "ij,jk": ((2, 3), (3, 4)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("opset", [12, 13])
def test_einsum(equation: str, opset: int) -> None:
    shapes = EQUATIONS[equation]
    names = ["x", "z", "w"][: len(shapes)]
    declared = ", ".join(
        f"float[{','.join(map(str, shape))}] {name}" for name, shape in zip(names, shapes, strict=True)
    )
    proto = model(
        f'g ({declared}) => (float y) {{ y = Einsum<equation = "{equation}">({", ".join(names)}) }}', opset=opset
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    after, report = written(proto, "Einsum")
    assert "Einsum" not in ops(after), report.skipped
    fed = feeds(proto)
    assert_same(outputs(proto, fed), outputs(after, fed))


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.data())
def test_einsum_of_two_random_operands(data: st.DataObject) -> None:
    letters = "abcde"
    sizes = dict(zip(letters, (2, 3, 4, 5, 6), strict=True))
    left, right = ("".join(data.draw(st.permutations(letters))[: data.draw(st.integers(2, 4))]) for _ in range(2))
    every = sorted({*left, *right})
    wanted = "".join(data.draw(st.permutations(every))[: data.draw(st.integers(0, len(every)))])
    shapes = [",".join(str(sizes[letter]) for letter in term) for term in (left, right)]
    equation = f"{left},{right}->{wanted}"
    body = f'y = Einsum<equation = "{equation}">(x, z)'
    proto = model(f"g (float[{shapes[0]}] x, float[{shapes[1]}] z) => (float y) {{ {body} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    after, _ = written(proto, "Einsum")
    assert "Einsum" not in ops(after)
    fed = feeds(proto)
    assert_same(outputs(proto, fed), outputs(after, fed), rtol=1e-4)


def test_passes_that_recognise_activations_do_not_undo_it() -> None:
    """In one run with them it ends, and what the target does not take is gone."""
    text = """g (float[N,8] x) => (float[N,8] y) <float[8] s> {
      a = HardSwish(x)  b = Gelu(a)  c = Mish(b)  y = LayerNormalization(c, s) }"""
    proto = model(text, opset=20, ir_version=9)
    passes = [FuseActivations(), FuseNormalization(), WriteOut()]
    gone = ("HardSwish", "Gelu", "Mish", "LayerNormalization")
    after, _ = run_exact(passes, proto, refusing(*gone))
    assert not {*gone} & {*ops(after)}
    fed = feeds(proto)
    assert_same(outputs(proto, fed), outputs(after, fed))
    newer, _ = run_exact(passes, proto, refusing("HardSwish", opset=13))
    assert not {*gone} & {*ops(newer)}


def test_a_pool_over_the_whole_image_is_not_made_global_again() -> None:
    proto = model("g (float[N,3,4,6] x) => (float[N,3,1,1] y) { y = GlobalAveragePool(x) }")
    after, _ = run_exact([FusePadding(), WriteOut()], proto, refusing("GlobalAveragePool"))
    assert ops(after) == ["AveragePool"]


def test_every_recipe_with_refusals_ends() -> None:
    """No pass of a recipe makes what another writes out: a run that does not settle is stopped after 20 rounds."""
    text = """g (float[N,8,6,6] x) => (float[N,8] y)
      <float[8] s, float[8,8,1,1] w, float[8] b, int64[2] spatial = {2, 3}> {
      a = Conv(x, w, b)  h = HardSwish(a)  g = GlobalAveragePool(h)  i = HardSigmoid(g)  m = Mul(h, i)
      r = ReduceMean<keepdims = 0>(m, spatial)  l = LayerNormalization(r, s)  y = Mish(l) }"""
    proto = model(text, opset=20, ir_version=9, w=np.ones((8, 8, 1, 1)) * 0.1)
    unwanted = ("HardSwish", "GlobalAveragePool", "HardSigmoid", "LayerNormalization", "Mish")
    passes: list[Any] = [PASSES[name]() for name in PASSES if PASSES[name].exact]
    after, outcomes = run_exact(passes, proto, refusing(*unwanted, opset=13))
    assert not [outcome.failure for outcome in outcomes if outcome.failure]
    assert not {*unwanted} & {*ops(after)}
    again, more = run_exact(passes, after, refusing(*unwanted, opset=13))
    assert again is after, [outcome.name for outcome in more if outcome.report.changes]
    fed = feeds(proto)
    assert_same(outputs(proto, fed), outputs(after, fed))
