"""The time of one kernel: a roofline, and what keeps kernels below it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latency_devices import ENGINE, SHEET, board

from graphopt.errors import UsageError
from graphopt.latency import KernelWork, convolution, fully_connected, kernel_us, movement
from graphopt.latency.constants import DATASHEET, MEANINGS, constants
from graphopt.latency.roofline import kernel_time
from graphopt.targets.schema import Int8Rules


def test_a_large_convolution_takes_its_operations_over_the_peak() -> None:
    work = convolution(256, 256, kernel=(3, 3), out_size=(56, 56))
    assert work.macs == 256 * 256 * 9 * 56 * 56
    assert kernel_us(work, board()) == pytest.approx(2 * work.macs / 1e6)


def test_what_only_moves_data_takes_its_bytes_over_the_bandwidth() -> None:
    assert kernel_us(movement(1e6, 1e6), board()) == pytest.approx(8e6 / 1e5)


def test_a_matrix_product_of_one_row_reads_its_weights() -> None:
    work = fully_connected(4096, 4096)
    assert kernel_us(work, board()) == pytest.approx((4096 * 4096 + 2 * 4096) * 4 / 1e5)


def test_channels_are_padded_to_what_tensor_cores_take() -> None:
    nine, sixteen = (kernel_us(convolution(c, c, out_size=(56, 56), precision="float16"), board()) for c in (9, 16))
    assert nine == pytest.approx(sixteen, rel=0.2)  # its traffic is less, its operations are not
    one, whole = (kernel_us(convolution(c, c, out_size=(56, 56)), board()) for c in (9, 16))
    assert one < 0.6 * whole


def test_depthwise_convolutions_have_no_use_for_tensor_cores() -> None:
    work = convolution(64, 64, kernel=(7, 7), groups=64, out_size=(56, 56), precision="float16")
    assert kernel_us(work, board()) == pytest.approx(2 * work.macs / 1e6)


def test_winograd_saves_multiplications_in_float32_only() -> None:
    fitted = {**DATASHEET, "compute.winograd": 2.0}

    def us(**how: object) -> float:
        work = convolution(256, 256, out_size=(56, 56), **how)  # type: ignore[arg-type]
        return float(kernel_time(work, board(), fitted).us / work.macs)

    assert us() == pytest.approx(us(strides=(2, 2)) / 2)
    assert us() == pytest.approx(us(kernel=(5, 5)) / 2)
    assert us(precision="float16") == pytest.approx(us(precision="float16", strides=(2, 2)))


def test_small_layers_leave_multiprocessors_idle() -> None:
    fitted = {**DATASHEET, "small.product": 1000.0}
    small = convolution(512, 1000, kernel=(1, 1), out_size=(2, 4))  # 8000 outputs on 8 multiprocessors
    assert kernel_time(small, board(), fitted).compute_us == pytest.approx(2 ** (4 / 3) * 2 * small.macs / 1e6)


def test_narrow_groups_are_slow() -> None:
    fitted = {**DATASHEET, "small.group": 16.0}
    narrow = convolution(128, 128, groups=32, out_size=(28, 28))
    assert kernel_time(narrow, board(), fitted).compute_us == pytest.approx(5 * 2 * narrow.macs / 1e6)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_wider_groups_never_cost_less(precision: str) -> None:
    """Groups of 4 that are padded to 8 run in the kernel for 8, no slower."""
    widths = np.arange(1, 65)
    work = convolution(32 * widths, 32 * widths, groups=32, out_size=(28, 28), batch=16, precision=precision)
    assert np.all(np.diff(kernel_us(work, board(ENGINE))) >= -1e-9)


def test_integer_kernels_of_groups_take_channels_in_fours() -> None:
    """Convolutions of 4 channels a group in int8 were slower than in float16: padded to 16 on both sides."""
    fours = replace(board(ENGINE), int8=Int8Rules(group_multiple=4))
    in_int8, in_float16 = (
        kernel_us(convolution(128, 128, groups=32, out_size=(56, 56), batch=16, precision=precision), fours)
        for precision in ("int8", "float16")
    )
    assert in_int8 < in_float16


def test_matrix_products_of_a_few_rows_and_long_sums_read_weights_slowly() -> None:
    """As measured: two images take VGG twice as long as one, and AlexNet no longer."""
    fitted = {**DATASHEET, "memory.few_rows": 0.25}

    def memory_us(rows: int, summed: int) -> float:
        return float(kernel_time(fully_connected(summed, 4096, rows=rows), board(), fitted).memory_us)

    one, two, four, sixteen = (memory_us(rows, 25088) for rows in (1, 2, 4, 16))
    assert two == pytest.approx(4 * one, rel=0.01)
    assert two > four > sixteen
    assert sixteen == pytest.approx(one, rel=0.02)
    assert memory_us(2, 9216) == pytest.approx(memory_us(1, 9216), rel=0.01)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_more_rows_of_a_matrix_product_never_cost_less(precision: str) -> None:
    """33 rows took a third less than 32, where another kernel begins."""
    rows = range(1, 100)
    for name in ("tensorrt", "eager", "titan-xp-eager", "jetson-tx1-eager"):
        for inside, outside in ((4096, 4096), (768, 50000), (64, 10)):
            runtime = replace(ENGINE, constants=name)
            times = [
                kernel_us(fully_connected(inside, outside, rows=n, precision=precision), board(runtime)) for n in rows
            ]
            assert np.all(np.diff(times) >= -1e-9)


def test_pooling_reads_its_window_from_the_caches_and_planes_from_memory() -> None:
    fitted = {**DATASHEET, "cache.pooling": 1.0, "memory.plane_pooling": 0.1}
    window = KernelWork("pooling", outputs=1e5, activation_bytes=8e5, window=9)
    plane = KernelWork("pooling", outputs=1e3, activation_bytes=8e5, window=49)
    assert kernel_time(window, board(), fitted).us == pytest.approx(8 + 9 * 4)
    assert kernel_time(plane, board(), fitted).us == pytest.approx(80)


def test_candidates_are_priced_in_one_call() -> None:
    channels = np.arange(1, 65)
    together = kernel_us(convolution(32, channels, out_size=(14, 14), precision="int8"), board(ENGINE))
    alone = [kernel_us(convolution(32, int(c), out_size=(14, 14), precision="int8"), board(ENGINE)) for c in channels]
    np.testing.assert_allclose(together, alone)


def test_a_float_type_without_a_peak_is_computed_in_float32_and_an_integer_one_is_refused() -> None:
    old = board(peak_tops={"float32": 1.0})
    work = convolution(256, 256, out_size=(56, 56), precision="float16")
    assert kernel_us(work, old) == pytest.approx(2 * work.macs / 1e6)
    with pytest.raises(UsageError, match="'board' does not compute in int8; it does in float32"):
        kernel_us(replace(work, precision="int8"), old)


def test_a_runtime_that_the_target_lacks_is_named() -> None:
    with pytest.raises(UsageError, match="no runtime 'onnx'; it has sheet"):
        kernel_us(movement(1, 1), board(), "onnx")
    with pytest.raises(UsageError, match="no device figures"):
        kernel_us(movement(1, 1), replace(board(), device=None))


def test_constants_are_checked() -> None:
    with pytest.raises(UsageError, match="no set of latency constants named 'cudnn'"):
        constants("cudnn")
    with pytest.raises(UsageError, match=r"no latency constant named 'compute\.wino'"):
        constants("tensorrt", {"compute.wino": 1.0})
    with pytest.raises(UsageError, match=r"'memory\.product' must be a positive number, not 0"):
        constants("tensorrt", {"memory.product": 0.0})
    for name in ("titan-xp-eager", "jetson-tx1-eager", "eager", "tensorrt"):
        assert constants(name).keys() == MEANINGS.keys()


SIZES = st.integers(1, 512)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    inside=SIZES, outside=SIZES, pixels=st.integers(1, 64), precision=st.sampled_from(["float32", "float16", "int8"])
)
def test_more_channels_never_cost_less(inside: int, outside: int, pixels: int, precision: str) -> None:
    """Padding makes steps, but none downwards: a pass that prunes by these times never gains by adding channels."""
    channels = np.arange(1, outside + 1)
    for runtime in (SHEET, ENGINE):
        work = convolution(inside, channels, out_size=(pixels, pixels), precision=precision)
        assert np.all(np.diff(kernel_us(work, board(runtime))) >= -1e-9)
