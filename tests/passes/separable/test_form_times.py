"""Times of convolutions, whole and separated, from kernels that are timed once. Kernels take made-up times here."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import runtime
from graphopt.cache import Store
from graphopt.errors import UnsupportedModelError
from graphopt.passes.separable.decompose import geometry_of
from graphopt.passes.separable.factors import Geometry
from graphopt.passes.separable.piece import Piece, alone, separated_alone
from graphopt.passes.separable.times import FormTimes
from graphopt.targets.schema import Int8Rules
from tests.support import feeds, model, ops, outputs

# Microseconds of kernels in float and in int8.
DENSE, DENSE_INT8 = 100.0, 25.0
DEPTHWISE, DEPTHWISE_INT8 = 10.0, 40.0
POINTWISE, POINTWISE_INT8 = 12.0, 4.0
OTHER = 5.0


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch) -> list[onnx.ModelProto]:
    """Every model whose kernels are timed."""
    seen: list[onnx.ModelProto] = []

    def profile(proto: onnx.ModelProto, feed: object, **settings: object) -> tuple[runtime.KernelTime, ...]:
        seen.append(proto)
        int8 = "DequantizeLinear" in ops(proto)
        found = []
        for node in proto.graph.node:
            operator, time = node.op_type, OTHER
            if operator == "Conv":
                time = _convolution(node, int8)
                operator = "QLinearConv" if int8 else "Conv"
            elif int8 and operator == "Add":
                operator = "QLinearAdd"
            found.append(runtime.KernelTime(node.output[0], operator, time, time, ()))
        return tuple(found)

    def _convolution(node: onnx.NodeProto, int8: bool) -> float:
        kernel = next((list(each.ints) for each in node.attribute if each.name == "kernel_shape"), [3, 3])
        group = next((each.i for each in node.attribute if each.name == "group"), 1)
        if group > 1:
            return DEPTHWISE_INT8 if int8 else DEPTHWISE
        if kernel == [1, 1]:
            return POINTWISE_INT8 if int8 else POINTWISE
        return DENSE_INT8 if int8 else DENSE

    monkeypatch.setattr(runtime, "profile", profile)
    return seen


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Where times are kept; the profiler itself and conversions take no time."""
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path))
    kept = Store("kernels", "here")
    kept.put("profiling/1", 0.0)
    kept.put("boundary/1", [0.0, 0.0, 0.0])
    return kept


def piece(attributes: str = "pads=[1,1,1,1]", *, residual: bool = False, activation: bool = False) -> Piece:
    proto = model(
        f"g (float[1,16,8,8] x) => (float[1,24,8,8] y) <float[24,16,3,3] w, float[24] b> "
        f"{{ y = Conv<{attributes}>(x, w, b) }}"
    )
    return Piece(proto.graph.node[0], (24, 16, 3, 3), True, (1, 16, 8, 8), residual, activation)


def sizes(of: Piece) -> Geometry:
    found = geometry_of(of.node, of.weight)
    assert isinstance(found, Geometry)
    return found


def test_a_piece_stands_alone_with_what_is_merged_into_it() -> None:
    assert ops(alone(piece())) == ["Conv"]
    assert ops(alone(piece(residual=True, activation=True))) == ["Conv", "Add", "Relu"]

    separated = separated_alone(piece(residual=True, activation=True), sizes(piece()), "depthwise_first", 1, "sum")
    assert ops(separated) == ["Conv", "Conv", "Add", "Relu"]
    assert [each.shape for each in outputs(separated, feeds(separated)).values()] == [(1, 24, 8, 8)]


def test_in_float_a_form_takes_the_sum_of_its_kernels(profiled: list[onnx.ModelProto], store: Store) -> None:
    times = FormTimes(None, 1, store)

    assert times.whole(piece()) == DENSE
    assert times.separated(piece(), sizes(piece()), "depthwise_first", 1, "sum") == DEPTHWISE + POINTWISE
    assert times.separated(piece(), sizes(piece()), "pointwise_first", 1, "sum") == DEPTHWISE + POINTWISE


def test_the_fastest_layout_is_chosen(profiled: list[onnx.ModelProto], store: Store) -> None:
    # As kernels cost here whatever their size, one depthwise convolution for all terms wins.
    found = FormTimes(None, 1, store).fastest(piece(), sizes(piece()), "depthwise_first", 3)

    assert found == (DEPTHWISE + POINTWISE, "multiplier")


def test_what_cannot_be_written_has_no_time(profiled: list[onnx.ModelProto], store: Store) -> None:
    times = FormTimes(None, 1, store)

    assert times.separated(piece(), sizes(piece()), "pointwise_first", 2, "concat") == np.inf
    assert "concat" not in times.layouts(piece(), sizes(piece()), "pointwise_first")


def test_where_int8_follows_a_dense_convolution_is_timed_in_int8(profiled: list[onnx.ModelProto], store: Store) -> None:
    assert FormTimes(Int8Rules(), 1, store).whole(piece()) == DENSE_INT8


@pytest.mark.parametrize(
    ("conversion", "expected"),
    [
        pytest.param(0.001, DEPTHWISE + POINTWISE_INT8, id="cheap: each in its best precision"),
        pytest.param(1.0, DEPTHWISE + POINTWISE, id="dear: all in float"),
    ],
)
def test_each_part_runs_in_the_precision_in_which_the_whole_is_fastest(
    conversion: float, expected: float, profiled: list[onnx.ModelProto], store: Store
) -> None:
    store.put("boundary/1", [conversion, conversion, 0.0])
    found = FormTimes(Int8Rules(), 1, store).separated(piece(), sizes(piece()), "depthwise_first", 1, "sum")

    # From float and back, or from int8 and back: one conversion each way, and what a node takes by itself.
    paid = 0.0 if expected == DEPTHWISE + POINTWISE else 2 + conversion * 64 * (16 + 16)
    assert found == pytest.approx(expected + paid, abs=1.0)


def test_kernels_are_timed_once_and_kept_on_disk(profiled: list[onnx.ModelProto], store: Store) -> None:
    first = FormTimes(None, 1, store).fastest(piece(), sizes(piece()), "depthwise_first", 2)
    store.save()
    profiled.clear()

    again = FormTimes(None, 1, Store("kernels", "here")).fastest(piece(), sizes(piece()), "depthwise_first", 2)

    assert again == first
    assert profiled == []


def test_a_whole_model_is_timed_once(profiled: list[onnx.ModelProto], store: Store) -> None:
    proto = alone(piece(activation=True))

    found = [FormTimes(None, 1, store).net(proto, feeds(proto)) for _ in range(2)]

    assert found == [DENSE + OTHER] * 2
    assert len(profiled) == 1


def test_a_whole_model_is_as_much_faster_as_int8_makes_its_kernels(
    profiled: list[onnx.ModelProto], store: Store
) -> None:
    proto = alone(piece())

    found = FormTimes(Int8Rules(), 1, store).net(proto, feeds(proto))

    assert found == pytest.approx(DENSE_INT8 + 2, abs=0.1)  # converted on the way in and out


def test_what_the_profiler_itself_takes_is_left_out(profiled: list[onnx.ModelProto], store: Store) -> None:
    store.put("profiling/1", 3.0)
    times = FormTimes(None, 1, store)

    assert times.separated(piece(), sizes(piece()), "depthwise_first", 1, "sum") == DEPTHWISE + POINTWISE - 2 * 3.0


def test_real_kernels_take_time(store: Store) -> None:
    found = FormTimes(None, 1, Store("kernels", "elsewhere")).fastest(piece(), sizes(piece()), "depthwise_first", 1)

    assert found is not None
    assert 0 < found[0] < 1e5


def test_sizes_that_do_not_fit_are_refused() -> None:
    small = Piece(piece().node, (24, 16, 3, 3), True, (1, 16, 8))

    with pytest.raises(UnsupportedModelError, match="do not fit"):
        alone(small)
