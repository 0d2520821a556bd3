"""Nothing is lost between import and export, and the caller's model is never written to."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, TensorProto, helper
from support import model, outputs

from graphopt.errors import ModelError, PassError, UnsupportedModelError
from graphopt.graph import export_graph, import_graph, is_op, values_of, verify
from graphopt.runtime import input_specs

CONV = """g (float[N,2,4,4] x) => (float[N,3,4,4] y) <float[3,2,1,1] w>
  { c = Conv(x, w)  y = Relu(c) }"""
IF = """g (bool b, float[4] x) => (float[4] y) <float[4] w, float[4] deep = {1, 2, 3, 4}> {
  z = Add(x, w)
  y = If (b) <
    then_branch = then () => (float[4] t) { t = Mul(z, deep) },
    else_branch = other () => (float[4] e) <float[4] own = {5, 6, 7, 8}> { e = Sub(x, own) }
  > }"""

SIBLINGS = """g (bool b, float[4] x) => (float[4] y) {
  y = If (b) <
    then_branch = then () => (float[4] t) <float[4] w = {1, 2, 3, 4}> { v = Add(x, w)  t = Neg(v) },
    else_branch = other () => (float[4] e) <float[4] w = {5, 6, 7, 8}> { v = Mul(x, w)  e = Exp(v) }
  > }"""


def there_and_back(proto: onnx.ModelProto) -> onnx.ModelProto:
    before = proto.SerializeToString(deterministic=True)
    result = export_graph(import_graph(proto))
    assert proto.SerializeToString(deterministic=True) == before
    return result


def test_a_model_comes_back_as_it_was() -> None:
    proto = model(CONV)
    assert there_and_back(proto).graph == proto.graph


def test_names_doc_strings_and_metadata_survive() -> None:
    proto = model(CONV)
    proto.doc_string, proto.domain, proto.model_version = "a net", "org.example", 7
    proto.producer_name, proto.producer_version = "exporter", "1.2"
    proto.metadata_props.add(key="license", value="none")
    proto.graph.doc_string = "the graph"
    proto.graph.metadata_props.add(key="part", value="backbone")
    proto.graph.input[0].doc_string = "pixels"
    proto.graph.input[0].type.denotation = "IMAGE"
    proto.graph.output[0].metadata_props.add(key="classes", value="3")
    proto.graph.node[0].doc_string = "first"
    proto.graph.node[0].metadata_props.add(key="source", value="line 3")
    proto.graph.node[1].name = "last"
    note = proto.graph.quantization_annotation.add(tensor_name="c")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    result = there_and_back(proto)
    assert result == proto


def test_annotations_of_tensors_that_went_go_with_them() -> None:
    proto = model(CONV)
    proto.graph.quantization_annotation.add(tensor_name="gone")
    proto.graph.quantization_annotation.add(tensor_name="c")
    assert [note.tensor_name for note in there_and_back(proto).graph.quantization_annotation] == ["c"]


def test_functions_survive() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
      g (float[4] x) => (float[4] y) { y = local.twice(x) }
      <domain: "local", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }""")
    result = there_and_back(proto)
    assert result.functions == proto.functions
    np.testing.assert_array_equal(outputs(result, {"x": np.ones(4, np.float32)})["y"], 2)


def test_a_function_that_redefines_a_standard_operator_is_refused() -> None:
    proto = model(CONV)
    proto.functions.add(name="Relu", domain="ai.onnx")
    with pytest.raises(UnsupportedModelError, match="function 'Relu'"):
        import_graph(proto)


def test_subgraphs_keep_their_own_constants_and_what_they_capture() -> None:
    proto = model(IF)
    result = there_and_back(proto)
    branches = {attribute.name: attribute.g for attribute in result.graph.node[1].attribute}
    assert sorted(tensor.name for tensor in result.graph.initializer) == ["deep", "w"]
    assert [tensor.name for tensor in branches["else_branch"].initializer] == ["own"]
    assert not branches["then_branch"].initializer
    for flag in (True, False):
        fed = {"b": np.array(flag), "x": np.arange(4, dtype=np.float32)}
        np.testing.assert_array_equal(outputs(result, fed)["y"], outputs(proto, fed)["y"])


def test_sibling_subgraphs_may_use_one_name_for_different_tensors() -> None:
    proto = model(SIBLINGS)
    result = there_and_back(proto)
    weights = [attribute.g.initializer[0] for attribute in result.graph.node[0].attribute]
    assert [tensor.name for tensor in weights] == ["w", "w"]
    for flag in (True, False):
        fed = {"b": np.array(flag), "x": np.arange(4, dtype=np.float32)}
        np.testing.assert_array_equal(outputs(result, fed)["y"], outputs(proto, fed)["y"])


def test_an_input_with_a_default_stays_an_input() -> None:
    proto = model("g (float[4] x, float[4] w) => (float[4] y) { y = Add(x, w) }")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, 5, np.float32), "w"))
    work = import_graph(proto)
    assert [tensor.name for tensor in work.gs.inputs] == ["x", "w"]
    assert values_of(work.gs.inputs[1]) is None
    assert export_graph(work) == proto


def test_below_ir_version_4_initializers_are_constants_and_no_inputs() -> None:
    proto = model("g (float[4] x, float[4] w) => (float[4] y) { y = Add(x, w) }", ir_version=3, opset=8)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full(4, 5, np.float32), "w"))
    result = there_and_back(proto)
    assert [info.name for info in result.graph.input] == ["x"]
    assert result.ir_version == 4
    assert [spec.name for spec in input_specs(result)] == [spec.name for spec in input_specs(proto)]
    verify(result)


def test_weights_are_neither_renamed_nor_shared_with_the_source() -> None:
    proto = model(CONV)
    work = import_graph(proto)
    conv = work.gs.nodes[0]
    conv.inputs[1].name = "renamed"
    assert [tensor.name for tensor in export_graph(work).graph.initializer] == ["renamed"]
    assert proto.graph.initializer[0].name == "w"
    with pytest.raises(ValueError, match="read-only"):
        conv.inputs[1].values[0] = 0


@pytest.mark.parametrize("name", ["INT4", "UINT4", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2"])
def test_types_that_numpy_lacks_pass_through_read_and_unread(name: str) -> None:
    kind = TensorProto.DataType.Value(name)
    values = np.array([1, 0, 1, 1]).astype(helper.tensor_dtype_to_np_dtype(kind))
    stored = onnx.numpy_helper.from_array(values, "w")
    assert stored.data_type == kind
    text = "g (float[4] x) => (float[4] y) { z = Cast<to = 1>(w)  y = Add(x, z) }"
    proto = model(text, opset=21, ir_version=10)
    proto.graph.initializer.append(stored)
    assert there_and_back(proto).graph.initializer[0] == stored
    work = import_graph(proto)
    assert work.gs.nodes[0].inputs[0].values.dtype == values.dtype  # graphsurgeon keeps what it read
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(export_graph(work).graph.initializer[0]), values)


def test_string_and_sparse_initializers_pass_through() -> None:
    proto = model("g (float[4] x) => (string[2] y, float[4] z) { y = Identity(s)  z = Add(x, p) }")
    proto.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], ["a", "b"]))
    value = helper.make_tensor("p", TensorProto.FLOAT, [1], [3.0])
    index = helper.make_tensor("i", TensorProto.INT64, [1], [2])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(value, index, [4]))
    result = there_and_back(proto)
    assert result.graph.sparse_initializer == proto.graph.sparse_initializer
    assert result.graph.initializer == proto.graph.initializer
    assert values_of(import_graph(proto).gs.nodes[1].inputs[1]) is None


def with_attribute(attribute: AttributeProto) -> onnx.ModelProto:
    proto = model("""<ir_version: 8, opset_import: ["" : 17, "custom" : 1]>
      g (float[4] x) => (float[4] y) { y = custom.Thing(x) }""")
    proto.graph.node[0].name = "thing"
    proto.graph.node[0].attribute.append(attribute)
    return proto


@pytest.mark.parametrize(
    "attribute",
    [
        pytest.param(helper.make_attribute("a", helper.make_tensor_type_proto(1, [2])), id="a type"),
        pytest.param(helper.make_attribute("a", [helper.make_tensor("t", 1, [1], [2.0])]), id="a list of tensors"),
        pytest.param(AttributeProto(name="a", type=AttributeProto.INTS), id="an empty list"),
        pytest.param(AttributeProto(name="a", type=AttributeProto.STRING, s=b"\xff\xfe"), id="bytes that are no text"),
        pytest.param(AttributeProto(name="a", type=AttributeProto.STRINGS, strings=[b"a", b"\xff"]), id="byte strings"),
        pytest.param(AttributeProto(name="a", type=AttributeProto.FLOATS, floats=[1, 2]), id="whole floats"),
        pytest.param(AttributeProto(name="a", type=AttributeProto.FLOAT, f=1), id="a whole float"),
        pytest.param(AttributeProto(name="a", type=AttributeProto.INT, i=3, doc_string="why"), id="a doc string"),
    ],
)
def test_attributes_that_graphsurgeon_loses_are_carried(attribute: AttributeProto) -> None:
    assert list(there_and_back(with_attribute(attribute)).graph.node[0].attribute) == [attribute]


def test_what_cannot_be_carried_is_refused_by_name() -> None:
    graphs = AttributeProto(name="bodies", type=AttributeProto.GRAPHS)
    with pytest.raises(UnsupportedModelError, match=r"node 'thing' .* attribute 'bodies' is of kind GRAPHS"):
        import_graph(with_attribute(graphs))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("g (optional(float[2]) x) => (bool y) { y = OptionalHasElement(x) }", id="optional"),
        pytest.param("g (seq(float[2]) x) => (int64 y) { y = SequenceLength(x) }", id="sequence"),
    ],
)
def test_inputs_that_are_no_tensors_keep_their_type(text: str) -> None:
    proto = model(text, opset=18)
    assert there_and_back(proto).graph.input == proto.graph.input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("g (float[4] x) => (float[4] y) { y = Add(x, z) }", "reads tensor 'z'", id="nothing produces it"),
        pytest.param("g (float[4] x) => (float[4] z) { y = Relu(x) }", "output 'z'", id="output of nothing"),
        pytest.param("g (float[4] x) => (float[4] y) { y = Relu(x) y = Abs(x) }", "writes tensor 'y'", id="twice"),
    ],
)
def test_broken_wiring_is_told(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        import_graph(model(text))


def test_nodes_out_of_order_are_read() -> None:
    proto = model(CONV)
    nodes = list(reversed(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [tensor.name for tensor in import_graph(proto).gs.nodes[0].inputs] == ["c"]


def test_the_alias_of_the_default_domain_is_the_default_domain() -> None:
    proto = model("""<ir_version: 8, opset_import: ["ai.onnx" : 17]> g (float[4] x) => (float[4] y)
      { y = ai.onnx.Relu(x) }""")
    work = import_graph(proto)
    assert is_op(work.gs.nodes[0], "Relu")
    assert work.gs.opset == 17
    assert [(entry.domain, entry.version) for entry in export_graph(work).opset_import] == [("", 17)]


def test_the_opset_of_the_graph_is_what_is_exported() -> None:
    proto = model(CONV)
    work = import_graph(proto)
    work.gs.opset = 20
    work.gs.nodes[1].domain = "com.microsoft"
    result = export_graph(work)
    assert {entry.domain: entry.version for entry in result.opset_import} == {"": 20, "com.microsoft": 1}
    assert result.ir_version == 9  # the first that opset 20 came with
    assert [entry.version for entry in proto.opset_import] == [17]


def test_two_tensors_of_one_name_are_a_bug() -> None:
    work = import_graph(model(CONV))
    twin = gs.Constant("c", np.zeros(3, np.float32))
    work.gs.nodes[1].inputs.append(twin)
    with pytest.raises(PassError, match="two tensors named 'c'"):
        export_graph(work)


def test_a_name_that_hides_the_tensor_that_is_meant_is_a_bug() -> None:
    work = import_graph(model(IF.replace("own", "w")))  # the branch's own w hides the outer one
    branch = work.gs.nodes[1].attrs["else_branch"]
    branch.nodes[0].inputs[0] = work.gs.nodes[0].inputs[1]
    with pytest.raises(PassError, match="'w' names two tensors"):
        export_graph(work)


def test_external_data_that_was_not_loaded_stays_a_reference() -> None:
    proto = model(CONV)
    weights = proto.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    work = import_graph(proto)
    assert values_of(work.gs.nodes[0].inputs[1]) is None
    with pytest.raises(UnsupportedModelError, match="'w' lies in a file that was not loaded"):
        work.gs.nodes[0].inputs[1].values  # noqa: B018
    assert export_graph(work).graph.initializer[0] == weights


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    proto = model(CONV)
    proto.graph.node[0].name = proto.graph.node[1].name = "the same"
    there_and_back(proto)
    assert capfd.readouterr() == ("", "")
