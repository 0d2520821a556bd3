"""Where Q and DQ go for TensorRT, with fixed ranges: graphs told as text."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from explicit_nets import cut, hardware, written
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_nets import Ranges, count, feed_for, flow, net, quantizers, sqnr

from graphopt import runtime
from graphopt.passes.quantize_int8.units import Role

PADS = "<pads = [1,1,1,1]>"
POSITIVE = (0.0, 4.0)


def nodes(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def values(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def maker(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if name in node.output)


CHAIN = f"""g (float[1,4,8,8] x) => (float[1,8,8,8] y) <float[8,4,3,3] w, float[8] b, float[8,8,3,3] v> {{
    c = Conv{PADS}(x, w, b)  r = Relu(c)  d = Conv{PADS}(r, v)  y = Relu(d) }}"""


class TestLayers:
    def test_quantizers_stand_on_what_a_layer_reads_and_nowhere_else(self) -> None:
        assert flow(written(net(CHAIN))) == [
            "x -> Q -> DQ -> Conv",
            "Conv -> Relu",
            "Relu -> Q -> DQ -> Conv2",
            "Conv2 -> Relu2",
            "Relu2 -> y",
        ]

    def test_activations_are_signed_symmetric_and_of_one_scale(self) -> None:
        found = quantizers(written(net(CHAIN), Ranges(x=(-1.0, 3.0), r=POSITIVE)))
        assert found["x"] == (float(np.float32(3 / 127)), 0)
        assert found["r"] == (float(np.float32(4 / 127)), 0)
        model = written(net(CHAIN))
        assert values(model)["x_zero_point"].dtype == np.int8  # absent, it would mean uint8

    def test_weights_are_float_constants_before_q_and_dq_with_a_scale_for_each_channel(self) -> None:
        model = written(net(CHAIN))
        (conv, _) = nodes(model, "Conv")
        dequantize = maker(model, conv.input[1])
        quantize = maker(model, dequantize.input[0])
        assert (quantize.op_type, quantize.input[0]) == ("QuantizeLinear", "w")
        assert (
            onnx.helper.get_node_attr_value(quantize, "axis")
            == onnx.helper.get_node_attr_value(dequantize, "axis")
            == 0
        )
        weights = values(model)["w"]
        scale = values(model)[quantize.input[1]]
        assert weights.dtype == np.float32
        np.testing.assert_allclose(scale, np.abs(weights).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
        assert not values(model)[quantize.input[2]].any()

    def test_weights_may_be_integers_before_dq(self) -> None:
        model = written(net(CHAIN), board=hardware(weight_nodes=False))
        assert count(model, "QuantizeLinear") == 2
        assert values(model)["w_quantized"].dtype == np.int8
        assert "w" not in values(model)

    def test_the_bias_stays_in_float(self) -> None:
        model = written(net(CHAIN))
        assert nodes(model, "Conv")[0].input[2] == "b"

    @pytest.mark.parametrize(
        "text",
        [
            CHAIN,
            "g (float[2,8] x, float[8,4] v) => (float[2,4] y) { y = MatMul(x, v) }",
            "g (float[1,8,4,4] x) => (float[1,4,5,5] y) <float[8,4,2,2] w> { y = ConvTranspose(x, w) }",
        ],
        ids=["Conv", "MatMul of two activations", "ConvTranspose"],
    )
    def test_what_is_quantized_is_not_quantized_again(self, text: str) -> None:
        _, again = cut(written(net(text)))
        assert not [unit for unit in again.all if unit.role in (Role.HEAVY, Role.ELEMENTWISE)]

    def test_layers_that_share_weights_have_quantizers_of_their_own(self) -> None:
        shared = net(
            f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w> {{
            c = Conv{PADS}(x, w)  y = Conv{PADS}(c, w) }}"""
        )
        first, second = nodes(written(shared), "Conv")
        assert first.input[1] != second.input[1]

    @pytest.mark.parametrize(
        ("text", "axis"),
        [
            ("g (float[2,8] x) => (float[2,4] y) <float[8,4] w, float[4] b> { y = Gemm(x, w, b) }", 1),
            ("g (float[2,8] x) => (float[2,4] y) <float[4,8] w, float[4] b> { y = Gemm<transB = 1>(x, w, b) }", 0),
            ("g (float[2,8] x) => (float[2,4] y) <float[8,4] w> { y = MatMul(x, w) }", 1),
        ],
        ids=["Gemm", "Gemm transB", "MatMul"],
    )
    def test_a_matrix_has_a_scale_for_each_output_column(self, text: str, axis: int) -> None:
        model = written(net(text))
        product = model.graph.node[-1]
        dequantize = maker(model, product.input[1])
        assert onnx.helper.get_node_attr_value(dequantize, "axis") == axis
        assert values(model)[dequantize.input[1]].shape == (4,)

    def test_transposed_convolutions_have_one_scale(self) -> None:
        """TensorRT takes scales by input channel there, ONNX Runtime by output channel: one suits both."""
        model = written(
            net("g (float[1,8,4,4] x) => (float[1,4,5,5] y) <float[8,4,2,2] w> { y = ConvTranspose(x, w) }")
        )
        assert flow(model) == ["x -> Q -> DQ -> ConvTranspose", "ConvTranspose -> y"]
        assert values(model)["w_scale"].shape == ()

    def test_both_operands_of_a_product_of_activations_are_quantized(self) -> None:
        model = written(net("g (float[1,2,4,8] a, float[1,2,8,4] b) => (float[1,2,4,4] y) { y = MatMul(a, b) }"))
        assert flow(model) == ["a -> Q -> DQ -> MatMul", "b -> Q -> DQ -> MatMul", "MatMul -> y"]

    def test_a_tensor_is_quantized_once_for_all_its_readers_in_int8_and_float_reads_it_as_it_is(self) -> None:
        model = net(
            f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y, float[1,8,8,8] z, float[1,8,8,8] s)
            <float[8,8,3,3] w, float[8,8,3,3] v> {{
            y = Conv{PADS}(x, w)  z = Conv{PADS}(x, v)  s = Sigmoid(x) }}"""
        )
        assert flow(written(model)) == [
            "x -> Q -> DQ -> Conv",
            "x -> Q -> DQ -> Conv2",
            "x -> Sigmoid",
            "Conv -> y",
            "Conv2 -> z",
            "Sigmoid -> s",
        ]

    def test_normalization_after_a_convolution_has_no_quantizer_before_it(self) -> None:
        model = net(
            f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w, float[8,8,3,3] v,
            float[8] s, float[8] b, float[8] m, float[8] variance> {{
            c = Conv{PADS}(x, w)  n = BatchNormalization(c, s, b, m, variance)  r = Relu(n)  y = Conv{PADS}(r, v) }}""",
            variance=np.ones(8),
        )
        assert flow(written(model)) == [
            "x -> Q -> DQ -> Conv",
            "Conv -> BatchNormalization",
            "BatchNormalization -> Relu",
            "Relu -> Q -> DQ -> Conv2",
            "Conv2 -> y",
        ]

    @pytest.mark.parametrize("swish", ["s = Sigmoid(c)  m = Mul(c, s)", "m = HardSwish(c)"])
    def test_gates_run_in_float(self, swish: str) -> None:
        model = net(
            f"g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w, float[8,8,3,3] v> {{"
            f"c = Conv{PADS}(x, w)  {swish}  y = Conv{PADS}(m, v) }}"
        )
        lines = flow(written(model))
        assert [line for line in lines if "Q" in line] == ["x -> Q -> DQ -> Conv", lines[-2]]
        assert lines[-2].endswith("-> Q -> DQ -> Conv2")


class TestRules:
    TEXT = f"""g (float[1,3,8,8] x) => (float[1,16,8,8] y)
        <float[16,3,3,3] stem, float[16,16,3,3] dense, float[16,2,3,3] narrow, float[16,4,3,3] wide,
         float[16,1,3,3] dw> {{
        a = Conv{PADS}(x, stem)  b = Conv{PADS}(a, dense)  c = Conv<pads = [1,1,1,1], group = 8>(b, narrow)
        d = Conv<pads = [1,1,1,1], group = 4>(c, wide)  y = Conv<pads = [1,1,1,1], group = 16>(d, dw) }}"""

    def refused(self, **rules: Any) -> dict[str, str]:
        scheme, units = cut(net(self.TEXT), hardware(**rules))
        return {units.all[index].name: reason for index, reason in scheme.refused(units).items()}

    def test_few_channels(self) -> None:
        assert self.refused(minimum_channels=16) == {
            "Conv(a)": "it has 3 channels on one side; fewer than 16 gain nothing in int8 there"
        }

    def test_groups(self) -> None:
        assert list(self.refused(group_multiple=4)) == ["Conv(c)", "Conv(y)"]
        assert self.refused(group_multiple=4)["Conv(y)"].startswith(
            "its groups of 1 and 1 channels are no multiples of 4"
        )

    def test_operators_that_are_not_named(self) -> None:
        assert self.refused(quantized_operators=("Gemm",)) == dict.fromkeys(
            ("Conv(a)", "Conv(b)", "Conv(c)", "Conv(d)", "Conv(y)"), "Conv does not run in int8 on the target"
        )

    def test_refused_layers_carry_no_quantizer(self) -> None:
        model = written(net(self.TEXT), board=hardware(minimum_channels=16, group_multiple=4))
        assert [line for line in flow(model) if "Q" in line] == [
            "Conv -> Q -> DQ -> Conv2",
            "Conv3 -> Q -> DQ -> Conv4",
        ]

    def test_pools_where_they_are_named(self) -> None:
        text = f"""g (float[1,8,8,8] x) => (float[1,8,1,1] y) <float[8,8,3,3] w> {{
            c = Conv{PADS}(x, w)  r = Relu(c)  y = GlobalAveragePool(r) }}"""
        assert flow(written(net(text)))[-2:] == ["Relu -> GlobalAveragePool", "GlobalAveragePool -> y"]
        named = hardware(quantized_operators=("Conv", "GlobalAveragePool"))
        assert "Relu -> Q -> DQ -> GlobalAveragePool" in flow(written(net(text), board=named))


class TestResidual:
    IDENTITY = f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] u, float[8,8,3,3] v, float[8,8,3,3] w> {{
        s = Conv{PADS}(x, u)  r = Relu(s)
        c = Conv{PADS}(r, v)  d = Relu(c)  e = Conv{PADS}(d, w)  a = Add(e, r)  y = Relu(a) }}"""
    PROJECTION = f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y)
        <float[8,8,3,3] u, float[8,8,3,3] v, float[8,8,1,1] p> {{
        c = Conv{PADS}(x, u)  r = Relu(c)  d = Conv{PADS}(r, v)  q = Conv(x, p)  a = Add(%s)  y = Relu(a) }}"""

    def test_only_the_skip_is_quantized(self) -> None:
        lines = flow(written(net(self.IDENTITY)))
        assert "Conv3 -> Add" in lines
        assert "Relu -> Q -> DQ -> Add" in lines
        assert count(written(net(self.IDENTITY)), "QuantizeLinear") == 3 + 3  # three tensors, three weights

    @pytest.mark.parametrize("operands", ["d, q", "q, d"])
    def test_of_two_convolutions_the_one_on_the_shorter_path_is_the_skip(self, operands: str) -> None:
        lines = flow(written(net(self.PROJECTION % operands)))
        assert "Conv2 -> Add" in lines
        assert "Conv3 -> Q -> DQ -> Add" in lines

    def test_an_addition_beside_a_convolution_in_float_carries_none(self) -> None:
        lines = flow(written(net(self.IDENTITY), wanted=lambda name: name != "Conv(e)"))
        assert [line for line in lines if line.endswith("-> Add")] == ["Conv3 -> Add", "Relu -> Add"]

    @pytest.mark.parametrize(
        "text",
        [
            "e = Conv{0}(x, w)  t = Relu(e)  y = Add(t, x)",  # the activation already ends the convolution's kernel
            "e = Conv{0}(x, w)  t = Sigmoid(e)  z = Add(e, x)  y = Mul(t, z)",  # somebody else reads its answer
            "e = Conv{0}(x, w)  y = Add(e, e)",
            "e = Conv{0}(x, w)  p = GlobalMaxPool(x)  y = Add(e, p)",  # one value is spread over an image
        ],
    )
    def test_an_addition_that_cannot_run_inside_a_convolution_carries_none(self, text: str) -> None:
        model = written(net(f"g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w> {{ {text.format(PADS)} }}"))
        assert count(model, "QuantizeLinear") == 2

    def test_a_sum_of_two_is_an_addition(self) -> None:
        """As residual nets from Caffe2 have it."""
        proto = net(self.IDENTITY.replace("Add", "Sum"))
        scheme, _ = cut(proto)
        prepared, _ = scheme.prepared(proto)
        assert "Relu -> Q -> DQ -> Add" in flow(written(prepared))
        assert count(proto, "Sum") == 1, "the model that was given is not edited"

    def test_both_inputs_where_the_rules_say_so(self) -> None:
        lines = flow(written(net(self.IDENTITY), board=hardware(residual_inputs="both")))
        assert "Conv3 -> Q -> DQ -> Add" in lines
        assert "Relu -> Q -> DQ -> Add" in lines

    def test_normalization_between_convolution_and_addition(self) -> None:
        model = net(
            f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] w, float[8] s, float[8] b, float[8] m,
            float[8] variance> {{
            c = Conv{PADS}(x, w)  n = BatchNormalization(c, s, b, m, variance)  y = Add(n, x) }}""",
            variance=np.ones(8),
        )
        assert flow(written(model)) == [
            "x -> Q -> DQ -> Conv",
            "Conv -> BatchNormalization",
            "BatchNormalization -> Add",
            "x -> Q -> DQ -> Add",
            "Add -> y",
        ]


class TestOneScale:
    CONCAT = f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y, float[1,8,8,8] z)
        <float[8,8,3,3] u, float[8,8,3,3] v, float[8,24,3,3] w> {{
        c = Conv{PADS}(x, u)  d = Conv{PADS}(c, v)  e = Concat<axis = 1>(c, d)  m = MaxPool<kernel_shape = [1,1]>(e)
        f = Concat<axis = 1>(m, c)  y = Conv{PADS}(f, w)  z = Relu(d) }}"""
    RANGES = Ranges(x=(-1.0, 1.0), c=(-2.0, 2.0), d=(-1.0, 5.0), f=(-3.0, 3.0))

    def test_a_concat_read_in_int8_shares_its_scale_with_its_inputs_transitively(self) -> None:
        found = quantizers(written(net(self.CONCAT), self.RANGES))
        assert sorted(name for name in found if name in "xcdf") == ["c", "f", "x"]
        assert found["c"] == found["f"] == (float(np.float32(3 / 127)), 0)
        assert found["x"] == (float(np.float32(1 / 127)), 0)

    def test_where_the_rules_ask_for_no_shared_scale_each_keeps_its_own(self) -> None:
        found = quantizers(written(net(self.CONCAT), self.RANGES, board=hardware(shared_concat_scale=False)))
        assert found["c"] != found["f"]

    def test_a_concat_that_float_reads_joins_nothing(self) -> None:
        text = f"""g (float[1,8,8,8] a, float[1,8,8,8] b) => (float[1,16,8,8] y, float[1,8,8,8] p, float[1,8,8,8] q)
            <float[8,8,3,3] u, float[8,8,3,3] v> {{
            y = Concat<axis = 1>(a, b)  p = Conv{PADS}(a, u)  q = Conv{PADS}(b, v) }}"""
        found = quantizers(written(net(text), Ranges(a=(0.0, 1.0), b=(0.0, 100.0))))
        assert found["a"][0] < found["b"][0]

    def test_pooling_hands_its_scale_on(self) -> None:
        text = f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y, float[1,8,8,8] z) <float[8,8,3,3] u, float[8,8,3,3] v> {{
            y = Conv{PADS}(x, u)  m = MaxPool<kernel_shape = [3,3], pads = [1,1,1,1]>(x)  z = Conv{PADS}(m, v) }}"""
        found = quantizers(written(net(text), Ranges(x=(-3.0, 2.0), m=(-1.0, 2.0))))
        assert found["x"] == found["m"]

    def test_a_narrow_tensor_in_a_wide_scale_is_named(self) -> None:
        scheme, units = cut(net(self.CONCAT))
        chosen = scheme.settled(units, [unit.index for unit in units.all if unit.role is not Role.FLOAT])
        ranges = {"x": (-1.0, 1.0), "c": (-1.0, 1.0), "f": (-100.0, 100.0)}
        found = {units.all[index].name: share for index, share in scheme.clashes(units, chosen, ranges).items()}
        assert found == {"Conv(d)": pytest.approx(0.01)}


@given(
    seed=st.integers(0, 10_000),
    blocks=st.lists(st.sampled_from(["conv", "residual", "pool", "concat", "gate"]), min_size=1, max_size=6),
)
@settings(derandomize=True, deadline=None, max_examples=30)
def test_any_net_stays_close_and_no_fused_chain_is_parted(seed: int, blocks: list[str]) -> None:
    """Random nets of common blocks: the result is valid, near the original, and nothing follows a layer but float."""
    lines, weights, current, channels = [], [], "x", 8
    for number, block in enumerate(blocks):
        weight = f"w{seed}_{number}"
        out = f"t{number}"
        if block == "pool":
            lines.append(f"{out} = MaxPool<kernel_shape = [3,3], pads = [1,1,1,1]>({current})")
            current = out
            continue
        weights.append(f"float[8,{channels},3,3] {weight}")
        lines.append(f"{out}c = Conv{PADS}({current}, {weight})")
        if block == "residual" and channels == 8:
            lines += [f"{out}a = Add({out}c, {current})", f"{out} = Relu({out}a)"]
        elif block == "concat":
            lines += [f"{out}r = Relu({out}c)", f"{out} = Concat<axis = 1>({current}, {out}r)"]
            channels += 8
        elif block == "gate":
            lines += [f"{out}s = Sigmoid({out}c)", f"{out} = Mul({out}c, {out}s)"]
        else:
            lines.append(f"{out} = Relu({out}c)")
        if block != "concat":
            channels = 8
        current = out
    declared = f"<{', '.join(weights)}>" if weights else ""
    text = f"g (float[2,8,6,6] x) => (float[2,{channels},6,6] {current}) {declared} {{ {'  '.join(lines)} }}"
    model = net(text)
    feed = feed_for(model, seed=seed)
    ranges = Ranges()
    observed = model.__class__.FromString(model.SerializeToString())
    names = [name for node in model.graph.node for name in node.output]
    del observed.graph.output[:]
    observed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    seen = runtime.run(runtime.session(observed, optimize=False), feed) | feed
    ranges.update({name: (min(float(each.min()), 0.0), max(float(each.max()), 0.0)) for name, each in seen.items()})
    result = written(model, ranges)
    assert sqnr(model, result, feed) > 25
    layers = {node.output[0] for node in result.graph.node if node.op_type == "Conv"}
    readers: dict[str, list[str]] = {}
    for node in result.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    for name in layers:
        follows = set(readers.get(name, ()))
        assert "QuantizeLinear" not in follows or follows <= {"QuantizeLinear", "Concat"}
