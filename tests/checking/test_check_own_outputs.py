"""What graphopt writes passes its own check: no false alarm on its outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.checking import check

MODELS = Path(graphopt.__file__).parents[1] / "models"
NETS = ("densenet", "mobilenetv3", "shufflenet")
# What approximate passes do, which need data: int8 and float16, and other numbers of channels.
LEFT = ("GO323", "GO4", "GO5")


@pytest.mark.parametrize("target", ["cpu", "jetson-nano", "jetson-orin-nano", "jetson-agx-orin-dla"])
@pytest.mark.parametrize("net", NETS)
def test_exact_passes_leave_nothing_to_find(net: str, target: str) -> None:
    source = MODELS / f"{net}.onnx"
    assert [found.code for found in check(source, use_config=False).files[0].findings] == ["GO113"]
    exact = [name for name in graphopt.load_target(target).recipe if graphopt.PASSES[name].exact]
    shapes = {"fix_shapes.inputs": "image:1,1,28,28"} if "dla" in target else {}
    result = graphopt.run(source, exact, target=target, options=shapes)
    assert str(check(result, target=target, ignore=LEFT, use_config=False)) == ""


@pytest.mark.parametrize("target", ["cpu", "jetson-orin-nano"])
def test_quantization_leaves_nothing_to_find(target: str) -> None:
    """MobileNetV3 has layers that stay in float between layers in int8, each with a DequantizeLinear of its own."""
    samples = {"image": np.random.default_rng(0).normal(size=(32, 1, 28, 28)).astype(np.float32)}
    exact = [name for name in graphopt.load_target(target).recipe if graphopt.PASSES[name].exact]
    result = graphopt.run(MODELS / "mobilenetv3.onnx", [*exact, "quantize_int8"], data=samples, target=target)
    assert "QuantizeLinear" in {node.op_type for node in result.graph.node}
    assert str(check(result, target=target, ignore=LEFT, use_config=False)) == ""
