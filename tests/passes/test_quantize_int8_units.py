"""Units: what each operator is to int8, and why some stay in float. What is left alone comes first."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from int8_nets import net, units_of

from graphopt.passes.quantize_int8.units import Role, Unit, clip_bounds

CONV = "g (float[1,4,8,8] x{more}) => (float[1,4,8,8] y) <float[4,4,1,1] w, float[4] b> {{ {body} }}"


def the_unit(text: str, operator: str, **options: object) -> Unit:
    (found,) = [unit for unit in units_of(net(text, **options)).all if unit.node.op_type == operator]
    return found


@pytest.mark.parametrize(
    ("text", "operator", "reason"),
    [
        pytest.param(
            "g (float[1,4,8,8] x, float[4,4,1,1] w) => (float[1,4,8,8] y) { y = Conv(x, w) }",
            "Conv",
            "its weights are computed at run time",
            id="weights are an input",
        ),
        pytest.param(
            "g (float[1,4,8,8] x, float[4] b) => (float[1,4,8,8] y) <float[4,4,1,1] w> { y = Conv(x, w, b) }",
            "Conv",
            "its bias is computed at run time",
            id="bias is an input",
        ),
        pytest.param(
            """g (float[2,4] x, float[4,4] v) => (float[2,4] y) <float s, int8 z = {0}> {
              q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
              p = QuantizeLinear(v, s, z)  e = DequantizeLinear(p, s, z)  y = MatMul(d, e) }""",
            "MatMul",
            "what it reads is quantized already",
            id="quantized already",
        ),
        pytest.param(
            "g (float16[1,4,8,8] x) => (float16[1,4,8,8] y) <float16[4,4,1,1] w> { y = Conv(x, w) }",
            "Conv",
            "its weights are not float32",
            id="float16",
        ),
        pytest.param(
            "g (double[2,4] x) => (double[2,4] y) <double[4,4] w> { y = MatMul(x, w) }",
            "MatMul",
            "its weights are not float32",
            id="double",
        ),
        pytest.param(
            "g (float[4,4,1,1] v) => (float[1,4,8,8] y) <float[1,4,8,8] w> { y = Conv(w, v) }",
            "Conv",
            "its input is constant",
            id="constant input",
        ),
        pytest.param(
            "g (float[1,4,8,8] x) => (float[1,4,8,8] y) <float[4,4,1,1] w> { y = ConvTranspose(x, w) }",
            "ConvTranspose",
            "ONNX Runtime's CPU provider has no int8 kernel for ConvTranspose",
            id="ConvTranspose",
        ),
        pytest.param(
            "g (float[4,2] x) => (float[2,6] y) <float[4,6] w> { y = Gemm<transA = 1>(x, w) }",
            "Gemm",
            "it transposes its input",
            id="Gemm transA",
        ),
        pytest.param(
            "g (float[2,4] x) => (float[2,6] y) <float[4,6] w> { y = Gemm<alpha = 0.5>(x, w) }",
            "Gemm",
            "it scales by alpha or beta",
            id="Gemm alpha",
        ),
        pytest.param(
            "g (float[2,4] x) => (float[2,6] y) <float[4,6] w, float[6] b> { y = Gemm<beta = 2.0>(x, w, b) }",
            "Gemm",
            "it scales by alpha or beta",
            id="Gemm beta",
        ),
        pytest.param(
            "g (float[2,4] x) => (float[2,6] y) <float[4,6] w, float[1] b> { y = Gemm(x, w, b) }",
            "Gemm",
            "its bias is not one value per output column",
            id="Gemm with one bias for all",
        ),
        pytest.param(
            "g (float[2,4] x) => (float[2,6] y) <float[4,6] w, float[2,6] b> { y = Gemm(x, w, b) }",
            "Gemm",
            "its bias is not one value per output column",
            id="Gemm with a bias for every value",
        ),
        pytest.param(
            "g (float[4,6] x) => (float[2,6] y) <float[2,4] w> { y = MatMul(w, x) }",
            "MatMul",
            "its first operand is constant",
            id="MatMul, constant first",
        ),
        pytest.param(
            "g (float[3,2,4] x) => (float[3,2,6] y) <float[3,4,6] w> { y = MatMul(x, w) }",
            "MatMul",
            "its constant operand is not a matrix",
            id="MatMul by a stack of matrices",
        ),
        pytest.param(
            "g (float[2,4] x) => (float[2,4] y) <float[4] k> { y = Mul(x, k) }",
            "Mul",
            "one of its operands is constant",
            id="Mul by a constant",
        ),
        pytest.param(
            "g (int64[2,4] x, int64[2,4] z) => (int64[2,4] y) { y = Add(x, z) }",
            "Add",
            "it does not work on float32",
            id="whole numbers",
        ),
        pytest.param(
            "g (float[1,4,7,7] x) => (float[1,4,4,4] y) "
            "{ y = AveragePool<kernel_shape = [2,2], strides = [2,2], ceil_mode = 1>(x) }",
            "AveragePool",
            "it rounds its output size up",
            id="AveragePool ceil_mode",
        ),
        pytest.param(
            "g (float[1,4] x) => (float[1,8] y) <float[1,4] k> { y = Concat<axis = 1>(x, k) }",
            "Concat",
            "one of its inputs is constant",
            id="Concat with a constant",
        ),
        pytest.param(
            "g (float[1,4,8,8] x) => (float[1,4,4,4] y, int64[1,4,4,4] i) "
            "{ y, i = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x) }",
            "MaxPool",
            "its indices are used",
            id="MaxPool with indices",
        ),
        pytest.param(
            "g (float[1,4,8,8] x) => (float[1,4,16,16] y) <float[4] s = {1, 1, 2, 2}> "
            '{ y = Resize<mode = "cubic">(x, , s) }',
            "Resize",
            "cubic interpolation leaves the range of its input",
            id="Resize cubic",
        ),
        pytest.param(
            "g (int64[3] i) => (float[3,4] y) <float[9,4] table> { y = Gather(table, i) }",
            "Gather",
            "its input is constant",
            id="embedding",
        ),
        pytest.param("g (float[1,4] x) => (float[1,4] y) { y = Softmax(x) }", "Softmax", "", id="no int8 form"),
        pytest.param(
            '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> '
            "g (float[1,4,8,8] x) => (float[1,4,8,8] y) <float[4,4,1,1] w> { y = com.microsoft.Conv(x, w) }",
            "Conv",
            "",
            id="another domain",
        ),
    ],
)
def test_stays_in_float(text: str, operator: str, reason: str) -> None:
    unit = the_unit(text, operator)
    assert (unit.role, unit.inputs, unit.reason) == (Role.FLOAT, (), reason)


@pytest.mark.parametrize(
    ("text", "operator", "role", "inputs"),
    [
        pytest.param(CONV.format(more="", body="y = Conv(x, w, b)"), "Conv", Role.HEAVY, ("x",), id="Conv"),
        pytest.param(
            "g (float[2,4] x) => (float[2,6] y) <float[6,4] w, float[1,6] b> { y = Gemm<transB = 1>(x, w, b) }",
            "Gemm",
            Role.HEAVY,
            ("x",),
            id="Gemm",
        ),
        pytest.param(
            "g (float[2,4] x) => (float[2,6] y) <float[4,6] w> { y = MatMul(x, w) }",
            "MatMul",
            Role.HEAVY,
            ("x",),
            id="MatMul",
        ),
        pytest.param(
            "g (float[2,4] x, float[4,6] z) => (float[2,6] y) { y = MatMul(x, z) }",
            "MatMul",
            Role.HEAVY,
            ("x", "z"),
            id="MatMul of two",
        ),
        pytest.param(
            "g (float[2] x, float[2] z) => (float[2] y) { y = Add(x, z) }",
            "Add",
            Role.ELEMENTWISE,
            ("x", "z"),
            id="Add",
        ),
        pytest.param(
            "g (float[2] x) => (float[2] y) { y = Mul(x, x) }", "Mul", Role.ELEMENTWISE, ("x", "x"), id="square"
        ),
        pytest.param(
            "g (float[2] x) => (float[2] y) { y = Sigmoid(x) }", "Sigmoid", Role.ELEMENTWISE, ("x",), id="Sigmoid"
        ),
        pytest.param(
            "g (float[1,4] x, float[1,4] z) => (float[1,8] y) { y = Concat<axis = 1>(x, z) }",
            "Concat",
            Role.CONCAT,
            ("x", "z"),
            id="Concat",
        ),
        pytest.param(
            "g (float[1,4] x) => (float[4,1] y) { y = Transpose(x) }",
            "Transpose",
            Role.MOVEMENT,
            ("x",),
            id="Transpose",
        ),
        pytest.param(
            "g (float[4,2] x, int64[3] i) => (float[3,2] y) { y = Gather(x, i) }",
            "Gather",
            Role.MOVEMENT,
            ("x",),
            id="Gather",
        ),
    ],
)
def test_can_run_in_int8(text: str, operator: str, role: Role, inputs: tuple[str, ...]) -> None:
    unit = the_unit(text, operator)
    assert (unit.role, unit.inputs, unit.outputs, unit.reason) == (role, inputs, ("y",), "")


def test_a_gemm_whose_bias_is_a_column_stays_in_float() -> None:
    text = "g (float[6,4] x) => (float[6,6] y) <float[4,6] w, float[6,1] b> { y = Gemm(x, w, b) }"
    assert the_unit(text, "Gemm").role is Role.FLOAT


class TestAbsorbedActivations:
    @pytest.mark.parametrize("operator", ["Conv(x, w)", "Add(x, x)"])
    def test_relu_belongs_to_what_comes_before_it(self, operator: str) -> None:
        units = units_of(net(CONV.format(more="", body=f"c = {operator}  y = Relu(c)")))
        (unit,) = units.all
        assert [node.op_type for node in unit.nodes] == [operator.split("(", maxsplit=1)[0], "Relu"]
        assert unit.outputs == ("y",)
        assert units.producer == {"y": 0}

    @pytest.mark.parametrize(
        ("body", "outputs"),
        [
            pytest.param("c = Conv(x, w)  d = Relu(c)  y = Add(c, d)", "", id="a second reader"),
            pytest.param("c = Conv(x, w)  y = Relu(c)", "c", id="graph output between"),
            pytest.param("c = Conv(x, w)  y = LeakyRelu(c)", "", id="LeakyRelu"),
            pytest.param("c = Conv(x, w)  y = Clip(c, z)", "", id="a bound computed at run time"),
        ],
    )
    def test_stays_apart(self, body: str, outputs: str) -> None:
        model = net(CONV.format(more=", float z", body=body))
        if outputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [1, 4, 8, 8]))
        assert all(unit.activation is None for unit in units_of(model).all)

    @pytest.mark.parametrize(
        ("low", "high", "absorbed"),
        [(0.0, 6.0, True), (-1.0, 1.0, True), (0.5, 6.0, False), (-6.0, -1.0, False), (0.0, 0.0, False)],
    )
    def test_a_clip_that_keeps_zero_and_something_else(self, low: float, high: float, absorbed: bool) -> None:
        text = CONV.format(more="", body="c = Conv(x, w)  y = Clip(c, low, high)")
        model = net(text.replace("float[4] b", "float low, float high"), low=low, high=high)
        first = units_of(model).all[0]
        assert (first.activation is not None) is absorbed
        if first.activation is not None:
            assert clip_bounds(first.activation, units_of(model).constants) == (low, high)

    def test_bounds_may_be_missing(self) -> None:
        text = CONV.format(more="", body="c = Conv(x, w)  y = Clip(c, , high)").replace("float[4] b", "float high")
        (unit,) = units_of(net(text, high=3.0)).all
        assert unit.activation is not None
        assert clip_bounds(unit.activation, units_of(net(text, high=3.0)).constants) == (-np.inf, 3.0)


def test_who_reads_whom() -> None:
    units = units_of(net(CONV.format(more="", body="c = Conv(x, w)  d = Exp(c)  y = Add(c, d)")))
    assert [unit.name for unit in units.all] == ["Conv(c)", "Exp(d)", "Add(y)"]
    assert units.producer == {"c": 0, "d": 1, "y": 2}
    assert units.consumers["c"] == (1, 2)
    assert units.graph_inputs == ("x",)
    assert units.graph_outputs == {"y"}


def test_a_subgraph_reads_for_its_node() -> None:
    text = """g (float[2] x, bool choice) => (float[2] y) {
        d = Exp(x)
        y = If (choice) <
            then_branch = t () => (float[2] a) { a = Neg(d) },
            else_branch = e () => (float[2] b) { b = Abs(d) }
        >
    }"""
    units = units_of(net(text))
    assert [unit.role for unit in units.all] == [Role.FLOAT, Role.FLOAT]
    assert units.consumers["d"] == (1,)


def test_a_weight_that_callers_may_override_keeps_its_layer_in_float() -> None:
    """From IR 4 on an initializer that is listed as an input is a default value."""
    model = net(CONV.format(more="", body="y = Conv(x, w, b)"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 4, 1, 1]))
    (unit,) = units_of(model).all
    assert (unit.role, unit.reason) == (Role.FLOAT, "its weights are computed at run time")
