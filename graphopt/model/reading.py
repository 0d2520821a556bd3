"""Read a model from a path, bytes or memory, and trust none of it until it is vetted."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from graphopt.errors import GraphoptError, LfsPointerError, ModelError, UnsupportedModelError
from graphopt.model.content import content_hash
from graphopt.model.external import ExternalData, load_external, open_vetted, vet_external
from graphopt.model.filetype import LFS_POINTER, describe
from graphopt.model.structure import MAX_DEPTH, vet_structure
from graphopt.model.tensors import is_external, vet_values
from graphopt.model.walk import tensors

ModelSource: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one protobuf message can hold."""
STRUCTURE_BYTES = 64 * 1024
"""External tensors up to this size are read even without weights: shapes and axes may be among them."""
_CHUNK = 1 << 22


@dataclass(frozen=True)
class LoadedModel:
    """A vetted model and where it came from.

    Attributes:
        proto: the model; its own object, with external weights in memory unless it was read without weights.
        path: the file; None for bytes and protos.
        name: file name, ``<bytes>`` or ``<ModelProto>``, for messages.
        sha256: hex digest of the model file followed by its data files in the order of their paths.
        size: bytes of the model file and its data files together.
        warnings: what the reader should know.
        data_files: the external data files that are present.
        absent: names of those that are not.
        mended: those of the warnings that tell of breaches of the ONNX specification which reading has mended.
    """

    proto: onnx.ModelProto
    path: Path | None
    name: str
    sha256: str
    size: int
    warnings: tuple[str, ...] = ()
    data_files: tuple[Path, ...] = ()
    absent: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()


def load(source: ModelSource) -> onnx.ModelProto:
    """Vetted model with all its weights in memory; never the caller's own object.

    Raises:
        ModelError: the source cannot be read, or is not a valid ONNX model.
        UnsafeModelError: it points outside its folder, or lies about its data.
        UnsupportedModelError: versions, operators or sizes beyond what is known here.
    """
    return read(source).proto


def read(source: ModelSource, *, weights: bool = True) -> LoadedModel:
    """Vetted model with its path, hash, size and warnings.

    Args:
        source: path of a file, the content of one, or a model in memory.
        weights: False reads the structure only: external tensors of more than 64 KiB stay external, and their files
            may be absent, which is a warning. What is present is vetted all the same.

    Raises:
        ModelError: as ``load``, or of the subclass that says why; it names the source.
    """
    path, name = _identify(source)
    try:
        proto, digest, size = _parse(source)
        for tensor, where in tensors(proto):
            if not is_external(tensor):
                _vet_embedded(tensor, where)
        warnings, mended = vet_structure(proto)
        data = vet_external(proto, path.parent if path else None, may_be_absent=not weights)
        for file in data.files:
            with open_vetted(file) as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        load_external(data, up_to=None if weights else STRUCTURE_BYTES)
    except GraphoptError as error:
        raise type(error)(f"{name}: {error}") from error
    except UnicodeDecodeError as error:  # documentation and metadata; names are vetted one by one
        raise ModelError(f"{name}: the model contains text that is not UTF-8; the file is damaged") from error
    except MemoryError as error:
        raise ModelError(f"{name}: not enough memory to load the model") from error
    return LoadedModel(
        proto=proto,
        path=path,
        name=name,
        sha256=digest.hexdigest(),
        size=size + sum(file.size for file in data.files),
        warnings=tuple(warnings + mended + _absence(data)),
        data_files=tuple(file.path for file in data.files),
        absent=data.absent,
        mended=tuple(mended),
    )


def _identify(source: ModelSource) -> tuple[Path | None, str]:
    if isinstance(source, onnx.ModelProto):
        return None, "<ModelProto>"
    if isinstance(source, bytes):
        return None, "<bytes>"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return path, path.name or str(path)
    raise ModelError(f"a model is given as a path, bytes or onnx.ModelProto, not as {type(source).__name__}")


def _parse(source: ModelSource) -> tuple[onnx.ModelProto, hashlib._Hash, int]:
    """The parsed model, a running hash of its bytes, and their number."""
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        digest, size = content_hash(proto)
        return proto, digest, size
    content = source if isinstance(source, bytes) else _file_bytes(Path(source))
    proto = onnx.ModelProto()
    if content.startswith(LFS_POINTER):
        raise LfsPointerError(f"the file is {describe(content)}")
    if not content:
        raise ModelError(f"the file is {describe(content)}")
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        if "depth" in str(error).lower():
            raise UnsupportedModelError(
                f"subgraphs are nested too deep; at most {MAX_DEPTH} levels are read"
            ) from error
        raise ModelError(f"the file is {describe(content)}") from error
    if not proto.ir_version or not proto.HasField("graph"):
        # Other formats can happen to parse: protobuf skips what it does not know.
        raise ModelError(f"the file is {describe(content)}")
    return proto, hashlib.sha256(content), len(content)


def _file_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError("it is a folder; give the .onnx file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError("it is not a regular file")
        if status.st_size > PROTOBUF_LIMIT:
            raise ModelError(
                f"it is {status.st_size:,} bytes long, but an ONNX file holds at most 2 GB; save the model with "
                "external data (onnx.save(model, path, save_as_external_data=True))"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"no such file: {path}") from error
    except PermissionError as error:
        raise ModelError(f"no permission to read {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ModelError(f"cannot be read: {error}") from error


def _vet_embedded(tensor: onnx.TensorProto, where: str) -> None:
    try:
        vet_values(tensor)
    except ModelError as error:
        raise type(error)(f"{where}: {error}") from error


def _absence(data: ExternalData) -> list[str]:
    if not data.absent:
        return []
    names = ", ".join(repr(name) for name in data.absent)
    return [f"external data absent: {names}; only the structure was read, and the hash covers what is present"]
