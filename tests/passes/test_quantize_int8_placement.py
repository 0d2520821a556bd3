"""Where Q and DQ go, with fixed ranges: graphs told as text. Which ranges are chosen is tested elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from int8_nets import (
    U8,
    Ranges,
    count,
    feed_for,
    flow,
    net,
    own_cache,
    placement_of,
    quantized,
    quantizers,
    sqnr,
    units_of,
)

from graphopt import runtime
from graphopt.passes.quantize_int8.numbers import quantize_weight
from graphopt.passes.quantize_int8.placement import place, shared_ranges
from graphopt.passes.quantize_int8.write import write
from graphopt.targets.schema import Int8Rules

__all__ = ["own_cache"]

PADS = "<pads = [1,1,1,1]>"
POSITIVE = (0.0, 4.0)


def constants(model: onnx.ModelProto, prefix: str) -> dict[str, np.ndarray[Any, Any]]:
    """Initializers whose names start with ``prefix``."""
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name.startswith(prefix)
    }


def axis_of(model: onnx.ModelProto, weight: str) -> int:
    """The axis that the DequantizeLinear of ``weight`` counts channels on."""
    (node,) = [node for node in model.graph.node if node.input and node.input[0] == f"{weight}_quantized"]
    assert node.op_type == "DequantizeLinear"
    return int(onnx.helper.get_node_attr_value(node, "axis"))


def test_conv_and_relu() -> None:
    """Relu is implied by the range of its output, so there is no quantizer between; zero is the lowest level."""
    model = net(
        "g (float[1,4,8,8] x) => (float[1,8,8,8] y) <float[8,4,3,3] w, float[8] b>"
        f"{{ c = Conv{PADS}(x, w, b)  y = Relu(c) }}"
    )
    result = quantized(model, Ranges(y=POSITIVE))
    assert flow(result) == ["x -> Q -> DQ -> Conv", "Conv -> Relu", "Relu -> Q -> DQ -> y"]
    assert quantizers(result)["y"] == (float(np.float32(4 / 255)), 0)


def test_residual_add_has_both_inputs_quantized_and_the_shared_one_once() -> None:
    model = net(
        f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w, float[8,8,3,3] v> {{
        c = Conv{PADS}(x, w)  r = Relu(c)  d = Conv{PADS}(r, v)  a = Add(d, r)  y = Relu(a) }}"""
    )
    result = quantized(model, Ranges(r=POSITIVE, y=POSITIVE))
    assert flow(result) == [
        "x -> Q -> DQ -> Conv",
        "Conv -> Relu",
        "Relu -> Q -> DQ -> Conv2",
        "Conv2 -> Q -> DQ -> Add",
        "Relu -> Q -> DQ -> Add",
        "Add -> Relu2",
        "Relu2 -> Q -> DQ -> y",
    ]
    assert count(result, "QuantizeLinear") == 4


def test_silu_has_its_inner_quantizers() -> None:
    model = net(
        f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w> {{
        c = Conv{PADS}(x, w)  s = Sigmoid(c)  y = Mul(c, s) }}"""
    )
    assert flow(quantized(model)) == [
        "x -> Q -> DQ -> Conv",
        "Conv -> Q -> DQ -> Sigmoid",
        "Conv -> Q -> DQ -> Mul",
        "Sigmoid -> Q -> DQ -> Mul",
        "Mul -> Q -> DQ -> y",
    ]


CONCAT = f"""g (float[1,8,8,8] x) => (float[1,16,8,8] y) <float[8,8,3,3] w, float[8,8,3,3] v> {{
    c = Conv{PADS}(x, w)  d = Conv{PADS}(x, v)  y = Concat<axis = 1>(c, d) }}"""


def test_concat_of_like_ranges_shares_one_scale() -> None:
    found = quantizers(quantized(net(CONCAT), Ranges(c=(-4.0, 2.0), d=(-1.0, 3.0), y=(-4.0, 3.0))))
    assert found["c"] == found["d"] == found["y"] == (float(np.float32(7 / 255)), 146)


@pytest.mark.parametrize(
    ("ranges", "share"),
    [
        pytest.param({"c": (0.0, 320.0), "d": (0.0, 1.0)}, 1 / 320, id="boxes and scores"),
        pytest.param({"c": (-4.0, 4.0), "d": (-0.25, 0.5)}, 0.75 / 8, id="less than an eighth"),
        pytest.param({"c": (-4.0, 4.0), "d": (0.0, 1.0)}, None, id="an eighth will do"),
        pytest.param({"c": (0.0, 0.0), "d": (0.0, 0.0)}, None, id="nothing but zero"),
    ],
)
def test_a_concat_where_ranges_of_very_different_size_meet_is_found(
    ranges: dict[str, tuple[float, float]], share: float | None
) -> None:
    """A detector's head: under one scale over 0..320 every score would become 0. The pass leaves it in float."""
    model = net(CONCAT)
    units = units_of(model)
    (concat,) = [unit.index for unit in units.all if unit.node.op_type == "Concat"]
    every = [unit.index for unit in units.all]
    _, clashes = shared_ranges(units, every, Ranges(**ranges, y=ranges["c"]))
    assert clashes == ({} if share is None else {concat: pytest.approx(share)})
    assert shared_ranges(units, set(every) - {concat}, Ranges(**ranges, y=ranges["c"]))[1] == {}


def test_a_concat_in_float_leaves_its_inputs_their_own_ranges() -> None:
    result = quantized(
        net(CONCAT), Ranges(c=(0.0, 320.0), d=(0.0, 1.0)), wanted=lambda name: not name.startswith("Concat")
    )
    found = quantizers(result)
    assert found["c"] == (float(np.float32(320 / 255)), 0)
    assert found["d"] == (float(np.float32(1 / 255)), 0)
    assert flow(result)[2:] == ["Conv -> Q -> DQ -> Concat", "Conv2 -> Q -> DQ -> Concat", "Concat -> y"]


def test_concats_in_a_row_share_one_scale() -> None:
    model = net(
        """g (float[1,4] a, float[1,4] b, float[1,4] c) => (float[1,12] y) {
        d = Concat<axis = 1>(a, b)  y = Concat<axis = 1>(d, c) }"""
    )
    found = quantizers(quantized(model, Ranges(a=(0, 1), b=(0, 2), c=(0, 3), d=(0, 2), y=(0, 3))))
    assert set(found.values()) == {(float(np.float32(3 / 255)), 0)}


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        pytest.param("MaxPool<kernel_shape = [2,2], strides = [2,2]>(c)", "1,8,4,4", id="MaxPool"),
        pytest.param("Reshape(c, target)", "1,512", id="Reshape"),
        pytest.param("Transpose<perm = [0,2,3,1]>(c)", "1,8,8,8", id="Transpose"),
        pytest.param("Flatten(c)", "1,512", id="Flatten"),
        pytest.param("Slice(c, starts, ends)", "1,8,8,8", id="Slice"),
        pytest.param('Resize<mode = "nearest">(c, "", scales)', "1,8,16,16", id="Resize"),
    ],
)
def test_data_movement_hands_on_the_quantization(operator: str, shape: str) -> None:
    operator = operator.replace('""', "")
    model = net(
        f"""g (float[1,8,8,8] x) => (float[{shape}] y)
        <float[8,8,3,3] w, int64[2] target = {{1, 512}}, int64[1] starts = {{0}}, int64[1] ends = {{1}},
         float[4] scales = {{1, 1, 2, 2}}> {{
        c = Conv{PADS}(x, w)  y = {operator} }}"""
    )
    result = quantized(model, Ranges(c=(-1.0, 3.0), y=(-0.5, 2.0)))
    found = quantizers(result)
    assert found["y"] == found["c"] == (float(np.float32(4 / 255)), 64)
    name = operator.split("<")[0].split("(")[0]
    assert flow(result)[1:] == [f"Conv -> Q -> DQ -> {name}", f"{name} -> Q -> DQ -> y"]


def test_both_halves_of_a_split_keep_the_quantization() -> None:
    model = net(
        """g (float[1,8] x) => (float[1,4] a, float[1,4] b) { a, b = Split<axis = 1, num_outputs = 2>(x) }""", opset=18
    )
    found = quantizers(quantized(model, Ranges(x=(-1.0, 3.0))))
    assert set(found) == {"x", "a", "b"}
    assert len(set(found.values())) == 1


def test_a_tensor_with_readers_in_both_precisions_gives_each_its_own() -> None:
    """Exp reads the float form as it was; only the convolution reads what went through Q and DQ."""
    model = net(
        f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y, float[1,8,8,8] z) <float[8,8,3,3] w> {{
        t = Tanh(x)  y = Conv{PADS}(t, w)  z = Exp(t) }}"""
    )
    assert flow(quantized(model)) == [
        "x -> Tanh",
        "Tanh -> Q -> DQ -> Conv",
        "Tanh -> Exp",
        "Conv -> Q -> DQ -> y",
        "Exp -> z",
    ]


def test_what_is_made_in_int8_is_read_dequantized_in_float() -> None:
    model = net(
        f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y, float[1,8,8,8] z) <float[8,8,3,3] w, float[8,8,3,3] v> {{
        c = Conv{PADS}(x, w)  y = Conv{PADS}(c, v)  z = Exp(c) }}"""
    )
    assert flow(quantized(model))[:4] == [
        "x -> Q -> DQ -> Conv",
        "Conv -> Q -> DQ -> Conv2",
        "Conv -> Q -> DQ -> Exp",
        "Conv2 -> Q -> DQ -> y",
    ]


def test_a_graph_output_in_the_middle_keeps_its_name() -> None:
    model = net(
        f"""g (float[1,8,8,8] x) => (float[1,8,8,8] c, float[1,8,8,8] y) <float[8,8,3,3] w, float[8,8,3,3] v> {{
        c = Conv{PADS}(x, w)  y = Conv{PADS}(c, v) }}"""
    )
    result = quantized(model)
    assert "Conv -> Q -> DQ -> c" in flow(result)
    assert sqnr(model, result, feed_for(model)) > 25


def test_a_graph_input_is_quantized_once_for_all_its_readers() -> None:
    result = quantized(net(CONCAT))
    assert flow(result)[:2] == ["x -> Q -> DQ -> Conv", "x -> Q -> DQ -> Conv2"]
    assert sum(node.op_type == "QuantizeLinear" and node.input[0] == "x" for node in result.graph.node) == 1


def test_units_left_in_float_are_as_they_were() -> None:
    model = net(
        f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w, float[8,8,3,3] v> {{
        c = Conv{PADS}(x, w)  y = Conv{PADS}(c, v) }}"""
    )
    result = quantized(model, wanted=lambda name: "(y)" in name)
    assert flow(result) == ["x -> Conv", "Conv -> Q -> DQ -> Conv2", "Conv2 -> Q -> DQ -> y"]
    np.testing.assert_array_equal(constants(result, "w")["w"], constants(model, "w")["w"])


def test_nothing_in_int8_is_the_same_graph() -> None:
    model = net(CONCAT)
    result = quantized(model, wanted=lambda name: False)
    assert list(result.graph.node) == list(model.graph.node)
    assert list(result.graph.initializer) == list(model.graph.initializer)


IF = f"""g (float[1,8,8,8] x, bool choice) => (float[1,8,8,8] y) <float[8,8,3,3] w> {{
    c = Conv{PADS}(x, w)
    y = If (choice) <
        then_branch = yes () => (float[1,8,8,8] a) {{ a = Exp(c) }},
        else_branch = no () => (float[1,8,8,8] b) {{ b = Neg(c) }}
    > }}"""


def test_a_subgraph_that_reads_an_outer_tensor_reads_it_dequantized_under_the_same_name() -> None:
    model = net(IF)
    result = quantized(model)
    assert flow(result) == ["x -> Q -> DQ -> Conv", "choice -> If", "Conv -> Q -> DQ -> If", "If -> y"]
    for choice in (True, False):
        fed = {"x": np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32), "choice": np.array(choice)}
        wanted, found = (runtime.run(runtime.session(each), fed)["y"] for each in (model, result))
        # a step of 8/255, of which half may be lost; Exp multiplies it by its value
        assert np.abs(found - wanted).max() < 0.2 * max(1.0, float(np.abs(wanted).max()))


def test_a_relu_whose_input_a_subgraph_reads_is_not_absorbed() -> None:
    text = IF.replace("{ a = Exp(c) }", "{ a = Exp(r) }").replace("y = If", "r = Relu(c)  y = If", 1)
    result = quantized(net(text), Ranges(r=POSITIVE))
    assert "Conv -> Q -> DQ -> Relu" in flow(result)


class TestWeights:
    SHARED = f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w> {{
        c = Conv{PADS}(x, w)  y = Conv{PADS}(c, w) }}"""
    CONV = f"g (float[1,4,8,8] x) => (float[1,8,8,8] y) <float[8,4,3,3] w, float[8] b> {{ y = Conv{PADS}(x, w, b) }}"

    def test_weight_bias_and_scales_are_stored_as_integers(self) -> None:
        model = net(self.CONV)
        result = quantized(model, Ranges(x=(-1.0, 1.0)))
        weight = constants(model, "w")["w"]
        found = constants(result, "")
        expected = quantize_weight(weight, 0)
        np.testing.assert_array_equal(found["w_quantized"], expected.integers)
        np.testing.assert_array_equal(found["w_scale"], expected.scale)
        assert (found["w_zero_point"].dtype, found["w_zero_point"].any()) == (np.int8, False)
        assert axis_of(result, "w") == 0
        input_scale = np.float32(found["x_scale"])
        assert found["b_quantized"].dtype == np.int32
        np.testing.assert_array_equal(found["b_scale"], input_scale * expected.scale)
        bias = constants(model, "b")["b"].astype(np.float64)
        np.testing.assert_array_equal(found["b_quantized"], np.rint(bias / found["b_scale"].astype(np.float64)))
        assert not {"w", "b"} & set(found), "the float weights are gone"

    def test_seven_bits(self) -> None:
        result = quantized(net(self.CONV), rules=Int8Rules(weight_bits=7))
        assert np.abs(constants(result, "w_q")["w_quantized"]).max() == 63

    def test_per_tensor(self) -> None:
        result = quantized(net(self.CONV), rules=Int8Rules(per_channel=False))
        assert constants(result, "w_s")["w_scale"].shape == ()
        assert constants(result, "b_s")["b_scale"].shape == ()

    def test_signed_activations(self) -> None:
        result = quantized(net(self.CONV), Ranges(y=POSITIVE), rules=Int8Rules(activation_dtype="int8"))
        assert quantizers(result)["y"][1] == -128
        assert constants(result, "y_zero_point")["y_zero_point"].dtype == np.int8

    @pytest.mark.parametrize(
        ("operator", "shape", "axis"),
        [
            pytest.param("Gemm<transB = 1>", "6,4", 0, id="Gemm, transposed weights"),
            pytest.param("Gemm", "4,6", 1, id="Gemm"),
            pytest.param("MatMul", "4,6", 1, id="MatMul"),
        ],
    )
    def test_the_scale_follows_the_output_channels(self, operator: str, shape: str, axis: int) -> None:
        model = net(f"g (float[2,4] x) => (float[2,6] y) <float[{shape}] w> {{ y = {operator}(x, w) }}")
        result = quantized(model)
        assert axis_of(result, "w") == axis
        np.testing.assert_array_equal(
            constants(result, "w_scale")["w_scale"], quantize_weight(constants(model, "w")["w"], axis).scale
        )
        name = operator.split("<", maxsplit=1)[0]
        assert flow(result) == [f"x -> Q -> DQ -> {name}", f"{name} -> y"], "a product may answer in float"
        assert sqnr(model, result, feed_for(model)) > 25

    def test_a_matrix_product_before_int8_answers_in_int8(self) -> None:
        model = net(
            "g (float[2,4] x) => (float[2,6] y) <float[4,5] w, float[5,6] v> { h = MatMul(x, w)  y = MatMul(h, v) }"
        )
        assert flow(quantized(model)) == ["x -> Q -> DQ -> MatMul", "MatMul -> Q -> DQ -> MatMul2", "MatMul2 -> y"]

    def test_two_activations_in_one_matrix_product(self) -> None:
        model = net("g (float[2,3,4] x, float[2,4,5] z) => (float[2,3,5] y) { y = MatMul(x, z) }")
        assert flow(quantized(model)) == ["x -> Q -> DQ -> MatMul", "z -> Q -> DQ -> MatMul", "MatMul -> y"]

    def test_a_bias_that_would_overflow_widens_the_scale_of_its_channel(self) -> None:
        weight = np.full((8, 4, 3, 3), 0.1, np.float32)
        weight[3] *= 1e-9
        bias = np.zeros(8, np.float32)
        bias[3] = 100.0
        model = net(self.CONV, w=weight, b=bias)
        found = constants(quantized(model, Ranges(y=(0.0, 110.0))), "")
        real = found["b_quantized"] * found["b_scale"].astype(np.float64)
        np.testing.assert_allclose(real, bias, rtol=1e-6)
        assert np.abs(found["b_quantized"].astype(np.int64)).max() < 2**30

    def test_weights_shared_by_two_convolutions_are_stored_once(self) -> None:
        model = net(self.SHARED)
        result = quantized(model)
        assert [name for name in constants(result, "w") if name.startswith("w_quantized")] == ["w_quantized"]
        assert sqnr(model, result, feed_for(model)) > 25

    def test_weights_shared_with_a_unit_in_float_are_kept_in_both_forms(self) -> None:
        model = net(self.SHARED)
        result = quantized(model, wanted=lambda name: "(y)" in name)
        assert set(constants(result, "w")) == {"w", "w_quantized", "w_scale", "w_zero_point"}
        assert sqnr(model, result, feed_for(model)) > 25

    def test_weights_shared_under_two_biases(self) -> None:
        model = net(
            f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w, float[8] a, float[8] b> {{
            c = Conv{PADS}(x, w, a) y = Conv{PADS}(c, w, b) }}"""
        )
        assert sqnr(model, quantized(model), feed_for(model)) > 25

    def test_replacement_weights_and_bias_are_written(self) -> None:
        model = net(self.CONV)
        given = quantize_weight(np.ones((8, 4, 3, 3)), 0)
        result = quantized(model, Ranges(x=(-1.0, 1.0)), weights={0: given}, bias={0: np.full(8, 2.0)})
        found = constants(result, "")
        assert set(found["w_quantized"].reshape(-1).tolist()) == {127}
        np.testing.assert_allclose(found["b_quantized"] * found["b_scale"].astype(np.float64), 2.0, rtol=1e-4)

    def test_a_corrected_bias_is_added_where_there_was_none(self) -> None:
        model = net(f"g (float[1,4,8,8] x) => (float[1,8,8,8] y) <float[8,4,3,3] w> {{ y = Conv{PADS}(x, w) }}")
        result = quantized(model, bias={0: np.full(8, 2.0)})
        shifted = net(
            f"g (float[1,4,8,8] x) => (float[1,8,8,8] y) <float[8,4,3,3] w, float[8] b> {{ y = Conv{PADS}(x, w, b) }}",
            b=np.full(8, 2.0),
        )
        assert sqnr(shifted, result, feed_for(model)) > 25


class TestTheRest:
    """What has nothing to do with int8 survives, and names never collide."""

    def test_names_that_are_taken_are_avoided(self) -> None:
        model = net(
            f"""g (float[1,8,8,8] x_quantized, float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w> {{
            x_scale = Exp(x_quantized)  c = Conv{PADS}(x, w)  y_float = Add(c, x_scale)  y = Neg(y_float) }}"""
        )
        result = quantized(model, Ranges((-8.0, 24.0)))
        made = [name for node in result.graph.node for name in node.output]
        assert len(made) == len(set(made))
        assert sqnr(model, result, feed_for(model)) > 20

    def test_metadata_functions_and_doc_strings_survive(self) -> None:
        model = net(CONCAT)
        model.doc_string, model.producer_name, model.graph.doc_string = "a net", "someone", "a graph"
        onnx.helper.set_model_props(model, {"owner": "me"})
        model.opset_import.add(domain="local", version=1)
        relu = onnx.helper.make_node("Relu", ["a"], ["b"])
        opset = onnx.helper.make_opsetid("", 17)
        model.functions.append(onnx.helper.make_function("local", "f", ["a"], ["b"], [relu], [opset]))
        result = quantized(model)
        assert (result.doc_string, result.producer_name, result.graph.doc_string) == ("a net", "someone", "a graph")
        assert {entry.key: entry.value for entry in result.metadata_props} == {"owner": "me"}
        assert [function.name for function in result.functions] == ["f"]
        assert list(result.opset_import) == list(model.opset_import)
        assert list(result.graph.input) == list(model.graph.input)
        assert list(result.graph.output) == list(model.graph.output)

    def test_unused_initializers_are_dropped_and_those_of_subgraphs_kept(self) -> None:
        text = IF.replace("<float[8,8,3,3] w>", "<float[8,8,3,3] w, float[8,1,1] k>").replace("Exp(c)", "Mul(c, k)")
        result = quantized(net(text))
        assert "k" in constants(result, "")
        assert "w" not in constants(result, "")

    def test_the_same_placement_gives_the_same_bytes(self) -> None:
        model = net(CONCAT)
        assert quantized(model).SerializeToString(deterministic=True) == quantized(model).SerializeToString(
            deterministic=True
        )


def implied(model: onnx.ModelProto, tensor: str, ranges: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """The interval that the integers of ``tensor`` stand for."""
    parameters = placement_of(model, ranges).parameters[tensor]
    return (0 - parameters.zero_point) * float(parameters.scale), (255 - parameters.zero_point) * float(
        parameters.scale
    )


def test_concat_of_a_relu_and_a_linear_branch_leaves_the_relu_implied() -> None:
    model = net(CONCAT.replace(f"c = Conv{PADS}(x, w)", f"r = Conv{PADS}(x, w)  c = Relu(r)"))
    assert implied(model, "c", Ranges(c=POSITIVE))[0] == 0.0


def test_a_clip_on_both_sides_of_zero_is_implied() -> None:
    model = net(
        f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w, float low = {{-1}}, float high = {{1}}> {{
        c = Conv{PADS}(x, w)  y = Clip(c, low, high) }}"""
    )
    low, high = implied(model, "y", Ranges(y=(-1.0, 1.0)))
    assert low >= -1.0
    assert high <= 1.0


def test_initializers_that_are_listed_as_inputs_do_not_become_inputs_to_feed() -> None:
    model = net(f"g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w> {{ y = Conv{PADS}(x, w) }}")
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [8, 8, 3, 3]))
    units = units_of(model)
    result = write(model, units, place(units, [0], Ranges(), U8), U8)
    assert [spec.name for spec in runtime.input_specs(result)] == ["x"]
