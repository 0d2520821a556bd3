"""GO208: operators that the ONNX parser imports in some of their forms only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from graphopt.rules.rule import Place, Rule
from graphopt.rules.view import Node, View
from graphopt.targets.schema import Hardware

Fault: TypeAlias = Callable[[Node, View], str]


def _is(name: str, *allowed: str, default: str, what: str) -> Fault:
    def fault(node: Node, view: View) -> str:
        found = node.text(name, default)
        return "" if found in allowed else f"{what} '{found}' is not supported ({', '.join(allowed)} are)"

    return fault


def _constant(index: int, name: str) -> Fault:
    def fault(node: Node, view: View) -> str:
        tensor = node.input(index)
        return "" if tensor is None or view.is_constant(tensor) else f"input '{name}' must be a constant"

    return fault


def _unread(index: int, name: str) -> Fault:
    def fault(node: Node, view: View) -> str:
        tensor = node.output(index)
        used = tensor is not None and (tensor.is_output or bool(tensor.readers))
        return f"output '{name}' is not supported" if used else ""

    return fault


def _zero(name: str, wanted: int = 0) -> Fault:
    def fault(node: Node, view: View) -> str:
        return "" if node.integer(name, wanted) == wanted else f"{name} must be {wanted}"

    return fault


def _not_dilated(node: Node, view: View) -> str:
    dilated = any(step != 1 for step in node.integers("dilations") or ())
    return "dilations must all be 1" if dilated else ""


def _four_axes(node: Node, view: View) -> str:
    shape = view.shape(node.input(0))
    return "" if shape is None or len(shape) == 4 else f"the input must have 4 axes, not {len(shape)}"


def _not_training(node: Node, view: View) -> str:
    switch = view.values(node.input(2))
    return "training_mode must be false" if switch is not None and switch.any() else ""


_RESIZE: tuple[Fault, ...] = (
    _is("mode", "nearest", "linear", default="nearest", what="mode"),
    _is("coordinate_transformation_mode", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric",
        "align_corners", default="half_pixel", what="coordinate_transformation_mode"),
    _is("nearest_mode", "floor", "ceil", "round_prefer_floor", "round_prefer_ceil", default="round_prefer_floor",
        what="nearest_mode"),
    _is("keep_aspect_ratio_policy", "stretch", default="stretch", what="keep_aspect_ratio_policy"),
    _zero("antialias"),
)  # fmt: skip

# What the parser of 10.15 leaves out of an operator that it imports; that of 8.4 allows no more.
_LEFT_OUT: Mapping[str, tuple[Fault, ...]] = {
    "AveragePool": (_not_dilated,),
    "CumSum": (_constant(1, "axis"),),
    "Dropout": (_not_training,),
    "GridSample": (_four_axes,),
    "LayerNormalization": (_unread(1, "Mean"), _unread(2, "InvStdDev")),
    "LpPool": (_not_dilated,),
    "LSTM": (_zero("layout"), _zero("input_forget")),
    "MaxPool": (_unread(1, "Indices"), _not_dilated),
    "OneHot": (_constant(1, "depth"),),
    "Resize": _RESIZE,
    "ScatterND": (_is("reduction", "none", default="none", what="reduction"),),
}


def _restricted_operator(view: View, hardware: Hardware) -> Iterator[Place]:
    for node in view.nodes:
        for fault in _LEFT_OUT.get(node.op, ()):
            if problem := fault(node, view):
                yield Place(node.name, f"{node.op}: {problem} by the ONNX parser of {hardware.runtime}")


_PARSER = "onnx/onnx-tensorrt, docs/operators.md"

RESTRICTIONS: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            code="GO208",
            name="restricted_operator",
            summary="operators are used only in the forms that the parser imports",
            explanation="The parser imports some operators in part: Resize without cubic interpolation and "
            "antialiasing, pools without dilations, MaxPool without Indices, and so on. Export the layer in another "
            "way.",
            source=f"{_PARSER} of 10.15, column 'Restrictions'; that of 8.4 allows no more",
            check=_restricted_operator,
        ),
    )
}
