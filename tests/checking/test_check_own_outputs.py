"""What graphopt writes passes its own check: no false alarm on its outputs."""

from __future__ import annotations

from pathlib import Path

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
