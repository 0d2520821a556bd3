"""``separate_convolutions``: what it replaces, how far it goes, what it says; that refitting makes up for much."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import runtime
from graphopt.errors import UsageError
from graphopt.graph.cost import cost
from graphopt.passes.base import Candidate, Context, Declined, Goals, Origin
from graphopt.passes.separable.times import FormTimes
from graphopt.passes.separate_convolutions import SeparateConvolutions
from graphopt.targets import load_target
from tests.support import model, ops, outputs

NET = """g (float[N,3,12,12] x) => (float[N,10] y)
    <float[24,3,3,3] wa, float[24] ba, float[24,24,3,3] wb, float[24] bb, float[24,24,3,3] wc, float[24] bc,
     float[10,24] wd, float[10] bd>
    { a = Conv<pads=[1,1,1,1]>(x, wa, ba)    ra = Relu(a)
      b = Conv<pads=[1,1,1,1]>(ra, wb, bb)   rb = Relu(b)
      c = Conv<pads=[1,1,1,1]>(rb, wc, bc)   s = Add(c, ra)   rc = Relu(s)
      p = GlobalAveragePool(rc)              f = Flatten(p)
      y = Gemm<transB=1>(f, wd, bd) }"""


def net() -> onnx.ModelProto:
    rng = np.random.default_rng(0)

    def smooth(filters: int, channels: int) -> np.ndarray[Any, Any]:
        """Kernels as trained nets have them: some patterns say most of what they say."""
        mixed = np.einsum(
            "pfc,pt->fct",
            rng.normal(size=(9, filters, channels)),
            rng.normal(size=(9, 9)) * 0.4 ** np.arange(9)[:, None],
        )
        return mixed.reshape(filters, channels, 3, 3) / (3 * channels**0.5)

    return model(
        NET,
        wa=smooth(24, 3),
        ba=rng.normal(size=24) * 0.1,
        wb=smooth(24, 24),
        bb=rng.normal(size=24) * 0.1,
        wc=smooth(24, 24),
        bc=rng.normal(size=24) * 0.1,
        wd=rng.normal(size=(10, 24)),
        bd=rng.normal(size=10),
    )


@pytest.fixture(autouse=True)
def _made_up_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model takes a microsecond for a thousand multiply-adds: decisions must not depend on this machine."""
    monkeypatch.setenv("GRAPHOPT_CACHE_DIR", str(tmp_path))

    def time(self: FormTimes, proto: onnx.ModelProto, feed: object = None) -> float:
        return cost(proto, shapes={"x": (1, 3, 12, 12)} if feed else None).known_macs / 1e3

    monkeypatch.setattr(FormTimes, "model", time)
    monkeypatch.setattr(FormTimes, "net", time)


def samples(count: int = 48, seed: int = 1) -> list[Mapping[str, Any]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 3, 12, 12)).astype(np.float32)} for _ in range(count)]


def context(**goals: Any) -> Context:
    return Context(
        hardware=load_target("cpu").hardware,
        calibration=samples(),
        goals=Goals(**goals),
        shapes={"x": (1, 3, 12, 12)},
    )


def macs(proto: onnx.ModelProto) -> int:
    found = cost(proto, shapes={"x": (1, 3, 12, 12)}).macs
    assert found is not None
    return found


def first(one: SeparateConvolutions, proto: onnx.ModelProto, given: Context) -> Candidate:
    found = next(one.candidates(proto, given))
    onnx.checker.check_model(found.model, full_check=True)
    return found


def error(proto: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """Noise-to-signal power of the outputs on samples that nothing was fitted to."""
    fed = {"x": np.concatenate([sample["x"] for sample in samples(64, seed=9)])}
    wanted, found = outputs(proto, fed)["y"], outputs(other, fed)["y"]
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


def test_a_fixed_rank_is_for_every_layer_but_those_excluded() -> None:
    proto = net()
    proto.graph.node[0].name = "stem"

    found = first(SeparateConvolutions(rank=1, forms="depthwise_first", exclude="stem"), proto, context())

    assert ops(found.model).count("Conv") == 5
    assert found.report.changes == 2
    assert {(skip.where, skip.reason) for skip in found.report.skipped} == {
        ("stem", "excluded by the option separate_convolutions.exclude")
    }
    assert macs(found.model) == macs(proto) - 2 * 144 * (24 * 24 * 9 - 24 * (9 + 24))
    assert runtime.output_specs(found.model) == runtime.output_specs(proto)


def test_the_higher_the_rank_the_nearer() -> None:
    errors = [error(net(), first(SeparateConvolutions(rank=rank), net(), context()).model) for rank in (1, 2, 4)]

    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("forms", ["depthwise_first", "pointwise_first"])
def test_at_full_rank_it_is_the_original(forms: str) -> None:
    found = first(SeparateConvolutions(rank=9, forms=forms), net(), context())

    assert error(net(), found.model) < 1e-9


def test_refitting_makes_up_for_much() -> None:
    bare = first(SeparateConvolutions(rank=1), net(), replace(context(), calibration=None))
    refitted = first(SeparateConvolutions(rank=1), net(), context())

    assert bare.report.details["refit"] == {}
    assert refitted.report.details["refit"]["layers"] >= 3
    assert error(net(), refitted.model) < 0.5 * error(net(), bare.model)


def test_a_budget_is_reached_and_told() -> None:
    found = first(SeparateConvolutions(max_macs=0.5), net(), context())

    assert macs(found.model) <= 0.5 * macs(net())
    assert found.report.details["macs_share"] == round(macs(found.model) / macs(net()), 4)
    for layer in found.report.details["layers"].values():
        assert layer.keys() == {"form", "rank", "layout", "loss"}


def test_the_goal_of_the_run_counts_where_no_option_is_set() -> None:
    found = first(SeparateConvolutions(), net(), context(max_macs=0.25, original_macs=2 * macs(net())))

    assert 0.3 * macs(net()) < macs(found.model) <= 0.5 * macs(net())


def test_it_goes_as_far_as_the_accuracy_allows_and_then_gentler() -> None:
    original = net()
    given = context(to_threshold=True, max_drop=0.02, drop=lambda proto: error(original, proto))

    found = list(SeparateConvolutions().candidates(original, given))

    assert 1e-4 < error(original, found[0].model) <= 0.02
    assert all(error(original, each.model) < error(original, found[0].model) for each in found[1:])
    assert macs(found[0].model) < 0.8 * macs(original)


def test_forms_can_be_chosen() -> None:
    found = first(SeparateConvolutions(max_macs=0.6, forms="spatial"), net(), context())

    assert {layer["form"] for layer in found.report.details["layers"].values()} == {"spatial"}


@pytest.mark.parametrize("layout", ["sum", "concat", "multiplier"])
def test_the_layout_can_be_chosen(layout: Any) -> None:
    found = first(SeparateConvolutions(rank=2, layout=layout, forms="depthwise_first"), net(), context())

    assert {each["layout"] for each in found.report.details["layers"].values()} == {layout}
    assert ("Concat" in ops(found.model)) == (layout == "concat")


def test_a_layer_where_it_does_not_pay_stays_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FormTimes, "separated", lambda *arguments: 1e6)

    with pytest.raises(Declined, match="no convolution would be faster") as declined:
        next(SeparateConvolutions(max_macs=0.5).candidates(net(), context()))

    assert [skip.reason.split(":")[0] for skip in declined.value.report.skipped] == ["it does not pay"] * 3


def test_layers_that_cannot_be_separated_say_why() -> None:
    proto = model(
        """g (float[1,8,6,6] x) => (float[1,8,6,6] y) <float[8,1,3,3] d, float[8,8,1,1] p>
        { a = Conv<pads=[1,1,1,1], group=8>(x, d)  y = Conv(a, p) }"""
    )

    with pytest.raises(Declined, match="no convolution can be separated") as declined:
        next(SeparateConvolutions(rank=1).candidates(proto, replace(context(), calibration=None, shapes=None)))

    assert [skip.reason for skip in declined.value.report.skipped] == [
        "it is depthwise already",
        "it is pointwise already",
    ]


def test_nothing_is_done_unasked() -> None:
    with pytest.raises(Declined, match="no budget was given"):
        next(SeparateConvolutions().candidates(net(), context()))


def test_a_budget_out_of_reach_is_declined_with_what_can_be_reached() -> None:
    with pytest.raises(Declined, match=r"cannot be reached: the least that is faster leaves \d"):
        next(SeparateConvolutions(max_macs=0.01).candidates(net(), context()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "at least 0"),
        ({"max_macs": 1.5}, "a share"),
        ({"rank": 1, "max_macs": 0.5}, "exclude each other"),
        ({"forms": "diagonal"}, "one or more of depthwise_first"),
        ({"samples": 0}, "at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SeparateConvolutions(**options)


def test_an_excluded_node_must_exist() -> None:
    with pytest.raises(UsageError, match="names no node of the model: nowhere"):
        next(SeparateConvolutions(rank=1, exclude="nowhere").candidates(net(), context()))


def test_the_same_input_gives_the_same_bytes() -> None:
    one, other = (first(SeparateConvolutions(max_macs=0.5), net(), context()).model for _ in range(2))

    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_at_a_price_it_goes_further_the_less_noise_costs() -> None:
    proto = net()
    dial = SeparateConvolutions().dial(proto, context())

    found = [dial.at(price, proto, {}, recover=True) for price in (1e12, 30.0, 0.01)]

    assert found[0] is None
    assert found[1] is not None
    assert found[2] is not None
    assert macs(found[2].model) < macs(found[1].model) < macs(proto)
    assert error(proto, found[1].model) < error(proto, found[2].model)
    dial.close()


def test_a_model_that_another_pass_cut_is_separated_and_refitted_towards_the_original() -> None:
    proto = net()
    gone = np.arange(20)
    smaller = model(NET.replace("float[24,24,3,3] wb, float[24] bb, float[24,24,3,3] wc", _NARROW), **_narrow(proto))
    dial = SeparateConvolutions().dial(proto, context())

    bare = dial.at(0.01, smaller, {"b": {1: gone}, "rb": {1: gone}}, recover=False)
    refitted = dial.at(0.01, smaller, {"b": {1: gone}, "rb": {1: gone}}, recover=True)

    assert bare is not None
    assert refitted is not None
    assert list(refitted.kept) == ["b", "rb"]
    assert macs(refitted.model) < macs(smaller)
    assert error(proto, refitted.model) < 0.5 * error(proto, bare.model)
    dial.close()


_NARROW = "float[20,24,3,3] wb, float[20] bb, float[24,20,3,3] wc"


def _narrow(proto: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of the net without the last four filters of ``b``."""
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return {**values, "wb": values["wb"][:20], "bb": values["bb"][:20], "wc": values["wc"][:, :20]}


def test_what_the_model_was_approximated_from_is_what_it_is_refitted_towards() -> None:
    original = net()
    rounded = net()
    for tensor in rounded.graph.initializer:
        if tensor.name in ("wd", "bd"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.3, tensor.name))
    given = replace(context(), origin=Origin(original))

    found = first(SeparateConvolutions(rank=4), rounded, given)

    assert error(original, found.model) < 0.1 * error(original, rounded)


def test_through_the_front_door() -> None:
    data = {"x": np.concatenate([sample["x"] for sample in samples()])}

    found = graphopt.run(net(), ["separate_convolutions"], data=data, options={"separate_convolutions.rank": 2})

    assert error(net(), found) < 0.2
    assert ops(found).count("Conv") > 3


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            """g (float[1,8,20] x) => (float[1,12,10] y) <float[12,4,5] w, float[12] b>
            { y = Conv<group=2, strides=[2], pads=[2,2]>(x, w, b) }""",
            id="one axis, groups, strides",
        ),
        pytest.param(
            """g (float[1,6,5,5] x) => (float[1,8,10,10] y) <float[6,8,3,3] w, float[8] b>
            { y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w, b) }""",
            id="transposed",
        ),
        pytest.param(
            """g (float[1,4,6,6,6] x) => (float[1,6,6,6,6] y) <float[6,4,3,3,3] w>
            { y = Conv<auto_pad="SAME_UPPER">(x, w) }""",
            id="three axes, padded by itself",
        ),
        pytest.param(
            """g (float[1,6,9,9] x) => (float[1,8,9,7] y) <float[8,6,3,5] w, float[8] b>
            { y = Conv<dilations=[2,1], pads=[2,1,2,1]>(x, w, b) }""",
            id="dilated, not square",
        ),
    ],
)
@pytest.mark.parametrize("forms", ["depthwise_first", "pointwise_first", "spatial"])
def test_every_kind_of_convolution_is_separated_and_exact_at_full_rank(text: str, forms: str) -> None:
    proto = model(text)
    shape = next(iter(runtime.input_specs(proto))).shape or ()
    rng = np.random.default_rng(2)
    feeds = [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(10)]
    given = replace(context(), calibration=feeds, shapes=None)

    try:
        coarse = first(SeparateConvolutions(rank=1, forms=forms), proto, given)
    except Declined:
        assert forms == "spatial"  # one axis has no other one
        return
    exact = first(SeparateConvolutions(rank=10_000, forms=forms), proto, given)

    for found, most in ((coarse, 1.0), (exact, 1e-8)):
        wanted, got = (outputs(each, feeds[0])["y"] for each in (proto, found.model))
        assert np.square(got - wanted).sum() <= most * np.square(wanted).sum()
