"""Run calibration samples through a model and keep statistics of chosen tensors: memory does not grow with samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphopt import runtime
from graphopt.calibration.statistics import TensorStatistics
from graphopt.errors import DataError, UnsupportedModelError

# Activations that one run may hold at once; tensors beyond it are observed in further runs over the same sample.
RUN_BYTES = 96 << 20

Feed = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Statistics:
    """What calibration learned.

    Attributes:
        tensors: statistics by tensor name; only tensors that hold floats.
        samples: how many samples were run.
        infinite: tensors left out of ``tensors`` because they held NaN or infinity, with the first sample that did it.
    """

    tensors: Mapping[str, TensorStatistics]
    samples: int
    infinite: Mapping[str, int] = field(default_factory=dict)


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a shallow-as-possible copy of ``model`` whose outputs are exactly ``names`` (types left to inference)."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    known = {value.name: value for value in (*model.graph.output, *model.graph.value_info, *model.graph.input)}
    del observed.graph.output[:]
    for name in names:
        if name in known:
            observed.graph.output.add().CopyFrom(known[name])
        else:
            observed.graph.output.add(name=name)
    return observed


def observing(model: onnx.ModelProto, names: Sequence[str], threads: int = 1) -> Any:
    """Open a session of ONNX Runtime that answers the tensors ``names``.

    ONNX Runtime (1.31) may run a convolution whose answer is asked for inside the Add behind it, and then misses that
    answer: such a model is run as it is written.

    Raises:
        UnsupportedModelError: ONNX Runtime refuses the model either way.
    """
    observed = with_outputs(model, names)
    try:
        return runtime.session(observed, threads=threads)
    except UnsupportedModelError:
        return runtime.session(observed, threads=threads, optimize=False)


def collect(
    model: onnx.ModelProto,
    names: Sequence[str],
    feeds: Iterable[Feed],
    *,
    threads: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Statistics:
    """Observe ``names`` in ``model`` over ``feeds``.

    Args:
        model: float model; its outputs do not matter.
        names: tensors to observe; graph inputs are allowed.
        feeds: samples, each runs the model once.
        threads: intra-op threads.
        progress: called with the number of samples done.

    Raises:
        DataError: there is no sample, or a sample itself holds NaN or infinity (names input and sample).
    """
    inputs = {value.name for value in model.graph.input}
    computed = [name for name in names if name not in inputs]
    statistics = {name: TensorStatistics() for name in names}
    infinite: dict[str, int] = {}
    groups: list[list[str]] | None = None
    sessions: list[Any] = []
    samples = 0
    for feed in feeds:
        if groups is None:
            groups = _groups(model, computed, feed, threads)
            sessions = [observing(model, group, threads) for group in groups]
        for name in statistics.keys() & feed.keys():
            _add(statistics, infinite, name, feed[name], samples)
            if name in infinite:
                raise DataError(
                    f"calibration sample {samples} makes tensor '{name}' NaN or infinite: it is an input; "
                    "check the sample's values"
                )
        for opened, group in zip(sessions, groups, strict=True):
            for name, values in runtime.run(opened, feed, group).items():
                _add(statistics, infinite, name, values, samples)
        samples += 1
        progress(samples)
    if samples == 0:
        raise DataError("calibration data holds no sample; give at least one")
    finite = {name: kept for name, kept in statistics.items() if kept.samples and name not in infinite}
    return Statistics(finite, samples, infinite)


def _add(
    statistics: dict[str, TensorStatistics], infinite: dict[str, int], name: str, values: Any, sample: int
) -> None:
    if not isinstance(values, np.ndarray) or values.dtype not in (np.float32, np.float16, np.float64):
        return
    kept = statistics[name]
    kept.add(values)
    if kept.histogram.non_finite:
        infinite.setdefault(name, sample)


def _groups(model: onnx.ModelProto, names: Sequence[str], feed: Feed, threads: int) -> list[list[str]]:
    """Split tensors into groups of at most RUN_BYTES, in the order given; sizes are read off one sample.

    The sizing run asks for shapes only (Shape of every tensor), so that it too stays small.
    """
    if not names:
        return []
    sizes = _sizes(model, names, feed, threads)
    groups: list[list[str]] = [[]]
    used = 0
    for name in names:
        if used + sizes[name] > RUN_BYTES and groups[-1]:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += sizes[name]
    return groups


def _sizes(model: onnx.ModelProto, names: Sequence[str], feed: Feed, threads: int) -> dict[str, int]:
    return {name: 4 * int(np.prod(shape)) for name, shape in shapes(model, names, feed, threads).items()}


def shapes(model: onnx.ModelProto, names: Sequence[str], feed: Feed, threads: int = 1) -> dict[str, tuple[int, ...]]:
    """Return the shapes that ``names`` have when ``model`` runs on ``feed``; only shapes are fetched."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    del sized.graph.output[:]
    wanted = list(dict.fromkeys(names))
    for index, name in enumerate(wanted):
        result = f"graphopt_shape_{index}"
        sized.graph.node.add(op_type="Shape", input=[name], output=[result])
        sized.graph.output.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.INT64, [None]))
    results = runtime.run(runtime.session(sized, threads=threads), feed)
    return {name: tuple(int(size) for size in results[f"graphopt_shape_{index}"]) for index, name in enumerate(wanted)}
