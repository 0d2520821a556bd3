"""Every operator that changed between versions computes the same after it was lowered, or stops the lowering."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from support import Arrays, Run, assert_same, context, feeds, model, ops, outputs
from test_raise_opset import NETS as OLD_NETS
from test_raise_opset import net as old_net

from graphopt.exact import run_exact
from graphopt.graph import export_graph, import_graph, verify
from graphopt.passes.base import Context
from graphopt.passes.lower_opset import LowerOpset
from graphopt.passes.raise_opset import RaiseOpset
from graphopt.passes.write_out import WriteOut

NETS = {
    "Clip": (13, "(float[N,3] x) => (float[N,3] y)", "y = Clip(x, low, high)"),
    "Clip above": (13, "(float[N,3] x) => (float[N,3] y)", "y = Clip(x, , high)"),
    "Dropout": (13, "(float[N,3] x) => (float[N,3] y)", "y = Dropout(x, high)"),
    "Pad": (13, "(float[2,5] x) => (float[4,8] y)", "y = Pad(x, pads, high)"),
    "Pad of one axis": (18, "(float[2,5] x) => (float[2,8] y)", "y = Pad(x, one_two, high, minus_one)"),
    "Squeeze": (13, "(float[2,1,5] x) => (float[2,5] y)", "y = Squeeze(x, one)"),
    "Squeeze of all": (13, "(float[2,1,5] x) => (float[2,5] y)", "y = Squeeze(x)"),
    "Unsqueeze": (13, "(float[2,5] x) => (float[2,1,5] y)", "y = Unsqueeze(x, one)"),
    "ReduceSum": (13, "(float[2,5] x) => (float[2] y)", "y = ReduceSum<keepdims = 0>(x, one)"),
    "ReduceSum of all": (13, "(float[2,5] x) => (float[1,1] y)", "y = ReduceSum(x)"),
    "ReduceMean": (18, "(float[2,5] x) => (float[2,1] y)", "y = ReduceMean(x, minus_one)"),
    "ReduceMax": (20, "(float[2,5] x) => (float[2] y)", "y = ReduceMax<keepdims = 0>(x, one)"),
    "Split": (13, "(float[2,5] x) => (float[2,1] y, float[2,4] z)", "y, z = Split<axis = 1>(x, one_four)"),
    "Split evenly": (18, "(float[2,6] x) => (float[2,3] y, float[2,3] z)",
                     "y, z = Split<axis = 1, num_outputs = 2>(x)"),
    "Split unevenly": (18, "(float[2,5] x) => (float[2,3] y, float[2,2] z)",
                       "y, z = Split<axis = 1, num_outputs = 2>(x)"),
    "Softmax": (13, "(float[2,3,5] x) => (float[2,3,5] y)", "y = Softmax(x)"),
    "Softmax of pooled": (13, "(float[2,5,1,1] x) => (float[2,5,1,1] y)", "y = Softmax<axis = 1>(x)"),
    "LogSoftmax": (13, "(float[2,3,5] x) => (float[2,3,5] y)", "y = LogSoftmax<axis = 2>(x)"),
    "BatchNormalization": (15, "(float[N,4,5] x) => (float[N,4,5] y)",
                           "y = BatchNormalization<training_mode = 0>(x, four, four, four, var)"),
    "Reshape": (14, "(float[2,6] x) => (float[1,4,3] y)", "y = Reshape<allowzero = 1>(x, shape)"),
    "Resize": (18, "(float[1,2,3,4] x) => (float[1,2,6,8] y)", 'y = Resize<mode = "linear">(x, , twice)'),
    "Resize to sizes": (13, "(float[1,2,3,4] x) => (float[1,2,6,8] y)", "y = Resize(x, , , sizes)"),
    "Resize of some axes": (18, "(float[1,2,3,4] x) => (float[1,2,6,8] y)",
                            'y = Resize<axes = [3, 2], mode = "linear">(x, , two_two)'),
    "Resize of some axes to sizes": (19, "(float[1,2,3,4] x) => (float[1,2,9,8] y)",
                            "y = Resize<axes = [3, 2]>(x, , , eight_nine)"),
    "Cast": (19, "(float[N,3] x) => (int32[N,3] y)", "y = Cast<to = 6, saturate = 1>(x)"),
    "GridSample": (20, "(float[1,2,3,4] x, float[1,5,5,2] g) => (float[1,2,5,5] y)",
                   'y = GridSample<mode = "cubic">(x, g)'),
    "Shape": (15, "(float[N,3] x) => (int64[2] y)", "y = Shape<start = 0>(x)"),
    "GlobalAveragePool, Conv": (22, "(float[N,3,4,4] x) => (float[N,2,1,1] y)",
                                "c = Conv(x, kernel)  y = GlobalAveragePool(c)"),
    "MaxPool": (22, "(float[1,2,7,8] x) => (float[1,2,3,4] y)",
                "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)"),
    "AveragePool": (22, "(float[1,2,7,8] x) => (float[1,2,3,3] y)",
                    "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], dilations = [1, 1]>(x)"),
    "Q, DQ": (21, "(float[N,3] x) => (float[N,3] y)",
              "q = QuantizeLinear<output_dtype = 3>(x, scale)  y = DequantizeLinear(q, scale)"),
    "Q, DQ by channel": (19, "(float[2,3] x) => (float[2,3] y)",
                         "q = QuantizeLinear(x, scales, zeros)  y = DequantizeLinear(q, scales, zeros)"),
    "LSTM": (22, "(float[2,1,3] x) => (float[2,1,1,3] y)", "y = LSTM<hidden_size = 3, layout = 0>(x, gates, gates)"),
    "Constant": (13, "(float[N,2] x) => (float[N,2] y)", "c = Constant<value_floats = [1.0, 2.0]>()  y = Add(x, c)"),
    "Dropout, Concat, Identity": (21, "(float[N,3] x) => (float[N,6] y)",
                                  "d = Dropout(x)  i = Identity(d)  y = Concat<axis = 1>(i, x)"),
}  # fmt: skip
CONSTANTS = """float low = {-0.5}, float high = {0.5}, int64[4] pads = {1, 1, 1, 2}, int64[2] one_two = {1, 2},
    int64[1] one = {1}, int64[1] minus_one = {-1}, int64[2] one_four = {1, 4}, float[4] four, float[4] var,
    int64[3] shape = {1, 4, 3}, float[4] twice = {1, 1, 2, 2}, int64[4] sizes = {1, 2, 6, 8},
    float[2] two_two = {2, 2}, int64[2] eight_nine = {8, 9}, float[2,3,1,1] kernel, float scale = {0.1},
    float[3] scales = {0.1, 0.2, 0.3}, int8[3] zeros = {0, 0, 0}, float[1,12,3] gates"""
WHY_NOT = {
    ("GridSample", 13): "GridSample came with opset 16",
    ("GridSample", 11): "GridSample came with opset 16",
    ("Q, DQ by channel", 11): "it has a scale for each channel",
}


def net(name: str) -> onnx.ModelProto:
    opset, head, body = NETS[name]
    proto = model(f"g {head} <{CONSTANTS}> {{ {body} }}", opset=opset, ir_version=10)
    read = {tensor for node in proto.graph.node for tensor in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


def taking(highest: int) -> Context:
    return replace(context(), hardware=replace(context().hardware, opset=(7, highest)))


def version(proto: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in proto.opset_import if not entry.domain)


def lowered(proto: onnx.ModelProto, highest: int, fed: Arrays | None = None) -> Run:
    """The model after the pass: valid, with the same outputs, and the same once more."""
    work = import_graph(proto)
    report = LowerOpset().apply(work.gs, taking(highest))
    after = export_graph(work)
    verify(after)
    again = import_graph(after)
    if not report.skipped:
        assert LowerOpset().apply(again.gs, taking(highest)).changes == 0
        assert version(after) <= highest
    else:
        assert report.changes == 0
        assert (ops(after), version(after)) == (ops(proto), version(proto))
    fed = feeds(proto) if fed is None else fed
    assert_same(outputs(proto, fed), outputs(after, fed))
    return Run(proto, after, report)


@pytest.mark.parametrize("highest", [19, 17, 13, 11])
@pytest.mark.parametrize("name", NETS)
def test_each_operator(name: str, highest: int) -> None:
    run = lowered(net(name), highest)
    reason = WHY_NOT.get((name, highest))
    if reason is None:
        assert not run.skipped
    else:
        assert run.reasons
        assert all(reason in found for found in run.reasons)


@pytest.mark.parametrize("name", OLD_NETS)
def test_back_to_where_it_was_raised_from(name: str) -> None:
    """What was raised can be lowered again, as far down as any target goes."""
    proto = old_net(name)
    fed = feeds(proto)
    fed.update({"s": np.array([3, 2, 2])} if "s" in fed else {})
    work = import_graph(proto)
    RaiseOpset(to=24).apply(work.gs, context())
    again = import_graph(export_graph(work))
    LowerOpset().apply(again.gs, taking(13 if name == "GridSample" else 11))
    if name in {"GridSample", "RoiAlign"}:
        return
    after = export_graph(again)
    verify(after)
    assert version(after) == 11
    assert_same(outputs(proto, fed), outputs(after, fed))


REFUSED = {
    "computed axes": (13, 11, "(float[2,1,5] x, int64[1] a) => (float[2,5] y)", "y = Squeeze(x, a)",
                      "axes are computed"),
    "pieces of unknown size": (18, 17, "(float[N,2] x) => (float[A,2] y, float[B,2] z)",
                               "y, z = Split<num_outputs = 2>(x)", "whether its pieces are equal is not known"),
    "computed bound": (13, 11, "(int64[N] x) => (int64[N] y)", "y = Clip(x)", "was not taken as tensor(int64)"),
    "an integer sum": (14, 13, "(int8[N] x) => (int8[N] y)", "y = Add(x, x)", "was not taken as tensor(int8)"),
    "antialiasing": (18, 17, "(float[1,2,4,4] x) => (float[1,2,2,2] y)",
                     'y = Resize<antialias = 1, mode = "linear">(x, , half)', "there was no attribute antialias"),
    "a scatter that adds": (16, 13, "(float[3] x) => (float[3] y)",
                            'y = ScatterElements<reduction = "add">(x, zero, one)', "there was no attribute reduction"),
    "half precision scale": (19, 17, "(float16[N] x) => (int8[N] y)", "y = QuantizeLinear(x, small, nought)",
                             "was not taken as tensor(float16)"),
    "an inner softmax": (13, 11, "(float[2,3,5] x) => (float[2,3,5] y)", "y = Softmax<axis = 1>(x)",
                         "it ran over all axes from the one given on"),
}  # fmt: skip
MORE = """float[4] half = {1, 1, 0.5, 0.5}, int64[1] zero = {0}, float[1] one = {1}, float16 small,
    int8 nought = {0}"""


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_said_in_older_words_stops_it_and_is_named(case: str) -> None:
    opset, highest, head, body, reason = REFUSED[case]
    proto = model(f"g {head} <{MORE}> {{ {body} }}", opset=opset, ir_version=9)
    read = {tensor for node in proto.graph.node for tensor in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    fed = {name: value for name, value in feeds(proto).items() if name != "a"}
    fed.update({"a": np.array([1])} if case == "computed axes" else {})
    run = lowered(proto, highest, fed)
    assert run.reasons
    assert all(reason in found for found in run.reasons), run.reasons


def test_every_refused_node_is_named() -> None:
    proto = model("g (int8[N] x) => (int8[N] y) { [first] a = Add(x, x)  [second] y = Mul(a, a) }", opset=14)
    assert [skip.where for skip in lowered(proto, 13).skipped] == ["first", "second"]


def test_subgraphs_are_lowered_too() -> None:
    text = """g (float[1,4] x, bool go) => (float[4] y) <int64[1] zero = {0}> {
      y = If (go) <then_branch = t () => (float[4] p) { p = Squeeze(x, zero) },
                   else_branch = e () => (float[4] q) { r = ReduceMax<keepdims = 0>(x, zero)  q = Neg(r) }> }"""
    fed = {"x": np.arange(4, dtype=np.float32)[None], "go": np.array(False)}
    run = lowered(model(text, opset=18), 11, fed)
    assert version(run.after) == 11


def test_the_ir_version_goes_down_to_what_runtimes_of_the_time_know() -> None:
    proto = net("Squeeze")
    assert proto.ir_version == 10
    assert lowered(proto, 13).after.ir_version == 7
    assert lowered(proto, 17).after.ir_version == 8
    assert lowered(proto, 21).after.ir_version == 10


def test_operators_that_did_not_exist_are_written_out_first() -> None:
    text = """g (float[N,3,8] x) => (float[N,3,8] y) <float[8] s> {
      a = Gelu(x)  b = LayerNormalization(a, s, s)  c = HardSwish(b)  y = Mish(c) }"""
    proto = model(text, opset=20, ir_version=9)
    after, _ = run_exact([LowerOpset(), WriteOut()], proto, taking(13))
    assert version(after) == 13
    assert not {"Gelu", "LayerNormalization", "HardSwish", "Mish"} & {*ops(after)}
    fed = feeds(proto)
    assert_same(outputs(proto, fed), outputs(after, fed))


def test_nodes_of_other_domains_may_be_functions() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "custom" : 1]> g (float[4] x) => (float[4] y) { y = custom.Odd(x) }'
    work = import_graph(model(text))
    report = LowerOpset().apply(work.gs, taking(13))
    assert ["may be a function" in skip.reason for skip in report.skipped] == [True]
