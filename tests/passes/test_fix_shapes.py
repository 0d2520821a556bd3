"""fix_shapes: the one pass that narrows what a model accepts, and only where asked to."""

from __future__ import annotations

import numpy as np
import pytest
from support import assert_same, context, feeds, model, ops, outputs

import graphopt
from graphopt.errors import UsageError
from graphopt.exact import run_exact
from graphopt.passes.fix_shapes import FixShapes, as_text, parse

SIZED = """g (float[N,3,H,W] x, float[N,3] k) => (float[A,B,C,D] y) <int64[2] first = {2, 3}, float[2] twice = {2, 2}> {
  s = Shape(x)  h = Gather(s, first)  f = Cast<to = 1>(h)  d = Mul(f, twice)  i = Cast<to = 7>(d)
  b = Shape<start = 0, end = 2>(x)  t = Concat<axis = 0>(b, i)  y = Resize(x, , , t) }"""


def shapes(proto):
    return {
        info.name: [dim.dim_value or dim.dim_param for dim in info.type.tensor_type.shape.dim]
        for info in proto.graph.input
    }


def test_nothing_happens_unless_asked():
    original = model(SIZED)
    assert run_exact([FixShapes()], original, context())[0] is original


def test_what_depends_on_the_sizes_alone_folds_away():
    original = model(SIZED)
    after = graphopt.run(original, ["fix_shapes", "fold_constants"], options={"fix_shapes.inputs": "x:2,3,4,6; k:2,3"})
    assert shapes(after) == {"x": [2, 3, 4, 6], "k": [2, 3]}
    assert ops(after) == ["Resize"]
    fed = feeds(original)
    fed["x"] = np.ones((2, 3, 4, 6), np.float32)
    assert_same(outputs(original, fed), outputs(after, fed))


def test_applied_again_it_changes_nothing():
    one = FixShapes("x:1,3,4,4")
    once, _ = run_exact([one], model(SIZED), context())
    assert run_exact([one], once, context())[0] is once


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", "'x' is not of the form NAME:1,3,224,224"),
        ("x:1,-3", "is not of the form"),
        ("x:1,0,2,2", "is not of the form"),
        ("z:1,3", "the model has no input 'z'; its inputs are x, k"),
        ("x:1,4,2,2", r"input 'x' is declared as \('N', 3, 'H', 'W'\), which \(1, 4, 2, 2\) does not fit"),
        ("x:1,3", "does not fit"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(text, reason):
    with pytest.raises(UsageError, match=reason):
        graphopt.run(model(SIZED), ["fix_shapes"], options={"fix_shapes.inputs": text})


def test_texts_are_read_as_they_are_written():
    wanted = {"x:0": (1, 3, 224, 224), "k": ()}
    assert parse(as_text(wanted)) == wanted


def test_optimize_fixes_the_shapes_given_for_dynamic_inputs(tmp_path):
    given = {"x": (1, 3, 4, 4), "k": (1, 3)}
    result = graphopt.optimize(model(SIZED), input_shapes=given, fix_shapes=True)
    result.save(tmp_path / "fixed.onnx")
    assert shapes(graphopt.load(tmp_path / "fixed.onnx")) == {"x": [1, 3, 4, 4], "k": [1, 3]}
    with pytest.raises(UsageError, match="input_shapes"):
        graphopt.optimize(model(SIZED), fix_shapes=True)
