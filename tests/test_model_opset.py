"""Raising the opset: the same answers, and nothing lost on the way."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt.errors import UnsupportedModelError
from graphopt.model import check, raise_ir_version, upgrade_opset

# Operators whose form changed between opsets: attributes that became inputs, new attributes, other axes.
NET = """<ir_version: 4, opset_import: ["": 9], producer_name: "me", model_version: 3, doc_string: "a net",
 metadata_props: ["owner": "me"]>
g (float[N,4,6,6] x) => (float[N,k] y, float[N,4,m,n] z)
<float[4] scale = {1,2,3,4}, float[4] shift = {0,1,2,3}, float[4] mean = {0,0,1,1}, float[4] var = {1,2,3,4}> {
    [n1] a = BatchNormalization(x, scale, shift, mean, var)
    [n2] b = Pad<pads = [0,0,1,1,0,0,1,1], value = 0.5>(a)
    [n3] c = Clip<min = -1.0, max = 2.0>(b)
    [n4] d, e = Split<axis = 1, split = [2,2]>(c)
    [n5] f = Unsqueeze<axes = [1]>(d)
    [n6] s = Squeeze<axes = [1]>(f)
    [n7] h = ReduceSum<axes = [2,3], keepdims = 0>(s)
    [n8] p = Softmax<axis = 1>(h)
    [n9] y = Dropout(p)
    [n10] t = Slice<axes = [2], starts = [0], ends = [4]>(c)
    [n11] z = MaxPool<kernel_shape = [2,2]>(t)
}"""


def model(text: str = NET) -> onnx.ModelProto:
    return parser.parse_model(text)


def opset(proto: onnx.ModelProto) -> int:
    return next(entry.version for entry in proto.opset_import if entry.domain == "")


def run(proto: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    if not feeds:
        feeds = {"x": np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32)}
    return session.run(None, feeds)


@pytest.mark.parametrize("target", [11, 13, 17, 21])
def test_the_answers_stay_the_same(target: int) -> None:
    upgraded, sentence = upgrade_opset(model(), target)
    assert opset(upgraded) == target
    assert sentence == f"raised the opset from 9 to {target} with onnx's version converter"
    for before, after in zip(run(model()), run(upgraded), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_opsets_can_be_raised_step_by_step() -> None:
    proto = model()
    for target in (11, 13, 17, 21):
        proto, sentence = upgrade_opset(proto, target)
        assert sentence is not None
    outputs = [name for node in proto.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs)
    for before, after in zip(run(model()), run(proto), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_a_model_that_is_new_enough_is_left_alone() -> None:
    proto = model()
    assert upgrade_opset(proto, 9) == (proto, None)
    assert upgrade_opset(proto, 9)[0] is proto


def test_a_model_without_standard_operators_is_left_alone() -> None:
    proto = model('<ir_version: 8, opset_import: ["com.microsoft": 1]> g (float[4] x) => (float[4] y) '
                  "{ y = com.microsoft.Gelu(x) }")  # fmt: skip
    assert upgrade_opset(proto, 17)[1] is None


def test_the_callers_model_is_not_changed() -> None:
    proto = model()
    upgrade_opset(proto, 17)
    assert proto == model()


def test_the_ir_version_rises_as_the_opset_needs() -> None:
    assert upgrade_opset(model(), 13)[0].ir_version == 7
    assert upgrade_opset(model(), 21)[0].ir_version == 10


def test_the_result_is_deterministic() -> None:
    first, second = (upgrade_opset(model(), 17)[0].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_header_documentation_and_metadata_survive() -> None:
    proto = model()
    proto.graph.doc_string = "the graph"
    proto.graph.metadata_props.add(key="graph", value="1")
    proto.graph.node[0].doc_string = "the first node"
    proto.graph.node[4].metadata_props.add(key="node", value="2")
    proto.graph.input[0].doc_string = "an image"
    proto.graph.input[0].metadata_props.add(key="input", value="3")
    proto.graph.initializer[0].doc_string = "the scale"
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 4, 6, 6]))
    upgraded, _ = upgrade_opset(proto, 17)
    for field in ("producer_name", "model_version", "doc_string", "metadata_props"):
        assert getattr(upgraded, field) == getattr(proto, field)
    for field in ("name", "doc_string", "metadata_props", "input", "output", "value_info"):
        assert getattr(upgraded.graph, field) == getattr(proto.graph, field), field
    assert list(upgraded.graph.initializer)[:4] == list(proto.graph.initializer)  # constants may be added behind
    nodes = {node.name: node for node in upgraded.graph.node}
    assert nodes["n1"].doc_string == "the first node"
    assert [(entry.key, entry.value) for entry in nodes["n5"].metadata_props] == [("node", "2")]


def test_functions_and_other_domains_survive() -> None:
    proto = model("""<ir_version: 8, opset_import: ["": 11, "com.microsoft": 1, "mine": 1]>
        g (float[1,4] x) => (float[4] y) { a = Squeeze<axes = [0]>(x) b = com.microsoft.Gelu(a) y = mine.twice(b) }
        <domain: "mine", opset_import: ["": 11]> twice (p) => (q) { q = Concat<axis = 0>(p) }""")
    upgraded, _ = upgrade_opset(proto, 12)
    assert upgraded.functions == proto.functions
    assert {entry.domain for entry in upgraded.opset_import} == {"", "com.microsoft", "mine"}


def test_subgraphs_are_converted_and_keep_their_metadata() -> None:
    proto = model("""<ir_version: 6, opset_import: ["": 11]> g (bool c, float[1,4] x) => (float[4] y) {
        y = If(c) <then_branch = t () => (float[4] a) { a = Squeeze<axes = [0]>(x) },
                   else_branch = e () => (float[4] b) { k = Neg(x) b = Squeeze<axes = [0]>(k) }> }""")
    proto.graph.node[0].attribute[1].g.metadata_props.add(key="branch", value="else")
    proto.graph.node[0].attribute[1].g.node[0].metadata_props.add(key="node", value="neg")
    upgraded, _ = upgrade_opset(proto, 13)
    other = next(attribute.g for attribute in upgraded.graph.node[0].attribute if attribute.name == "else_branch")
    assert other.metadata_props[0].value == "else"
    assert other.node[0].metadata_props[0].value == "neg"
    for choice in (True, False):
        feeds = {"c": np.array(choice), "x": np.ones((1, 4), np.float32)}
        np.testing.assert_array_equal(run(proto, **feeds)[0], run(upgraded, **feeds)[0])


def test_names_that_the_converter_invents_never_collide() -> None:
    # The converter names its constants _v_0, _v_1 ...; here the model has used these names for values of its own.
    text = '<ir_version: 6, opset_import: ["": 11]> g (float[1,4] _v_0) => (float[4] _v_30) {\n'
    text += "\n".join(f"_v_{number + 1} = Neg(_v_{number})" for number in range(29))
    proto = model(text + "\n_v_30 = Squeeze<axes = [0]>(_v_29) }")
    upgraded, _ = upgrade_opset(proto, 13)
    assert (upgraded.graph.input[0].name, upgraded.graph.output[0].name) == ("_v_0", "_v_30")
    x = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_array_equal(run(upgraded, _v_0=x)[0], -x[0])


def test_large_weights_do_not_go_through_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model("""<ir_version: 6, opset_import: ["": 11]> g (float[1,100] x) => (float[100] y) {
        a = MatMul(x, w) b = Add(a, k) y = Squeeze<axes = [0]>(b) }""")
    weight = np.random.default_rng(0).random((100, 100), np.float32)
    constant = np.random.default_rng(1).random((1, 100), np.float32).repeat(60, axis=0)[:1]
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    big = numpy_helper.from_array(np.tile(constant, (50, 1)), "big")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["all"], value=big))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    proto.graph.node.insert(1, helper.make_node("Gather", ["all", "first"], ["k"]))
    seen: list[int] = []
    convert = onnx.version_converter.convert_version
    monkeypatch.setattr(
        onnx.version_converter,
        "convert_version",
        lambda skeleton, target: (seen.append(skeleton.ByteSize()), convert(skeleton, target))[1],
    )
    upgraded, _ = upgrade_opset(proto, 13)
    assert proto.ByteSize() > 50_000 > 5_000 > seen[0]
    x = np.ones((1, 100), np.float32)
    np.testing.assert_array_equal(run(proto, x=x)[0], run(upgraded, x=x)[0])


@pytest.mark.parametrize(
    ("text", "node"),
    [
        pytest.param(
            """<ir_version: 7, opset_import: ["": 12]> g (float[1,2,4] x, float[2] p) => (float[1,2,4] y) {
            a = Relu(x) [norm] b, m, v, sm, sv = BatchNormalization(a, p, p, p, p) y = Neg(b) }""",
            r"'norm' \(BatchNormalization\)",
            id="the message names it",
        ),
        pytest.param(
            """<ir_version: 6, opset_import: ["": 8]> g (float[1,1,2,2] x) => (float[1,1,4,4] y) {
            a = Relu(x) b = Neg(a) [grow] c = Upsample(b) y = Neg(c) }""",
            r"'grow' \(Upsample\)",
            id="the message does not",
        ),
    ],
)
def test_an_operator_that_cannot_be_converted_is_named(text: str, node: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"needs 17, but cannot be converted at node {node}: .*Export the"):
        upgrade_opset(model(text), 17)


def test_functions_that_would_change_their_meaning_are_refused() -> None:
    proto = model("""<ir_version: 8, opset_import: ["": 11, "mine": 1]>
        g (float[1,4] x) => (float[4] y) { y = mine.flat(x) }
        <domain: "mine", opset_import: ["": 11]> flat (p) => (q) { q = Squeeze<axes = [0]>(p) }""")
    with pytest.raises(UnsupportedModelError, match="inline_local_functions"):
        upgrade_opset(proto, 13)


# --- IR version 3: initializers among the inputs --------------------------------------------------------------------

OLD = """<ir_version: 3, opset_import: ["": 8]> g (float[1,4] x, float[1,4] w) => (float[1,4] y)
<float[1,4] w = {1,2,3,4}> { y = Mul(x, w) }"""


def test_constants_of_ir_3_stay_constants() -> None:
    upgraded, _ = upgrade_opset(model(OLD), 13)
    assert upgraded.ir_version == 7
    assert [value.name for value in upgraded.graph.input] == ["x"]
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(run(upgraded, x=x)[0], run(model(OLD), x=x)[0])


def test_defaults_of_ir_4_stay_inputs() -> None:
    proto = model(OLD.replace("ir_version: 3", "ir_version: 4"))
    upgraded, _ = upgrade_opset(proto, 13)
    assert [value.name for value in upgraded.graph.input] == ["x", "w"]
    x, w = np.ones((1, 4), np.float32), np.full((1, 4), 7, np.float32)
    np.testing.assert_array_equal(run(upgraded, x=x, w=w)[0], w)


@pytest.mark.parametrize(("before", "minimum", "after"), [(3, 4, 4), (3, 8, 8), (8, 4, 8)])
def test_the_ir_version_never_falls(before: int, minimum: int, after: int) -> None:
    proto = model(OLD)
    proto.ir_version = before
    raise_ir_version(proto, minimum)
    assert proto.ir_version == after
    check(proto)
