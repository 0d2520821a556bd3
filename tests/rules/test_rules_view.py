"""What rules see of a model: bodies, functions, absent weights; and that no model, however broken, makes them fail."""

from __future__ import annotations

import random
import time

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.rules import GROUPS, check_model
from graphopt.rules.view import View
from tests.rules.rule_examples import ACCELERATOR, CPU, EXAMPLES, ON_CPU, QUANTIZED, STRONG, TENSORRT, WEIGHTS, ZEROS
from tests.support import model

IF = """agraph (bool c, float[1,16,8,8] x) => (float[1,16,8,8] y) {{
    y = If (c) <
        then_branch = g1 () => (float[1,16,8,8] t) {{ {then} }},
        else_branch = g2 () => (float[1,16,8,8] e) {{ e = Relu(x) }}
    >
}}"""
EVERYTHING = (TENSORRT, ACCELERATOR, STRONG, CPU)


def rules_broken(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(finding.rule, finding.where) for finding in check_model(proto, TENSORRT, ["operators", "explicit_int8"])]


def external(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all of its constants in a file that is not there."""
    for tensor in proto.graph.initializer:
        for name in ("raw_data", "float_data", "int32_data", "int64_data"):
            tensor.ClearField(name)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="absent.bin")
    return proto


class TestWhatIsSeen:
    def test_bodies_are_looked_into(self) -> None:
        assert rules_broken(model(IF.format(then="[h] t = HardSwish(x)"))) == [("written_out_operator", "h")]

    def test_bodies_see_the_tensors_around_them(self) -> None:
        proto = model(IF.format(then="q = QuantizeLinear(x, s, z) [d] t = DequantizeLinear(q, s, z)"))
        proto.graph.initializer.append(helper.make_tensor("s", TensorProto.FLOAT, [], [-0.1]))
        proto.graph.initializer.append(helper.make_tensor("z", TensorProto.INT8, [], [0]))
        assert ("scale_not_positive", "d") in rules_broken(proto)
        readers = next(tensor for tensor in View(proto).tensors if tensor.name == "x").readers
        assert sorted(node.op for node in readers) == ["QuantizeLinear", "Relu"]

    def test_a_constant_made_by_a_node_counts_as_one(self) -> None:
        proto = model(
            "agraph (float[2] x) => (float[2] y) <int8 z = {0}> { s = Constant<value_float = -0.5>() "
            "[q] q = QuantizeLinear(x, s, z) [d] y = DequantizeLinear(q, s, z) }"
        )
        broken = rules_broken(proto)
        assert ("scale_not_positive", "q") in broken
        assert "parameters_not_constant" not in {rule for rule, _ in broken}

    def test_functions_are_expanded(self) -> None:
        proto = onnx.parser.parse_model("""
            <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
            agraph (float[2] x) => (float[2] y) { y = own.gate(x) }
            <domain: "own", opset_import: ["" : 17]> gate (a) => (b) { b = HardSwish(a) }
        """)
        assert [rule for rule, _ in rules_broken(proto)] == ["written_out_operator"]

    def test_without_weights_what_needs_their_values_is_left_unchecked(self) -> None:
        bad, _ = EXAMPLES["zero_point_not_zero"].models()
        assert rules_broken(external(bad)) == []
        bad, _ = EXAMPLES["weight_axis"].models()
        assert rules_broken(external(bad)) == [("weight_axis", "c")]

    def test_shapes_are_inferred_past_operators_of_onnx_runtime(self) -> None:
        proto = model(
            '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> agraph (float[2,3,4,4] x) => (float[n,m] y) '
            "{ f = com.microsoft.QuickGelu(x) t = Flatten(f) y = Relu(t) }"
        )
        view = View(proto)
        shapes = {tensor.name: view.shape(tensor) for tensor in view.tensors}
        assert (shapes["f"], shapes["t"]) == ((2, 3, 4, 4), (2, 48))

    def test_open_sizes_keep_their_symbols(self) -> None:
        view = View(model("agraph (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"))
        assert [view.shape(tensor) for tensor in view.tensors] == [("N", 3), ("N", 3)]


def rename(proto: onnx.ModelProto, rng: random.Random) -> None:
    """Let a node read what another one writes, itself included."""
    nodes = [node for node in proto.graph.node if node.input]
    if nodes:
        node = rng.choice(nodes)
        node.input[rng.randrange(len(node.input))] = rng.choice([*rng.choice(nodes).output, "", "nobody"])


def drop(proto: onnx.ModelProto, rng: random.Random) -> None:
    del proto.graph.node[rng.randrange(len(proto.graph.node)) :]


def cut_inputs(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(list(proto.graph.node) or [onnx.NodeProto()])
    del node.input[rng.randrange(3) :]
    if rng.random() < 0.3:
        del node.output[:]


def spoil_attribute(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(list(proto.graph.node) or [onnx.NodeProto()])
    name = rng.choice(
        ["axis", "group", "pads", "kernel_shape", "strides", "perm", "mode", "dilations", "size", "value"]
    )
    value = rng.choice([7, -9, 0.5, "text", [0], [-1, 300, 2], [0.5]])
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def spoil_constant(proto: onnx.ModelProto, rng: random.Random) -> None:
    if proto.graph.initializer:
        tensor = rng.choice(proto.graph.initializer)
        del tensor.dims[:]
        tensor.dims.extend(rng.choice([[], [0], [3], [1, 1], [-2], [16, 16], [2, 2, 2, 2, 2]]))
        tensor.data_type = rng.choice([0, 1, 3, 8, 10, 11, 99, tensor.data_type])


def forget_types(proto: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(proto.graph.input).ClearField("type")
    if rng.random() < 0.3:
        del proto.opset_import[:]
    if rng.random() < 0.3:
        del proto.graph.output[:]


def swap_operator(proto: onnx.ModelProto, rng: random.Random) -> None:
    ops = ["Conv", "Concat", "Add", "Resize", "Slice", "Gemm", "Clip", "Relu", "DequantizeLinear", "QuantizeLinear",
           "Constant", "Softmax", "MaxPool", "Transpose", "Identity", "LRN", "If", "BatchNormalization"]  # fmt: skip
    node = rng.choice(list(proto.graph.node) or [onnx.NodeProto()])
    node.op_type = rng.choice(ops)
    node.domain = rng.choice(["", "", "ai.onnx", "com.microsoft"])


DAMAGE = (rename, drop, cut_inputs, spoil_attribute, spoil_constant, forget_types, swap_operator)


class TestBrokenModels:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(name=st.sampled_from(sorted(EXAMPLES)), seed=st.integers(0, 10**6), damages=st.integers(1, 4))
    def test_nothing_is_raised_whatever_is_broken(self, name: str, seed: int, damages: int) -> None:
        rng = random.Random(seed)
        proto, _ = EXAMPLES[name].models()
        for _ in range(damages):
            rng.choice(DAMAGE)(proto, rng)
        for hardware in EVERYTHING:
            check_model(proto, hardware, GROUPS)

    @pytest.mark.parametrize("text", [QUANTIZED, ON_CPU])
    def test_a_cycle_is_walked_once(self, text: str) -> None:
        proto = model(text, **(ZEROS if text is QUANTIZED else WEIGHTS))
        proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]
        for hardware in EVERYTHING:
            check_model(proto, hardware, GROUPS)

    def test_a_type_that_this_onnx_does_not_know_is_named_by_its_number(self) -> None:
        proto = model(QUANTIZED, **ZEROS)
        next(tensor for tensor in proto.graph.initializer if tensor.name == "z").data_type = 99
        messages = [finding.message for finding in check_model(proto, TENSORRT, ["quantized_type"])]
        assert all("unknown type 99" in message for message in messages)
        assert len(messages) == 2

    def test_an_empty_model_breaks_the_rule_of_operator_sets_alone(self) -> None:
        assert [finding.rule for finding in check_model(onnx.ModelProto(), TENSORRT, GROUPS)] == ["opset"]

    def test_functions_that_call_each_other_in_circles(self) -> None:
        proto = onnx.parser.parse_model("""
            <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
            agraph (float[2] x) => (float[2] y) { y = own.f(x) }
            <domain: "own", opset_import: ["" : 17, "own" : 1]> f (a) => (b) { b = own.g(a) }
            <domain: "own", opset_import: ["" : 17, "own" : 1]> g (a) => (b) { b = own.f(a) }
        """)
        assert [rule for rule, _ in rules_broken(proto)] == ["foreign_operator"]


def chain(layers: int, *, wide: bool) -> onnx.ModelProto:
    """Quantized residual layers, one behind the other or all reading one tensor."""
    nodes = []
    last = "x"
    for i in range(layers):
        source = "x" if wide else last
        nodes += [
            helper.make_node("QuantizeLinear", [source, "s", "z"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"d{i}"]),
            helper.make_node("Conv", [f"d{i}", "w"], [f"c{i}"]),
            helper.make_node("Add", [f"c{i}", source], [last := f"a{i}"]),
        ]
    shape = [1, 16, 8, 8]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        [
            helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]),
            helper.make_tensor("z", TensorProto.INT8, [], [0]),
            onnx.numpy_helper.from_array(np.zeros((16, 16, 1, 1), np.float32), "w"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("wide", [False, True], ids=["deep", "one tensor for all"])
def test_time_grows_with_the_graph_and_no_faster(wide: bool) -> None:
    def seconds(layers: int) -> float:
        proto = chain(layers, wide=wide)
        began = time.thread_time()
        for hardware in (ACCELERATOR, CPU):
            check_model(proto, hardware, GROUPS)
        return time.thread_time() - began

    seconds(50)
    assert seconds(1200) < 24 * max(seconds(150), 0.02)


def test_what_a_sparse_weight_makes_has_a_shape() -> None:
    proto = model("agraph (float[1,64] x) => (float[n,m] y) { y = MatMul(x, w) }")
    values = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    places = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [1], [3])
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [64, 8]))
    view = View(proto)
    assert view.shape(view.nodes[0].output()) == (1, 8)
