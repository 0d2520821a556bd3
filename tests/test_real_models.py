"""All exact passes together on networks as they are in use: those in onnx's wheel, those of `models/`, and small ones
written the way exporters write them. What holds for every one of them: nothing fails, the result is valid, has the same
inputs and outputs, is not larger, computes the same at every batch and image size, and is left alone the second time.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
from support import assert_same, context, model, ops, outputs

from graphopt import runtime
from graphopt.exact import run_exact
from graphopt.graph import verify
from graphopt.passes import PASSES
from graphopt.targets import load_target

ZOO = sorted(path for path in (Path(__file__).parent.parent / "models").glob("*.onnx") if ".cpu" not in path.name)
LIGHT = sorted((Path(next(iter(onnx.backend.test.__path__))) / "data" / "light").glob("*.onnx"))
SLOW = {"light_densenet121", "light_inception_v2", "light_resnet50", "light_zfnet512"}  # with weights
HUGE = {"light_bvlc_alexnet", "light_vgg19"}  # with weights, half a gigabyte
BATCHES = (1, 3)
IMAGES = ((32, 48), (64, 32))

# A ShuffleNet unit as the TorchScript exporter writes it, its sizes read from the tensor.
SHUFFLE = """g (float[N,8,H,W] x) => (float[N,8,H,W] y)
  <float[8,8,1,1] v, float[8] b, float[8] scale, float[8] shift, float[8] mean, float[8] var, float[8,1,3,3] d,
   float[8,8,1,1] u, int64 i0 = {0}, int64 i2 = {2}, int64 i3 = {3}, int64[1] z = {0}, int64[1] groups = {2},
   int64[1] each = {4}, int64[1] rest = {-1}> {
  c = Conv(x, v, b)  n = BatchNormalization(c, scale, shift, mean, var)  r = Relu(n)
  s0 = Shape(r)  n0 = Gather(s0, i0)  s2 = Shape(r)  n2 = Gather(s2, i2)  s3 = Shape(r)  n3 = Gather(s3, i3)
  u0 = Unsqueeze(n0, z)  u2 = Unsqueeze(n2, z)  u3 = Unsqueeze(n3, z)
  t = Concat<axis = 0>(u0, groups, each, u2, u3)  five = Reshape(r, t)
  p = Transpose<perm = [0, 2, 1, 3, 4]>(five)
  w0 = Unsqueeze(n0, z)  w2 = Unsqueeze(n2, z)  w3 = Unsqueeze(n3, z)
  f = Concat<axis = 0>(w0, rest, w2, w3)  m = Reshape(p, f)
  e = Conv<group = 8, pads = [1, 1, 1, 1]>(m, d)  o = Conv(e, u)  a = Add(o, x)  y = Relu(a) }"""

# RepVGG: three branches on one input, each with its BatchNormalization.
BRANCHES = """g (float[N,6,H,W] x) => (float[N,6,H,W] y)
  <float[6,6,3,3] v, float[6,6,1,1] u, float[6] s1, float[6] h1, float[6] m1, float[6] var1, float[6] s2, float[6] h2,
   float[6] m2, float[6] var2, float[6] s3, float[6] h3, float[6] m3, float[6] var3> {
  a = Conv<pads = [1, 1, 1, 1]>(x, v)  b = Conv(x, u)
  na = BatchNormalization(a, s1, h1, m1, var1)  nb = BatchNormalization(b, s2, h2, m2, var2)
  nx = BatchNormalization(x, s3, h3, m3, var3)
  ab = Add(na, nb)  abx = Add(ab, nx)  y = Relu(abx) }"""

# TensorFlow's 'same' padding computed at run time for a size that is known, in its own layout.
PADDING = """g (float[N,17,17,3] x) => (float[N,9,9,4] y)
  <float[4,3,3,3] v, float[4] b, int64 one = {1}, int64 two = {2}, int64 three = {3}, int64[1] z = {0},
   float zero = {0}> {
  t = Transpose<perm = [0, 3, 1, 2]>(x)
  s = Shape(t)  h = Gather(s, two)  h1 = Add(h, one)  o = Div(h1, two)  o1 = Sub(o, one)  o2 = Mul(o1, two)
  need = Add(o2, three)  total = Sub(need, h)  top = Div(total, two)  bottom = Sub(total, top)
  u = Unsqueeze(top, z)  w = Unsqueeze(bottom, z)  full = Concat<axis = 0>(z, z, u, u, z, z, w, w)
  p = Pad(t, full, zero)
  c = Conv<strides = [2, 2]>(p, v, b)  r = Relu(c)  y = Transpose<perm = [0, 2, 3, 1]>(r) }"""

# Activations in pieces, scales and shifts of one channel each, as Paddle's exporter leaves them.
PIECES = """g (float[N,3,H,W] x) => (float[N,4,H,W] y)
  <float[4,3,3,3] v, float[1,4,1,1] bias, float three = {3}, float six = {6}, float zero = {0}, float[1] scale,
   float[1] shift, float[4,4,1,1] u, float half = {0.5}, float[4] k> {
  c = Conv<pads = [1, 1, 1, 1]>(x, v)  b = Add(c, bias)
  a = Add(b, three)  l = Clip(a, zero, six)  m = Mul(b, l)  h = Div(m, six)
  w = Mul(h, scale)  s = Add(w, shift)  i = Identity(s)  g0 = Sigmoid(i)  g1 = Mul(i, g0)
  e = Conv(g1, u, k)  f = Mul(e, half)  y = Mul(f, half) }"""

# A transformer's block: layer normalization, attention and GELU written out.
ATTENTION = """g (float[N,L,8] x) => (float[N,L,8] y)
  <float[8] scale, float[8] shift, float two = {2}, float eps = {0.00001}, float[8,24] qkv, float[24] bias,
   int64[4] split = {0, 0, 3, 8}, float[8,8] proj, float[8] add, float root = {1.4142135}, float one = {1},
   float half = {0.5}, float temp = {2.8284271}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, float[8,16] up,
   float[16] upb, float[16,8] down, float[8] downb> {
  mean = ReduceMean<axes = [-1]>(x)  d = Sub(x, mean)  sq = Pow(d, two)  v = ReduceMean<axes = [-1]>(sq)
  ve = Add(v, eps)  sd = Sqrt(ve)  n = Div(d, sd)  ns = Mul(n, scale)  ln = Add(ns, shift)
  mm = MatMul(ln, qkv)  mb = Add(mm, bias)  r = Reshape(mb, split)  t = Transpose<perm = [2, 0, 1, 3]>(r)
  q = Gather(t, i0)  k = Gather(t, i1)  w = Gather(t, i2)  kt = Transpose<perm = [0, 2, 1]>(k)
  s = MatMul(q, kt)  sc = Div(s, temp)  p = Softmax<axis = -1>(sc)  a = MatMul(p, w)
  o = MatMul(a, proj)  ob = Add(o, add)  res = Add(ob, x)
  h = MatMul(res, up)  hb = Add(h, upb)  e = Div(hb, root)  erf = Erf(e)  e1 = Add(erf, one)  g = Mul(hb, e1)
  gelu = Mul(g, half)  z = MatMul(gelu, down)  zb = Add(z, downb)  y = Add(zb, res) }"""

# A branch taken by a constant, and one by an input, with dead code and duplicates in the bodies.
CONTROL = """g (float[N,4] x, bool go) => (float[N,4] y) <bool yes = {1}, float[4] v> {
  a = If (yes) <then_branch = t () => (float[N,4] p) { u = Mul(x, v)  dead = Sub(x, v)  p = Identity(u) },
                else_branch = e () => (float[N,4] q) { q = Neg(x) }>
  y = If (go) <then_branch = t2 () => (float[N,4] p2) { w = Mul(x, v)  w2 = Mul(x, v)  s = Add(w, w2)  p2 = Add(s, a) },
               else_branch = e2 () => (float[N,4] q2) { q2 = Identity(a) }> }"""

WRITTEN = {
    "channel shuffle": SHUFFLE,
    "parallel branches": BRANCHES,
    "dynamic padding": PADDING,
    "activations in pieces": PIECES,
    "attention": ATTENTION,
    "control flow": CONTROL,
}
# The most nodes that are left of each.
FEW = {
    "channel shuffle": 6,
    "parallel branches": 2,
    "dynamic padding": 4,
    "activations in pieces": 7,
    "attention": 24,
    "control flow": 2,
}


@cache
def exact_passes() -> tuple[Any, ...]:
    return tuple(PASSES[name]() for name in load_target("cpu").recipe if PASSES[name].exact)


def sizes(proto: onnx.ModelProto) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Inputs at two batch sizes and two image sizes where they are open, else two with other values."""
    for turn, (batch, image) in enumerate(zip(BATCHES, IMAGES, strict=True)):
        rng = np.random.default_rng(turn)
        fed = {}
        for spec in runtime.input_specs(proto):
            open_sizes = iter((batch, *image))
            shape = [size if isinstance(size, int) else next(open_sizes) for size in spec.shape or ()]
            if spec.dtype.kind == "b":
                fed[spec.name] = np.asarray(turn == 0)
            else:
                fed[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        yield fed


def interface(proto: onnx.ModelProto) -> list[bytes]:
    known = {tensor.name for tensor in proto.graph.initializer}
    values = [*(value for value in proto.graph.input if value.name not in known), *proto.graph.output]
    return [value.name.encode() + value.type.SerializeToString(deterministic=True) for value in values]


def simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Run all exact passes and hold the result to everything but its outputs."""
    untouched = proto.SerializeToString(deterministic=True)
    result, outcomes = run_exact(exact_passes(), proto, context())
    assert not [(each.name, each.failure) for each in outcomes if each.failure]
    assert proto.SerializeToString(deterministic=True) == untouched
    verify(result)
    assert interface(result) == interface(proto)
    assert [(each.domain, each.version) for each in result.opset_import] == [
        (each.domain, each.version) for each in proto.opset_import
    ]
    assert len(result.SerializeToString()) <= len(untouched)
    again, outcomes = run_exact(exact_passes(), result, context())
    assert again is result, {each.name: dict(each.report.details) for each in outcomes if each.report.changes}
    return result


def holds(proto: onnx.ModelProto, rtol: float = 2e-5) -> onnx.ModelProto:
    """Simplify a model and compare its outputs with the original's."""
    result = simplified(proto)
    for fed in sizes(proto):
        assert_same(outputs(proto, fed), outputs(result, fed), rtol=rtol)
    return result


def with_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give a light model initializers in place of its ConstantOfShape weights, with values that tell channels apart."""
    heavy = onnx.ModelProto()
    heavy.CopyFrom(proto)
    rng = np.random.default_rng(0)
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    heavy.graph.ClearField("node")
    for node in proto.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            heavy.graph.node.append(node)
            continue
        shape = tuple(shapes[node.input[0]].tolist())
        spread = 0.6 * (2.0 / np.prod(shape[1:])) ** 0.5
        values = rng.standard_normal(shape) * spread if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        heavy.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        heavy.graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape))
    return heavy


def named(found: list[Path], slow: Container[str] = ()) -> list[Any]:
    return [pytest.param(each, id=each.stem, marks=[pytest.mark.slow] * (each.stem in slow)) for each in found]


@pytest.mark.parametrize("path", named(ZOO))
def test_trained_networks(path: Path) -> None:
    proto = onnx.load(path)
    assert len(ops(holds(proto))) < len(ops(proto))


@pytest.mark.parametrize("path", named(LIGHT))
def test_light_networks(path: Path) -> None:
    simplified(onnx.load(path))


@pytest.mark.parametrize("path", named([path for path in LIGHT if path.stem not in HUGE], SLOW))
def test_light_networks_with_weights(path: Path) -> None:
    proto = with_weights(onnx.load(path))
    assert len(ops(holds(proto, rtol=1e-4))) <= len(ops(proto))


@pytest.mark.parametrize("name", WRITTEN)
def test_small_networks_as_exporters_write_them(name: str) -> None:
    result = holds(model(WRITTEN[name]))
    assert len(ops(result)) <= FEW[name], ops(result)
