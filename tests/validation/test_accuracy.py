"""Accuracy of a candidate against the original."""

import tracemalloc

import numpy as np
import pytest
from small_nets import build, linear

from graphopt.data import open_data, random_feeds
from graphopt.errors import DataError, UnsupportedModelError, UsageError
from graphopt.runtime import input_specs
from graphopt.validation import Accuracy, Reference, check_metric, evaluate
from graphopt.validation import accuracy as module


def swapped():
    """The identity with classes 0 and 1 exchanged."""
    return linear(np.eye(4)[[1, 0, 2, 3]])


def judge(original, candidate, data, metric="auto", **options) -> Accuracy:
    source = open_data(data, input_specs(original))
    return evaluate(Reference(original, source, metric=metric), [candidate], **options)[0]


class TestTop:
    def test_top1_by_hand(self, one_hot):
        original, source, _ = one_hot
        same, half = evaluate(Reference(original, source), [original, swapped()], max_drop=0.5)
        assert (same.metric, same.baseline, same.optimized, same.drop, same.samples) == ("top1", 1, 1, 0, 8)
        assert (half.baseline, half.optimized, half.drop, half.passed) == (1, 0.5, 0.5, True)
        assert same.passed
        assert same.sqnr_db == 300
        # Half of the ones moved: signal 8, noise 4 * 2.
        assert half.sqnr_db == pytest.approx(0.0, abs=1e-6)

    def test_a_failed_gate_says_the_figures(self, one_hot):
        original, source, _ = one_hot
        found = evaluate(Reference(original, source), [swapped()], max_drop=0.4)[0]
        assert not found.passed
        assert found.reason == "top1 falls by 0.5000 (from 1.0000 to 0.5000), allowed is 0.4"

    def test_a_drop_of_exactly_the_most_passes(self):
        rows = np.tile(np.eye(4, dtype=np.float32)[3], (10, 1))
        rows[:3] = np.eye(4)[0]
        found = judge(linear(np.eye(4)), swapped(), {"x": rows, "labels": rows.argmax(1)}, max_drop=0.3)
        assert (found.drop, found.passed) == (0.3, True)

    def test_a_better_candidate_has_a_negative_drop(self, one_hot):
        original, source, _ = one_hot
        found = evaluate(Reference(swapped(), source), [original])[0]
        assert (found.drop, found.passed) == (-0.5, True)

    def test_top5_and_classes_after_pooling(self):
        model = build("g (float[N,8] x) => (float[N,8,1,1] y) <int64[2] a = {2, 3}> { y = Unsqueeze(x, a) }")
        rows = np.tile(np.arange(8, dtype=np.float32), (8, 1))
        data = {"x": rows, "labels": np.arange(8)}
        assert judge(model, model, data, "top5").baseline == 5 / 8
        assert judge(model, model, data, "top1").baseline == 1 / 8

    def test_a_model_that_answers_with_the_class(self):
        model = build("g (float[N,4] x) => (int64[N] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }")
        assert judge(model, model, {"x": np.eye(4, dtype="f4"), "labels": [0, 1, 2, 0]}).baseline == 0.75

    def test_fixed_batch(self):
        model = build("g (float[4,4] x) => (float[4,4] y) { y = MatMul(x, w) }", w=np.eye(4)[[1, 0, 2, 3]])
        identity = build("g (float[4,4] x) => (float[4,4] y) { y = MatMul(x, w) }", w=np.eye(4))
        rows = np.tile(np.eye(4, dtype=np.float32), (2, 1))
        found = judge(identity, model, {"x": rows, "labels": rows.argmax(1)})
        assert (found.samples, found.baseline, found.optimized) == (8, 1, 0.5)
        assert judge(identity, model, rows).optimized == 0.5
        assert judge(identity, model, rows, "cosine").samples == 8

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 1, 2, 4], "label 4: .* classes 0 to 3"),
            (list("abcd"), "class indices as labels"),
            (None, "needs labels"),
        ],
    )
    def test_unfit_labels(self, labels, message):
        data = {"x": np.eye(4, dtype="f4")} | ({} if labels is None else {"labels": labels})
        with pytest.raises(DataError, match=message):
            judge(linear(np.eye(4)), swapped(), data, "top1")

    def test_outputs_that_are_no_classes(self):
        model = build("g (float[N,4] x) => (float[N,2,2] y) <int64[3] s = {-1, 2, 2}> { y = Reshape(x, s) }")
        with pytest.raises(DataError, match=r"needs class scores, but the output 'y' has shape \[1, 2, 2\]"):
            judge(model, model, {"x": np.eye(4, dtype="f4"), "labels": np.arange(4)})


class TestWithoutLabels:
    def test_agreement(self, one_hot):
        original, _, rows = one_hot
        found = judge(original, swapped(), rows)
        assert (found.metric, found.baseline, found.optimized) == ("agreement", 1, 0.5)
        assert found.ci95[0] > 0

    def test_cosine_where_the_output_is_no_class_table(self):
        column = build("g (float[N,4] x) => (float[N,1] y) { y = MatMul(x, w) }", w=[[1]] * 4)
        assert judge(column, column, np.eye(4, dtype="f4")).metric == "cosine"

    def test_cosine_by_hand(self):
        rows = np.array([[3, 4, 0, 0], [1, 0, 0, 0]], np.float32)
        found = judge(linear(np.eye(4)), swapped(), rows, "cosine")
        assert found.optimized == pytest.approx((24 / 25 + 0) / 2)

    def test_cosine_of_zero_outputs(self):
        zero = linear(np.zeros((4, 4)))
        assert judge(zero, zero, np.eye(4, dtype="f4"), "cosine").optimized == 1
        assert judge(linear(np.eye(4)), zero, np.eye(4, dtype="f4"), "cosine").optimized == 0

    def test_one_number_a_sample_counts_with_its_size(self):
        column = "g (float[N,4] x) => (float[N,1] y) { y = MatMul(x, w) }"
        original, half = (build(column, w=[[scale], [-scale], [0], [0]]) for scale in (1, 0.5))
        found = judge(original, half, np.eye(4, dtype="f4"))
        # 2 * 1 * 0.5 / (1 + 0.25) twice, and two pairs of zeros.
        assert (found.metric, found.optimized) == ("cosine", pytest.approx((0.8 + 0.8 + 1 + 1) / 4))
        assert not found.passed
        negative = build(column, w=[[-1], [1], [1], [0]])
        assert judge(original, negative, np.eye(4, dtype="f4")).optimized == (-1 - 1 + 0 + 1) / 4

    def test_one_number_a_sample_without_an_axis(self):
        text = "g (float[4] x) => (float y) <float s> {{ z = ReduceSum<keepdims = 0>(x) y = Mul(z, s) }}"
        original, half = (build(text.format(), s=scale) for scale in (1e30, 0.5e30))
        assert judge(original, original, np.ones((3, 4), "f4")).optimized == 1
        assert judge(original, half, np.ones((3, 4), "f4")).optimized == pytest.approx(0.8)

    def test_whole_numbers_are_right_or_wrong(self):
        text = "g (float[N,4] x) => (int64[N,{}] y) <int64[1] k = {{{}}}> {{ v, y = TopK(x, k) }}"
        rows = np.array([[4, 3, 2, 1], [1, 1, 3, 4]], np.float32)
        flipped = "g (float[N,4] x) => (int64[N,{}] y) <int64[1] k = {{{}}}> {{ z = MatMul(x, w) v, y = TopK(z, k) }}"
        swap = np.eye(4)[[1, 0, 2, 3]]
        # The exchange shows in the first two places of the first sample only.
        for places, share in ((1, 0.5), (2, 0.5), (3, (1 / 3 + 1) / 2)):
            found = judge(build(text.format(places, places)), build(flipped.format(places, places), w=swap), rows)
            assert (found.metric, found.optimized) == ("cosine", pytest.approx(share))

    def test_yes_and_no_are_right_or_wrong(self):
        text = "g (float[N,4] x) => (bool[N,4] y) <float t = {{{}}}> {{ y = Greater(x, t) }}"
        found = judge(build(text.format("0.5")), build(text.format("-1")), np.eye(4, dtype="f4"))
        assert (found.metric, found.optimized) == ("cosine", 0.25)

    def test_agreement_over_places(self):
        model = build("g (float[N,4] x) => (float[N,2,2] y) <int64[3] s = {-1, 2, 2}> { y = Reshape(x, s) }")
        other = build(
            "g (float[N,4] x) => (float[N,2,2] y) <int64[3] s = {-1, 2, 2}> { z = MatMul(x, w) y = Reshape(z, s) }",
            w=np.eye(4)[[1, 0, 2, 3]],
        )
        assert judge(model, other, np.eye(4, dtype="f4")[[0, 2]], "agreement").optimized == 0.75


class TestSqnr:
    def test_by_hand(self):
        found = judge(linear(np.eye(4)), linear(1.1 * np.eye(4)), np.eye(4, dtype="f4"))
        assert found.sqnr_db == pytest.approx(20, abs=1e-4)

    def test_over_all_float_outputs_only(self):
        text = "g (float[N,4] x) => (float[N,4] y, float[N,4] z, int64[N] k)"
        body = "{{ y = Identity(x) z = Mul(x, {}) k = ArgMax<axis = 1, keepdims = 0>(x) }}"
        one = build(f"{text} {body.format('x')}")
        two = build(f"{text} <float[4] w> {body.format('w')}", w=[0, 0, 0, 0])
        # Signal 4 + 4, noise 4.
        assert judge(one, two, np.eye(4, dtype="f4")).sqnr_db == pytest.approx(10 * np.log10(2))

    def test_none_without_float_outputs(self):
        model = build("g (float[N,4] x) => (int64[N] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }")
        assert judge(model, model, np.eye(4, dtype="f4")).sqnr_db is None


class TestBrokenCandidates:
    def test_not_finite(self, one_hot):
        original, source, _ = one_hot
        found = evaluate(Reference(original, source), [linear(np.full((4, 4), np.nan))], max_drop=1.0)[0]
        assert (found.passed, found.sqnr_db) == (False, None)
        assert found.reason == "output y (NaN or infinite values), where the original's is finite and whole"

    def test_infinite_where_the_original_is_too(self):
        model = build("g (float[N,4] x) => (float[N,4] y) { y = Log(x) }")
        found = judge(model, model, np.eye(4, dtype="f4"))
        assert (found.passed, found.sqnr_db) == (True, 300)

    def test_another_shape(self, one_hot):
        original, source, _ = one_hot
        wide = build("g (float[N,4] x) => (float[N,5] y) { y = MatMul(x, w) }", w=np.ones((4, 5)))
        found = evaluate(Reference(original, source), [wide], max_drop=1.0)[0]
        assert found.reason.startswith("output y (shape [1, 5] instead of [1, 4])")

    def test_other_inputs(self, one_hot):
        original, source, _ = one_hot
        other = build("g (float[N,4] image) => (float[N,4] y) { y = Identity(image) }")
        with pytest.raises(UnsupportedModelError, match="inputs image, the data is for x"):
            evaluate(Reference(original, source), [other])

    def test_other_number_of_outputs(self, one_hot):
        original, source, _ = one_hot
        other = build("g (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Identity(x) z = Identity(x) }")
        with pytest.raises(UnsupportedModelError, match="2 outputs, the original 1"):
            evaluate(Reference(original, source), [other])

    def test_float16_model_gets_float16(self, one_hot):
        original, source, _ = one_hot
        half = build("g (float16[N,4] x) => (float16[N,4] out) { out = Identity(x) }")
        assert evaluate(Reference(original, source), [half])[0].optimized == 1

    def test_a_run_that_fails_names_the_sample(self, one_hot):
        original, source, _ = one_hot
        fixed = build("g (float[N,4] x) => (float[2,2] y) <int64[2] s = {3, 3}> { y = Reshape(x, s) }")
        with pytest.raises(UnsupportedModelError, match="sample 0: the candidate"):
            evaluate(Reference(original, source), [fixed])


class TestCustomMetric:
    def test_function(self, one_hot):
        original, source, _ = one_hot

        def first_place(outputs, reference, label):
            return float(outputs["y"][0, 0])

        found = evaluate(Reference(original, source, metric=first_place), [swapped()])[0]
        assert (found.metric, found.baseline, found.optimized) == ("first_place", 0.25, 0.25)

    def test_by_name(self, one_hot, tmp_path, monkeypatch):
        (tmp_path / "user_metric.py").write_text("def right(outputs, reference, label): return label == 3\n")
        monkeypatch.chdir(tmp_path)
        original, source, _ = one_hot
        assert evaluate(Reference(original, source, metric="user_metric:right"), [original])[0].baseline == 0.25

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda outputs, reference, label: 1 / 0, "ZeroDivisionError"),
            (lambda outputs, reference, label: float("nan"), "returned nan"),
            (lambda outputs: 1, "TypeError"),
        ],
    )
    def test_that_fails(self, one_hot, function, message):
        original, source, _ = one_hot
        with pytest.raises(DataError, match=message):
            evaluate(Reference(original, source, metric=function), [original])

    def test_unknown_name(self):
        with pytest.raises(UsageError, match="unknown metric 'top3'"):
            check_metric("top3")


class TestReference:
    def test_the_original_runs_once_for_many_candidates(self, one_hot, monkeypatch):
        original, source, _ = one_hot
        runs = []
        monkeypatch.setattr(
            Reference,
            "_run",
            lambda self, sample, index, run=Reference._run: (runs.append(index), run(self, sample, index))[1],
        )
        reference = Reference(original, source)
        first = evaluate(reference, [swapped()])
        assert evaluate(reference, [swapped()]) == first
        assert runs == list(range(8))

    def test_beyond_its_size_it_runs_again(self, one_hot, monkeypatch):
        monkeypatch.setattr(module, "LARGEST_LOG_BYTES", 1)
        original, source, _ = one_hot
        reference = Reference(original, source)
        assert evaluate(reference, [original]) == evaluate(reference, [original])

    def test_memory_is_flat(self):
        model = build("g (float[N,50000] x) => (float[N,50000] y) { y = Relu(x) }")
        rows = np.lib.stride_tricks.as_strided(np.ones(50000, "f4"), (100, 50000), (0, 4))
        source = open_data({"x": rows}, input_specs(model))
        tracemalloc.start()
        assert evaluate(Reference(model, source, metric="cosine"), [model])[0].samples == 100
        assert tracemalloc.get_traced_memory()[1] < 6_000_000  # the outputs have 20 MB
        tracemalloc.stop()

    def test_random_data_is_never_a_basis(self, one_hot):
        original, _, _ = one_hot
        with pytest.raises(DataError, match="random data"):
            Reference(original, random_feeds(input_specs(original)))

    def test_progress(self, one_hot):
        original, source, _ = one_hot
        seen = []
        evaluate(Reference(original, source), [original], progress=lambda *step: seen.append(step))
        assert seen == [("evaluating", index + 1, 8) for index in range(8)]

    def test_json_has_the_fields_of_the_contract(self, one_hot):
        original, source, _ = one_hot
        found = evaluate(Reference(original, source), [original])[0].to_json()
        assert list(found) == [
            "metric", "baseline", "optimized", "drop", "max_drop", "samples", "sqnr_db", "ci95", "passed",
        ]  # fmt: skip
