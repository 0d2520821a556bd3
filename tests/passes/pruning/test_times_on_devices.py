"""What a net costs on a device that is not at hand, as a function of the channels removed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graphopt.channels import dependency_groups
from graphopt.latency import estimate
from graphopt.passes.base import Context, Goals, kernel_multiple
from graphopt.passes.pruning.alignment import ladders
from graphopt.passes.pruning.times import Target, costs
from graphopt.targets import Hardware, load_target
from tests.passes.pruning.nets import chain
from tests.support import model


def hardware(name: str) -> Hardware:
    return load_target(name).hardware


def on(name: str, *, int8: bool = False) -> Target:
    return Target(8, int8, hardware(name))


def wide(channels: int, *, residual: bool = False) -> str:
    """Two 3x3 convolutions on large images, where computing is what takes the time."""
    last = "c = Conv<pads = [1,1,1,1]>(r, v)  y = Add(c, a)" if residual else "y = Conv<pads = [1,1,1,1]>(r, v)"
    weights = f"float[{channels},{channels},3,3] w, float[{channels},{channels},3,3] v"
    return (
        f"g (float[1,{channels},128,128] x) => (float[1,{channels},128,128] y) <{weights}> "
        f"{{ a = Conv<pads = [1,1,1,1]>(x, w)  r = Relu(a)  {last} }}"
    )


@pytest.mark.parametrize("target", ["jetson-orin-nano", "jetson-nano", "a100"])
def test_fewer_channels_never_take_longer(target: str) -> None:
    found = costs(chain(), on(target))
    times = [found.time([0, removed]) for removed in (0, 16, 32, 48)]
    assert times == sorted(times, reverse=True)
    assert times[-1] < times[0]


def test_times_are_near_those_of_the_whole_estimate() -> None:
    proto = model(wide(64))
    target = hardware("jetson-nano")
    found = costs(dependency_groups(proto), Target(2, False, target))
    kernels = estimate(proto, target).kernels
    removed = [0] * len(dependency_groups(proto))
    assert found.time(removed) == pytest.approx(1e3 * sum(kernel.us for kernel in kernels), rel=0.15)


def test_a_transposed_depthwise_convolution_is_priced_as_in_the_whole_estimate() -> None:
    proto = model("""up (float[1,64,28,28] x) => (float[1,64,56,56] y) <float[64,64,1,1] w, float[64,1,4,4] v>
    { c = Conv(x, w)  y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], group=64>(c, v) }""")
    target = hardware("jetson-agx-orin-dla")
    groups = dependency_groups(proto)
    kernels = estimate(proto, target).kernels
    found = costs(groups, Target(2, False, target)).time([0] * len(groups))
    assert found == pytest.approx(1e3 * sum(kernel.us for kernel in kernels), rel=0.15)


def test_int8_pays_where_computing_takes_the_time() -> None:
    proto = dependency_groups(model(wide(128)))
    removed = [0] * len(proto)
    in_float, in_int8 = (costs(proto, on("jetson-orin-nano", int8=int8)).time(removed) for int8 in (False, True))
    assert in_int8 < 0.8 * in_float


def test_layers_too_narrow_for_int8_stay_in_float() -> None:
    proto = dependency_groups(model(wide(8)))
    removed = [0] * len(proto)
    in_float, in_int8 = (costs(proto, on("jetson-orin-nano", int8=int8)).time(removed) for int8 in (False, True))
    assert in_int8 == in_float


def test_what_runs_inside_another_kernel_is_free_where_the_runtime_fuses() -> None:
    fused = hardware("titan-xp")
    eager = replace(fused, runtimes=tuple(one for one in fused.runtimes if not one.fused))
    alone, added = (dependency_groups(model(wide(32, residual=residual))) for residual in (False, True))

    def time(dependencies: object, target: Hardware) -> float:
        found = costs(dependencies, Target(1, False, target))  # type: ignore[arg-type]
        return found.time([0] * found.groups)

    assert time(added, fused) == pytest.approx(time(alone, fused))
    assert time(added, eager) > time(alone, eager)


@pytest.mark.parametrize(
    ("target", "int8_follows", "expected"),
    [("cpu", True, 16), ("jetson-orin-nano", True, 16), ("jetson-orin-nano", False, 8), ("jetson-nano", True, 2)],
)
def test_channels_are_cut_to_what_the_kernels_of_the_precision_want(
    target: str, int8_follows: bool, expected: int
) -> None:
    context = Context(hardware=hardware(target), goals=Goals(int8_follows=int8_follows))
    assert kernel_multiple(context) == expected


def test_counts_between_the_multiples_are_left_out_where_kernels_pad_them() -> None:
    dependencies = chain(40, 12)
    finer, coarse = (ladders(dependencies, 16, finer=each) for each in (True, False))
    assert [list(ladder.counts) for ladder in coarse] == [[40, 32, 16], [12]]
    assert all(set(few.counts) <= set(many.counts) for few, many in zip(coarse, finer, strict=True))
    assert len(finer[1].counts) > 1
