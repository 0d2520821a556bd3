"""A matrix product of rank 2 and its bias become one Gemm, so that the bias is quantized with the product."""

import numpy as np
import onnx
import pytest
from int8_nets import net, own_cache

from graphopt import runtime
from graphopt.graph import Shape
from graphopt.passes.quantize_int8.prepare import merge_biases

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
