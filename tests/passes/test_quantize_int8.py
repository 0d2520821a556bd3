"""The pass from end to end on small nets: what it proposes, what it leaves alone and why. No latency is asserted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from int8_nets import net, own_cache, runs_as, sqnr

from graphopt import runtime
from graphopt.errors import DataError, UsageError
from graphopt.passes.base import Candidate, Context, Declined
from graphopt.passes.quantize_int8 import QuantizeInt8
from graphopt.targets import load_target
from graphopt.targets.schema import Int8Rules

__all__ = ["own_cache"]

PADS = "<pads = [1,1,1,1]>"
TEXT = f"""g (float[N,4,16,16] x) => (float[N,10] y)
    <float[16,4,3,3] u, float[16] bu, float[16,16,3,3] v, float[16] bv, float[16,16,3,3] w,
     float[16,10] k, float[10] bk> {{
    a = Conv{PADS}(x, u, bu)  r = Relu(a)
    b = Conv{PADS}(r, v, bv)  s = Add(b, r)  t = Relu(s)
    c = Conv{PADS}(t, w)  d = Relu(c)  p = GlobalAveragePool(d)  f = Flatten(p)  y = Gemm(f, k, bk) }}"""
Feeds = list[dict[str, np.ndarray[Any, Any]]]


def samples(count: int = 4, first: int = 0, shape: tuple[int, ...] = (1, 4, 16, 16), **more: Any) -> Feeds:
    made = []
    for seed in range(first, first + count):
        generator = np.random.default_rng(seed)
        made.append({"x": generator.normal(size=shape).astype(np.float32), **more})
    return made


def context(
    calibration: Iterable[Mapping[str, Any]] | None = None,
    selection: Iterable[Mapping[str, Any]] | None = None,
    **more: Any,
) -> Context:
    """The CPU's facts with 8-bit weights, whatever machine the tests run on."""
    hardware = replace(load_target("cpu").hardware, int8=Int8Rules())
    return Context(
        hardware,
        samples() if calibration is None else calibration,
        samples(3, 100) if selection is None else selection,
        **more,
    )


def everything(**options: Any) -> QuantizeInt8:
    """The pass with every unit in int8 and nothing tried out: the same on every machine."""
    return QuantizeInt8(**({"placement": "all", "observer": "minmax", "bias_correction": "off"} | options))


def first(one: QuantizeInt8, model: onnx.ModelProto, given: Context | None = None) -> Candidate:
    """The first candidate; it is valid, and the model is untouched."""
    before = model.SerializeToString(deterministic=True)
    candidate = next(one.candidates(model, given or context()))
    onnx.checker.check_model(candidate.model, full_check=True)
    assert model.SerializeToString(deterministic=True) == before
    return candidate


def reasons(candidate: Candidate) -> dict[str, str]:
    return {skip.where: skip.reason for skip in candidate.report.skipped}


def off_by(model: onnx.ModelProto, other: onnx.ModelProto, feed: Mapping[str, Any]) -> float:
    """Largest difference of the outputs, as a share of the largest value."""
    wanted, found = (runtime.run(runtime.session(each), feed) for each in (model, other))
    assert list(wanted) == list(found)
    return max(float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()) for name in wanted)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"observer": "best"}, "quantize_int8.observer is 'best'; it must be one of auto, entropy, minmax"),
            ({"placement": "some"}, "quantize_int8.placement is 'some'; it must be one of measured, all"),
            ({"bias_correction": "yes"}, "quantize_int8.bias_correction is 'yes'; it must be one of auto, on, off"),
            ({"weight_bits": 4}, "quantize_int8.weight_bits is 4; it must be 7, 8, or 0"),
            ({"samples": 0}, "quantize_int8.samples is 0; at least one sample is needed"),
        ],
    )
    def test_wrong_values_are_refused_at_once(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError) as caught:
            QuantizeInt8(**options)
        assert str(caught.value).startswith(message)

    def test_an_excluded_node_that_does_not_exist_is_named(self) -> None:
        with pytest.raises(UsageError, match=r"exclude names no node of the model: conv_99"):
            next(everything(exclude="Conv(a) conv_99").candidates(net(TEXT), context()))

    def test_excluded_nodes_stay_in_float(self) -> None:
        candidate = first(everything(exclude="Conv(a) Gemm(y)"), net(TEXT))
        assert reasons(candidate) == {
            "Conv(a)": "excluded by the option quantize_int8.exclude",
            "Gemm(y)": "excluded by the option quantize_int8.exclude",
        }
        assert runs_as(candidate.model).count("QLinearConv") == 2

    @pytest.mark.parametrize("observer", ["entropy", "minmax", "moving_average", "mse", "percentile"])
    def test_every_observer(self, observer: str) -> None:
        model = net(TEXT)
        candidate = first(everything(observer=observer), model)
        assert candidate.report.details["observer"] == observer
        assert off_by(model, candidate.model, samples(1, 50)[0]) < 0.2

    def test_seven_bits(self) -> None:
        candidate = first(everything(weight_bits=7), net(TEXT))
        weights = [
            onnx.numpy_helper.to_array(tensor)
            for tensor in candidate.model.graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        ]
        assert len(weights) == 4
        assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) == 63

    def test_samples_bounds_what_is_read(self) -> None:
        assert first(everything(samples=2), net(TEXT)).report.details["calibration_samples"] == 2
        assert first(everything(samples=9), net(TEXT)).report.details["calibration_samples"] == 4


class TestDeclines:
    def test_a_target_without_int8(self) -> None:
        hardware = replace(load_target("cpu").hardware, int8=None)
        with pytest.raises(Declined, match="the target cpu has no int8"):
            next(QuantizeInt8().candidates(net(TEXT), Context(hardware, samples())))

    def test_a_graph_without_convolutions_and_matrix_products(self) -> None:
        model = net("g (float[1,4] x) => (float[1,4] y) { a = Relu(x)  y = Softmax(a) }")
        with pytest.raises(Declined, match="no convolution or matrix product can run in int8"):
            next(QuantizeInt8().candidates(model, context(samples(shape=(1, 4)))))

    @pytest.mark.parametrize(("kind", "dtype"), [("float16", np.float16), ("double", np.float64)])
    def test_models_in_other_precisions_are_left_alone_with_the_reason(self, kind: str, dtype: type) -> None:
        model = net(f"g ({kind}[1,4,8,8] x) => ({kind}[1,8,8,8] y) <{kind}[8,4,3,3] w> {{ y = Conv{PADS}(x, w) }}")
        given = [{"x": feed["x"].astype(dtype)} for feed in samples(shape=(1, 4, 8, 8))]
        with pytest.raises(Declined) as caught:
            next(QuantizeInt8().candidates(model, context(given)))
        assert [(skip.where, skip.reason) for skip in caught.value.report.skipped] == [
            ("Conv(y)", "its weights are not float32")
        ]

    def test_everything_excluded(self) -> None:
        model = net(TEXT)
        with pytest.raises(Declined) as caught:
            next(everything(exclude="Conv(a) Conv(b) Conv(c) Gemm(y)").candidates(model, context()))
        assert {skip.reason for skip in caught.value.report.skipped} == {"excluded by the option quantize_int8.exclude"}


class TestData:
    def test_no_data(self) -> None:
        with pytest.raises(DataError, match="needs calibration data; give --data or --calibration-data"):
            next(QuantizeInt8().candidates(net(TEXT), Context(load_target("cpu").hardware)))

    def test_no_samples(self) -> None:
        with pytest.raises(DataError, match="holds no sample"):
            next(QuantizeInt8().candidates(net(TEXT), context([])))

    def test_a_sample_with_nan_is_named(self) -> None:
        given = samples()
        given[1]["x"][0, 0, 0, 0] = np.nan
        with pytest.raises(DataError, match=r"sample 1 makes tensor 'x' NaN"):
            next(everything().candidates(net(TEXT), context(given)))

    def test_without_selection_samples_choices_fall_back_on_calibration(self) -> None:
        hardware = replace(load_target("cpu").hardware, int8=Int8Rules())
        candidate = first(QuantizeInt8(placement="all"), net(TEXT), Context(hardware, samples(), None))
        assert candidate.report.details["sqnr_db"] > 20


class TestCandidates:
    def test_the_first_has_everything_in_int8_that_the_kernels_reward(self) -> None:
        model = net(TEXT)
        candidate = first(everything(), model)
        assert candidate.label == "4 of 4 convolutions and matrix products in int8"
        assert candidate.report.skipped == ()
        assert candidate.report.details["macs_in_int8"] == 1.0
        assert candidate.report.details["int8_units"] == {
            "Add": 1,
            "Conv": 3,
            "Flatten": 1,
            "Gemm": 1,
            "GlobalAveragePool": 1,
        }
        operators = runs_as(candidate.model)
        assert operators.count("QLinearConv") == 3
        assert "QLinearAdd" in operators
        assert off_by(model, candidate.model, samples(1, 50)[0]) < 0.1

    def test_measured_times_decide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first convolution is made out to be slow in int8: it stays in float; the report gives both times."""
        slow_in_int8(monkeypatch, "a")
        candidate = first(QuantizeInt8(observer="minmax", bias_correction="off"), net(TEXT))
        assert reasons(candidate) == {"Conv(a)": "int8 is slower on this CPU: 900 against 100 µs"}
        assert runs_as(candidate.model).count("QLinearConv") == 2
        assert candidate.report.details["macs_in_int8"] < 1.0

    def test_what_is_left_in_float_between_int8_runs_in_float(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slow_in_int8(monkeypatch, "c")
        candidate = first(QuantizeInt8(observer="minmax", bias_correction="off"), net(TEXT))
        assert list(reasons(candidate)) == ["Conv(c)"]
        assert runs_as(candidate.model).count("QLinearConv") == 2

    def test_where_nothing_gains_there_is_nothing_to_offer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slow_in_int8(monkeypatch, "a", "b", "c", "y")
        with pytest.raises(Declined, match="no convolution or matrix product gains from int8 on this CPU") as caught:
            next(QuantizeInt8().candidates(net(TEXT), context()))
        assert {skip.reason for skip in caught.value.report.skipped} == {
            "int8 is slower on this CPU: 900 against 100 µs"
        }

    def test_each_further_candidate_is_gentler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slow_in_int8(monkeypatch)
        model = net(TEXT)
        found = list(islice(QuantizeInt8(observer="minmax").candidates(model, context()), 6))
        assert len(found) >= 3
        heavy = [count_int8(candidate.model) for candidate in found]
        assert heavy == sorted(heavy, reverse=True)
        assert heavy[0] == 4
        assert heavy[-1] < 4
        noises = [sqnr(model, candidate.model, samples(1, 100)[0]) for candidate in found]
        assert noises[-1] > noises[0]
        for candidate in found:
            onnx.checker.check_model(candidate.model, full_check=True)
        for reason in reasons(found[-1]).values():
            assert reason.startswith("left in float for accuracy: alone in int8 it gives ")

    def test_what_is_gentler_is_more_accurate_in_onnx_runtime(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slow_in_int8(monkeypatch)
        found = list(islice(QuantizeInt8(observer="minmax").candidates(net(TEXT), context()), 6))
        assert found[-1].report.details["sqnr_db"] > found[0].report.details["sqnr_db"]

    def test_the_chosen_observer_is_the_best_of_those_tried(self) -> None:
        """One outlier in the calibration data that no selection sample has: min-max would waste most of the levels."""
        given = samples(8)
        given[3]["x"][0, 1, 2, 3] = 300.0
        candidate = first(QuantizeInt8(placement="all"), net(TEXT), context(given))
        alone = first(everything(), net(TEXT), context(given))
        assert candidate.report.details["observer"] != "minmax"
        assert candidate.report.details["sqnr_db"] > alone.report.details["sqnr_db"] + 1

    def test_bias_correction_is_kept_only_where_it_helps(self) -> None:
        auto = first(everything(bias_correction="auto"), net(TEXT)).report.details
        on, off = (first(everything(bias_correction=how), net(TEXT)).report.details for how in ("on", "off"))
        assert (on["bias_correction"], off["bias_correction"]) == (True, False)
        assert auto["sqnr_db"] == pytest.approx(max(on["sqnr_db"], off["sqnr_db"]), abs=0.06)

    def test_progress_names_the_stages(self) -> None:
        seen: dict[str, int] = {}

        def progress(what: str, done: int, total: int) -> None:
            seen[what] = done

        list(islice(everything().candidates(net(TEXT), context(progress=progress)), 2))
        assert seen["quantize_int8: calibration"] == 4
        assert {"quantize_int8: measuring kernels", "quantize_int8: sensitivity"} <= seen.keys()


def slow_in_int8(monkeypatch: pytest.MonkeyPatch, *outputs: str) -> None:
    """Make up kernel times: the units that make ``outputs`` take 900 µs in int8, all others 10, and 100 in float."""
    from graphopt.passes.quantize_int8.kernels import BoundaryTime, KernelTimes, UnitTime

    def unit(self: KernelTimes, one: Any, threads: int) -> UnitTime:
        return UnitTime(100.0, 900.0 if one.node.output[0] in outputs else 10.0)

    monkeypatch.setattr(KernelTimes, "unit", unit)
    monkeypatch.setattr(KernelTimes, "boundary", lambda self, shape, threads: BoundaryTime(1.0, 1.0))


def count_int8(model: onnx.ModelProto) -> int:
    """Convolutions and matrix products whose weights are integers."""
    integers = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    weights = {
        node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in integers
    }
    return sum(node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights for node in model.graph.node)


class TestDeterminism:
    def test_the_same_cache_gives_the_same_bytes(self) -> None:
        def bytes_of() -> Iterator[bytes]:
            for candidate in islice(QuantizeInt8().candidates(net(TEXT), context()), 3):
                yield candidate.model.SerializeToString(deterministic=True)

        try:
            once = list(bytes_of())
        except Declined:
            pytest.fail("a 16-channel 3x3 convolution gains from int8 on every CPU that the tests know of")
        assert list(bytes_of()) == once

    def test_kernels_are_measured_once_in_a_machines_life(self, monkeypatch: pytest.MonkeyPatch) -> None:
        timed: list[object] = []
        profile = runtime.profile

        def counted(*arguments: Any, **options: Any) -> Any:
            timed.append(arguments)
            return profile(*arguments, **options)

        monkeypatch.setattr(runtime, "profile", counted)
        first(everything(), net(TEXT))
        assert timed
        del timed[:]
        first(everything(), net(TEXT))
        assert timed == []

    def test_a_cache_that_cannot_be_written_does_not_stop_the_pass(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path / "file"))
        assert count_int8(first(everything(), net(TEXT)).model) == 4


class TestModels:
    """Models of all kinds go through: every form that has tripped a quantizer before."""

    @pytest.mark.parametrize("batch", [1, 3])
    def test_dynamic_batch(self, batch: int) -> None:
        model = net(TEXT)
        candidate = first(everything(), model)
        assert candidate.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
        assert off_by(model, candidate.model, samples(1, 50, shape=(batch, 4, 16, 16))[0]) < 0.1

    def test_calibration_samples_in_batches(self) -> None:
        model = net(TEXT)
        candidate = first(everything(), model, context(samples(2, shape=(5, 4, 16, 16))))
        assert off_by(model, candidate.model, samples(1, 50)[0]) < 0.1

    def test_a_layer_inside_a_branch_is_named(self) -> None:
        text = f"""g (float[1,4,8,8] x, bool choice) => (float[1,4,8,8] y) <float[4,4,3,3] u> {{
            a = Conv{PADS}(x, u)
            y = If (choice) <
                then_branch = yes () => (float[1,4,8,8] p) {{ p = Conv{PADS}(a, u) }},
                else_branch = no () => (float[1,4,8,8] q) {{ q = Neg(a) }}
            > }}"""
        given = samples(shape=(1, 4, 8, 8), choice=np.array(True))
        candidate = first(everything(), net(text), context(given, given))
        named = [skip.reason for skip in candidate.report.skipped if "then_branch" in skip.reason]
        assert len(named) == 1

    def test_an_if_whose_branches_read_an_outer_tensor(self) -> None:
        text = f"""g (float[1,4,8,8] x, bool choice) => (float[1,8,8,8] y) <float[8,4,3,3] u, float[8,8,3,3] v> {{
            a = Conv{PADS}(x, u)  r = Relu(a)  b = Conv{PADS}(r, v)
            y = If (choice) <
                then_branch = yes () => (float[1,8,8,8] p) {{ p = Add(b, r) }},
                else_branch = no () => (float[1,8,8,8] q) {{ q = Neg(r) }}
            > }}"""
        model = net(text)
        given = samples(shape=(1, 4, 8, 8), choice=np.array(True))
        candidate = first(everything(), model, context(given, given))
        assert count_int8(candidate.model) == 2
        for choice in (True, False):
            assert off_by(model, candidate.model, {**given[0], "choice": np.array(choice)}) < 0.1

    def test_an_old_opset_is_raised_and_the_report_says_so(self) -> None:
        text = f"""<ir_version: 6, opset_import: ["" : 11]>
            g (float[1,4,8,8] x) => (float[1,8,8,8] y) <float[8,4,3,3] w> {{ y = Conv{PADS}(x, w) }}"""
        model = net(text)
        candidate = first(everything(), model, context(samples(shape=(1, 4, 8, 8)), samples(shape=(1, 4, 8, 8))))
        assert candidate.model.opset_import[0].version >= 13
        assert "opset" in candidate.report.details
        assert off_by(model, candidate.model, samples(1, 50, shape=(1, 4, 8, 8))[0]) < 0.1

    def test_two_inputs_and_a_whole_number_among_them(self) -> None:
        text = f"""g (float[1,4,8,8] x, int64[1] where) => (float[1,8,1,8] y) <float[8,4,3,3] w> {{
            a = Conv{PADS}(x, w)  y = Gather<axis = 2>(a, where) }}"""
        model = net(text)
        given = samples(shape=(1, 4, 8, 8), where=np.array([3]))
        candidate = first(everything(), model, context(given, given))
        assert off_by(model, candidate.model, given[0]) < 0.1

    def test_attention(self) -> None:
        """Products of two activations, a softmax in float between them."""
        text = """g (float[1,6,8] x) => (float[1,6,8] y) <float[8,8] q, float[8,8] k, float[8,8] v> {
            a = MatMul(x, q)  b = MatMul(x, k)  c = MatMul(x, v)
            t = Transpose<perm = [0,2,1]>(b)  s = MatMul(a, t)  p = Softmax(s)  y = MatMul(p, c) }"""
        model = net(text)
        given = samples(shape=(1, 6, 8))
        candidate = first(everything(), model, context(given, given))
        assert candidate.label.endswith("of 5 convolutions and matrix products in int8")
        assert off_by(model, candidate.model, given[0]) < 0.2

    def test_a_detectors_head_keeps_its_scores(self) -> None:
        """Boxes up to hundreds and scores up to 1 meet in a Concat: it stays in float, the convolutions do not."""
        text = f"""g (float[1,8,8,8] x) => (float[1,8,8,8] y) <float[4,8,3,3] u, float[4] bu, float[4,8,3,3] v> {{
            b = Conv{PADS}(x, u, bu)  boxes = Relu(b)  s = Conv{PADS}(x, v)  scores = Sigmoid(s)
            y = Concat<axis = 1>(boxes, scores) }}"""
        model = net(text, bu=np.full(4, 200.0))
        given = samples(shape=(1, 8, 8, 8))
        candidate = first(everything(), model, context(given, given))
        assert reasons(candidate)["Concat(y)"].startswith("ranges of very different size meet in it")
        assert runs_as(candidate.model).count("QLinearConv") == 2
        wanted, found = (runtime.run(runtime.session(each), given[0])["y"][:, 4:] for each in (model, candidate.model))
        assert np.abs(found - wanted).max() < 0.05

    def test_a_dead_channel_and_a_tensor_that_is_always_zero(self) -> None:
        weight = np.random.default_rng(0).normal(size=(16, 4, 3, 3))
        weight[3] = 0.0
        model = net(TEXT, u=weight, bu=np.full(16, -100.0))
        candidate = first(everything(), model)
        outputs = runtime.run(runtime.session(candidate.model), samples(1, 50)[0])
        assert np.isfinite(outputs["y"]).all()

    def test_the_result_is_smaller(self) -> None:
        large = net(f"g (float[1,64,8,8] x) => (float[1,64,8,8] y) <float[64,64,3,3] w> {{ y = Conv{PADS}(x, w) }}")
        candidate = first(everything(), large, context(samples(shape=(1, 64, 8, 8)), samples(shape=(1, 64, 8, 8))))
        assert candidate.model.ByteSize() < 0.3 * large.ByteSize()
