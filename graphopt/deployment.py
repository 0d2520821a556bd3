"""How the result is put to use on the target: the command that builds an engine of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from graphopt.graph import infer_types
from graphopt.passes.float16.names import precision_of_layers
from graphopt.report.schema import Stage
from graphopt.runtime import TensorSpec, input_specs
from graphopt.targets import Hardware

# trtexec knows --stronglyTyped from here on, and needs no such option from there on, where nothing else is left
# (TensorRT 10 documentation, 'Strongly-typed networks'; Migrating TensorRT from 10.x to 11.x).
_STRONGLY_TYPED_OPTION, _ALWAYS_STRONGLY_TYPED = (10,), (11,)
# Of names with these in them trtexec would make something else. What it cannot be told to keep forbids float16.
_MEANT_BY_TRTEXEC = {",", ":"}
# Batches that an engine of a model with an open batch takes at most, unless the samples have more in one.
LARGEST_BATCH = 8
# Ending of the calibration cache beside the model.
CALIBRATION = ".calibration"


def engine_command(
    model: onnx.ModelProto,
    path: str | Path,
    hardware: Hardware,
    shapes: Mapping[str, Sequence[int]],
    endings: Sequence[str] = (),
    *,
    float32: Sequence[str] | None,
) -> str | None:
    """The ``trtexec`` line for a model; None where the target's runtime builds no engines.

    Args:
        model: the result.
        path: where it is, or will be.
        hardware: facts about the target.
        shapes: shapes of the inputs that it was optimized with: the engine is tuned for them.
        endings: of the files beside it.
        float32: nodes that must not run in float16 where the runtime chooses types by itself; None: none may.
    """
    if hardware.runtime != "tensorrt":
        return None
    path = Path(path)
    words = ["trtexec", f"--onnx={path.name}", f"--saveEngine={path.with_suffix('.engine').name}"]
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    calibrated = CALIBRATION in endings
    if hardware.strongly_typed:
        if _STRONGLY_TYPED_OPTION <= hardware.version < _ALWAYS_STRONGLY_TYPED:
            words.append("--stronglyTyped")
    else:
        if float32 and not precision_of_layers(hardware):
            float32 = None
        if "float16" in hardware.precisions and (float32 is not None or "float32" not in hardware.precisions):
            words.append("--fp16")
        if float32:
            words += _precisions(model, float32)
        if quantized or calibrated:
            words.append("--int8")
    if calibrated:
        words.append(f"--calib={path.with_suffix(CALIBRATION).name}")
    if hardware.accelerator:
        words += ["--useDLACore=0", "--allowGPUFallback"]
    return shlex.join([*words, *_profile(input_specs(model), shapes)])


def _precisions(model: onnx.ModelProto, float32: Sequence[str]) -> list[str]:
    """Options that keep nodes in float32, and in it what they hand on.

    trtexec gives the type to every output of a layer, also to those that hold positions or truth values, which the
    builder refuses (TensorRT, samples/common/sampleEngines.cpp, setLayerOutputTypes): nodes with such an output are
    left out of the second list, and so are those in bodies, of whose types nothing is known here.
    """
    types = infer_types(model)

    def hands_on_floats(node: onnx.NodeProto) -> bool:
        known = [types.get(name) for name in node.output if name]
        return all(found is None or found.dtype in (0, onnx.TensorProto.FLOAT) for found in known)

    floats = {node.name for node in model.graph.node if hands_on_floats(node)}
    found = ["--precisionConstraints=obey", _fp32("--layerPrecisions", float32)]
    kept = [name for name in float32 if name in floats]
    return [*found, _fp32("--layerOutputTypes", kept)] if kept else found


def _fp32(option: str, names: Sequence[str]) -> str:
    return f"{option}={','.join(f'{name}:fp32' for name in names)}"


def left_in_float32(stages: Sequence[Stage]) -> Sequence[str] | None:
    """Nodes that a runtime which chooses types by itself must leave in float32; None: all, no pass vouches for another.

    ``stages``: of the result. A stage that may leave float32 says in its details where float16 is ``written``.
    """
    for stage in reversed(stages):
        if stage.changes and "written" in stage.details:
            names: Sequence[str] = stage.details["keep_float32"] if stage.details["written"] == "runtime option" else ()
            return None if any(_MEANT_BY_TRTEXEC & set(name) for name in names) else names
    return None


def _profile(specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The optimization profile of inputs that have open dimensions: the first is the batch, the others are as given."""
    open_inputs = [spec for spec in specs if spec.shape and not all(isinstance(size, int) for size in spec.shape)]
    if not open_inputs or any(spec.name not in shapes for spec in open_inputs):
        return []

    def option(name: str, batch: int | None) -> str:
        written = []
        for spec in open_inputs:
            sizes = list(shapes[spec.name])
            if batch is not None and spec.shape and not isinstance(spec.shape[0], int):
                sizes[0] = max(batch, sizes[0]) if batch > 1 else 1
            written.append(f"{spec.name}:{'x'.join(map(str, sizes))}")
        return f"--{name}={','.join(written)}"

    return [option("minShapes", 1), option("optShapes", None), option("maxShapes", LARGEST_BATCH)]
