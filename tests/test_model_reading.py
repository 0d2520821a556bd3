"""What ``graphopt.model`` reads and what it refuses; external data has its own file."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import graphopt
from graphopt.errors import ModelError, UnsafeModelError, UnsupportedModelError
from graphopt.model import load, read

RELU = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[N,4] y) <float[4] w = {1,2,3,4}> { h = Add(x, w) y = Relu(h) }"""


def model(text: str = RELU) -> onnx.ModelProto:
    return parser.parse_model(text)


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def nested(levels: int) -> onnx.ModelProto:
    """An If inside an If inside an If ..."""
    bool_scalar = [helper.make_tensor_value_info("y", TensorProto.BOOL, [])]
    graph = helper.make_graph([helper.make_node("Identity", ["c"], ["y0"])], "g", [], [])
    graph.output.add().CopyFrom(helper.make_tensor_value_info("y0", TensorProto.BOOL, []))
    for level in range(1, levels + 1):
        other = helper.make_graph([helper.make_node("Identity", ["c"], [f"e{level}"])], "e", [], bool_scalar)
        other.output[0].name = f"e{level}"
        choice = helper.make_node("If", ["c"], [f"y{level}"], then_branch=graph, else_branch=other)
        graph = helper.make_graph([choice], "g", [], bool_scalar)
        graph.output[0].name = f"y{level}"
    graph.input.add().CopyFrom(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# --- What is read ---------------------------------------------------------------------------------------------------


def test_reads_paths_bytes_and_protos_alike(tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    onnx.save(model(), path)
    content = path.read_bytes()
    assert load(str(path)) == load(path) == load(content) == load(model()) == model()
    assert path.read_bytes() == content


def test_says_where_a_model_came_from(tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    onnx.save(model(), path)
    from_file, from_bytes, from_proto = read(path), read(path.read_bytes()), read(model())
    assert (from_file.path, from_file.name) == (path, "relu.onnx")
    assert (from_bytes.path, from_bytes.name) == (None, "<bytes>")
    assert (from_proto.path, from_proto.name) == (None, "<ModelProto>")
    assert from_file.sha256 == from_bytes.sha256
    assert from_file.size == path.stat().st_size
    assert from_file.warnings == ()


def test_never_hands_out_the_callers_object() -> None:
    mine = model()
    theirs = load(mine)
    theirs.graph.node[0].name = "renamed"
    theirs.graph.initializer[0].name = "other"
    assert mine == model()


def test_keeps_names_documentation_and_metadata() -> None:
    text = RELU.replace('["": 17]', '["": 17], producer_name: "me", doc_string: "doc", metadata_props: ["a": "b"]')
    assert load(model(text)) == model(text)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21, 25])
def test_reads_every_opset_from_7(opset: int) -> None:
    proto = model(RELU.replace("17", str(opset)))
    proto.ir_version = helper.find_min_ir_version_for(proto.opset_import)
    if proto.ir_version == 3:
        proto.graph.input.add().CopyFrom(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    assert load(proto) == proto


def test_warns_of_an_opset_that_runtimes_do_not_guarantee() -> None:
    proto = model('<ir_version: 7, opset_import: ["": 6]> g (float[4] x) => (float[4] y) { y = Relu(x) }')
    assert "opset 6 is older than 7" in read(proto).warnings[0]


def test_one_spelling_of_the_standard_domain() -> None:
    proto = model(RELU.replace('"": 17', '"ai.onnx": 17'))
    proto.graph.node[0].domain = "ai.onnx"
    read_back = load(proto)
    assert (read_back.opset_import[0].domain, read_back.graph.node[0].domain) == ("", "")


def test_a_negative_dimension_of_a_value_is_read_as_open() -> None:
    proto = model()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    for value in (*load(proto).graph.input, *load(proto).graph.output):
        batch, channels = value.type.tensor_type.shape.dim
        assert (batch.WhichOneof("value"), channels.dim_value) == (None, 4)


def test_sorts_nodes_that_are_out_of_order_and_says_so() -> None:
    proto = model()
    proto.graph.node.reverse()
    result = read(proto)
    assert ops(result.proto) == ["Add", "Relu"]
    assert "not in topological order" in result.warnings[0]


def test_sorting_sees_what_subgraphs_capture() -> None:
    proto = model("""<ir_version: 8, opset_import: ["": 17]> g (bool c, float[4] x) => (float[4] y, float[4] z) {
        y = If(c) <then_branch = t () => (float[4] a) { a = Abs(h) }, else_branch = e () => (float[4] b) { b = Neg(h) }>
        z = Exp(x)
        h = Relu(x) }""")
    assert ops(load(proto)) == ["Exp", "Relu", "If"]


def test_sorts_inside_subgraphs_too() -> None:
    proto = model("""<ir_version: 8, opset_import: ["": 17]> g (bool c, float[4] x) => (float[4] y) {
        y = If(c) <then_branch = t () => (float[4] a) { a = Abs(k) k = Relu(x) },
            else_branch = e () => (float[4] b) { b = Neg(x) }> }""")
    then_branch = load(proto).graph.node[0].attribute[0].g
    assert [node.op_type for node in then_branch.node] == ["Relu", "Abs"]


def test_an_ir_3_model_that_lists_no_initializers_as_inputs_is_read_as_ir_4() -> None:
    proto = model(RELU.replace("ir_version: 8", "ir_version: 3").replace("17", "8"))
    result = read(proto)
    assert result.proto.ir_version == 4
    assert "IR version 3" in result.warnings[0]


def test_reads_operators_of_onnx_runtime_and_functions_of_the_model() -> None:
    proto = model("""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "mine": 1]>
        g (float[4] x) => (float[4] y) { h = com.microsoft.Gelu(x) y = mine.twice(h) }
        <domain: "mine", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }""")
    assert load(proto) == proto


def test_reads_empty_and_packed_tensors() -> None:
    proto = model()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty"))
    proto.graph.initializer.append(helper.make_tensor("nibbles", TensorProto.UINT4, [3], [1, 2, 3]))
    proto.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b"]))
    proto.graph.initializer.append(helper.make_tensor("complex", TensorProto.COMPLEX64, [2], [1 + 2j, 3j]))
    proto.ir_version = 10
    assert load(proto) == proto


def test_reads_subgraphs_as_deep_as_protobuf_can_hold() -> None:
    assert load(nested(30)) == nested(30)


# --- What is not a model --------------------------------------------------------------------------------------------


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.zeros(3))
    return stream.getvalue()


def zipped(member: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(member, "content")
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
JSON = b'{"irVersion": "8", "graph": {"node": []}}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "zero bytes", id="zero bytes"),
        pytest.param(LFS, "git lfs pull", id="Git LFS pointer"),
        pytest.param(b"<!DOCTYPE html><html><body>404</body></html>", "HTML page", id="HTML"),
        pytest.param(b'<?xml version="1.0"?><net name="m"/>', "XML document", id="XML"),
        pytest.param(b"hello, this is no model\n", "a text file", id="text"),
        pytest.param("schöne Grüße\n".encode(), "a text file", id="UTF-8 text"),
        pytest.param(JSON, "ONNX in text form", id="JSON form of ONNX"),
        pytest.param(RELU.encode(), "ONNX in text form", id="text form of ONNX"),
        pytest.param(np.random.default_rng(0).bytes(4096), "not an ONNX model, or damaged", id="random bytes"),
        pytest.param(bytes(4096), "not an ONNX model, or damaged", id="zeros"),
        pytest.param(b"\x1f\x8b\x08\x00rest", "gzip", id="gzip"),
        pytest.param(zipped("readme.txt"), "a zip archive", id="zip"),
        pytest.param(zipped("model/data.pkl"), "a PyTorch checkpoint", id="PyTorch checkpoint"),
        pytest.param(npz(), "NumPy .npz", id="npz"),
        pytest.param(pickle.dumps({"weights": [1, 2]}), "Python pickle", id="pickle"),
        pytest.param(b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite", id="TFLite"),
        pytest.param(b"\x1c\x00\x00\x00ORTM" + bytes(64), ".ort file", id="ORT format"),
        pytest.param((30).to_bytes(8, "little") + b'{"w":{}}', "safetensors", id="safetensors"),
        pytest.param(onnx.ModelProto(ir_version=8).SerializeToString(), "not an ONNX model", id="no graph"),
        pytest.param(model().graph.SerializeToString(), "not an ONNX model", id="a graph without its model"),
    ],
)
def test_says_what_a_file_is_instead_of_a_model(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for source, name in ((path, "model.onnx"), (content, "<bytes>")):
        with pytest.raises(ModelError, match=rf"^{name}: ") as caught:
            read(source)
        assert reason in str(caught.value)


def test_a_file_cut_anywhere_is_refused() -> None:
    content = model().SerializeToString()
    for length in range(len(content)):
        with pytest.raises(ModelError):
            read(content[:length])


def test_a_truncated_file_is_called_truncated() -> None:
    content = model().SerializeToString()
    with pytest.raises(ModelError, match=rf"cut short: it is {len(content) - 30} bytes long.*copy or download"):
        read(content[:-30])


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read(tmp_path / "absent.onnx")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it is a folder"):
        read(tmp_path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        read(tmp_path / "pipe.onnx")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(), path)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # chmod would not stop root
    with pytest.raises(ModelError, match="no permission to read"):
        read(path)


@pytest.mark.parametrize("source", ["a\0b.onnx", 7, None, ["model.onnx"]])
def test_not_a_source_at_all(source: object) -> None:
    with pytest.raises(ModelError):
        read(source)  # type: ignore[arg-type]


def test_a_file_above_the_limit_of_protobuf_is_told_about_external_data(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with open(path, "wb") as stream:
        stream.truncate(2**31)  # sparse: takes no room
    with pytest.raises(ModelError, match="save_as_external_data=True"):
        read(path)


# --- Models that are refused ----------------------------------------------------------------------------------------

CALLS = """<ir_version: 8, opset_import: ["": 17, "f": 1]> g (float[4] x) => (float[4] y) { y = f.one(x) }
<domain: "f", opset_import: ["": 17, "f": 1]> one (a) => (b) { b = f.two(a) }
<domain: "f", opset_import: ["": 17, "f": 1]> two (a) => (b) { b = f.one(a) }"""


def chain(length: int, width: int) -> onnx.ModelProto:
    """Functions f0 .. f<length>, each calling the next one ``width`` times: width ** length nodes."""
    imports = '<domain: "f", opset_import: ["": 17, "f": 1]>'
    text = '<ir_version: 8, opset_import: ["": 17, "f": 1]> g (float[4] x) => (float[4] y) { y = f.f0(x) }\n'
    for level in range(length):
        steps = " ".join(f"t{step + 1} = f.f{level + 1}(t{step})" for step in range(width))
        text += f"{imports} f{level} (t0) => (t{width}) {{ {steps} }}\n"
    return model(text + f"{imports} f{length} (a) => (b) {{ b = Relu(a) }}")


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        pytest.param(RELU.replace("17", "999"), UnsupportedModelError, "opset 999 is newer than", id="opset too new"),
        pytest.param(RELU.replace("8,", "999,"), UnsupportedModelError, "IR version 999 is newer", id="IR too new"),
        pytest.param(RELU.replace("8,", "2,"), UnsupportedModelError, "IR version 2 is older", id="IR too old"),
        pytest.param(RELU.replace("17", "0"), ModelError, "opset version 0", id="opset 0"),
        pytest.param(
            RELU.replace("17]", f'17, "ai.onnx.ml": {2**40}]'), ModelError, "is impossible", id="version out of range"
        ),
        pytest.param(RELU.replace("Relu", "Relo"), UnsupportedModelError, r"'y' \(Relo\).*unknown operator", id="op"),
        pytest.param(
            RELU.replace("= Relu", "= Gelu"), UnsupportedModelError, "'Gelu'.* at version 17", id="op of a later opset"
        ),
        pytest.param(
            RELU.replace("Relu(h)", "Upsample(h, w)"), UnsupportedModelError, "no longer part of", id="op of old opset"
        ),
        pytest.param(
            RELU.replace("17]", '17, "acme": 1]').replace("Relu", "acme.Relu"),
            UnsupportedModelError,
            r"'y' \(acme::Relu\).*unknown operator domain 'acme'",
            id="unknown domain",
        ),
        pytest.param(
            RELU.replace("17]", '17, "com.microsoft.nchwc": 1]').replace("Relu", "com.microsoft.nchwc.Conv"),
            UnsupportedModelError,
            "ONNX Runtime's optimizer for one kind of CPU",
            id="ONNX Runtime's internal layout",
        ),
        pytest.param(
            RELU.replace("Relu", "ai.onnx.ml.Nope").replace("17]", '17, "ai.onnx.ml": 3]'),
            UnsupportedModelError,
            "unknown operator 'Nope'",
            id="unknown operator of the ML domain",
        ),
        pytest.param(
            RELU.replace("Relu", "acme.Relu"), UnsupportedModelError, "not imported", id="domain not imported"
        ),
        pytest.param(RELU.replace("Relu(h)", "Relu(nothing)"), ModelError, "nothing.*Relu", id="undefined value"),
        pytest.param(RELU.replace("h = Add(x, w)", "h = Add(y, w)"), ModelError, "cycle through node 'h'", id="cycle"),
        pytest.param(RELU.replace("Relu(h)", "Relu<axis = 1>(h)"), ModelError, "axis.*Relu", id="bad attribute"),
        pytest.param(RELU.replace("h", "y"), ModelError, "y.*Relu|Relu.*y|SSA|cycle", id="value computed twice"),
        pytest.param(CALLS, ModelError, "function f::.* calls itself", id="functions that recurse"),
        pytest.param(
            CALLS.replace("b = f.one", "b = Relu").replace("two (a)", "one (a)"), ModelError, "defined twice", id="twin"
        ),
    ],
)
def test_refuses(text: str, kind: type[ModelError], reason: str) -> None:
    with pytest.raises(kind, match=reason) as caught:
        read(model(text))
    assert str(caught.value).startswith("<ModelProto>: ")


@pytest.mark.parametrize("missing", ["node", "output"])
def test_refuses_an_empty_graph(missing: str) -> None:
    proto = model()
    proto.graph.ClearField(missing)
    with pytest.raises(ModelError, match="empty graph"):
        read(proto)


def test_refuses_a_model_without_opset() -> None:
    proto = model()
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="no opset is imported"):
        read(proto)


def test_refuses_contradicting_opsets() -> None:
    proto = model()
    proto.opset_import.add(domain="ai.onnx", version=11)
    with pytest.raises(ModelError, match=r"'ai\.onnx' is imported in two versions"):
        read(proto)


def test_refuses_functions_that_explode() -> None:
    assert len(load(chain(3, 2)).functions) == 4
    with pytest.raises(UnsupportedModelError, match="functions expanded the model has more than 10,000,000 nodes"):
        read(chain(30, 4))


def test_refuses_functions_that_call_each_other_too_deep() -> None:
    with pytest.raises(UnsupportedModelError, match="more than 64 deep"):
        read(chain(70, 1))


def test_refuses_subgraphs_nested_too_deep() -> None:
    with pytest.raises(UnsupportedModelError, match="nested 31 levels deep"):
        read(nested(31))


def test_refuses_bytes_nested_deeper_than_protobuf_parses() -> None:
    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 0x7F:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(60):
        graph = field(1, field(5, field(6, graph)))  # graph.node.attribute.g
    with pytest.raises(UnsupportedModelError, match="nested too deep"):
        read(b"\x08\x08" + field(7, graph))


def test_refuses_too_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.model.structure.MAX_NODES", 1)
    with pytest.raises(UnsupportedModelError, match="more than 1 nodes"):
        read(model())


# --- Tensors that lie about themselves ------------------------------------------------------------------------------


def tensor(kind: int, dims: list[int], raw: bytes | None = None, **fields: object) -> onnx.TensorProto:
    proto = onnx.TensorProto(name="w", data_type=kind, dims=dims, **fields)
    if raw is not None:
        proto.raw_data = raw
    return proto


LIES = [
    pytest.param(tensor(TensorProto.FLOAT, [4], bytes(15)), "needs 16 bytes of data, but holds 15", id="short"),
    pytest.param(tensor(TensorProto.FLOAT, [4], bytes(17)), "needs 16 bytes of data, but holds 17", id="long"),
    pytest.param(tensor(TensorProto.FLOAT, [2**40, 2**40], b""), "but holds 0", id="absurd dims"),
    pytest.param(tensor(TensorProto.FLOAT, [-1], b""), "negative dimension", id="negative dim"),
    pytest.param(tensor(TensorProto.INT4, [5], bytes(2)), "needs 3 bytes of data, but holds 2", id="packed 4 bit"),
    pytest.param(tensor(TensorProto.FLOAT, [4], float_data=[1.0]), "needs 4 values", id="short typed values"),
    pytest.param(tensor(TensorProto.FLOAT, [1], float_data=[1.0, 2.0]), "needs 1 values", id="long typed values"),
    pytest.param(tensor(TensorProto.FLOAT, [1], float_data=[1.0], int64_data=[1]), "int64_data", id="two fields"),
    pytest.param(tensor(TensorProto.STRING, [1], b"a"), "strings as raw bytes", id="raw strings"),
    pytest.param(tensor(99, [1], bytes(4)), "unknown data type 99", id="unknown type"),
    pytest.param(
        tensor(TensorProto.FLOAT, [1], bytes(4), segment=TensorProto.Segment(begin=0, end=1)), "segments", id="segments"
    ),
]


def in_initializer(bad: onnx.TensorProto) -> onnx.ModelProto:
    proto = model()
    proto.graph.initializer[0].CopyFrom(bad)
    return proto


def in_constant(bad: onnx.TensorProto) -> onnx.ModelProto:
    proto = model('<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[4] y) { y = Relu(x) }')
    proto.graph.node.append(helper.make_node("Constant", [], ["w"], value=bad))
    return proto


def in_subgraph(bad: onnx.TensorProto) -> onnx.ModelProto:
    proto = model("""<ir_version: 8, opset_import: ["": 17]> g (bool c, float[4] x) => (float[4] y) {
        y = If(c) <then_branch = t () => (float[4] a) { a = Abs(x) },
            else_branch = e () => (float[4] b) { b = Neg(x) }> }""")
    proto.graph.node[0].attribute[1].g.initializer.add().CopyFrom(bad)
    return proto


def in_function(bad: onnx.TensorProto) -> onnx.ModelProto:
    proto = model(CALLS.replace("b = f.one", "b = Relu"))
    proto.functions[1].node.append(helper.make_node("Constant", [], ["w"], value=bad))
    return proto


def in_sparse_initializer(bad: onnx.TensorProto) -> onnx.ModelProto:
    proto = model()
    sparse = proto.graph.sparse_initializer.add(dims=[8])
    sparse.values.CopyFrom(bad)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4), "indices"))
    return proto


PLACES = [in_initializer, in_constant, in_subgraph, in_function, in_sparse_initializer]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("bad", "reason"), LIES)
def test_refuses_a_tensor_that_does_not_hold_what_it_declares(place, bad, reason) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((UnsafeModelError, UnsupportedModelError), match=reason):
        read(place(bad))


# --- Damage at random -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"), [(b"Relu", "a name in the graph is not UTF-8"), (b"note", "text that is not UTF-8")]
)
def test_refuses_text_that_is_not_utf_8(text: bytes, reason: str) -> None:
    proto = in_subgraph(numpy_helper.from_array(np.zeros(1, np.float32)))
    proto.graph.node[0].doc_string = "note"  # the only field of this node that is not a name
    proto.graph.node.append(helper.make_node("Relu", ["x"], ["unused"]))
    with pytest.raises(ModelError, match=reason):
        read(proto.SerializeToString().replace(text, b"\xff" + text[1:]))


@pytest.mark.parametrize("source", [model(), model(CALLS.replace("b = f.one", "b = Relu")), nested(3)])
def test_damage_is_refused_with_a_message_and_never_crashes(source: onnx.ModelProto) -> None:
    rng, refusals = np.random.default_rng(0), []
    for _ in range(150):
        content = bytearray(source.SerializeToString())
        for position in rng.integers(len(content), size=rng.integers(1, 4)):
            content[position] = rng.integers(256)
        try:
            read(bytes(content))
        except ModelError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert all(refusal.startswith("<bytes>: ") for refusal in refusals)


def test_outputs_without_a_declared_shape_are_read(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) { a = Identity(x)  y = Relu(a) }'
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "open.onnx")
    result = graphopt.optimize(tmp_path / "open.onnx")
    result.save(tmp_path / "closed.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "closed.onnx").graph.node] == ["Relu"]
