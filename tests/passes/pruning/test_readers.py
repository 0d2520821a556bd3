"""A layer's rows times its matrix are its outputs, whatever kind of layer it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.channels import Dependencies, Group, TensorAxis
from graphopt.passes.pruning.readers import Reader, find_readers
from graphopt.passes.pruning.rows import matrix, rows, unmatrix
from graphopt.passes.pruning.weights import Weights
from tests.support import feeds, model, outputs

# A layer that reads x, whose channels are given as a group by hand.
LAYERS = {
    "1x1": ("float[2,6,5,5] x", "float[5,6,1,1] w", "y = Conv(x, w)"),
    "padded": ("float[2,6,5,7] x", "float[5,6,3,2] w", "y = Conv<pads=[1,0,2,1]>(x, w)"),
    "strided": ("float[2,6,9,8] x", "float[5,6,3,3] w", "y = Conv<strides=[2,3], pads=[1,1,1,1]>(x, w)"),
    "dilated": ("float[2,6,9,9] x", "float[5,6,3,3] w", "y = Conv<dilations=[2,1], pads=[2,0,2,0]>(x, w)"),
    "same upper": ("float[1,6,8,8] x", "float[5,6,3,3] w", 'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)'),
    "same lower": ("float[1,6,8,8] x", "float[5,6,3,3] w", 'y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)'),
    "valid": ("float[1,6,8,8] x", "float[5,6,3,3] w", 'y = Conv<auto_pad="VALID">(x, w)'),
    "grouped": ("float[2,6,5,5] x", "float[4,3,3,3] w", "y = Conv<group=2>(x, w)"),
    "one axis": ("float[2,6,9] x", "float[4,6,3] w", "y = Conv<pads=[1,1]>(x, w)"),
    "three axes": ("float[1,6,3,4,5] x", "float[4,6,2,2,2] w", "y = Conv(x, w)"),
    "Gemm": ("float[4,6] x", "float[6,5] w", "y = Gemm(x, w)"),
    "Gemm of a transposed weight": ("float[4,6] x", "float[5,6] w", "y = Gemm<transB=1>(x, w)"),
    "Gemm of a square transposed weight": ("float[4,6] x", "float[6,6] w", "y = Gemm<transB=1>(x, w)"),
    "MatMul": ("float[2,4,6] x", "float[6,5] w", "y = MatMul(x, w)"),
    "MatMul from the left": ("float[2,6,4] x", "float[5,6] w", "y = MatMul(w, x)"),
}


def layer(source: str, weight: str, line: str) -> tuple[onnx.ModelProto, Reader]:
    proto = model(f"g ({source}) => (float[] y) <{weight}> {{ {line} }}".replace("(float[] y)", "(float y)"))
    axis = 2 if line.startswith("y = MatMul(x") else 1
    group = Group(0, "x", 6, (), (TensorAxis("x", axis, np.arange(6)[:, None]),))
    (reader,) = find_readers(Dependencies(proto, (group,)))
    return proto, reader


@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_rows_times_matrix_are_the_outputs(text: tuple[str, str, str]) -> None:
    proto, reader = layer(*text)
    fed = feeds(proto)
    stored = Weights(proto)[reader.weight]
    drawn = rows(reader, fed["x"], stored.shape, 10**6, np.random.default_rng(0))
    whole = matrix(reader, stored)
    found = np.einsum("gptc,gtco->pgo", drawn, whole)
    wanted = next(iter(outputs(proto, fed).values()))
    if text[2].startswith("y = Conv"):
        wanted = np.moveaxis(wanted, 1, -1)
    elif text[2].startswith("y = MatMul(w"):
        wanted = wanted.transpose(0, 2, 1)
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_a_matrix_goes_back_to_the_weight(text: tuple[str, str, str]) -> None:
    proto, reader = layer(*text)
    stored = Weights(proto)[reader.weight]
    np.testing.assert_array_equal(unmatrix(reader, matrix(reader, stored), stored.shape), stored)


def test_some_positions_are_drawn_without_repetition() -> None:
    proto, reader = layer(*LAYERS["1x1"])
    fed = feeds(proto)["x"]
    drawn = rows(reader, fed, (5, 6, 1, 1), 7, np.random.default_rng(0))[0, :, 0]
    assert drawn.shape == (7, 6)
    assert len(np.unique(drawn, axis=0)) == 7


def test_a_flattened_tensor_has_a_tap_for_each_of_a_channels_places() -> None:
    proto = model("g (float[3,12] x) => (float[3,5] y) <float[12,5] w> { y = Gemm(x, w) }")
    places = np.arange(12).reshape(3, 4)
    group = Group(0, "x", 3, (), (TensorAxis("x", 1, places),))
    (reader,) = find_readers(Dependencies(proto, (group,)))
    fed, stored = feeds(proto), Weights(proto)["w"]
    drawn = rows(reader, fed["x"], stored.shape, 100, np.random.default_rng(0))
    assert drawn.shape == (1, 3, 4, 3)
    found = np.einsum("gptc,gtco->po", drawn, matrix(reader, stored))
    np.testing.assert_allclose(found, outputs(proto, fed)["y"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(unmatrix(reader, matrix(reader, stored), stored.shape), stored)


def test_owners_know_their_block() -> None:
    _, reader = layer(*LAYERS["grouped"])
    assert [(owner.block, owner.channels.tolist(), owner.columns[:, 0].tolist()) for owner in reader.owners] == [
        (0, [0, 1, 2], [0, 1, 2]),
        (1, [3, 4, 5], [0, 1, 2]),
    ]


def test_depthwise_convolutions_read_no_channels_together() -> None:
    proto = model("g (float[1,6,5,5] x) => (float y) <float[6,1,3,3] w> { y = Conv<group=6>(x, w) }")
    group = Group(0, "x", 6, (), (TensorAxis("x", 1, np.arange(6)[:, None]),))
    assert find_readers(Dependencies(proto, (group,))) == ()
