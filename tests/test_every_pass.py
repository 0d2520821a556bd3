"""What holds for every pass, whatever the model: nets of all kinds, and onnx's own operator tests."""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from support import HEAD, apply, assert_same, context, feeds, model, outputs

from graphopt import runtime
from graphopt.errors import GraphoptError
from graphopt.graph import export_graph, import_graph, verify, walk
from graphopt.passes import PASSES
from graphopt.passes.base import ExactPass

EXACT = [kind for kind in PASSES.values() if kind.exact]
NETS = {
    "empty": "g (float[2] x) => (float[2] y) { y = Identity(x) }",
    "conv, normalization, residual": """g (float[N,4,8,8] x) => (float[N,3] y)
      <float[4,4,3,3] w, float[4] scale, float[4] shift, float[4] mean, float[4] var, float[4,3] v, float[3] b> {
      c = Conv<pads = [1, 1, 1, 1]>(x, w)  n = BatchNormalization(c, scale, shift, mean, var)
      r = Relu(n)  a = Add(r, x)  p = GlobalAveragePool(a)  f = Flatten(p)  y = Gemm(f, v, b) }""",
    "shuffle written with shapes": """g (float[N,4,6,6] x) => (float[N,4,6,6] y)
      <int64 i0 = {0}, int64[1] z = {0}, int64[4] tail = {2, 2, 6, 6}, int64[4] flat = {0, 4, 6, 6}> {
      s = Shape(x)  n = Gather(s, i0)  u = Unsqueeze(n, z)  t = Concat<axis = 0>(u, tail)
      r = Reshape(x, t)  p = Transpose<perm = [0, 2, 1, 3, 4]>(r)  y = Reshape(p, flat) }""",
    "subgraphs": """g (float[4] x, int64 n, bool go) => (float[4] y) <float[4] w> {
      z = Identity(x)
      l = Loop (n, go, z) <body = b (int64 i, bool c, float[4] s) => (bool d, float[4] t)
        { k = Constant<value = float[4] {1, 2, 3, 4}>()  m = Mul(w, k)  d = Identity(c)  u = Add(s, m)  t = Sub(u, z) }>
      y = If (go) <then_branch = t () => (float[4] p) { p = Mul(l, w) },
                   else_branch = e () => (float[4] q) { q = Identity(z) }> }""",
    "quantized": """g (float[N,4] x) => (float[N,4] y) <int8[4,4] q, float s, int8 zero = {0}, float t, uint8 u = {3}> {
      a = QuantizeLinear(x, t, u)  b = DequantizeLinear(a, t, u)  w = DequantizeLinear(q, s, zero)
      m = MatMul(b, w)  y = Identity(m) }""",
    "recurrent": """g (float[5,N,4] x) => (float[5,1,N,3] y)
      <float[1,12,4] w, float[1,12,3] r, float[1,24] b> { y = LSTM<hidden_size = 3>(x, w, r, b) }""",
}  # fmt: skip


def test_passes_are_listed_in_order_under_their_own_names() -> None:
    assert list(PASSES) == sorted(PASSES)
    assert [kind.name for kind in PASSES.values()] == list(PASSES)


@pytest.mark.parametrize("kind", PASSES.values(), ids=list(PASSES))
def test_a_pass_is_a_value_whose_fields_are_its_options(kind: Any) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind() == kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().name = "other"
    assert kind.summary
    assert "\n" not in kind.summary
    assert not kind.summary.endswith(".")


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
@pytest.mark.parametrize("net", NETS)
def test_exact_passes_keep_what_a_net_computes(kind: Any, net: str) -> None:
    proto = model(NETS[net])
    fed = feeds(proto)
    fed.update({name: np.array(flag) for name, flag in (("n", 2), ("go", True)) if name in fed})
    apply(kind(), proto, fed)


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_foreign_nodes_with_their_metadata_survive(kind: Any) -> None:
    text = (
        HEAD.format(opset='17, "custom" : 3')
        + """g (float[4] x) => (float[4] y)
      { [odd] a = custom.Odd<depth = 3>(x)  i = Identity(a)  y = custom.Even(i) }"""
    )
    proto = model(text)
    proto.metadata_props.add(key="author", value="someone")
    proto.graph.node[0].doc_string = "nobody knows"
    run = apply(kind(), proto, compare=False)
    assert run.after.graph.node[0] == proto.graph.node[0]
    assert run.after.graph.node[-1].op_type == "Even"
    assert run.after.metadata_props == proto.metadata_props
    assert run.after.opset_import == proto.opset_import


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_nothing_is_printed(kind: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for text in NETS.values():
        kind().apply(import_graph(model(text)).gs, context())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_weights_that_were_not_loaded_are_no_obstacle(kind: Any) -> None:
    proto = model(NETS["conv, normalization, residual"])
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")
    work = import_graph(proto)
    kind().apply(work.gs, context())
    assert len(export_graph(work).graph.initializer) == len(proto.graph.initializer)


# onnx generates more than 1,800 operator tests, in minutes; these files cover what the passes and the graph layer
# treat specially: shapes and data movement, linear operators, subgraphs, sequences, odd types, functions.
OPERATORS = (
    "batch_normalization", "bernoulli", "cast", "castlike", "center_crop_pad", "clip", "concat", "constant",
    "constantofshape", "conv", "convtranspose", "dequantizelinear", "dropout", "expand", "eyelike", "flatten", "gather",
    "gemm", "groupnormalization", "hardswish", "identity", "if_", "layernormalization", "loop", "matmul",
    "nonmaxsuppression", "optionalhaselement", "pad", "quantizelinear", "rangeop", "reshape", "resize", "scan",
    "sequence_map", "sequenceinsert", "shape", "size", "slice", "split", "splittosequence", "squeeze", "string_concat",
    "sum", "tile", "transpose", "unsqueeze", "upsample", "where",
)  # fmt: skip


@cache
def operator_tests() -> list[Any]:
    node = importlib.import_module("onnx.backend.test.case.node")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in OPERATORS:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
    found = sorted(node._NodeTestCases, key=lambda case: case.name)
    return found[:: max(1, len(found) // 150)]


def frozen(proto: onnx.ModelProto, fed: dict[str, Any]) -> onnx.ModelProto:
    """The model with its inputs as initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.ClearField("input")
    copy.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in fed.items())
    copy.ir_version = max(copy.ir_version, 4)
    return copy


def accepted(proto: onnx.ModelProto) -> bool:
    """Whether onnx takes its own model: it cannot infer through MeanVarianceNormalization, for one."""
    try:
        verify(proto)
    except GraphoptError:
        return False
    return True


def run_all(proto: onnx.ModelProto) -> onnx.ModelProto:
    work = import_graph(proto)
    for kind in EXACT:
        one: ExactPass = kind()
        one.apply(work.gs, context())
    return export_graph(work)


@pytest.mark.parametrize("shard", range(8))
def test_onnx_operator_tests(shard: int) -> None:
    """Every case, with open and with frozen inputs: still valid, and where ONNX Runtime runs it, the same outputs."""
    compared = 0
    for case in operator_tests()[shard::8]:
        fed = dict(zip([info.name for info in case.model.graph.input], case.data_sets[0][0], strict=False))
        variants = [(case.model, fed)]
        if all(isinstance(array, np.ndarray) and array.dtype != object for array in fed.values()):
            variants.append((frozen(case.model, fed), {}))
        for proto, given in variants:
            if not accepted(proto):
                continue
            before = proto.SerializeToString(deterministic=True)
            result = run_all(proto)
            assert proto.SerializeToString(deterministic=True) == before
            verify(result)
            # A few bytes for longer names; a model that reads no input becomes its answers, whatever they weigh.
            if given:
                assert result.ByteSize() <= proto.ByteSize() + 100, case.name
            try:
                wanted = outputs(proto, given)
            except GraphoptError:
                continue
            if "bernoulli" in case.name or "train" in case.name:
                continue  # random
            assert_same(wanted, runtime.run(runtime.session(result, optimize=False), given), rtol=1e-3)
            compared += 1
    assert compared >= 15


def test_operator_tests_bring_subgraphs_along() -> None:
    graphs = [len(list(walk(import_graph(case.model).gs))) for case in operator_tests()]
    assert sum(count > 1 for count in graphs) >= 3
