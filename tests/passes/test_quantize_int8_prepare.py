"""A matrix product of rank 2 and its bias become one Gemm, so that the bias is quantized with the product."""

import numpy as np
import onnx
import pytest
from int8_nets import net, own_cache

from graphopt import runtime
from graphopt.passes.quantize_int8.prepare import merge_biases

__all__ = ["own_cache"]

PRODUCT = """g (float[N,4] x) => (float[N,6] y) <float[4,6] w, float[6] b> { p = MatMul(x, w)  y = Add(p, b) }"""
RANKS = {"x": 2, "p": 2, "y": 2}


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        pytest.param(PRODUCT, {"y": 2}, id="rank unknown"),
        pytest.param(PRODUCT.replace("float[N,4] x", "float[N,3,4] x"), {"x": 3}, id="rank 3"),
        pytest.param(PRODUCT.replace("float[6] b", "float[1] b"), RANKS, id="bias is not one value a column"),
        pytest.param(
            PRODUCT.replace("(float[N,6] y)", "(float[N,6] y, float[N,6] p)"), RANKS, id="product is an output"
        ),
        pytest.param(PRODUCT.replace("y = Add(p, b)", "q = Add(p, b)  y = Mul(q, p)"), RANKS, id="second reader"),
    ],
)
def test_leaves_alone(text: str, ranks: dict[str, int]) -> None:
    model = net(text)
    assert merge_biases(model, ranks) is model


@pytest.mark.parametrize("body", ["y = Add(p, b)", "y = Add(b, p)"])
def test_merges_into_a_gemm(body: str) -> None:
    model = net(PRODUCT.replace("y = Add(p, b)", body))
    merged = merge_biases(model, RANKS)
    assert [node.op_type for node in merged.graph.node] == ["Gemm"]
    onnx.checker.check_model(merged)
    feed = {"x": np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32)}
    before, after = (runtime.run(runtime.session(one, optimize=False), feed)["y"] for one in (model, merged))
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)
