"""onnx's own operator tests as models to optimize: the cases, their variants, and who judges a result.

Each case is taken in three variants: ``plain`` as it is; ``rest`` with all inputs but the first frozen to initializers;
``all`` with every input frozen. A result is judged by ONNX Runtime, all optimizations off, where that runs the
unmodified variant right; by what ONNX Runtime itself makes of the original where that differs from what onnx expects;
where it lacks the operator by onnx's reference evaluator if that is right; else by nobody.
"""

from __future__ import annotations

import glob
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
VARIANTS = ("plain", "rest", "all")
Runner = Callable[[onnx.ModelProto, Mapping[str, Any]], list[Any]]


@dataclass(frozen=True)
class Case:
    """One test: a model, what to feed it in order of its inputs, and what it must answer."""

    name: str
    model: onnx.ModelProto
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Variant:
    """A case with some inputs frozen, and what is left to feed."""

    case: Case
    kind: str
    model: onnx.ModelProto
    feed: Mapping[str, Any]


def cases() -> list[Case]:
    """Every case of the installed onnx, sorted by name. The operator tests are generated, in some seconds."""
    found = [_generated(each) for each in _node_cases()]
    data = Path(onnx.__file__).parent / "backend/test/data"
    for kind in KINDS[1:]:
        found.extend(_stored(folder, kind) for folder in (data / kind).iterdir() if (folder / "model.onnx").exists())
    return sorted(found, key=lambda case: case.name)


def variants(case: Case) -> Iterator[Variant]:
    """The case as it is, and frozen where its inputs are tensors; ``rest`` only where there are two of them."""
    names = _fed_names(case)
    values = dict(zip(names, case.inputs, strict=False))
    yield Variant(case, "plain", case.model, values)
    for kind, fixed in (("rest", names[1:]), ("all", names)):
        frozen = [name for name in fixed if name in values and _is_tensor(case.model, name, values[name])]
        if frozen and len(names) >= (2 if kind == "rest" else 1):
            left = {name: value for name, value in values.items() if name not in frozen}
            yield Variant(case, kind, _frozen(case.model, {name: values[name] for name in frozen}), left)


def with_ort(model: onnx.ModelProto, feed: Mapping[str, Any]) -> list[Any]:
    """Run a model in ONNX Runtime with all optimizations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: _unpacked(value) for name, value in feed.items()}))


def with_reference(model: onnx.ModelProto, feed: Mapping[str, Any]) -> list[Any]:
    """Run a model in onnx's reference evaluator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(
            onnx.reference.ReferenceEvaluator(model).run(None, {name: _unpacked(v) for name, v in feed.items()})
        )


@dataclass(frozen=True)
class Judge:
    """Who judges a variant, and the right answer: what the case expects, or what ONNX Runtime makes of the original."""

    name: str
    run: Runner
    answer: Sequence[Any]


def judge_of(variant: Variant) -> Judge | None:
    """The one to judge a variant by; None where nobody runs it as it is, or it answers differently each time."""
    for name, runner in (("ort", with_ort), ("reference", with_reference)):
        try:
            answer = runner(variant.model, variant.feed)
        except Exception:  # whatever it raises, it is no judge of this one
            continue
        if why_wrong(variant.case, variant.case.outputs, answer) is None:
            return Judge(name, runner, variant.case.outputs)
        if name == "ort":
            # It has the operator and differs from what onnx expects of it: the result must do as the original does.
            again = runner(variant.model, variant.feed)
            return Judge("ort itself", runner, answer) if why_wrong(variant.case, answer, again) is None else None
    return None


def why_wrong(case: Case, right: Sequence[Any], answer: Sequence[Any]) -> str | None:
    """How an answer differs from the right one; None: it does not."""
    if len(answer) != len(right):
        return f"{len(answer)} outputs, {len(right)} expected"
    for slot, (wanted, found) in enumerate(zip(right, answer, strict=True)):
        problem = _difference(_unpacked(wanted), _unpacked(found), case.rtol, case.atol)
        if problem:
            return f"output {slot}: {problem}"
    return None


def _difference(wanted: Any, found: Any, rtol: float, atol: float) -> str | None:
    if wanted is None or found is None:
        return None if wanted is None and found is None else f"{type(found).__name__}, {type(wanted).__name__} expected"
    if isinstance(wanted, list) or isinstance(found, list):
        if not isinstance(wanted, list) or not isinstance(found, list) or len(wanted) != len(found):
            return "another sequence"
        pairs = zip(wanted, found, strict=True)
        return next((text for w, f in pairs if (text := _difference(w, f, rtol, atol))), None)
    wanted, found = np.asarray(wanted), np.asarray(found)
    if found.dtype.kind in "ui" and wanted.dtype.itemsize == found.dtype.itemsize and _is_narrow_float(wanted.dtype):
        found = found.view(wanted.dtype)  # ONNX Runtime hands such values out as plain bytes.
    if wanted.shape != found.shape:
        return f"shape {found.shape}, {wanted.shape} expected"
    if wanted.dtype.kind in "OUS" or found.dtype.kind in "OUS":
        return None if wanted.astype(str).tolist() == found.astype(str).tolist() else "other strings"
    if wanted.dtype != found.dtype:
        return f"dtype {found.dtype}, {wanted.dtype} expected"
    kind = np.complex128 if wanted.dtype.kind == "c" else np.float64
    left, right = (wanted, found) if wanted.dtype.kind in "iub" else (wanted.astype(kind), found.astype(kind))
    if np.allclose(left, right, rtol=rtol, atol=atol, equal_nan=wanted.dtype.kind not in "iub"):
        return None
    return "other values"


def _is_narrow_float(dtype: np.dtype[Any]) -> bool:
    return dtype.name.startswith(("float8", "bfloat16", "float4"))


def _unpacked(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    if isinstance(value, (list, tuple)):
        return [_unpacked(item) for item in value]
    return value


def _is_tensor(model: onnx.ModelProto, name: str, value: Any) -> bool:
    declared = next(info for info in model.graph.input if info.name == name)
    return declared.type.HasField("tensor_type") and isinstance(value, (np.ndarray, np.generic, onnx.TensorProto))


def _frozen(model: onnx.ModelProto, values: Mapping[str, Any]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [info for info in copy.graph.input if info.name not in values]
    copy.graph.ClearField("input")
    copy.graph.input.extend(kept)
    for name, value in values.items():
        tensor = copy.graph.initializer.add()
        tensor.CopyFrom(value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value)))
        tensor.name = name
    if copy.ir_version < 4:
        # Only here may initializers be no inputs; those listed as inputs stay constants.
        stored = {tensor.name for tensor in copy.graph.initializer}
        kept = [info for info in copy.graph.input if info.name not in stored]
        copy.graph.ClearField("input")
        copy.graph.input.extend(kept)
        copy.ir_version = 4
    return copy


def _fed_names(case: Case) -> list[str]:
    stored = {tensor.name for tensor in case.model.graph.initializer}
    return [info.name for info in case.model.graph.input if info.name not in stored]


def _node_cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = importlib.import_module("onnx.backend.test.loader")
        return list(loader.load_node_model_tests())


def _generated(each: Any) -> Case:
    inputs, outputs = each.data_sets[0]
    return Case(each.name, each.model, inputs, outputs, each.rtol, each.atol)


def _stored(folder: Path, kind: str) -> Case:
    model = onnx.load(folder / "model.onnx")
    data = folder / "test_data_set_0"
    inputs = _values(data, "input", model.graph.input)
    outputs = _values(data, "output", model.graph.output)
    return Case(f"{kind}/{folder.name}", model, inputs, outputs, 1e-3, 1e-7)


def _values(folder: Path, prefix: str, declared: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    found = []
    for number, info in zip(range(len(glob.glob(str(folder / f"{prefix}_*.pb")))), declared, strict=False):
        raw = (folder / f"{prefix}_{number}.pb").read_bytes()
        kind = info.type.WhichOneof("value")
        message = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}.get(kind, onnx.TensorProto)
        found.append(_unpacked(message.FromString(raw)))
    return found
