"""Weights that the file fills in with ConstantOfShape: cut like stored ones, and still not stored."""

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import channels
from tests.support import assert_same, feeds, model, ops, outputs

NET = """g (float[N,3,6,6] x) => (float[N,2,6,6] y) <float[2,8,1,1] v>
    { sizes = Constant<value_ints=[8,3,3,3]>()
      w = ConstantOfShape<value=float[1] {0.25}>(sizes)
      a = Conv<pads=[1,1,1,1]>(x, w)
      y = Conv(a, v) }"""


def test_filled_weights_are_cut_and_filled_again() -> None:
    proto = model(NET)
    found = graphopt.dependency_groups(proto)
    selection = {0: [1, 2, 7]}

    smaller = channels.cut(found, selection).model

    assert [group.size for group in found] == [8]
    assert_same(outputs(channels.mask(found, selection), feeds(proto)), outputs(smaller, feeds(proto)))
    assert "ConstantOfShape" in ops(smaller)
    assert all(np.prod(tensor.dims) <= 10 for tensor in smaller.graph.initializer)
    onnx.checker.check_model(smaller, full_check=True)


@pytest.mark.parametrize("data", [None, [{"x": np.ones((1, 3, 6, 6), np.float32)}] * 8])
def test_the_pass_cuts_them_too(data: list[dict[str, np.ndarray]] | None) -> None:
    smaller = graphopt.run(model(NET), ["prune_filters"], data=data, options={"prune_filters.share": 0.5})

    assert graphopt.dependency_groups(smaller)[0].size == 4
