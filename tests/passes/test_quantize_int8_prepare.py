"""A matrix product of rank 2 and its bias become one Gemm, so that the bias is quantized with the product."""

import numpy as np
import onnx
import pytest
from int8_nets import net, own_cache, quantized, runs_as

from graphopt import runtime
from graphopt.graph import Shape
from graphopt.passes.quantize_int8.prepare import merge_biases, split_transposes

__all__ = ["own_cache"]

PRODUCT = """g (float[N,4] x) => (float[N,6] y) <float[4,6] w, float[6] b> { p = MatMul(x, w)  y = Add(p, b) }"""
SHAPES = {"x": ("N", 4)}


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        pytest.param(PRODUCT, {"y": ("N", 6)}, id="rank unknown"),
        pytest.param(PRODUCT.replace("float[N,4] x", "float[N,3,4] x"), {"x": ("N", 3, 4)}, id="size unknown"),
        pytest.param(PRODUCT.replace("float[6] b", "float[1] b"), SHAPES, id="bias is not one value a column"),
        pytest.param(
            PRODUCT.replace("(float[N,6] y)", "(float[N,6] y, float[N,6] p)"), SHAPES, id="product is an output"
        ),
        pytest.param(PRODUCT.replace("y = Add(p, b)", "q = Add(p, b)  y = Mul(q, p)"), SHAPES, id="second reader"),
    ],
)
def test_leaves_alone(text: str, shapes: dict[str, Shape]) -> None:
    model = net(text)
    assert merge_biases(model, shapes) is model


@pytest.mark.parametrize("body", ["y = Add(p, b)", "y = Add(b, p)"])
def test_merges_into_a_gemm(body: str) -> None:
    model = net(PRODUCT.replace("y = Add(p, b)", body))
    merged = merge_biases(model, SHAPES)
    assert [node.op_type for node in merged.graph.node] == ["Gemm"]
    onnx.checker.check_model(merged)
    feed = {"x": np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32)}
    before, after = (runtime.run(runtime.session(one, optimize=False), feed)["y"] for one in (model, merged))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_merges_any_rank_of_known_size_between_reshapes() -> None:
    model = net(PRODUCT.replace("float[N,4] x", "float[2,3,4] x").replace("float[N,6] y", "float[2,3,6] y"))
    merged = merge_biases(model, {"x": (2, 3, 4)})
    assert [node.op_type for node in merged.graph.node] == ["Reshape", "Gemm", "Reshape"]
    onnx.checker.check_model(merged, full_check=True)
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 4), dtype=np.float32)}
    before, after = (runtime.run(runtime.session(one, optimize=False), feed)["y"] for one in (model, merged))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


TURNED = """g (float[4,3] x) => (float[3,6] y) <float[4,6] w, float[6] b> { y = Gemm<transA = 1>(x, w, b) }"""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(TURNED.replace("transA = 1", "transA = 0").replace("[4,3] x", "[3,4] x"), id="not transposed"),
        pytest.param(
            TURNED.replace(" x)", " x, float[4,6] w)").replace("float[4,6] w, float[6] b>", "float[6] b>"), id="w"
        ),
        pytest.param(TURNED.replace("float", "double"), id="double"),
    ],
)
def test_transposes_stay(text: str) -> None:
    model = net(text)
    assert split_transposes(model) is model


@pytest.mark.parametrize(("attributes", "shape"), [("transA = 1", "[4,6]"), ("transA = 1, transB = 1", "[6,4]")])
def test_a_gemm_that_transposes_its_input_runs_in_int8(attributes: str, shape: str) -> None:
    model = net(TURNED.replace("transA = 1", attributes).replace("float[4,6] w", f"float{shape} w"))
    apart = split_transposes(model)
    onnx.checker.check_model(apart, full_check=True)
    assert [node.op_type for node in apart.graph.node] == ["Transpose", "Gemm"]
    feed = {"x": np.random.default_rng(0).standard_normal((4, 3), dtype=np.float32)}
    before, after = (runtime.run(runtime.session(one, optimize=False), feed)["y"] for one in (model, apart))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)
    assert runs_as(quantized(apart)) == ["QGemm"]
