"""The builder of MobileNet v1 and of the plain net of its shape; what they count is in ``test_cost``."""

import numpy as np
import onnx
import onnxruntime
import pytest

import graphopt
from graphopt.graph.cost import cost
from graphopt.inspection import inspect
from models.mobilenet_v1 import Net, build, main

SMALL = {"width": 0.25, "size": 32, "classes": 10}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("batchnorm", [False, True])
def test_it_is_valid_and_runs(plain, batchnorm):
    proto = build(Net(plain=plain, batchnorm=batchnorm, **SMALL))

    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.ones((2, 3, 32, 32), np.float32)})
    assert logits.shape == (2, 10)
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 1e-4  # the signal comes through all layers


def test_the_structure_alone_counts_the_same():
    whole, structure = (build(Net(**SMALL), seed=seed) for seed in (0, None))

    assert structure.ByteSize() < whole.ByteSize() / 10
    found, expected = cost(structure), cost(whole)
    assert (found.macs, found.parameters) == (expected.macs, expected.parameters)


def test_the_plain_net_has_a_convolution_for_each_block():
    plain, separable = (build(Net(plain=one, **SMALL), seed=None) for one in (True, False))

    kinds = {layer.kind for layer in cost(plain).layers}
    assert "depthwise" not in kinds
    assert sum(node.op_type == "Conv" for node in plain.graph.node) == 14
    assert sum(node.op_type == "Conv" for node in separable.graph.node) == 27


def test_the_command_line_writes_the_same_bytes_each_time(tmp_path):
    arguments = ["--plain", "--width", "0.25", "--size", "32", "--classes", "10", "--seed", "3"]
    for name in ("first.onnx", "second.onnx"):
        main([*arguments, str(tmp_path / name)])

    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    other = build(Net(plain=True, **SMALL), seed=4)
    assert onnx.load(tmp_path / "first.onnx") != other


def test_the_plain_net_becomes_mobilenet_at_rank_1():
    """All convolutions but the one that reads the image; at full size that is 4,866 M to 569 M multiply-adds."""
    plain, separable = (build(Net(plain=one, **SMALL)) for one in (True, False))
    options = {"separate_convolutions.rank": 1, "separate_convolutions.exclude": "stem"}

    found = cost(graphopt.run(plain, ["separate_convolutions"], options=options))

    expected, predicted = cost(separable), inspect(plain).separated[0]
    assert (found.macs, found.parameters) == (expected.macs, expected.parameters)
    assert (predicted.macs, predicted.parameters) == (expected.macs, expected.parameters)
