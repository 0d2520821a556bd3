"""Factors written into graphs: at full rank the answers are the original's, and the nodes are those asked for.

``support.outputs`` runs both with ONNX Runtime's optimizations off.
"""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import runtime
from graphopt.errors import UsageError
from graphopt.graph import verify
from graphopt.graph.cost import cost
from graphopt.passes.separable.decompose import decompose, geometry_of
from graphopt.passes.separable.factors import Factors, Form
from graphopt.passes.separable.write import Layout, can_write, write
from graphopt.recovery.layers import Layer, read_weights
from graphopt.recovery.net import Net
from tests import support

WRITABLE: tuple[tuple[Form, Layout], ...] = (
    ("depthwise_first", "sum"),
    ("depthwise_first", "concat"),
    ("depthwise_first", "multiplier"),
    ("pointwise_first", "sum"),
    ("pointwise_first", "multiplier"),
    ("spatial", "sum"),
)
each_form = pytest.mark.parametrize(("form", "layout"), WRITABLE)


def factors_of(model: onnx.ModelProto, tensor: str, form: Form, rank: int | None = None) -> Factors:
    """Factors of the weights of the convolution that writes a tensor; at full rank where none is given."""
    net = Net(model)
    step = net.producer[tensor]
    node = onnx.NodeProto()
    node.CopyFrom(net.steps[step][0])
    del node.input[2:]
    net.replace(step, [node])
    geometry = geometry_of(node, net.constants[node.input[1]].dims)
    assert not isinstance(geometry, str), geometry
    kind = "convolution" if node.op_type == "Conv" else "transposed"
    sizes = geometry.groups, geometry.taps * geometry.channels, geometry.groups * geometry.filters
    weights = read_weights(net, Layer(tensor, kind, step, None, node.input[0], *sizes))  # type: ignore[arg-type]
    return decompose(weights.matrix, geometry, form, geometry.full_rank(form) if rank is None else rank)


def separated(
    model: onnx.ModelProto, form: Form, layout: Layout, rank: int | None = None, tensors: tuple[str, ...] = ("y",)
) -> onnx.ModelProto:
    """The model with convolutions written as their factors; it is valid, and the original is left alone."""
    untouched = model.SerializeToString(deterministic=True)
    factors = {tensor: factors_of(model, tensor, form, rank) for tensor in tensors}
    layouts = dict.fromkeys(tensors, layout)
    found = write(model, factors, layouts)
    assert model.SerializeToString(deterministic=True) == untouched
    verify(found)
    onnx.checker.check_model(found, full_check=True)
    assert write(model, factors, layouts).SerializeToString(deterministic=True) == found.SerializeToString(
        deterministic=True
    )
    return found


def assert_answers_alike(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    fed = support.feeds(before)
    support.assert_same(support.outputs(before, fed), support.outputs(after, fed))


def net(operator: str, inputs: str, weights: str, attributes: str = "", bias: int = 0) -> onnx.ModelProto:
    """One convolution, what it writes renamed by an Identity."""
    given, read = (f", float[{bias}] b", ", b") if bias else ("", "")
    stated = f"<{attributes}>" if attributes else ""
    return support.model(
        f"agraph (float[{inputs}] x) => (float[{','.join('nabcd'[: inputs.count(',') + 1])}] z) "
        f"<float[{weights}] w{given}> {{ y = {operator}{stated}(x, w{read}) z = Identity(y) }}"
    )


CONVOLUTIONS = {
    "plain": ("Conv", "2,6,9,8", "8,6,3,3", "", 8),
    "without bias": ("Conv", "2,6,9,8", "8,6,3,3", "", 0),
    "strides": ("Conv", "2,6,9,8", "8,6,3,3", "strides=[2,3]", 8),
    "asymmetric pads": ("Conv", "2,6,9,8", "8,6,3,3", "pads=[0,1,2,0]", 8),
    "dilations": ("Conv", "2,6,9,8", "8,6,3,3", "dilations=[2,1], pads=[2,1,2,1]", 8),
    "rectangular": ("Conv", "2,6,9,8", "8,6,1,5", "pads=[0,2,0,2]", 8),
    "a column": ("Conv", "2,6,9,8", "8,6,5,1", "strides=[1,2]", 8),
    "kernel_shape": ("Conv", "2,6,9,8", "8,6,2,3", "kernel_shape=[2,3]", 8),
    "SAME_UPPER": ("Conv", "2,6,9,8", "8,6,4,2", 'auto_pad="SAME_UPPER"', 8),
    "SAME_LOWER": ("Conv", "2,6,9,8", "8,6,4,2", 'auto_pad="SAME_LOWER", strides=[2,3]', 8),
    "VALID": ("Conv", "2,6,9,8", "8,6,3,3", 'auto_pad="VALID", strides=[2,1]', 8),
    "groups": ("Conv", "2,6,9,8", "8,3,3,3", "group=2, pads=[1,1,1,1]", 8),
    "one channel": ("Conv", "2,1,9,8", "8,1,3,3", "pads=[1,1,1,1]", 8),
    "1-D": ("Conv", "2,6,9", "8,6,3", "pads=[1,2], strides=[2]", 8),
    "3-D": ("Conv", "2,4,5,6,7", "6,2,3,2,3", "pads=[1,0,1,1,2,0], strides=[1,2,1], group=2", 6),
    "transposed": ("ConvTranspose", "2,6,5,4", "6,4,3,2", "strides=[2,3], pads=[1,0,0,1]", 4),
    "transposed groups": ("ConvTranspose", "2,6,5,4", "6,4,3,3", "strides=[2,1], group=2, dilations=[1,2]", 8),
    "output_padding": ("ConvTranspose", "2,6,5,4", "6,4,3,3", "strides=[2,3], output_padding=[1,2]", 4),
    "transposed SAME": ("ConvTranspose", "2,6,5,4", "6,4,3,3", 'strides=[2,3], auto_pad="SAME_LOWER"', 4),
    "output_shape": ("ConvTranspose", "2,6,5,4", "6,4,3,3", "strides=[2,3], output_shape=[10,12]", 0),
    "transposed 1-D": ("ConvTranspose", "2,6,5", "6,4,4", "strides=[2]", 4),
    "transposed 3-D": ("ConvTranspose", "2,4,3,4,3", "4,3,2,3,2", "strides=[2,1,1], group=2", 6),
}


@each_form
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_full_rank_answers_what_the_convolution_answers(name: str, form: Form, layout: Layout) -> None:
    model = net(*CONVOLUTIONS[name])
    (node,) = (each for each in model.graph.node if "Conv" in each.op_type)
    if can_write(node, form, layout):
        with pytest.raises(UsageError, match="the node that writes 'y' cannot be separated"):
            separated(model, form, layout)
        return
    assert_answers_alike(model, separated(model, form, layout))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[str, str, str, str, int]:
    axes = draw(st.integers(1, 3))
    transposed, groups = draw(st.booleans()), draw(st.sampled_from([1, 2]))
    channels, filters = draw(st.integers(2, 3)), draw(st.integers(1, 3))
    per_axis = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    kernel, strides, dilations = draw(per_axis), draw(per_axis), draw(per_axis)
    kernel[0] = max(kernel[0], 2)
    given = [f"strides={strides}", f"dilations={dilations}", f"group={groups}"]
    padding = draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding == "pads":
        ends = [draw(st.integers(0, size - 1)) for size in kernel * 2]
        given.append(f"pads={ends}")
    else:
        given.append(f'auto_pad="{padding}"')
        if padding != "VALID":
            given[1] = f"dilations={[1] * axes}"
    sizes = ",".join(str(draw(st.integers(7, 9))) for _ in range(axes))
    shape = (groups * channels, filters) if transposed else (groups * filters, channels)
    weights = ",".join(str(size) for size in (*shape, *kernel))
    bias = groups * filters if draw(st.booleans()) else 0
    operator = "ConvTranspose" if transposed else "Conv"
    return operator, f"1,{groups * channels},{sizes}", weights, ", ".join(given), bias


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=convolutions(), kind=st.sampled_from(WRITABLE))
def test_any_attributes(case: tuple[str, str, str, str, int], kind: tuple[Form, Layout]) -> None:
    model = net(*case)
    if not can_write(model.graph.node[0], *kind):
        assert_answers_alike(model, separated(model, *kind))


PLAIN = """agraph (float[n,8,6,6] x) => (float[n,12,6,6] z) <float[12,8,3,3] w, float[12] b> {
    y = Conv<pads=[1,1,1,1]>(x, w, b)
    z = Relu(y)
}"""


@pytest.mark.parametrize(
    ("form", "layout", "rank", "expected"),
    [
        ("depthwise_first", "sum", 1, ["Conv", "Conv", "Relu"]),
        ("depthwise_first", "sum", 3, ["Conv", "Conv", "Conv", "Conv", "Add", "Conv", "Conv", "Add", "Relu"]),
        ("depthwise_first", "concat", 3, ["Conv", "Conv", "Conv", "Concat", "Conv", "Relu"]),
        ("depthwise_first", "multiplier", 3, ["Conv", "Conv", "Relu"]),
        ("pointwise_first", "sum", 2, ["Conv", "Conv", "Conv", "Conv", "Add", "Relu"]),
        ("pointwise_first", "multiplier", 2, ["Conv", "Conv", "Relu"]),
        ("spatial", "sum", 7, ["Conv", "Conv", "Relu"]),
    ],
)
def test_nodes_of_each_layout(form: Form, layout: Layout, rank: int, expected: list[str]) -> None:
    assert support.ops(separated(support.model(PLAIN), form, layout, rank)) == expected


@pytest.mark.parametrize(
    ("form", "layout", "rank", "weights"),
    [
        ("depthwise_first", "sum", 2, [8 * 9, 8 * 12] * 2),
        ("depthwise_first", "concat", 2, [8 * 9, 8 * 9, 2 * 8 * 12]),
        ("depthwise_first", "multiplier", 2, [2 * 8 * 9, 2 * 8 * 12]),
        ("pointwise_first", "sum", 2, [8 * 12, 12 * 9] * 2),
        ("pointwise_first", "multiplier", 2, [2 * 8 * 12, 2 * 12 * 9]),
        ("spatial", "sum", 5, [8 * 5 * 3, 5 * 12 * 3]),
    ],
)
def test_multiply_adds_and_parameters(form: Form, layout: Layout, rank: int, weights: list[int]) -> None:
    model = support.model(PLAIN.replace("float[n,8,6,6]", "float[1,8,6,6]"))
    found = cost(separated(model, form, layout, rank))
    assert [layer.macs for layer in found.layers if layer.operator == "Conv"] == [36 * each for each in weights]
    assert found.parameters == sum(weights) + 12


def test_a_depthwise_separable_block_has_the_costs_of_mobilenets() -> None:
    before = support.model(
        "agraph (float[1,64,14,14] x) => (float[1,64,14,14] y) <float[64,64,3,3] w> { y = Conv<pads=[1,1,1,1]>(x, w) }"
    )
    after = separated(before, "depthwise_first", "sum", 1)
    # Howard et al. 2017, arXiv 1704.04861, section 3.1: 1 / filters + 1 / taps of the multiply-adds.
    whole, less = cost(before).macs, cost(after).macs
    assert whole is not None
    assert less == whole // 64 + whole // 9


@each_form
def test_the_bias_goes_to_one_node(form: Form, layout: Layout) -> None:
    found = separated(support.model(PLAIN), form, layout, 3)
    assert sum("b" in node.input for node in found.graph.node) == 1


def test_names_speak() -> None:
    model = support.model(PLAIN)
    model.graph.node[0].name = "conv1"
    found = separated(model, "depthwise_first", "sum", 2)
    names = ["conv1_depthwise_0", "conv1_pointwise_0", "conv1_depthwise_1", "conv1_pointwise_1", "conv1_add_1", ""]
    assert [node.name for node in found.graph.node] == names
    assert found.graph.node[4].output == ["y"]
    spatial = separated(model, "spatial", "sum", 2)
    assert [node.name for node in spatial.graph.node] == ["conv1_rows", "conv1_columns", ""]


def test_names_are_new_everywhere() -> None:
    model = support.model(
        """agraph (float[1,4,5,5] x, bool c) => (float[1,4,5,5] z) <float[4,4,3,3] w, float[4] y_depthwise_0_weight> {
        y = Conv<pads=[1,1,1,1]>(x, w, y_depthwise_0_weight)
        z = If(c) <
            then_branch = one () => (float[1,4,5,5] y_pointwise_0) { y_pointwise_0 = Relu(y) },
            else_branch = other () => (float[1,4,5,5] o) { y_depthwise_0 = Neg(y) o = Identity(y_depthwise_0) }
        >
    }"""
    )
    model.graph.node[1].name = "y_depthwise_0"
    found = separated(model, "depthwise_first", "sum")
    written = [name for node in found.graph.node for name in node.output]
    assert not {"y_pointwise_0", "y_depthwise_0"} & set(written)
    assert len({node.name for node in found.graph.node}) == len(found.graph.node)
    assert_answers_alike(model, found)


@each_form
def test_weights_in_a_constant_node(form: Form, layout: Layout) -> None:
    model = support.model(
        """agraph (float[1,1,4,4] x) => (float[1,2,3,3] y) {
        w = Constant<value = float[2,1,2,2] {1, 2, 3, 4, 5, 6, 7, 8}>()
        y = Conv(x, w)
    }"""
    )
    found = separated(model, form, layout)
    assert "Constant" not in support.ops(found)
    assert_answers_alike(model, found)


def test_weights_that_another_node_reads_stay_for_it() -> None:
    model = support.model(
        """agraph (float[1,4,5,5] x) => (float[1,4,1,1] z) <float[4,4,3,3] w> {
        y = Conv(x, w)
        z = Conv(y, w)
    }"""
    )
    found = separated(model, "depthwise_first", "multiplier")
    assert support.ops(found) == ["Conv", "Conv", "Conv"]
    assert "w" in {tensor.name for tensor in found.graph.initializer}
    assert_answers_alike(model, found)
    both = separated(model, "depthwise_first", "multiplier", tensors=("y", "z"))
    assert "w" not in {tensor.name for tensor in both.graph.initializer}
    assert_answers_alike(model, both)


def test_a_bias_that_is_computed() -> None:
    model = support.model(
        """agraph (float[1,4,5,5] x, float[4] given) => (float[1,4,3,3] y) <float[4,4,3,3] w> {
        b = Exp(given)
        y = Conv(x, w, b)
    }"""
    )
    for form, layout in WRITABLE:
        assert_answers_alike(model, separated(model, form, layout))


@pytest.mark.parametrize("dtype", ["double", "float16"])
def test_weights_keep_their_type(dtype: str) -> None:
    model = support.model(
        f"agraph ({dtype}[1,4,5,5] x) => ({dtype}[1,4,3,3] y) <{dtype}[4,4,3,3] w, {dtype}[4] b> "
        "{ y = Conv(x, w, b) }"
    )
    found = separated(model, "depthwise_first", "sum", 3)
    assert {tensor.data_type for tensor in found.graph.initializer} == {model.graph.initializer[0].data_type}


def test_what_else_the_model_holds_stays() -> None:
    model = support.model(
        '<ir_version: 7, opset_import: ["" : 11, "mine" : 1]> ' + PLAIN.replace("b>", "b, float[n,12,6,6] y>")
    )
    model.graph.node[0].doc_string = "the first"
    model.graph.doc_string = "a net"
    model.metadata_props.add(key="author", value="somebody")
    found = separated(model, "depthwise_first", "sum", 2)
    assert found.opset_import == model.opset_import
    assert (found.ir_version, found.graph.doc_string, found.metadata_props[0].value) == (7, "a net", "somebody")
    assert [value.name for value in found.graph.value_info] == ["y"]
    assert {node.doc_string for node in found.graph.node if node.op_type == "Conv"} == {"the first"}


def test_an_operator_set_whose_add_runs_nowhere_rises() -> None:
    model = support.model(PLAIN, opset=6)
    found = separated(model, "depthwise_first", "sum")
    assert found.opset_import[0].version == 7
    assert_answers_alike(model, found)
    assert separated(model, "depthwise_first", "multiplier").opset_import == model.opset_import


@pytest.mark.parametrize("filters", [8, 6])
@pytest.mark.parametrize("form", ["depthwise_first", "pointwise_first"])
def test_additions_become_part_of_convolutions_in_onnx_runtime(form: Form, filters: int) -> None:
    """In its blocked kernels, which take multiples of 4 or 8 channels, and in the others."""
    model = support.model(
        f"""agraph (float[1,{filters},6,6] x) => (float[1,{filters},6,6] z) <float[{filters},{filters},3,3] w> {{
        y = Conv<pads=[1,1,1,1]>(x, w)
        z = Relu(y)
    }}"""
    )
    found = Counter(node.op_type for node in runtime.optimized_graph(separated(model, form, "sum", 3)).graph.node)
    assert not {"Add", "Relu"} & found.keys()
    assert found["Conv"] + found["FusedConv"] == 6


RESIDUAL = """agraph (float[1,16,6,6] x) => (float[1,16,6,6] z) <
    float[16,16,1,1] stem, float[16] c, float[16,16,3,3] w, float[16] b, float[1,16,6,6] y
> {
    h = Conv(x, stem, c)
    y = Conv<pads=[1,1,1,1]>(h, w, b)
    s = Add(y, h)
    z = Relu(s)
}"""


def test_a_residual_starts_the_sum() -> None:
    model = support.model(RESIDUAL)
    model.graph.node[2].name = "residual"
    found = separated(model, "depthwise_first", "sum")
    assert support.ops(found) == ["Conv", *["Conv", "Conv", "Add"] * 9, "Relu"]
    assert list(found.graph.node[3].input) == ["h", "y_pointwise_0"]
    assert found.graph.node[-2].name == "residual"
    assert not found.graph.value_info
    assert_answers_alike(model, found)
    optimized = Counter(node.op_type for node in runtime.optimized_graph(found).graph.node)
    assert not {"Add", "Relu"} & optimized.keys()


@pytest.mark.parametrize(
    "change",
    [
        ("float[1,16,6,6] z)", "float[1,16,6,6] z, float[1,16,6,6] y)"),  # y is an output
        ("s = Add(y, h)", "s = Add(y, y)"),
        ("s = Add(y, h)", "q = Relu(y) s = Add(y, q)"),  # y has other readers
        ("s = Add(y, h)", "q = Neg(x) s = Add(y, q)"),  # not in the layout of blocked kernels
        ("s = Add(y, h)", "s = Add(y, c) "),  # a constant
        ("s = Add(y, h)", "s = Sub(y, h)"),
    ],
)
def test_other_additions_stay(change: tuple[str, str]) -> None:
    text = RESIDUAL.replace(*change).replace(", float[1,16,6,6] y\n", "\n")
    if "c) " in change[1]:
        text = text.replace("float[16] c,", "float[16] d, float[16,1,1] c,").replace("stem, c)", "stem, d)")
    model = support.model(text)
    found = separated(model, "depthwise_first", "sum", 2)
    assert "y" in {name for node in found.graph.node for name in node.output}


def test_a_residual_between_two_separated_convolutions() -> None:
    model = support.model(
        """agraph (float[1,4,6,6] x) => (float[1,4,6,6] z) <float[4,4,3,3] w, float[4,4,3,3] v, float[4] b> {
        y = Conv<pads=[1,1,1,1]>(x, w, b)
        u = Conv<pads=[1,1,1,1]>(x, v)
        z = Add(u, y)
    }"""
    )
    for tensors in (("y", "u"), ("u", "y")):
        assert_answers_alike(model, separated(model, "depthwise_first", "sum", tensors=tensors))


def test_many_convolutions_in_different_forms() -> None:
    convolutions = " ".join(f"t{n + 1} = Conv<pads=[1,1,1,1]>(t{n}, w{n})" for n in range(6))
    weights = ", ".join(f"float[4,4,3,3] w{n}" for n in range(6))
    model = support.model(f"agraph (float[1,4,6,6] t0) => (float[1,4,6,6] t6) <{weights}> {{ {convolutions} }}")
    kinds = {f"t{n + 1}": kind for n, kind in enumerate(WRITABLE)}
    found = write(
        model,
        {name: factors_of(model, name, form) for name, (form, _) in kinds.items()},
        {name: layout for name, (_, layout) in kinds.items()},
    )
    verify(found)
    assert_answers_alike(model, found)


def test_weights_that_a_caller_may_feed_are_refused() -> None:
    model = support.model(PLAIN)
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [12, 8, 3, 3]))
    with pytest.raises(UsageError, match="a caller may feed its weights 'w'"):
        separated(model, "depthwise_first", "sum")


def test_tensors_and_sizes_that_do_not_fit_are_refused() -> None:
    model = support.model(PLAIN)
    factors: dict[str, Any] = {"y": factors_of(model, "y", "depthwise_first", 1)}
    with pytest.raises(UsageError, match="no node of the main graph writes 'nothing'"):
        write(model, {"nothing": factors["y"]}, {"nothing": "sum"})
    with pytest.raises(UsageError, match="the node that writes 'z' cannot be separated: Relu is no float convolution"):
        write(model, {"z": factors["y"]}, {"z": "sum"})
    other = support.model(PLAIN.replace("float[12,8,3,3]", "float[12,8,5,5]"))
    with pytest.raises(UsageError, match="it has the sizes"):
        write(other, factors, {"y": "sum"})


def test_what_cannot_be_written() -> None:
    conv, grouped = (onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=group) for group in (1, 2))
    shaped = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], output_shape=[8, 8])
    kinds: list[tuple[Form, Layout]] = list(
        product(("depthwise_first", "pointwise_first", "spatial"), ("sum", "concat", "multiplier"))
    )
    assert tuple(kind for kind in kinds if not can_write(conv, *kind)) == WRITABLE
    assert "lie apart" in can_write(grouped, "depthwise_first", "concat")
    assert "output_shape" in can_write(shaped, "spatial", "sum")
    assert not can_write(shaped, "pointwise_first", "sum")


def test_a_large_graph_takes_time_in_proportion() -> None:
    """Ten thousand nodes, a hundred of them separated: nothing looks at the whole graph for each."""
    nodes = []
    for n in range(100):
        nodes.append(f"c{n} = Conv<pads=[1,1,1,1]>({f's{n - 1}_98' if n else 'x'}, w)")
        nodes += [f"s{n}_{m} = Relu({f's{n}_{m - 1}' if m else f'c{n}'})" for m in range(99)]
    model = support.model(
        f"agraph (float[1,2,3,3] x) => (float[1,2,3,3] s99_98) <float[2,2,3,3] w> {{ {' '.join(nodes)} }}"
    )
    factors = factors_of(model, "c0", "depthwise_first", 1)
    names = [f"c{n}" for n in range(100)]
    found = write(model, dict.fromkeys(names, factors), dict.fromkeys(names, "sum"))
    assert len(found.graph.node) == 10_100
    assert np.isin("w", [tensor.name for tensor in found.graph.initializer]).sum() == 0
