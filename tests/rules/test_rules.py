"""Each rule finds what breaks it, where it is, and nothing in a model that keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from graphopt import runtime
from graphopt.errors import UsageError
from graphopt.latency import estimate
from graphopt.passes import PASSES
from graphopt.rules import GROUPS, LEVELS, RULES, check_model, explain, find, select
from graphopt.rules.explaining import renewed
from graphopt.targets import load_target
from tests.rules.rule_examples import CPU, CPU_INT8, EXAMPLES, STRONG, TENSORRT
from tests.support import model

# These rules find integer kernels that are slow or wrong; the others, what does not become an integer kernel.
ABOUT_SPEED = {"cpu_signed_integers", "cpu_unsigned_weights", "cpu_saturating_weights"}
INTEGER = ("QLinearConv", "QGemm", "MatMulInteger")


def found(name: str, proto: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(place.code, place.where) for place in check_model(proto, EXAMPLES[name].hardware, [name])]


def bad_and_good(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    bad, good = EXAMPLES[name].models()
    if name == "unknown_rank":
        bad.graph.input[0].type.tensor_type.ClearField("shape")
    return bad, good


def test_every_rule_has_an_example_that_breaks_it_and_one_that_keeps_it() -> None:
    assert set(EXAMPLES) == set(RULES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_breaks_a_rule_is_found_at_its_place(name: str) -> None:
    where = EXAMPLES[name].where
    wanted = (where,) if isinstance(where, str) else where
    bad, _ = bad_and_good(name)
    assert found(name, bad) == [(RULES[name].code, place) for place in wanted]


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_keeps_a_rule_is_left_alone(name: str) -> None:
    _, good = bad_and_good(name)
    assert found(name, good) == []


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in CPU_INT8
        if name not in ("cpu_signed_integers", "cpu_unsigned_weights", "cpu_saturating_weights")
    ],
)
def test_the_rules_of_the_cpu_say_what_onnx_runtime_does(name: str) -> None:
    """What a rule finds runs in float, what it leaves alone in integer kernels."""
    bad, good = (
        [node.op_type for node in runtime.optimized_graph(each, 1).graph.node] for each in EXAMPLES[name].models()
    )
    assert not any(op.startswith(INTEGER) for op in bad), bad
    assert any(op.startswith(INTEGER) for op in good), good


def test_codes_are_unique_and_in_order() -> None:
    codes = [rule.code for rule in RULES.values()]
    assert codes == sorted(set(codes))
    assert sum(len(group) for group in GROUPS.values()) == len(RULES)


def test_rules_say_what_they_rest_on() -> None:
    for name, rule in RULES.items():
        assert rule.name == name
        assert rule.level in LEVELS
        assert set(rule.fix) <= set(PASSES), name
        text = explain(rule)
        assert rule.code in text
        assert rule.source in text.replace("\n", " ")
        assert rule.explanation.endswith(".")
        assert max(map(len, text.splitlines()[2:])) <= 100


def test_the_page_about_rules_is_current() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    assert page == renewed(page), "run python -m graphopt.rules docs/rules.md"


def test_rules_are_selected_by_name_group_or_code() -> None:
    assert [rule.code for rule in select(["GO401", "opset", "shapes"])] == [
        "GO201", "GO221", "GO222", "GO223", "GO224", "GO401",
    ]  # fmt: skip
    assert find("GO301") is RULES["zero_point_not_zero"]
    assert find("GO000") is None


def test_an_unknown_rule_is_an_error_that_names_what_comes_close() -> None:
    with pytest.raises(UsageError, match=r"unknown rule 'opsets'; did you mean 'opset'"):
        select(["opsets"])
    with pytest.raises(UsageError, match="groups of rules: operators, shapes"):
        select(["xyzzy"])


def test_an_unknown_rule_of_a_profile_is_told_with_the_target() -> None:
    wrong = replace(TENSORRT, name="board", rules=("opsets",))
    with pytest.raises(UsageError, match=r"target 'board', 'rules': unknown rule 'opsets'"):
        check_model(model("g (float[1] x) => (float[1] y) { y = Relu(x) }"), wrong)


def test_a_target_names_its_rules() -> None:
    proto = model("agraph (float[2] x) => (float[2] y) { [h] y = HardSwish(x) }")
    assert check_model(proto, TENSORRT) == []
    assert [finding.rule for finding in check_model(proto, STRONG, ["operators"])] == ["written_out_operator"]


def test_the_model_stays_as_it_is() -> None:
    for name in ("quantized_bias", "dla_layer", "cpu_activation_kept"):
        bad, _ = EXAMPLES[name].models()
        before = bad.SerializeToString(deterministic=True)
        once = check_model(bad, EXAMPLES[name].hardware, GROUPS)
        assert bad.SerializeToString(deterministic=True) == before
        assert once == check_model(bad, EXAMPLES[name].hardware, GROUPS)


@pytest.mark.parametrize("net", ["plain", "resnet20", "mobilenet", "densenet", "shufflenet"])
def test_float_models_of_the_zoo_break_nothing(net: str) -> None:
    proto = onnx.load(Path(__file__).parents[2] / "models" / f"{net}.onnx")
    groups = ("operators", "shapes", "explicit_int8", "precision", "channels")
    assert {finding.rule for finding in check_model(proto, TENSORRT, groups)} <= {"optimization_profile"}
    assert check_model(proto, CPU, ["opset", "cpu_int8", "precision"]) == []


@pytest.mark.parametrize(
    ("target", "expected"),
    [("t4", ["GO324"]), ("a10", []), ("jetson-orin-nano", []), ("jetson-orin-nano@5.1", ["GO324"])],
)
def test_bfloat16_needs_a_device_and_a_runtime_that_have_it(target: str, expected: list[str]) -> None:
    """Compute capability 8.0, and TensorRT 9.1; what computes in it does so as fast as in float16."""
    text = "g (T[1,16,8,8] x) => (T[1,16,8,8] y) <T[16,16,3,3] w> { y = Conv<pads = [1,1,1,1]>(x, w) }"
    hardware = load_target(target).hardware
    brain, half = (model(text.replace("T[", f"{name}[")) for name in ("bfloat16", "float16"))
    codes = [each.code for each in check_model(brain, hardware)]
    assert [code for code in codes if code == "GO324"] == expected
    slower = estimate(brain, hardware).ms > estimate(half, hardware).ms
    assert slower == bool(expected)
