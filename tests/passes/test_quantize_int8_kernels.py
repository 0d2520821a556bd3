"""Kernel times: what is measured, once for each different unit, and kept on disk. No time itself is asserted."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from int8_nets import U8, Ranges, feed_for, net, own_cache, unfused, units_of

from graphopt import runtime
from graphopt.cache import Store
from graphopt.calibration.collect import shapes
from graphopt.passes.quantize_int8.kernels import KernelTimes, UnitTime, measure_all
from graphopt.passes.quantize_int8.units import Role
from graphopt.targets.schema import Int8Rules

__all__ = ["own_cache"]

PADS = "<pads = [1,1,1,1]>"
TWINS = f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] u, float[8,8,3,3] v, float[8,8,1,1] w> {{
    a = Conv{PADS}(x, u)  b = Conv{PADS}(a, v)  y = Conv(b, w) }}"""


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch) -> list[onnx.ModelProto]:
    """Every model whose kernels are timed, in order."""
    seen: list[onnx.ModelProto] = []
    profile = runtime.profile

    def counted(model: onnx.ModelProto, *arguments: Any, **options: Any) -> Any:
        seen.append(model)
        return profile(model, *arguments, **(options | {"runs": 2, "warmup": 1}))

    monkeypatch.setattr(runtime, "profile", counted)
    return seen


def kernel_times(model: onnx.ModelProto, store: Store, rules: Int8Rules = U8, batch: int = 1) -> KernelTimes:
    units = units_of(model)
    names = [name for unit in units.all if unit.role is not Role.FLOAT for name in (*unit.inputs, *unit.outputs)]
    found = shapes(model, names, feed_for(model, batch=batch)) if names else {}
    return KernelTimes(model, units, found, rules, store)


def measured(model: onnx.ModelProto, store: Store, **options: Any) -> dict[int, UnitTime]:
    return measure_all(kernel_times(model, store, **options), units_of(model), 1)


def test_units_that_differ_in_nothing_but_their_weights_are_measured_once(profiled: list[onnx.ModelProto]) -> None:
    found = measured(net(TWINS), Store("kernels", "here"))
    assert found[0] == found[1]
    assert len(profiled) == 4, "two different units, each in float and in int8"
    assert all(time.float32 > 0 for time in found.values())
    assert all(time.int8 is not None and time.int8 > 0 for time in found.values())


def test_what_is_kept_is_not_measured_again(profiled: list[onnx.ModelProto]) -> None:
    store = Store("kernels", "here")
    first = measured(net(TWINS), store)
    store.save()
    del profiled[:]
    assert measured(net(TWINS), Store("kernels", "here")) == first
    assert profiled == []


def test_other_weights_of_the_same_shape_are_the_same_unit(profiled: list[onnx.ModelProto]) -> None:
    store = Store("kernels", "here")
    measured(net(TWINS), store)
    del profiled[:]
    measured(net(TWINS, u=np.ones((8, 8, 3, 3)), v=np.zeros((8, 8, 3, 3))), store)
    assert profiled == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("Conv(b, w)", "Conv<dilations = [1,1]>(b, w)", id="attributes"),
        pytest.param("y = Conv(b, w)", "z = Conv(b, w)  y = Relu(z)", id="absorbed activation"),
        pytest.param("float[1,8,8,8] x) => (float[1,8,8,8] y", "float[2,8,8,8] x) => (float[2,8,8,8] y", id="shapes"),
    ],
)
def test_what_decides_the_time_is_measured_anew(profiled: list[onnx.ModelProto], old: str, new: str) -> None:
    store = Store("kernels", "here")
    measured(net(TWINS), store)
    del profiled[:]
    measured(net(TWINS.replace(old, new)), store)
    assert profiled


def test_threads_and_activation_type_are_told_apart(profiled: list[onnx.ModelProto]) -> None:
    store = Store("kernels", "here")
    measured(net(TWINS), store)
    del profiled[:]
    measured(net(TWINS), store, rules=Int8Rules(activation_dtype="int8"))
    assert profiled
    del profiled[:]
    measure_all(kernel_times(net(TWINS), store), units_of(net(TWINS)), 2)
    assert profiled


def test_a_unit_that_onnx_runtime_keeps_in_float_has_no_int8_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its quantizers (here left out by ONNX Runtime's own optimizations being off) it stays in float."""
    optimized = runtime.session_options
    monkeypatch.setattr(runtime, "session_options", lambda threads=1, optimize=True: optimized(threads, False))
    found = measured(net(TWINS), Store("kernels", "here"))
    assert all(time.float32 > 0 and time.int8 is None for time in found.values())


def test_float_units_are_not_measured(profiled: list[onnx.ModelProto]) -> None:
    assert measured(net("g (float[1,4] x) => (float[1,4] y) { y = Softmax(x) }"), Store("kernels", "here")) == {}
    assert profiled == []


def clipped(low: float, high: float) -> onnx.ModelProto:
    return net(
        f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[8,8,3,3] u, float low, float high> {{
        a = Conv{PADS}(x, u)  y = Clip(a, low, high) }}""",
        low=low,
        high=high,
    )


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (0.0, 1.0)])
def test_a_clip_is_timed_with_a_range_within_its_bounds(low: float, high: float) -> None:
    assert measured(clipped(low, high), Store("kernels", "here"))[0].int8 is not None


def test_a_convolution_merged_with_its_clip_in_float_has_no_int8_time() -> None:
    """Either the range stays within the Clip, so that int8 really runs, or there is no time for int8."""
    really = unfused(clipped(-1.0, 1.0), Ranges(y=(-1.0, 1.0))) == {}
    assert (measured(clipped(-1.0, 1.0), Store("kernels", "here"))[0].int8 is not None) is really


def test_conversions_grow_with_the_tensor_and_cost_images_a_change_of_layout(profiled: list[onnx.ModelProto]) -> None:
    times = kernel_times(net(TWINS), Store("kernels", "here"))
    small, large = times.boundary((1, 8, 8, 8), 1), times.boundary((1, 8, 80, 80), 1)
    assert 0 < small.to_int8 < large.to_int8
    assert 0 < small.to_float < large.to_float
    assert times.boundary((1, 512), 1).to_int8 < small.to_int8
    assert len(profiled) == 1


def test_progress_counts_units() -> None:
    seen: list[tuple[int, int]] = []
    model = net(TWINS)
    measure_all(kernel_times(model, Store("kernels", "here")), units_of(model), 1, lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]
