"""The estimate of a whole model."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
from latency_devices import EAGER, ENGINE, SHEET, board
from support import model

from graphopt.errors import UsageError
from graphopt.graph.cost import cost
from graphopt.latency import Estimate, estimate
from graphopt.latency.estimate import together
from graphopt.targets import TARGETS, load_target

NET = """net (float[N,16,32,32] x) => (float[N,16,32,32] y)
<float[16,16,3,3] w, float[16] b, float[16,16,1,1] v> {
    c = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(c)
    y = Conv(r, v)
}"""


def width(found: Estimate) -> float:
    return found.interval[1] / found.ms


def test_kernels_add_up_and_are_named_as_their_layers() -> None:
    found = estimate(model(NET), board(replace(SHEET, latency={"launch.product_us": 0.001})), batch=64)
    assert [kernel.name for kernel in found.kernels] == ["c", "y"]
    assert found.kernels[0].nodes == ("c", "r")
    assert found.ms == pytest.approx(sum(kernel.us for kernel in found.kernels) / 1e3)
    names = {layer.name for layer in cost(model(NET)).layers}
    assert {name for kernel in found.kernels for name in kernel.nodes} == names
    assert sum(kernel.macs for kernel in found.kernels) == cost(model(NET), batch=64).macs
    assert (found.batch, found.runtime) == (64, "sheet")


def test_what_bounds_a_kernel_is_told() -> None:
    bounds = {name: [kernel.bound for kernel in found.kernels] for name, found in {
        "large": estimate(model(NET), board(SHEET), batch=64),
        "slow memory": estimate(model(NET), board(SHEET, bandwidth_gb_s=1.0), batch=64),
        "one image": estimate(model(NET), board(SHEET, launch_us=1e4)),
    }.items()}  # fmt: skip
    assert bounds == {
        "large": ["compute", "memory"], "slow memory": ["memory", "memory"], "one image": ["launch", "launch"],
    }  # fmt: skip


def test_launches_run_ahead_of_the_device() -> None:
    assert together(100.0, 1.0, 3.0) == pytest.approx(100.0, rel=1e-3)
    assert together(1.0, 100.0, 3.0) == pytest.approx(100.0, rel=1e-3)
    assert 100 < together(100.0, 100.0, 3.0) < 200
    assert together(0.0, 0.0, 3.0) == 0.0
    few, many = (estimate(model(NET), board(replace(SHEET, fused=f), launch_us=1e4)).ms for f in (True, False))
    assert many == pytest.approx(2 * few, rel=0.01)  # two kernels; four with the bias and the activation


def test_the_interval_grows_with_what_is_not_known() -> None:
    proto, half = model(NET), model(NET.replace("float[", "float16["))
    fitted = width(estimate(proto, board(replace(EAGER, fitted=True))))
    other_device = width(estimate(proto, board(EAGER)))
    other_precision = width(estimate(half, board(EAGER)))
    engine = width(estimate(proto, board(ENGINE)))
    accelerator = width(estimate(proto, replace(board(ENGINE), accelerator="dla")))
    unverified = width(estimate(proto, board(ENGINE, unverified=("peak_tops.float16",))))
    beside = width(estimate(proto, board(ENGINE, unverified=("memory_gb", "peak_tops.int8"))))
    assert 1 < fitted < other_device < other_precision
    assert fitted < engine == beside < unverified < accelerator
    refitted = replace(ENGINE, latency={"uncertainty": 0.1})
    assert width(estimate(proto, board(refitted))) == pytest.approx(1.18, abs=0.01)


def test_the_reader_is_told_where_the_constants_come_from() -> None:
    assert "not validated on this device" in estimate(model(NET), board(ENGINE)).source
    assert "not verified: launch_us" in estimate(model(NET), board(ENGINE, unverified=("launch_us",))).source
    assert "arXiv 1810.00736" in estimate(model(NET), board(replace(EAGER, fitted=True))).source
    assert "refitted" in estimate(model(NET), board(replace(ENGINE, latency={"kernel.us": 1.0}))).source


def test_weights_may_be_absent() -> None:
    whole, bare = model(NET), model(NET)
    for tensor in bare.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="absent.bin")
    assert estimate(bare, board()) == estimate(whole, board())


def test_int8_is_an_error_where_the_device_has_none() -> None:
    proto = model("""int8 (float[1,16,8,8] x) => (float[1,16,8,8] y)
    <float scale, int8 zero, int8[16,16,1,1] w, float[16] scales, int8[16] zeros> {
        q = QuantizeLinear(x, scale, zero)  d = DequantizeLinear(q, scale, zero)
        v = DequantizeLinear<axis=0>(w, scales, zeros)  y = Conv(d, v) }""")
    assert estimate(proto, board(ENGINE)).kernels[0].precision == "int8"
    with pytest.raises(UsageError, match="does not compute in int8"):
        estimate(proto, board(ENGINE, peak_tops={"float32": 1.0, "float16": 2.0}))


def test_a_target_that_is_this_machine_has_no_estimate() -> None:
    with pytest.raises(UsageError, match="measured, not estimated"):
        estimate(model(NET), replace(board(), device=None))


def test_a_graph_without_work_takes_no_time() -> None:
    found = estimate(model("same (float[1,4] x) => (float[1,4] y) { y = Identity(x) }"), board())
    assert (found.ms, found.kernels) == (0.0, ())


@pytest.mark.parametrize("name", [name for name in TARGETS if load_target(name).hardware.device])
def test_every_target_with_a_device_has_an_estimate_for_each_of_its_runtimes(name: str) -> None:
    hardware = load_target(name).hardware
    for runtime in hardware.runtimes:
        one, many = (estimate(model(NET), hardware, runtime=runtime.name, batch=batch) for batch in (1, 64))
        assert 0 < one.ms < many.ms < 64 * one.ms
        assert one.interval[0] < one.ms < one.interval[1]
        assert "estimated" in one.source
