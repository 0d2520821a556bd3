"""Exact passes run together: on one opened graph, until none changes anything, with the one at fault left out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from support import assert_same, context, feeds, model, ops, outputs

import graphopt
from graphopt.errors import ModelError, PassError, PassWarning, UsageError
from graphopt.exact import run_exact, summed
from graphopt.graph import Index, add_node, import_graph, replace_uses, types_of, variable, verify
from graphopt.passes import PASSES
from graphopt.passes.base import Context, PassReport, Skip
from graphopt.passes.eliminate_dead import EliminateDead
from graphopt.passes.fold_batchnorm import FoldBatchNorm

NET = """g (float[N,4,8,8] x) => (float[N,4,8,8] y)
  <float[4,4,1,1] w, float[4] s, float[4] b, float[4] m, float[4] var> {
  c = Conv(x, w)  i = Identity(c)  n = BatchNormalization(i, s, b, m, var)  y = Relu(n) }"""


@dataclass(frozen=True)
class Edit:
    """A pass made of one function: it gets the graph and returns how many changes it made."""

    name: ClassVar[str] = "edit"
    summary: ClassVar[str] = "edit as told"
    exact: ClassVar[bool] = True

    change: Callable[[gs.Graph], int]
    calls: list[int] = field(default_factory=list)

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        self.calls.append(len(graph.nodes))
        done = self.change(graph)
        return PassReport(done, (Skip("here", "as told"),), {"edits": done, "kinds": {"Edit": done}})


def nothing(graph: gs.Graph) -> int:
    return 0


def fail(graph: gs.Graph) -> int:
    raise ValueError("I lost my way")


def misspell(graph: gs.Graph) -> int:
    graph.nodes[-1].op = "Reluu"
    return 1


def negate(graph: gs.Graph) -> int:
    """Change what the graph computes, once."""
    if graph.nodes[-1].op == "Relu":
        graph.nodes[-1].op = "Neg"
        return 1
    return 0


def test_what_one_pass_does_another_waits_for() -> None:
    """The Identity between Conv and BatchNormalization goes after fold_batchnorm had its turn, which gets another."""
    after, (fold, dead) = run_exact([FoldBatchNorm(), EliminateDead()], model(NET), context())
    assert ops(after) == ["Conv", "Relu"]
    assert (fold.report.changes, dead.report.details["no_ops"]) == (1, {"Identity": 1})


def test_where_nothing_changes_the_very_model_comes_back() -> None:
    original = model(NET)
    after, outcomes = run_exact([Edit(nothing)], original, context())
    assert after is original
    assert [(one.name, one.report.changes, one.failure) for one in outcomes] == [("edit", 0, "")]


def test_a_pass_is_not_asked_again_about_a_graph_that_it_left_alone() -> None:
    idle = Edit(nothing)
    run_exact([EliminateDead(), idle], model(NET), context())
    assert idle.calls == [3]


def test_a_pass_that_never_ends_is_stopped() -> None:
    def rename(graph: gs.Graph) -> int:
        graph.nodes[-1].name += "x"
        return 1

    after, (outcome,) = run_exact([Edit(rename)], model(NET), context())
    assert outcome.report.changes == len(after.graph.node[-1].name) == 20


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fail, "it failed with ValueError: I lost my way"),
        (misspell, "it failed with ModelError: the model is not valid ONNX: No Op registered for Reluu"),
        (negate, "it changed the outputs: y is another"),
    ],
)
def test_the_pass_at_fault_is_left_out_and_named(change: Callable[[gs.Graph], int], reason: str) -> None:
    def why_different(before: onnx.ModelProto, after: onnx.ModelProto) -> str | None:
        return "y is another" if "Neg" in ops(after) and "Neg" not in ops(before) else None

    original = model(NET)
    passes = [FoldBatchNorm(), Edit(change), EliminateDead()]
    after, (fold, edit, dead) = run_exact(passes, original, context(), why_different=why_different)
    assert ops(after) == ["Conv", "Relu"]
    assert edit.failure.startswith(reason)
    assert (edit.report.changes, fold.report.changes, dead.report.changes) == (0, 1, 1)
    assert (fold.failure, dead.failure) == ("", "")
    fed = feeds(original)
    assert_same(outputs(original, fed), outputs(after, fed))


def test_errors_of_the_user_are_passed_on() -> None:
    def refuse(graph: gs.Graph) -> int:
        raise UsageError("edit.change must be kinder")

    with pytest.raises(UsageError, match="kinder"):
        run_exact([Edit(refuse)], model(NET), context())


def test_figures_add_up_over_the_rounds() -> None:
    assert summed({"a": 1, "k": {"x": 1}}, {"a": 2, "k": {"x": 2, "y": 1}, "t": "to"}) == {
        "a": 3,
        "k": {"x": 3, "y": 1},
        "t": "to",
    }

    def twice(graph: gs.Graph) -> int:
        graph.nodes[-1].name += "x"
        return int(len(graph.nodes[-1].name) < 3)

    _, (outcome,) = run_exact([Edit(twice)], model(NET), context())
    assert outcome.report.details == {"edits": 2, "kinds": {"Edit": 2}}
    assert outcome.report.skipped == (Skip("here", "as told"),)


def test_the_collector_runs_again_afterwards() -> None:
    for change in (nothing, fail):
        run_exact([Edit(change)], model(NET), context())
        assert gc.isenabled()


def test_run_leaves_a_failing_pass_out_with_a_warning_and_fails_where_no_other_is() -> None:
    with pytest.warns(PassWarning, match="edit: it failed with ValueError: I lost my way; it was left out"):
        after = graphopt.run(model(NET), ["eliminate_dead", Edit(fail)])
    assert ops(after) == ["Conv", "BatchNormalization", "Relu"]
    with pytest.raises(PassError, match="edit: it failed"):
        graphopt.run(model(NET), [Edit(fail)])


@pytest.mark.parametrize("kind", [kind for kind in PASSES.values() if kind.exact], ids=lambda kind: kind.name)
def test_a_pass_alone_is_run_until_it_is_done(kind: type) -> None:
    once = graphopt.run(model(NET), [kind()])
    assert graphopt.run(once, [kind()]) is once or graphopt.run(once, [kind()]) == once


def test_types_are_remembered_and_new_nodes_inferred_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = import_graph(model(NET)).gs
    before = types_of(graph)
    index = Index(graph)
    relu = graph.nodes[-1]
    made = variable(index, "made")
    add_node(index, "Flatten", [relu.inputs[0]], [made], prefix="made")
    index.finish()
    monkeypatch.setattr("graphopt.graph.shapes._infer_all", None)
    assert types_of(graph) is before
    assert before["made"].shape == (before["n"].shape[0], 256)  # type: ignore[index]


def test_a_symbol_that_inference_makes_up_is_never_used_twice() -> None:
    """NonZero has as many columns as it finds: two inferences must not give two of them one symbol."""
    graph = import_graph(model("g (float[N,4] x) => (int64[2,K] y) { y = NonZero(x) }")).gs
    types_of(graph)
    index = Index(graph)
    x = graph.inputs[0]
    for name in ("first", "second"):
        negated, found = variable(index, f"{name}_negated"), variable(index, name)
        add_node(index, "Neg", [x], [negated], prefix=name)
        add_node(index, "NonZero", [negated], [found], prefix=name)
        index.finish()
        types_of(graph)
    types = types_of(graph)
    sizes = [types[name].shape[1] for name in ("y", "first", "second")]  # type: ignore[index]
    assert len({size for size in sizes if size is not None}) == len([size for size in sizes if size is not None])


def test_a_shape_that_becomes_constant_is_inferred_anew() -> None:
    proto = model("""g (float[N,4] x, int64[2] s) => (float[A,B] y) {
      r = Reshape(x, s)  y = Relu(r) }""")
    graph = import_graph(proto).gs
    assert types_of(graph)["y"].shape is None or 2 not in types_of(graph)["y"].shape  # type: ignore[operator]
    index = Index(graph)
    replace_uses(index, graph.inputs[1], gs.Constant("fixed", np.array([2, 2])))
    index.finish()
    assert types_of(graph)["y"].shape == (2, 2)


def test_a_name_once_inferred_is_not_given_to_another_tensor() -> None:
    graph = import_graph(model(NET)).gs
    types_of(graph)
    index = Index(graph)
    identity = graph.nodes[1]
    replace_uses(index, identity.outputs[0], identity.inputs[0])
    index.drop([identity])
    index.finish()
    assert Index(graph).fresh_name("i") == "i_1"


def test_functions_of_the_model_are_expanded_before_it_is_opened() -> None:
    proto = model("""<ir_version: 9, opset_import: ["" : 17, "own" : 1]>
      g (float[N,4] x) => (float[N,4] y) { y = own.twice(x) }
      <domain: "own", opset_import: ["" : 17]> twice (a) => (b) { i = Identity(a)  b = Add(i, i) }""")
    after = graphopt.run(proto, ["inline", "eliminate_dead"])
    assert (ops(after), len(after.functions)) == (["Add"], 0)
    fed = feeds(proto)
    assert_same(outputs(proto, fed), outputs(after, fed))
    assert ops(graphopt.run(proto, ["inline"], options={"inline.functions": False})) == ["twice"]


def test_what_onnx_holds_against_the_model_as_given_is_no_fault_of_the_passes() -> None:
    """onnx 1.23 cannot infer through MeanVarianceNormalization of opset 13, which ONNX Runtime runs all the same."""
    proto = model("""g (float[N,4,3,3] x) => (float[N,4,3,3] y) {
      i = Identity(x)  y = MeanVarianceNormalization(i) }""")
    with pytest.raises(ModelError):
        verify(proto)
    after, (outcome,) = run_exact([EliminateDead()], proto, context())
    assert (ops(after), outcome.failure) == (["MeanVarianceNormalization"], "")
    fed = feeds(proto)
    assert_same(outputs(proto, fed), outputs(after, fed))
