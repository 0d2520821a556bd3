"""Rules of Q/DQ in the forms that quantizers write them: what is found and, as important, what is not."""

from __future__ import annotations

from typing import Any

import pytest

from graphopt import runtime
from graphopt.rules import check_model
from graphopt.targets.schema import Hardware
from tests.rules.rule_examples import (
    BEHIND_CONV,
    CONV_IS_LAST,
    CPU,
    ON_CPU,
    PAIR,
    QUANTIZED,
    STRONG,
    TENSORRT,
    WEIGHTS,
    ZEROS,
    instead,
)
from tests.support import model

INTEGER = ("QLinearConv", "QGemm", "MatMulInteger")


def found(text: str, *rules: str, **weights: Any) -> list[str]:
    """Names of the rules that a model breaks."""
    return [finding.rule for finding in check_model(model(text, **(ZEROS | weights)), TENSORRT, rules)]


PRODUCT = """agraph (float[4,16] x) => (float[4,8] y)
    <float s = {{0.02}}, int8 z = {{0}}, float[{count}] var_w, float[{shape}] w>
{{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    wq = QuantizeLinear<axis = {axis}>(w, var_w)
    wd = DequantizeLinear<axis = {axis}>(wq, var_w)
    {product}
}}"""


class TestWeightAxis:
    """Scales of weights run along the output channels, wherever a layout puts these."""

    CASES = (
        ("y = MatMul(d, wd)", "16,8", 1, 0),
        ("y = MatMul(d, wd)", "16,8", -1, 0),
        ("y = Gemm(d, wd)", "16,8", 1, 0),
        ("y = Gemm<transB = 1>(d, wd)", "8,16", 0, 1),
        ("t = Transpose<perm = [1,0]>(wd) y = MatMul(d, t)", "8,16", 0, 1),
        ("t = Transpose(wd) y = MatMul(d, t)", "8,16", 0, 1),
    )

    @pytest.mark.parametrize(("product", "shape", "right", "wrong"), CASES)
    def test_of_matrix_products(self, product: str, shape: str, right: int, wrong: int) -> None:
        sizes = [int(size) for size in shape.split(",")]
        for axis, rules in ((right, []), (wrong, ["weight_axis"])):
            text = PRODUCT.format(product=product, shape=shape, axis=axis, count=sizes[axis])
            assert found(text, "weight_axis") == rules

    def test_of_a_transposed_convolution(self) -> None:
        text = instead(QUANTIZED, ("Conv<", "ConvTranspose<"))
        assert found(text, "weight_axis") == ["weight_axis"]
        assert found(text.replace("axis = 0", "axis = 1"), "weight_axis") == []

    def test_one_scale_for_all_has_no_axis(self) -> None:
        text = instead(QUANTIZED, ("float[16] var_w, int8[16] zeros", "float var_w = {0.1}, int8 zeros = {0}"))
        assert [*check_model(model(text), TENSORRT, ["explicit_int8"])] == []


class TestUselessQuantizers:
    def test_data_movement_is_looked_through(self) -> None:
        moved = "t = Transpose<perm = [0,1,3,2]>(d) m = MaxPool<kernel_shape = [1,1]>(t)"
        text = instead(QUANTIZED, ("(d, wd, b)", "(m, wd, b)"), ("[c]", f"{moved} [c]"))
        assert found(text, "explicit_int8") == []

    def test_one_reader_with_an_integer_kernel_is_enough(self) -> None:
        text = instead(
            QUANTIZED, ("[c]", "y2 = Sigmoid(d) [c]"), ("float[1,16,8,8] y)", "float[1,16,8,8] y, float[1,16,8,8] y2)")
        )
        assert found(text, "useless_quantizer") == []

    def test_a_reader_without_one_is_not(self) -> None:
        text = instead(QUANTIZED, (CONV_IS_LAST, BEHIND_CONV + PAIR + "y = Sigmoid(u)"))
        assert found(text, "useless_quantizer") == ["useless_quantizer"]


class TestResidualAdditions:
    """Between the convolution that adds in its kernel and the addition stands nothing."""

    TWO = "v2 = Conv<pads = [1,1,1,1]>(d, wd) {second} y = Add({first}, {other})"
    PAIR2 = "vq2 = QuantizeLinear(v2, s, z) u2 = DequantizeLinear(vq2, s, z)"

    @pytest.mark.parametrize(
        ("tail", "rules"),
        [
            ("y = Add(v, d)", []),
            ("y = Add(v, x)", []),
            (PAIR + "y = Add(u, x)", ["residual_quantizer"]),
            (PAIR + "y = Add(u, d)", ["residual_quantizer"]),
            ("r = Relu(v) rq = QuantizeLinear(r, s, z) u = DequantizeLinear(rq, s, z) y = Add(u, d)", []),
            (TWO.format(second="", first="v", other="v2"), []),
            (PAIR + TWO.format(second="", first="u", other="v2"), []),
            (PAIR + TWO.format(second=PAIR2, first="u", other="u2"), ["residual_quantizer"]),
        ],
        ids=[
            "skip quantized",
            "skip in float",
            "convolution quantized, skip in float",
            "both quantized",
            "an activation parts convolution and addition",
            "two convolutions in float",
            "one of two convolutions as the skip",
            "two convolutions, both quantized",
        ],
    )
    def test_where_q_and_dq_may_stand(self, tail: str, rules: list[str]) -> None:
        assert found(instead(QUANTIZED, (CONV_IS_LAST, BEHIND_CONV + tail)), "residual_quantizer") == rules

    def test_a_convolution_that_others_read_too_does_not_add_in_its_kernel(self) -> None:
        tail = BEHIND_CONV + PAIR + "o = Sigmoid(v) t = Add(u, d) y = Add(t, o)"
        assert found(instead(QUANTIZED, (CONV_IS_LAST, tail)), "residual_quantizer") == []


class TestFusion:
    """Nothing stands between a kernel and what runs inside it."""

    AFTER = "nq = QuantizeLinear(n, s, z) u = DequantizeLinear(nq, s, z) y = Relu(u)"
    BESIDES = ("float[16] b", "float[16] b, float[16] var_b, float[16,1,1] k")

    @pytest.mark.parametrize(
        ("between", "rules"),
        [
            ("n = BatchNormalization(v, b, b, b, var_b)", ["quantizer_in_fusion"]),
            ("n = Add(v, k)", ["quantizer_in_fusion"]),
            ("n = Add(x, v)", ["quantizer_in_fusion"]),
            ("n = Sigmoid(v)", []),
            ("n = Relu(v)", []),
        ],
        ids=["a normalization", "a bias", "a residual addition", "another activation", "an activation twice"],
    )
    def test_the_kernel_ends_behind_the_first_activation(self, between: str, rules: list[str]) -> None:
        text = instead(QUANTIZED, self.BESIDES, (CONV_IS_LAST, BEHIND_CONV + between + "\n" + self.AFTER))
        assert found(text, "quantizer_in_fusion") == rules


class TestConcat:
    """One scale for all that meets in a Concat, whatever moves it there."""

    NET = """agraph (float[1,8,8,8] x, float[1,8,8,8] o) => (float[n,c,h,w] y)
    <float s = {{0.1}}, float t = {{{0}}}, int8 z = {{0}}>
    {{
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        r = QuantizeLinear(o, t, z) e = DequantizeLinear(r, t, z)
        {1}
    }}"""

    @pytest.mark.parametrize(
        "meeting",
        [
            "[cat] y = Concat<axis = 1>(d, e)",
            "m = MaxPool<kernel_shape = [1,1]>(e) [cat] y = Concat<axis = 1>(d, m)",
            "i = Concat<axis = 1>(d, d) [cat] y = Concat<axis = 1>(i, e)",
            "[cat] c = Concat<axis = 1>(d, d) k = QuantizeLinear(c, t, z) y = DequantizeLinear(k, t, z)",
        ],
    )
    def test_different_scales_meet(self, meeting: str) -> None:
        (finding,) = check_model(model(self.NET.format(0.2, meeting)), TENSORRT, ["concat_scales"])
        assert finding.where == "cat"
        assert check_model(model(self.NET.format(0.1, meeting)), TENSORRT, ["concat_scales"]) == []

    def test_what_is_not_quantized_has_no_scale(self) -> None:
        proto = model(self.NET.format(0.2, "[cat] y = Concat<axis = 1>(d, o)"))
        assert check_model(proto, TENSORRT, ["concat_scales"]) == []


class TestStronglyTyped:
    """Where the runtime computes in the types of the graph, what is not int8 should be float16."""

    HALF = "agraph (float[1,16,8,8] x) => (float[1,16,8,8] y) <float16[16,16,1,1] w, float[16,16,1,1] v> {{ {0} }}"

    @pytest.mark.parametrize(
        ("nodes", "rules"),
        [
            ("h = Cast<to = 10>(x) c = Conv(h, w) f = Cast<to = 1>(c) y = Conv(f, v)", []),
            ("t = Conv(x, v) y = Conv(t, v)", ["float32_only"]),
        ],
        ids=["one layer kept in float32", "nothing converted"],
    )
    def test_a_model_all_in_float32_is_told_of_once(self, nodes: str, rules: list[str]) -> None:
        proto = model(self.HALF.format(nodes))
        assert [finding.rule for finding in check_model(proto, STRONG, ["precision"])] == rules

    def test_layers_in_int8_count_as_converted(self) -> None:
        assert check_model(model(QUANTIZED, **ZEROS), STRONG, ["precision"]) == []


CLIP = ("r = Relu(v)", "r = Clip(v, lo, hi)")
BOUNDS = "float lo = {{0}}, float hi = {{{0}}}, float s = {{0.02}}"


class TestOnTheCpu:
    """Each model is also handed to ONNX Runtime, whose optimized graph must agree with the rules."""

    @pytest.mark.parametrize(
        ("changes", "rules"),
        [
            ([], []),
            ([CLIP, ("float s = {0.02}", BOUNDS.format(6))], []),
            ([CLIP, ("float s = {0.02}", BOUNDS.format(5))], ["cpu_activation_kept"]),
            ([("r = Relu(v)", "r = LeakyRelu(v)")], ["cpu_activation_kept"]),
            ([("r = Relu(v)", "r = HardSwish(v)")], ["cpu_activation_kept"]),
            ([("r = Relu(v)", "t = Relu(v) r = MaxPool<kernel_shape = [1,1]>(t)")], []),
            ([("r = Relu(v)", "r = Transpose<perm = [0,1,3,2]>(v)")], []),
            ([("r = Relu(v)", "r = Resize(v, , f)"), ("float ws", "float[4] f = {1,1,1,1}, float ws")],
             ["cpu_result_not_quantized"]),
            ([("r = Relu(v)", "r = Relu(v) y2 = Sigmoid(r)"),
              ("float[1,16,8,8] y)", "float[1,16,8,8] y, float[1,16,8,8] y2)")], ["cpu_result_not_quantized"]),
            ([("int32[16] b, float bs", "float[16] b, float bs"), ("bd = D", "other = D"), ("(b, bs)", "(ints, bs)"),
              ("wd, bd)", "wd, b)"), ("int8[16,16,3,3] w", "int8[16,16,3,3] w, int32[16] ints")], []),
            ([("uint8 z = {0}", "int8 z = {-128}")], []),
            ([("uint8 z = {0}", "int8 z = {0}")], ["cpu_activation_kept"]),
        ],
        ids=["relu", "clip within", "clip beyond", "leaky relu", "hard-swish", "across a pool", "across a transpose",
             "behind a resize", "a reader in float", "constant float bias", "s8 at the least value", "s8 at 0"],
    )  # fmt: skip
    def test_the_rules_say_what_onnx_runtime_does(self, changes: list[tuple[str, str]], rules: list[str]) -> None:
        proto = model(instead(ON_CPU, *changes), **(WEIGHTS | {"ints": [1] * 16}))
        assert [finding.rule for finding in check_model(proto, CPU, ["cpu_int8"])] == rules
        ran = [node.op_type for node in runtime.optimized_graph(proto, 1).graph.node]
        assert any(op.startswith(INTEGER) for op in ran) == (not rules), ran

    GEMM = """agraph (float[4,16] x, float[8] given) => (float[4,8] y)
        <float s = {{0.02}}, uint8 z = {{0}}, float ws = {{0.01}}, int8 wz = {{0}}, int8[16,8] w, int32[8] b,
         float[8] fb, float bs = {{0.0002}}>
    {{
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        wd = DequantizeLinear(w, ws, wz)
        bd = DequantizeLinear(b, bs)
        {0}
    }}"""

    @pytest.mark.parametrize(
        ("nodes", "rules"),
        [
            ("y = Gemm(d, wd)", []),
            ("y = Gemm(d, wd, bd)", []),
            ("g = Gemm(d, wd, bd) y = Relu(g)", []),
            ("y = MatMul(d, wd)", []),
            ("y = Gemm(d, wd, fb)", ["cpu_result_not_quantized"]),
            ("g = Gemm(d, wd, fb) gq = QuantizeLinear(g, s, z) y = DequantizeLinear(gq, s, z)", []),
            ("g = Gemm(d, wd, given) gq = QuantizeLinear(g, s, z) y = DequantizeLinear(gq, s, z)",
             ["cpu_computed_bias"]),
        ],
    )  # fmt: skip
    def test_of_matrix_products_too(self, nodes: str, rules: list[str]) -> None:
        proto = model(self.GEMM.format(nodes), w=[[5] * 8] * 16, b=[1] * 8)
        assert [finding.rule for finding in check_model(proto, CPU, ["cpu_int8"])] == rules
        ran = [node.op_type for node in runtime.optimized_graph(proto, 1).graph.node]
        assert any(op.startswith(INTEGER) for op in ran) == (not rules), ran

    def test_a_layer_left_in_float_between_integers_is_no_mistake(self) -> None:
        changes = (
            ("int8[16,16,3,3] w", "float[16,16,3,3] w, int8[1] w8"),
            ("(w, ws, wz)", "(w8, ws, wz)"),
            ("d, wd, bd", "d, w, bd"),
        )
        assert check_model(model(instead(ON_CPU, *changes), **WEIGHTS), CPU, ["cpu_int8"]) == []


class TestChannelSteps:
    NET = "agraph (float[1,3,8,8] x) => (float[1,5,8,8] y) <float[{0},3,1,1] w, float[5,{0},1,1] v> "
    NODES = "{{ t = Conv(x, w) y = Conv(t, v) }}"

    def found(self, channels: int, hardware: Hardware) -> list[str]:
        proto = model((self.NET + self.NODES).format(channels))
        return [finding.message for finding in check_model(proto, hardware, ["channels"])]

    def test_a_gpu_s_tensor_cores_want_every_multiple(self) -> None:
        assert [size for size in range(8, 34) if not self.found(size, TENSORRT)] == [8, 16, 24, 32]

    def test_a_cpu_takes_parts_of_a_block_if_little_is_padded(self) -> None:
        assert [size for size in range(8, 50) if not self.found(size, CPU)] == [12, 16, *range(24, 50, 4)]

    def test_layers_of_one_count_are_told_of_once(self) -> None:
        proto = model(
            "agraph (float[1,3,8,8] x) => (float[1,5,8,8] y) "
            "<float[30,3,1,1] w, float[30,30,1,1] u, float[5,30,1,1] v> "
            "{ t = Conv(x, w) r = Conv(t, u) y = Conv(r, v) }"
        )
        (finding,) = check_model(proto, TENSORRT, ["channels"])
        assert finding.message.startswith(
            "2 layers of 30 output channels, which float16 kernels compute as 32 (7% more"
        )

    def test_the_outputs_of_the_model_are_given(self) -> None:
        proto = model(
            "agraph (float[1,3,8,8] x) => (float[1,5,8,8] y) <float[5,3,1,1] w> { c = Conv(x, w) y = Relu(c) }"
        )
        assert check_model(proto, TENSORRT, ["channels"]) == []

    def test_a_single_pixel_is_little_work(self) -> None:
        proto = model(
            "agraph (float[1,16,8,8] x) => (float[1,16,8,8] y) <float[5,16,1,1] w, float[16,5,1,1] v> "
            "{ p = GlobalAveragePool(x) s = Conv(p, w) e = Conv(s, v) y = Mul(x, e) }"
        )
        assert check_model(proto, TENSORRT, ["channels"]) == []
