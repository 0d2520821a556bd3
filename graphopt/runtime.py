"""The one place that opens ONNX Runtime sessions.

ONNX Runtime is imported inside the functions: ``import graphopt`` must stay fast, and ``inspect`` needs no runtime.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from graphopt.errors import UnsupportedModelError, UsageError
from graphopt.model import model_bytes

if TYPE_CHECKING:
    import onnxruntime as ort

# protobuf refuses messages of 2 GiB and more, and even to tell their size (protobuf doc, 'Encoding'): with weights of
# this many bytes a model goes through a file.
LARGEST_MESSAGE = 1_900_000_000


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and declared shape of a model input or output; a dimension is an int, a symbol or None."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class KernelTime:
    """Median time of one node of the optimized graph over the profiled runs.

    Attributes:
        node: name of the node in the graph that ONNX Runtime made.
        operator: its operator type.
        microseconds: median time of the kernel.
        quickest: lower quartile of the same, less disturbed by what else the machine does.
        input_shapes: shapes of the node's tensors inputs, as the runtime saw them in the last run.
    """

    node: str
    operator: str
    microseconds: float
    quickest: float
    input_shapes: tuple[tuple[int, ...], ...]


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Read one graph input or output; a non-tensor one has dtype object and shape None."""
    if not value.type.HasField("tensor_type"):
        return TensorSpec(value.name, np.dtype(object), None)
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else np.dtype(object)
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, dtype, None)
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype, shape)


def input_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Return the inputs that a caller must feed; initializers listed as inputs are left out."""
    initialized = {tensor.name for tensor in model.graph.initializer}
    return tuple(tensor_spec(value) for value in model.graph.input if value.name not in initialized)


def output_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Return the outputs of the model."""
    return tuple(tensor_spec(value) for value in model.graph.output)


def session_options(threads: int = 1, optimize: bool = True) -> ort.SessionOptions:
    """Return the options that every session of graphopt has: sequential, quiet, with ``threads`` intra-op threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return options


def session(
    model: onnx.ModelProto | bytes | str | os.PathLike[str],
    *,
    threads: int = 1,
    optimize: bool = True,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    options: ort.SessionOptions | None = None,
) -> ort.InferenceSession:
    """Open a session.

    Args:
        model: the model; one over 2 GB goes through a temporary file with external data.
        threads: intra-op threads.
        optimize: whether ONNX Runtime's graph optimizations run (all or none).
        providers: execution providers, the preferred first.
        options: session options to use instead of those that ``threads`` and ``optimize`` give.

    Raises:
        UnsupportedModelError: ONNX Runtime refuses the model; its reason is in the message.
        UsageError: a provider is not available in this installation of ONNX Runtime.
    """
    import onnxruntime as ort

    missing = [name for name in providers if name not in ort.get_available_providers()]
    if missing:
        available = ", ".join(ort.get_available_providers())
        raise UsageError(f"execution provider {', '.join(missing)} is not available here; available: {available}")
    if options is None:
        options = session_options(threads, optimize)

    def opened(source: str | bytes) -> ort.InferenceSession:
        # Left to itself it tries again with other providers, and says so on standard output.
        return ort.InferenceSession(source, sess_options=options, providers=list(providers), enable_fallback=0)

    try:
        if not isinstance(model, onnx.ModelProto):
            return opened(model if isinstance(model, bytes) else os.fspath(model))
        if model_bytes(model) < LARGEST_MESSAGE:
            return opened(model.SerializeToString())
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            path = Path(folder) / "model.onnx"
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            onnx.save_model(copy, str(path), save_as_external_data=True, location="model.onnx.data")
            return opened(str(path))
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes of its own
        if isinstance(error, (KeyboardInterrupt, MemoryError)):
            raise
        raise UnsupportedModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error


def run(
    opened: ort.InferenceSession, feed: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None = None
) -> dict[str, Any]:
    """Run an opened session once and return its outputs by name.

    Raises:
        UnsupportedModelError: the run fails; ONNX Runtime's reason is in the message.
    """
    names = list(outputs) if outputs is not None else [output.name for output in opened.get_outputs()]
    try:
        return dict(zip(names, opened.run(names, dict(feed)), strict=True))
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise UnsupportedModelError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error


def optimized_graph(model: onnx.ModelProto, threads: int = 1) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime makes of ``model`` with all its optimizations, as it will execute it.

    Weights stay out of it: only the structure is of use.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = session_options(threads)
        options.optimized_model_filepath = str(path)
        # Weights to a side file that is never read: the structure is wanted, quickly.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        session(model, options=options)
        return onnx.load_model(str(path), load_external_data=False)


def profile(
    model: onnx.ModelProto,
    feed: Mapping[str, np.ndarray[Any, Any]],
    *,
    runs: int = 20,
    warmup: int = 3,
    threads: int = 1,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> tuple[KernelTime, ...]:
    """Time every kernel of the optimized graph over ``runs`` runs with ONNX Runtime's own profiler.

    Returns:
        one entry a node, in the order of execution, times in microseconds (median of the runs after ``warmup``).
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        opened = session(model, options=options, providers=providers)
        for _ in range(warmup + runs):
            run(opened, feed)
        events = json.loads(Path(opened.end_profiling()).read_text())
    times: dict[tuple[str, str], list[float]] = {}
    shapes: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        arguments = event.get("args", {})
        key = (name.removesuffix("_kernel_time"), arguments.get("op_name", ""))
        times.setdefault(key, []).append(float(event["dur"]))
        shapes[key] = tuple(
            tuple(next(iter(entry.values()))) for entry in arguments.get("input_type_shape", []) if entry
        )
    return tuple(
        KernelTime(
            node,
            operator,
            float(np.median(durations[warmup:] or durations)),
            float(np.percentile(durations[warmup:] or durations, 25)),
            shapes[node, operator],
        )
        for (node, operator), durations in times.items()
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
