"""Say what a file is when it is not an ONNX model, so that the message tells the reader what to do."""

from __future__ import annotations

LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_ONNX_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})  # field numbers of ModelProto, onnx.proto
_GRAPH_FIELD = 7

_EXPORT = "export the model to ONNX first"
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"\x93NUMPY", "a NumPy array, not a model"),
    (0, b"\x89HDF\r\n", f"an HDF5 file (Keras?); {_EXPORT}"),
    (0, b"GGUF", f"a GGUF file; {_EXPORT}"),
    (4, b"TFL3", f"a TensorFlow Lite model; {_EXPORT}"),
    (4, b"ORTM", "an ONNX Runtime .ort file; give the .onnx model that it was made from"),
    (0, b"ptrt", "a TensorRT engine; give the .onnx model that it was built from"),
    (0, b"ftrt", "a TensorRT engine; give the .onnx model that it was built from"),
    (0, b"\x7fELF", "a program or shared library, not a model"),
    (0, b"%PDF", "a PDF document, not a model"),
    (8, b'{"', f"a safetensors file; {_EXPORT}"),
)


def describe(content: bytes) -> str:
    """Words that complete 'this is ...', for content that protobuf could not parse as a model.

    ``content`` is the whole file, so that a truncated model can be told from something else.
    """
    if not content:
        return "empty (zero bytes); the download or the export did not finish"
    for recognise in (_describe_magic, _describe_zip, _describe_pickle, _describe_text, _describe_cut):
        words = recognise(content)
        if words:
            return words
    return "not an ONNX model, or damaged; copy or download it again"


def _describe_magic(content: bytes) -> str | None:
    if content.startswith(LFS_POINTER):
        return "a Git LFS pointer, not the model itself; fetch the model with `git lfs pull`"
    return next((words for at, magic, words in _MAGIC if content[at : at + len(magic)] == magic), None)


def _describe_zip(content: bytes) -> str | None:
    if not content.startswith(b"PK\x03\x04"):
        return None
    if b"data.pkl" in content[:4096] or b"/data/" in content[:4096]:
        return (
            f"a PyTorch checkpoint (zip with a pickle inside), which is never opened; {_EXPORT} with torch.onnx.export"
        )
    if b".npy" in content[:4096]:
        return "a NumPy .npz archive: data, not a model"
    return "a zip archive; unpack it first"


def _describe_pickle(content: bytes) -> str | None:
    if content[:1] == b"\x80" and content[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and content.endswith(b"."):
        return f"a Python pickle (PyTorch or scikit-learn?), which is never opened; {_EXPORT}"
    return None


def _describe_text(content: bytes) -> str | None:
    text = _as_text(content[:4096])
    if text is None:
        return None
    head = text.lstrip("\ufeff \r\n\t").lower()
    if head.startswith(("<!doctype html", "<html")):
        return "an HTML page, probably an error or login page of a download; download the file itself"
    if head.startswith("<?xml"):
        return "an XML document (OpenVINO?); the .onnx file is needed"
    if "ir_version" in head or "irversion" in head:
        return "ONNX in text form; convert it to the binary form with onnx.load and onnx.save"
    return "a text file, not a model"


def _as_text(start: bytes) -> str | None:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # later, a character may only be cut by the end of the sample
            return None
        text = start[: error.start].decode("utf-8")
    if any(not character.isprintable() and character not in "\r\n\t\f\ufeff" for character in text):
        return None
    return text


def _describe_cut(content: bytes) -> str | None:
    """Recognise a truncated model: known fields from the start, the last one longer than what is left of the file."""
    position = 0
    seen = set()
    while position < len(content):
        tag, position = _varint(content, position)
        if tag is None or tag >> 3 not in _ONNX_FIELDS or tag & 7 not in (0, 2):
            return None
        seen.add(tag >> 3)
        value, position = _varint(content, position)
        if value is None:
            break
        if tag & 7 == 2:
            position += value
    if position <= len(content) and value is not None:
        return None
    # One field alone proves little: random bytes can look like one. A model starts with its IR version or its graph.
    if 1 not in seen and _GRAPH_FIELD not in seen:
        return None
    return (
        f"cut short: it is {len(content):,} bytes long, but its contents say at least {position:,}; "
        "copy or download it again"
    )


def _varint(content: bytes, position: int) -> tuple[int | None, int]:
    """Decode a protobuf varint at ``position``; (None, end) where the content ends first or it is malformed."""
    value = shift = 0
    while position < len(content) and shift < 70:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    return None, position
