"""Every operator that changed between versions computes the same after it was raised, or stops the raise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Run, apply, assert_same, context, feeds, model, ops, outputs

from graphopt.graph import export_graph, import_graph, verify
from graphopt.passes.fuse_activations import FuseActivations
from graphopt.passes.raise_opset import RaiseOpset

NETS = {
    "Clip": (7, "(float[N,3] x) => (float[N,3] y)", "y = Clip<min = -0.5, max = 0.5>(x)"),
    "Clip above": (7, "(float[N,3] x) => (float[N,3] y)", "y = Clip<max = 0.5>(x)"),
    "Clip below": (10, "(float[N,3] x) => (float[N,3] y)", "y = Clip<min = 0.0>(x)"),
    "Dropout": (7, "(float[N,3] x) => (float[N,3] y)", "y = Dropout<ratio = 0.3>(x)"),
    "Dropout with an unread mask": (9, "(float[N,3] x) => (float[N,3] y)", "d, mask = Dropout(x)  y = Neg(d)"),
    "Slice": (9, "(float[2,5] x) => (float[2,2] y)", "y = Slice<axes = [1], starts = [1], ends = [-2]>(x)"),
    "Slice of the first axes": (9, "(float[4,5] x) => (float[2,2] y)", "y = Slice<starts = [1, 0], ends = [3, 2]>(x)"),
    "Pad": (10, "(float[2,5] x) => (float[4,8] y)", "y = Pad<pads = [1, 1, 1, 2], value = 2.0>(x)"),
    "Pad by reflection": (7, "(float[2,5] x) => (float[2,8] y)", 'y = Pad<mode = "reflect", pads = [0, 1, 0, 2]>(x)'),
    "Squeeze": (11, "(float[2,1,5] x) => (float[2,5] y)", "y = Squeeze<axes = [1]>(x)"),
    "Squeeze of all": (11, "(float[2,1,5] x) => (float[2,5] y)", "y = Squeeze(x)"),
    "Unsqueeze": (11, "(float[2,5] x) => (float[2,1,5,1] y)", "y = Unsqueeze<axes = [1, -1]>(x)"),
    "ReduceSum": (11, "(float[2,5] x) => (float[2] y)", "y = ReduceSum<axes = [1], keepdims = 0>(x)"),
    "ReduceSum of all": (11, "(float[2,5] x) => (float[1,1] y)", "y = ReduceSum(x)"),
    "ReduceMean": (13, "(float[2,5] x) => (float[2,1] y)", "y = ReduceMean<axes = [-1]>(x)"),
    "ReduceMax": (11, "(float[2,5] x) => (float[5] y)", "y = ReduceMax<axes = [0], keepdims = 0>(x)"),
    "ReduceL2": (11, "(float[2,5] x) => (float[1,1] y)", "y = ReduceL2(x)"),
    "Split": (11, "(float[2,5] x) => (float[2,2] y, float[2,3] z)", "y, z = Split<axis = 1, split = [2, 3]>(x)"),
    "Split evenly": (11, "(float[2,6] x) => (float[2,3] y, float[2,3] z)", "y, z = Split<axis = 1>(x)"),
    "Split evenly, input": (13, "(float[2,6] x) => (float[2,3] y, float[2,3] z)", "y, z = Split<axis = 1>(x)"),
    "Softmax": (9, "(float[2,5] x) => (float[2,5] y)", "y = Softmax(x)"),
    "Softmax of pooled": (11, "(float[2,5,1,1] x) => (float[2,5,1,1] y)", "y = Softmax(x)"),
    "Softmax, last axis": (11, "(float[2,3,5] x) => (float[2,3,5] y)", "y = Softmax<axis = -1>(x)"),
    "Softmax of unknown rank": (11, "(float[2,6] x, int64[K] s) => (float[a,b,c] y)",
                                "r = Reshape(x, s)  y = Softmax<axis = -1>(r)"),
    "LogSoftmax": (11, "(float[2,1,5] x) => (float[2,1,5] y)", "y = LogSoftmax(x)"),
    "Hardmax": (11, "(float[2,5] x) => (float[2,5] y)", "y = Hardmax(x)"),
    "TopK": (9, "(float[2,5] x) => (float[2,3] y, int64[2,3] z)", "y, z = TopK<k = 3>(x)"),
    "TopK with input": (10, "(float[2,5] x) => (float[2,2] y, int64[2,2] z)", "y, z = TopK(x, two)"),
    "Gemm": (7, "(float[N,3] x) => (float[N,3] y)", "y = Gemm(x, w, b)"),
    "BatchNormalization": (8, "(float[N,3,4] x) => (float[N,3,4] y)", "y = BatchNormalization(x, b, b, b, var)"),
    "Upsample": (7, "(float[1,2,3,4] x) => (float[1,2,6,12] y)", "y = Upsample<scales = [1.0, 1.0, 2.0, 3.0]>(x)"),
    "Upsample linearly": (9, "(float[1,2,3,4] x) => (float[1,2,6,8] y)", 'y = Upsample<mode = "linear">(x, twice)'),
    "Resize": (10, "(float[1,2,3,4] x) => (float[1,2,6,8] y)", "y = Resize(x, twice)"),
    "Resize linearly": (10, "(float[1,2,3,4] x) => (float[1,2,6,8] y)", 'y = Resize<mode = "linear">(x, twice)'),
    "Resize, empty inputs": (11, "(float[1,2,3,4] x) => (float[1,2,6,8] y)",
                             'y = Resize<mode = "linear">(x, none, none, sizes)'),
    "Scatter": (10, "(float[3] x) => (float[3] y)", "y = Scatter(x, two, spot)"),
    "MaxPool": (8, "(float[1,2,7,8] x) => (float[1,2,4,4] y)",
                'y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER">(x)'),
    "MaxPool up": (10, "(float[1,2,7,8] x) => (float[1,2,3,4] y)",
                   "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)"),
    "AveragePool": (7, "(float[1,2,7,8] x) => (float[1,2,4,4] y)",
                    'y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_LOWER">(x)'),
    "GridSample": (16, "(float[1,2,3,4] x, float[1,5,5,2] g) => (float[1,2,5,5] y)", "y = GridSample(x, g)"),
    "RoiAlign": (10, "(float[1,2,8,8] x) => (float[1,2,1,1] y)", "y = RoiAlign(x, box, first)"),
    "LSTM": (7, "(float[2,1,3] x) => (float[2,1,1,3] y)", "y = LSTM<hidden_size = 3>(x, gates, gates)"),
    "Conv, PRelu, Cast": (7, "(float[1,2,3,4] x) => (double[1,2,3,4] y)",
                          "a = Conv(x, k)  c = PRelu(a, b1)  d = Cast<to = 11>(c)  y = Abs(d)"),
}  # fmt: skip
CONSTANTS = """int64[1] two = {2}, float[3,3] w, float[3] b, float[3] var, float[4] twice = {1, 1, 2, 2},
    float[0] none = {}, int64[4] sizes = {1, 2, 6, 8}, float[1] spot, float[1,4] box = {1, 1, 5, 6},
    int64[1] first = {0}, float[1,12,3] gates, float[2,2,1,1] k, float[1] b1"""
NEWEST = 24
NO_KERNEL = "ONNX Runtime 1.31 has no kernel for it"


def net(name: str) -> onnx.ModelProto:
    opset, head, body = NETS[name]
    proto = model(f"g {head} <{CONSTANTS}> {{ {body} }}", opset=opset)
    read = {tensor for node in proto.graph.node for tensor in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


def version(proto: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in proto.opset_import if not entry.domain)


@pytest.mark.parametrize("to", [11, 13, 17, 18, 20, 22, NEWEST])
@pytest.mark.parametrize("name", NETS)
def test_each_operator(name: str, to: int) -> None:
    proto = net(name)
    fed = feeds(proto)
    fed.update({"s": np.array([3, 2, 2])} if "s" in fed else {})
    run = apply(RaiseOpset(to=to), proto, fed)
    if name == "RoiAlign" and to >= 22:
        assert run.reasons == [f"cannot be raised to opset {to}: RoiAlign of opset 22: {NO_KERNEL}"]
        return
    assert version(run.after) == max(to, NETS[name][0]), run.skipped
    assert not run.skipped


def test_leaves_the_opset_unless_asked_to() -> None:
    assert apply(RaiseOpset(), net("Clip")).report.changes == 0
    assert apply(RaiseOpset(to=7), net("Clip")).report.changes == 0


def test_not_above_the_target() -> None:
    hardware = replace(context().hardware, opset=(7, 17))
    work = import_graph(net("Clip"))
    report = RaiseOpset(to=20).apply(work.gs, replace(context(), hardware=hardware))
    assert version(export_graph(work)) == 17
    assert [skip.reason for skip in report.skipped] == ["the target takes 17 at most"]


def test_the_point_of_it() -> None:
    text = """g (float[N,3] x) => (float[N,3] y) <float root = {1.4142135}, float one = {1}, float half = {0.5}> {
      a = Div(x, root)  e = Erf(a)  o = Add(e, one)  m = Mul(x, o)  y = Mul(m, half) }"""
    raised = apply(RaiseOpset(to=20), model(text, opset=12)).after
    assert ops(apply(FuseActivations(), raised).after) == ["Gelu"]


REFUSED = [
    ("Softmax over several axes", 11, "(float[2,3,5] x) => (float[2,3,5] y)", "y = Softmax(x)"),
    ("Dropout mask", 7, "(float[N,3] x) => (float[N,3] y, float[N,3] z)", "y, z = Dropout(x)"),
    ("statistics", 9, "(float[2,3,4] x) => (float[2,3,4] y, float[3] m, float[3] v)",
     "y, m, v, s, t = BatchNormalization(x, b, b, b, var)"),
    ("shrinking", 10, "(float[1,2,6,8] x) => (float[1,2,3,4] y)", "y = Resize(x, half)"),
    ("scales computed", 10, "(float[1,2,6,8] x, float[4] s) => (float[a,b,c,d] y)", "y = Resize(x, s)"),
    ("removed mode", 11, "(float[1,2,3,4] x) => (float[1,2,6,8] y)",
     'y = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn">(x, none, none, sizes)'),
    ("padding of a deconvolution", 7, "(float[1,2,3,3] x) => (float[a,b,c,d] y)",
     'y = ConvTranspose<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, k)'),
    ("window in the padding", 12, "(float[1,2,7,8] x) => (float[a,b,c,d] y)",
     "y = MaxPool<kernel_shape = [1, 1], strides = [3, 3], ceil_mode = 1>(x)"),
]  # fmt: skip


@pytest.mark.parametrize(("opset", "head", "body"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_where_one_node_cannot_go_all_stay(opset: int, head: str, body: str) -> None:
    constants = f"{CONSTANTS}, float[4] half = {{1, 1, 0.5, 0.5}}"
    text = f"g {head} <{constants}> {{ {body.replace('y', 'odd', 1)}  y = Identity(odd) }}"
    run = apply(RaiseOpset(to=22), model(text, opset=opset), compare=False)
    assert version(run.after) == opset
    (skip,) = run.skipped
    assert skip.where == "odd"
    assert skip.reason.startswith("cannot be raised to opset 22: ")


def test_functions_wait_to_be_inlined() -> None:
    text = """<ir_version: 8, opset_import: ["" : 12, "own" : 1]> g (float[4] x) => (float[4] y) { y = own.f(x) }
      <domain: "own", opset_import: ["" : 12]> f (a) => (b) { b = Clip(a) }"""
    run = apply(RaiseOpset(to=20), onnx.parser.parse_model(text), compare=False)
    assert version(run.after) == 12
    assert "function" in run.reasons[0]


def test_subgraphs_go_along() -> None:
    text = """g (float[2,3] x, bool go) => (float[2] y) {
      y = If (go) <then_branch = t () => (float[2] p) { p = ReduceSum<axes = [1], keepdims = 0>(x) },
        else_branch = e () => (float[2] q) { r = Clip<min = 0.0>(x)  q = ReduceMax<axes = [1], keepdims = 0>(r) }> }"""
    run = apply(RaiseOpset(to=20), model(text, opset=10), {"x": np.ones((2, 3), np.float32), "go": np.array(False)})
    assert version(run.after) == 20


def test_old_files_with_initializers_as_inputs() -> None:
    proto = net("Gemm")
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    run = Run(proto, *_applied(proto, 20))
    verify(run.after)
    assert [info.name for info in run.after.graph.input] == ["x"]
    fed = {"x": feeds(net("Gemm"))["x"]}
    assert_same(outputs(proto, fed), outputs(run.after, fed))


def _applied(proto: onnx.ModelProto, to: int) -> tuple[onnx.ModelProto, object]:
    work = import_graph(proto)
    report = RaiseOpset(to=to).apply(work.gs, context())
    return export_graph(work), report


@pytest.mark.parametrize(("wanted", "reached"), [(None, 11), (9, 11), (13, 13), (40, 17)])
def test_the_target_may_want_a_version(wanted: int | None, reached: int) -> None:
    hardware = replace(context().hardware, opset=(7, 17), write_opset=wanted)
    work = import_graph(model("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=11))
    RaiseOpset().apply(work.gs, replace(context(), hardware=hardware))
    assert version(export_graph(work)) == reached


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_attributes(data: st.DataObject) -> None:
    """One operator with attributes drawn at random: the same after, or refused."""
    axis = data.draw(st.integers(-3, 2), label="axis")
    keep = data.draw(st.integers(0, 1), label="keepdims")
    body = data.draw(
        st.sampled_from(
            [
                f"y = Softmax<axis = {axis}>(x)",
                f"y = LogSoftmax<axis = {axis}>(x)",
                f"y = ReduceSum<axes = [{axis}], keepdims = {keep}>(x)",
                f"y = ReduceProd<axes = [{axis}], keepdims = {keep}>(x)",
                f"y = Unsqueeze<axes = [{axis}]>(x)",
                f"y = Slice<axes = [{axis}], starts = [{axis}], ends = [9]>(x)" if axis >= 0 else "y = Neg(x)",
                f"y = Flatten<axis = {axis}>(x)",
                f"y = Split<axis = {axis}, split = [1]>(x)" if axis == 1 else "y = Abs(x)",
                f"y = ArgMax<axis = {axis}, keepdims = {keep}>(x)",
                f"y = Concat<axis = {axis}>(x, x)",
                f"y = Clip<min = {float(axis)}>(x)",
            ]
        ),
        label="body",
    )
    sizes = data.draw(st.sampled_from(["2,1,3", "1,1,4", "2,1,1", "N,1,5"]), label="sizes")
    opset = data.draw(st.sampled_from([7, 9, 10, 11, 12] if axis >= 0 else [11, 12]), label="opset")
    if "Slice" in body and opset >= 10:
        opset = 9
    if "Clip" in body and opset >= 11:
        opset = 10
    rank = "".join(f",d{each}" for each in range(3 + ("Unsqueeze" in body) - (not keep and "keepdims" in body)))[1:]
    rank = "a,b" if "Flatten" in body else rank
    kind = "int64" if "Arg" in body else "float"
    proto = model(f"g (float[{sizes}] x) => ({kind}[{rank}] y) {{ {body} }}", opset=opset)
    apply(RaiseOpset(to=data.draw(st.integers(13, NEWEST), label="to")), proto)
