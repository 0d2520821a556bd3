"""One model against another: accuracy on data, latency interleaved, and whether the gates hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from graphopt._version import __version__
from graphopt.data import DataSource, open_data, random_feeds
from graphopt.errors import UnsupportedModelError
from graphopt.facts import model_facts
from graphopt.graph.cost import Costs
from graphopt.model import LoadedModel, ModelSource, read
from graphopt.report.figures import readable_bytes, readable_count
from graphopt.report.schema import ModelFacts, plain
from graphopt.runtime import input_specs
from graphopt.validation import Accuracy, Gates, Latency, Reference, check_metric, evaluate, measure, verdict

SCHEMA = "graphopt.compare/1"

Shapes: TypeAlias = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found. ``str(comparison)`` is what a person reads.

    Attributes:
        baseline, candidate: the models in figures.
        accuracy: of the candidate against the baseline; None without data.
        latency: of the candidate against the baseline.
        failures: a sentence for each gate that does not hold.
        warnings: what the reader should know, one sentence each.
    """

    baseline: ModelFacts
    candidate: ModelFacts
    accuracy: Accuracy | None
    latency: Latency
    failures: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate held."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values, schema ``graphopt.compare/1``."""
        return {
            "schema": SCHEMA,
            "graphopt_version": __version__,
            "result": "ok" if self.passed else "rejected",
            "baseline": plain(self.baseline),
            "candidate": plain(self.candidate),
            "accuracy": plain(self.accuracy.to_json()) if self.accuracy else None,
            "latency": plain(self.latency.to_json()),
            "failures": list(self.failures),
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def compare(
    baseline: ModelSource,
    candidate: ModelSource,
    *,
    data: Any = None,
    gates: Gates | None = None,
    metric: str | Callable[..., float] = "auto",
    preprocess: Any = None,
    input_shapes: Shapes | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 1,
    seconds: float = 5.0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Comparison:
    """Compare a candidate with a baseline.

    Args:
        baseline: what is compared against; path, bytes or ``onnx.ModelProto``.
        candidate: a model with the same inputs and as many outputs.
        data: samples to judge accuracy on, all of them; None compares latency alone, on random input.
        gates: what is asked of the candidate; None asks for the defaults of ``Gates``.
        metric: as for ``optimize``.
        preprocess: how images become inputs.
        input_shapes: shapes of dynamic inputs by name.
        providers: ONNX Runtime execution providers.
        threads: intra-op threads.
        seconds: most time to measure latency for.
        seed: of the order of timings and of random input.
        progress: called with (what, done, total).

    Raises:
        ModelError, DataError, UsageError: as ``optimize``.
        UnsupportedModelError: ONNX Runtime cannot run a model, or the two do not fit each other.
    """
    gates = gates or Gates()
    if isinstance(metric, str):
        check_metric(metric)
    first, second = read(baseline), read(candidate)
    _check_inputs(first, second)
    source = _source(first, data, preprocess, input_shapes, seed)
    accuracy = None
    if data is not None:
        reference = Reference(first.proto, source, metric=metric, threads=threads, providers=providers)
        accuracy = evaluate(reference, [second.proto], max_drop=gates.max_drop, progress=progress)[0]
    progress("timing", 0, 0)
    latency = measure(
        first.proto,
        second.proto,
        next(iter(source)).inputs,
        min_speedup=gates.min_speedup,
        threads=threads,
        providers=providers,
        seconds=seconds,
        seed=seed,
    )
    facts = [
        model_facts(
            model.proto,
            path=str(model.path) if model.path else None,
            written=(model.sha256, model.size),
            costs=Costs(input_shapes),
        )
        for model in (first, second)
    ]
    judged = verdict(
        gates,
        accuracy=accuracy,
        latency=latency,
        size=facts[1].bytes,
        macs=facts[1].macs,
        baseline_macs=facts[0].macs,
    )
    warnings = (*first.warnings, *second.warnings)
    if data is None:
        warnings += ("accuracy was not compared: no data was given (--data SOURCE)",)
    return Comparison(facts[0], facts[1], accuracy, latency, judged.failures, warnings)


def _check_inputs(first: LoadedModel, second: LoadedModel) -> None:
    expected, found = ([spec.name for spec in input_specs(model.proto)] for model in (first, second))
    if set(expected) != set(found):
        raise UnsupportedModelError(
            f"{second.name} has the inputs {', '.join(found) or 'none'}, but {first.name} has "
            f"{', '.join(expected) or 'none'}; only models with the same inputs can be compared"
        )


def _source(model: LoadedModel, data: Any, preprocess: Any, shapes: Shapes | None, seed: int) -> DataSource:
    specs = input_specs(model.proto)
    if data is None:
        return random_feeds(specs, shapes, seed=seed)
    return open_data(data, specs, preprocess=preprocess, shapes=shapes)


def _lines(found: Comparison) -> list[str]:
    rows = [("", "baseline", "candidate", "")]
    if (accuracy := found.accuracy) is not None:
        low, high = accuracy.ci95
        change = f"drop {accuracy.drop:.4f} [{low:.4f}, {high:.4f}] on {accuracy.samples:,} samples"
        rows.append((accuracy.metric, f"{accuracy.baseline:.4f}", f"{accuracy.optimized:.4f}", change))
        if accuracy.sqnr_db is not None:
            rows.append(("signal to noise", "", f"{accuracy.sqnr_db:.1f} dB", ""))
    latency = found.latency
    low, high = latency.ci95
    change = f"{latency.speedup:.2f}x [{low:.2f}, {high:.2f}], {latency.threads} thread, {latency.provider}"
    rows.append(("latency", f"{latency.baseline_ms:.3f} ms", f"{latency.optimized_ms:.3f} ms", change))
    sizes = (found.baseline, found.candidate)
    for name, shown in (
        ("size", [readable_bytes(facts.bytes) for facts in sizes]),
        ("MACs", ["unknown" if facts.macs is None else readable_count(facts.macs) for facts in sizes]),
        ("parameters", [readable_count(facts.parameters) for facts in sizes]),
        ("operators", [readable_count(facts.nodes) for facts in sizes]),
    ):
        rows.append((name, shown[0], shown[1], ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {before:>{widths[1]}}  {after:>{widths[2]}}  {note}".rstrip()
        for name, before, after, note in rows
    ]
    lines += [f"does not hold: {failure}" for failure in found.failures]
    return lines + [f"warning: {warning}" for warning in found.warnings]
