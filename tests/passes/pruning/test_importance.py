"""Criteria: what they hold for important, and that predicted losses are the losses of real refits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt import runtime
from graphopt.calibration.collect import with_outputs
from graphopt.channels import Dependencies, Group, Member, TensorAxis
from graphopt.errors import UsageError
from graphopt.passes.pruning import moments as moments_module
from graphopt.passes.pruning.importance import CRITERIA, Criterion, curves
from graphopt.passes.pruning.moments import Moments, collect_moments
from graphopt.passes.pruning.probes import cheapest, refit_without, with_layer
from graphopt.passes.pruning.readers import find_readers
from graphopt.passes.pruning.sensitivity import sensitivities
from graphopt.passes.pruning.weights import Weights
from graphopt.passes.quality import interpolated
from tests.passes.pruning.nets import chain, samples
from tests.support import model

DATA_FREE: tuple[Criterion, ...] = ("l1", "l2", "batchnorm")


def learned(dependencies: Dependencies, count: int = 24) -> dict[str, Moments]:
    return collect_moments(dependencies, find_readers(dependencies), samples(dependencies.model, count))


def scaled(dependencies: Dependencies, name: str, factors: np.ndarray, axis: int) -> Dependencies:
    """The same net with the slices of one weight multiplied."""
    proto = onnx.ModelProto()
    proto.CopyFrom(dependencies.model)
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor)
            shape = [1] * values.ndim
            shape[axis] = len(factors)
            tensor.CopyFrom(numpy_helper.from_array((values * factors.reshape(shape)).astype(np.float32), name))
    return replace(dependencies, model=proto)


def outputs_of(proto: onnx.ModelProto, name: str, fed: list[dict[str, np.ndarray]]) -> np.ndarray:
    opened = runtime.session(with_outputs(proto, [name]), optimize=False)
    return np.concatenate([runtime.run(opened, feed)[name] for feed in fed])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_channels_that_do_little_go_first(criterion: Criterion) -> None:
    """The first eight filters are small, and so are the weights that read them."""
    factors = np.repeat([0.01, 1.0], [8, 24])
    weak = scaled(scaled(chain(), "w1", factors, 0), "w2", factors, 1)
    weak = scaled(weak, "b1", factors, 0)
    found = curves(weak, criterion, None if criterion in DATA_FREE else learned(weak))
    assert set(found[0].order[:8].tolist()) == set(range(8))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_noise_starts_at_nothing_and_never_falls(criterion: Criterion) -> None:
    net = chain()
    for each in curves(net, criterion, learned(net, 8)).values():
        assert each.noise[0] == 0
        assert (np.diff(each.noise) >= 0).all()
        assert sorted(each.order.tolist()) == sorted(set(each.order.tolist()))
        assert len(each.order) == each.size - max(1, -(-each.size // 8))
        assert np.argsort(each.scores(), kind="stable")[: len(each.order)].tolist() == each.order.tolist()


def test_criteria_that_need_samples_say_so() -> None:
    with pytest.raises(UsageError, match="needs samples"):
        curves(chain(), "refit")


def test_without_batchnorm_the_norm_decides_and_the_curve_says_so() -> None:
    found = curves(chain(), "batchnorm")
    assert found[0].source == "l2"


def test_batchnorm_factors_decide_where_there_are_any() -> None:
    text = """g (float[1,3,8,8] x) => (float[1,5,8,8] y)
      <float[4,3,1,1] w, float[4] scale, float[4] shift, float[4] mean, float[4] var, float[5,4,1,1] v>
      { c = Conv(x, w)  b = BatchNormalization(c, scale, shift, mean, var)  y = Conv(b, v) }"""
    proto = model(text, scale=[0.5, -0.1, 2.0, 1.0])
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    every = np.arange(4)[:, None]
    members = (
        Member("n0", "Conv", 1, "w", 0, "writes", every),
        Member("n1", "BatchNormalization", 1, "scale", 0, "follows", every),
        Member("n2", "Conv", 1, "v", 1, "reads", every),
    )
    group = Group(0, "g", 4, members, tuple(TensorAxis(name, 1, every) for name in ("c", "b")))
    found = curves(Dependencies(proto, (group,)), "batchnorm")
    assert found[0].order.tolist() == [1, 0, 3]
    assert found[0].source == "batchnorm"


def test_refit_gives_up_what_the_others_can_say_and_norms_do_not() -> None:
    """Filters 0 and 1 are twins, with the largest weights of all: one of them is for nothing."""
    net = chain()
    proto = onnx.ModelProto()
    proto.CopyFrom(net.model)
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "b1"):
            values = numpy_helper.to_array(tensor).copy()
            values[0] *= 5
            values[1] = values[0]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    twins = replace(net, model=proto)
    assert curves(twins, "refit", learned(twins))[0].order[0] in {0, 1}
    assert not {0, 1} & set(curves(twins, "l2")[0].order[:4].tolist())


@pytest.mark.parametrize("longest", [10_000, 8], ids=["whole Gram matrix", "channels and taps apart"])
def test_a_refit_layer_is_the_best_that_the_moments_know(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The predicted loss is that of the layer in the net; near it where channels and taps are taken apart."""
    monkeypatch.setattr(moments_module, "LONGEST", longest)
    monkeypatch.setattr(moments_module, "RIDGE", 1e-6)
    net = chain(8, 16)
    fed = samples(net.model, 40)
    found = collect_moments(net, find_readers(net), fed)
    weights = Weights(net.model)
    layer = next(each for each in found.values() if each.reader.weight == "w2")
    assert (layer.taps is None) == (longest > 8)
    refit = refit_without(layer, weights, cheapest(layer, weights, 0.5))
    wanted = outputs_of(net.model, "c2", fed)
    got = outputs_of(with_layer(net.model, layer.reader, refit), "c2", fed)
    power = float(np.square(wanted - wanted.mean(axis=(0, 2, 3), keepdims=True)).mean())
    real = float(np.square(got - wanted).mean()) / power
    assert real == pytest.approx(refit.loss, rel=0.1 if longest > 8 else 0.8)
    assert real < 0.9


def test_moments_are_the_same_every_time() -> None:
    net = chain(8, 16)
    one, other = learned(net), learned(net)
    assert all(np.array_equal(one[name].inverse, other[name].inverse) for name in one)


def test_an_amplified_layer_is_more_sensitive() -> None:
    """Two branches are added up; what goes wrong in the one with the large weights shows more."""
    text = """g (float[1,3,16,16] x) => (float[1,4,16,16] y)
      <float[8,3,1,1] w0, float[4,8,1,1] loud, float[4,8,1,1] quiet>
      { a = Conv(x, w0)  r = Relu(a)  l = Conv(r, loud)  q = Conv(r, quiet)  y = Add(l, q) }"""
    proto = model(text)
    for tensor in proto.graph.initializer:
        if tensor.name == "loud":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 10, "loud"))
    every = np.arange(8)[:, None]
    group = Group(0, "g", 8, (), tuple(TensorAxis(name, 1, every) for name in ("a", "r")))
    net = Dependencies(proto, (group,))
    fed = samples(proto, 12)
    found = sensitivities(proto, collect_moments(net, find_readers(net), fed), fed, macs=1e4)
    assert found["l"] > 20 * found["q"]


def test_layers_of_a_heavy_net_that_are_not_probed_get_what_their_neighbours_have() -> None:
    found = interpolated(["a", "b", "c", "d"], {"a": 0.1, "c": 10.0})
    assert found == pytest.approx({"a": 0.1, "b": 1.0, "c": 10.0, "d": 10.0})
    assert interpolated(["a", "b"], {}) == {"a": 1.0, "b": 1.0}


def test_weights_behind_other_operators_are_read() -> None:
    text = """g (float[2,4] x) => (float[2,3] y) <int8[3,4] w, float[3] s>
      { d = DequantizeLinear<axis=0>(w, s)  t = Transpose<perm=[1,0]>(d)  y = MatMul(x, t) }"""
    proto = model(text, w=np.arange(12).reshape(3, 4), s=[1.0, 2.0, 3.0])
    weights = Weights(proto)
    assert weights.shape("t") == (4, 3)
    np.testing.assert_array_equal(weights["t"], (np.arange(12).reshape(3, 4) * [[1], [2], [3]]).T)
    assert weights.shape("x") is None


def gemm_net(width: int) -> Dependencies:
    proto = model(f"g (float[1,{width}] x) => (float[1,6] y) <float[{width},6] w> {{ r = Relu(x)  y = Gemm(r, w) }}")
    every = np.arange(width)[:, None]
    return Dependencies(proto, (Group(0, "g", width, (), tuple(TensorAxis(name, 1, every) for name in ("x", "r"))),))


def test_few_samples_do_not_make_a_wide_layer_look_idle() -> None:
    """Of 64 independent inputs seen 24 times, any 24 would say all the others on these samples, but on no others."""
    net = gemm_net(64)
    rng = np.random.default_rng(0)
    fed = [{"x": np.abs(rng.normal(size=(1, 64))).astype(np.float32)} for _ in range(24)]
    found = curves(net, "refit", collect_moments(net, find_readers(net), fed))
    assert found[0].at(32) > 0.1


def test_layers_that_see_infinity_are_left_out() -> None:
    net = gemm_net(8)
    fed = [{"x": np.full((1, 8), np.inf, np.float32)}]
    assert collect_moments(net, find_readers(net), fed) == {}


def test_a_layer_whose_output_never_changes_costs_nothing() -> None:
    net = gemm_net(8)
    fed = [{"x": np.ones((1, 8), np.float32)}] * 4
    found = curves(net, "refit", collect_moments(net, find_readers(net), fed))
    assert found[0].noise.max() < 1e-6


def test_outputs_count_by_what_a_batchnorm_makes_of_them() -> None:
    text = """g (float[1,3,8,8] x) => (float[1,2,8,8] y)
      <float[2,3,1,1] w, float[2] scale, float[2] shift, float[2] mean, float[2] var>
      { r = Relu(x)  c = Conv(r, w)  y = BatchNormalization<epsilon=0.0>(c, scale, shift, mean, var) }"""
    proto = model(text, scale=[3.0, -2.0], var=[1.0, 4.0])
    every = np.arange(3)[:, None]
    net = Dependencies(proto, (Group(0, "g", 3, (), (TensorAxis("r", 1, every),)),))
    (found,) = collect_moments(net, find_readers(net), samples(proto, 4)).values()
    np.testing.assert_allclose(found.scale, [[3.0, -1.0]])
