"""The verbs that edit a graph: by identity, and in linear time."""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper
from support import model, ops

from graphopt.errors import ModelError
from graphopt.graph import (
    Index,
    WorkGraph,
    add_node,
    constant,
    consumers,
    drop_node,
    dtype_of,
    export_graph,
    import_graph,
    is_constant,
    remove_unused,
    replace_uses,
    set_input,
    shape_of,
    sole_consumer,
    sole_producer,
    spare_bytes,
    take_over,
    toposort,
    values_of,
    variable,
    verify,
    walk,
)

DIAMOND = """g (float[4] x) => (float[4] y) <float[4] w> {
  a = Add(x, w)  b = Relu(a)  c = Sigmoid(a)  d = Mul(b, c)  y = Add(d, w) }"""
LOOP = """g (float[4] x, int64 n, bool go) => (float[4] y) <float[4] w> {
  z = Relu(x)
  y = Loop (n, go, x) <body = body (int64 i, bool c, float[4] s) => (bool d, float[4] t)
    { d = Identity(c)  t = Add(s, z) }> }"""


def opened(text: str) -> tuple[WorkGraph, Index, dict[str, gs.Tensor]]:
    work = import_graph(model(text))
    tensors = {tensor.name: tensor for each in walk(work.gs) for node in each.nodes for tensor in node.outputs}
    tensors |= {tensor.name: tensor for each in walk(work.gs) for node in each.nodes for tensor in node.inputs}
    return work, Index(work.gs), tensors


def test_producers_and_consumers() -> None:
    _, index, tensors = opened(DIAMOND)
    assert [node.op for node in consumers(tensors["a"])] == ["Relu", "Sigmoid"]
    assert sole_consumer(index, tensors["a"]) is None
    assert sole_consumer(index, tensors["b"]) is sole_producer(tensors["d"])
    assert sole_producer(tensors["x"]) is None
    assert index.is_output(tensors["y"])
    assert sole_consumer(index, tensors["y"]) is None


def test_a_reader_in_a_subgraph_is_no_sole_consumer() -> None:
    _, index, tensors = opened(LOOP)
    assert [node.op for node in consumers(tensors["z"])] == ["Add"]
    assert sole_consumer(index, tensors["z"]) is None


def test_a_node_that_reads_a_tensor_twice_is_no_sole_consumer() -> None:
    _, index, tensors = opened("g (float[4] x) => (float[4] y) { a = Relu(x)  y = Mul(a, a) }")
    assert len(consumers(tensors["a"])) == 1
    assert sole_consumer(index, tensors["a"]) is None


def test_replacing_a_tensor_reaches_subgraphs() -> None:
    work, index, tensors = opened(LOOP)
    assert replace_uses(index, tensors["z"], tensors["w"] if "w" in tensors else tensors["x"]) == 1
    index.finish()
    assert remove_unused(work.gs) == 1
    assert ops(export_graph(work)) == ["Loop"]
    verify(export_graph(work))


def test_names_are_fresh_over_all_graphs() -> None:
    _, index, _ = opened(LOOP)
    names = [index.fresh_name(prefix) for prefix in ("t", "t", "new", "new", "")]
    assert names == ["t_1", "t_2", "new", "new_1", "_1"]


def test_inserting_a_node_puts_it_in_order() -> None:
    work, index, tensors = opened(DIAMOND)
    between = variable(index, "between", like=tensors["d"])
    last = sole_producer(tensors["y"])
    assert last is not None
    add_node(index, "Neg", [tensors["d"]], [between], prefix="flip")
    set_input(index, last, 0, between)
    set_input(index, last, 1, constant(index, "w", np.ones(4, np.float32)))
    index.finish()
    result = export_graph(work)
    verify(result)
    assert ops(result) == ["Add", "Relu", "Sigmoid", "Mul", "Neg", "Add"]
    assert sorted(tensor.name for tensor in result.graph.initializer) == ["w", "w_1"]


def test_dropping_a_node_before_an_output_lets_the_output_take_over() -> None:
    work, index, tensors = opened("g (float[4] x) => (float[4] y) { a = Relu(x)  y = Identity(a) }")
    drop_node(index, work.gs.nodes[1])
    take_over(index, tensors["a"], tensors["y"])
    index.finish()
    result = export_graph(work)
    verify(result)
    assert [(node.op_type, list(node.output)) for node in result.graph.node] == [("Relu", ["y"])]


@pytest.mark.parametrize("name", ["x", "y"])
def test_inputs_and_outputs_cannot_be_taken_over(name: str) -> None:
    _, index, tensors = opened(DIAMOND)
    with pytest.raises(ValueError, match="cannot be taken over"):
        take_over(index, tensors[name], tensors["d"])


def test_unused_nodes_go_from_subgraphs_and_with_them_what_they_alone_captured() -> None:
    work = import_graph(
        model("""g (bool b, float[4] x) => (float[4] y) {
          z = Exp(x)
          y = If (b) < then_branch = t () => (float[4] p) { unused = Relu(z)  p = Abs(x) },
                       else_branch = e () => (float[4] q) { q = Neg(x) } > }""")
    )
    assert remove_unused(work.gs) == 2
    verify(export_graph(work))
    assert [[node.op for node in each.nodes] for each in walk(work.gs)] == [["If"], ["Abs"], ["Neg"]]


def test_sorting_leaves_a_valid_order_alone() -> None:
    work = import_graph(model(DIAMOND))
    before = [node.op for node in work.gs.nodes]
    toposort(work.gs)
    assert [node.op for node in work.gs.nodes] == before


def test_sorting_moves_a_late_node_to_before_its_first_reader() -> None:
    work = import_graph(model(DIAMOND))
    work.gs.nodes.append(work.gs.nodes.pop(2))
    toposort(work.gs)
    assert [node.op for node in work.gs.nodes] == ["Add", "Relu", "Sigmoid", "Mul", "Add"]


def test_sorting_counts_what_subgraphs_capture() -> None:
    work = import_graph(model(LOOP))
    work.gs.nodes.reverse()
    toposort(work.gs)
    assert [node.op for node in work.gs.nodes] == ["Relu", "Loop"]


def test_a_cycle_is_told() -> None:
    work, index, tensors = opened(DIAMOND)
    set_input(index, work.gs.nodes[0], 1, tensors["d"])
    with pytest.raises(ModelError, match="cycle"):
        index.finish()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Constant <value = float[2] {1, 2}> ()", np.array([1, 2], np.float32)),
        ("Constant <value_int = 3> ()", np.array(3)),
        ("Constant <value_ints = [3, 4]> ()", np.array([3, 4])),
        ("Constant <value_float = 0.5> ()", np.array(0.5, np.float32)),
        ("Constant <value_floats = [0.5, 1.0]> ()", np.array([0.5, 1], np.float32)),
    ],
)
def test_constant_nodes_have_values(text: str, values: np.ndarray) -> None:
    _, _, tensors = opened(f"g () => (float[2] y) {{ c = {text}  y = Identity(c) }}")
    found = values_of(tensors["c"])
    assert is_constant(tensors["c"])
    assert found is not None
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def test_constants_have_tuples_for_shapes_and_numpy_dtypes_read_or_not() -> None:
    _, _, tensors = opened(DIAMOND)
    for _ in range(2):
        assert (shape_of(tensors["w"]), dtype_of(tensors["w"])) == ((4,), np.dtype(np.float32))
        assert values_of(tensors["x"]) is None
        assert tensors["w"].values.shape == (4,)


def chain(count: int, *, backwards: bool) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", [f"t{i}", "w"], [f"t{i + 1}"], f"n{i}") for i in range(count)]
    inputs = [helper.make_tensor_value_info("t0", TensorProto.FLOAT, [4])]
    outputs = [helper.make_tensor_value_info(f"t{count}", TensorProto.FLOAT, [4])]
    weights = [onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")]
    graph = helper.make_graph(nodes[::-1] if backwards else nodes, "chain", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_ten_thousand_nodes_in_reverse_order_with_one_shared_weight() -> None:
    proto = chain(10_000, backwards=True)
    start = time.process_time()
    work = import_graph(proto)
    toposort(work.gs)
    index = Index(work.gs)
    for position in range(0, len(work.gs.nodes), 2):
        node = work.gs.nodes[position]
        replace_uses(index, node.outputs[0], node.inputs[0]) if not index.is_output(node.outputs[0]) else None
    index.drop([node for node in work.gs.nodes[::2] if not index.is_output(node.outputs[0])])
    index.finish()
    result = export_graph(work)
    # graphsurgeon's own sort fails here, and its own rewiring takes minutes; this takes about a second.
    assert time.process_time() - start < 15
    assert len(result.graph.node) == 5_000
    verify(result)


def test_spare_bytes_tell_how_far_a_model_has_shrunk() -> None:
    proto = model("""g (float[N,4] x) => (float[N,2000] y) <float[4,2000] w, float[2000] b> {
      m = MatMul(x, w)  y = Add(m, b) }""")
    graph = import_graph(proto).gs
    before = spare_bytes(graph)
    assert abs(before) < 50, "reading and writing alone change the size by next to nothing"
    index = Index(graph)
    set_input(index, graph.nodes[1], 1, constant(index, "scalar", np.float32(1)))
    index.finish()
    assert 7900 < spare_bytes(graph) - before < 8100
