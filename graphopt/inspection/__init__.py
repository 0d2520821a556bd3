"""What a model is: size, work by kind and by layer, and what each pass could do for it. Nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from graphopt.channels import Dependencies, dependency_groups
from graphopt.graph.cost import ModelCost, Scope, count, scopes
from graphopt.inspection.choices import LayerChoices, choices_as_json, layer_choices
from graphopt.inspection.groups import groups_as_json
from graphopt.inspection.latency import Latency, LayerTime, check_runtime, estimated
from graphopt.inspection.measured import measured
from graphopt.inspection.opportunities import Opportunity, opportunities
from graphopt.inspection.separable import (
    SeparableLayer,
    SeparatedModel,
    separable_as_json,
    separable_layers,
    separated_models,
)
from graphopt.model import LoadedModel, ModelSource, read
from graphopt.report.schema import ModelFacts, plain
from graphopt.rules import Finding, check_model
from graphopt.runtime import TensorSpec, input_specs, output_specs
from graphopt.targets import load_target

SCHEMA = "graphopt.inspect/1"


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found. ``str(inspection)`` is what a person reads.

    Attributes:
        name: the model's name for headings.
        model: path, hash, size and totals; multiply-adds are for the whole batch.
        batch: samples that ``model``, ``cost`` and ``latency`` are for.
        inputs, outputs: as the model declares them.
        cost: the work by layer and by kind.
        opportunities: what each pass of the target's recipe could do.
        separable: the convolutions that could be written as depthwise and pointwise ones, and at what cost.
        separated: the whole model with those of them separated that would then have less to do, rank by rank.
        warnings: what the reader should know, one sentence each.
        latency: of the model and its layers on the target; None where it is neither estimated nor measured.
        choices: what layers would take in other forms, where the latency is estimated.
        findings: where the model breaks rules of the target.
        dependencies: the groups of channels that can be cut, where they were asked for.
    """

    name: str
    model: ModelFacts
    batch: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cost: ModelCost
    opportunities: tuple[Opportunity, ...]
    separable: tuple[SeparableLayer, ...]
    separated: tuple[SeparatedModel, ...]
    warnings: tuple[str, ...]
    latency: Latency | None = None
    choices: tuple[LayerChoices, ...] = ()
    findings: tuple[Finding, ...] = ()
    dependencies: Dependencies | None = None

    @property
    def times(self) -> tuple[LayerTime | None, ...]:
        """The time of each layer of ``cost``; None where it is not known."""
        return self.latency.layers if self.latency else (None,) * len(self.cost.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as plain JSON values, schema ``graphopt.inspect/1``.

        ``latency`` is null where it is neither estimated nor measured, and so are ``ms`` and ``bound`` of each layer.
        The kernels' ``ms`` leave launches out, which overlap with them: the model's is not their sum.
        """
        layers = [
            {
                "name": layer.name,
                "operator": layer.operator,
                "kind": layer.kind,
                "macs": layer.macs,
                "parameters": layer.parameters,
                "weights": layer.weights,
                "bytes": layer.bytes,
                "ms": time.ms if time else None,
                "bound": time.bound if time else None,
                "precision": time.precision or None if time else None,
                "inside": time.inside or None if time else None,
            }
            for layer, time in zip(self.cost.layers, self.times, strict=True)
        ]
        groups = {} if self.dependencies is None else {"channels": groups_as_json(self.dependencies)}
        return {
            "schema": SCHEMA,
            "model": plain(self.model),
            "memory": {
                "weights": self.cost.weight_bytes,
                "peak_activations": self.cost.peak_activation_bytes,
            },
            "by_operator": [plain(kind) for kind in self.cost.by_kind()],
            "layers": layers,
            "passes": [plain(opportunity) for opportunity in self.opportunities],
            "separable": separable_as_json(self.separable),
            "separated": [plain(found) for found in self.separated],
            **groups,
            "latency": self._latency(),
            "would_pay": choices_as_json(self.choices),
            "findings": [plain(finding) for finding in self.findings],
            "warnings": list(self.warnings),
        }

    def _latency(self) -> dict[str, Any] | None:
        found = self.latency
        if found is None:
            return None
        return {
            "target": found.target,
            "runtime": found.runtime,
            "batch": found.batch,
            "source": found.source,
            "basis": found.basis,
            "ms": found.ms,
            "interval": list(found.interval),
        }

    def __str__(self) -> str:
        from graphopt.inspection.text import as_text

        return as_text(self)


def inspect(
    model: ModelSource,
    *,
    target: str = "cpu",
    runtime: str | None = None,
    batch: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    groups: bool = False,
    measure: bool = False,
    threads: int = 1,
) -> Inspection:
    """Look at a model's structure; external weights may be absent.

    Args:
        model: path, bytes or ``onnx.ModelProto``.
        target: whose recipe's passes are counted, whose rules are checked and whose latency is estimated.
        runtime: a runtime of the target, for the estimate; by default its first.
        batch: size of dynamic first axes; of a model with a fixed batch, copies side by side that make this many.
        input_shapes: shapes of inputs by name, for other dynamic axes.
        groups: find the groups of channels that can be cut, too.
        measure: run the model on this machine's CPU and time its kernels; its weights must be there.
        threads: intra-op threads of the measurement.

    Raises:
        ModelError: the model cannot be read or is unsafe.
        UsageError: unknown target or runtime, shapes or a batch that contradict the model; ``measure`` for a target
            that is not this machine.
    """
    profile = load_target(target)
    hardware = profile.hardware
    check_runtime(profile.name, hardware, runtime)
    loaded = read(model, weights=False)
    graphs = scopes(loaded.proto, input_shapes, batch)
    inputs, outputs = input_specs(loaded.proto), output_specs(loaded.proto)
    input_names, output_names = {spec.name for spec in inputs}, {spec.name for spec in outputs}
    found = count(graphs, output_names)
    separable = separable_layers(graphs[0], input_names)
    samples = _batch(graphs[0], inputs, batch)
    latency, kernels, reason = estimated(
        loaded.proto, graphs, found, profile.name, hardware, runtime=runtime, batch=samples
    )
    if measure:
        latency = measured(read(model).proto, graphs[0], found, profile.name, hardware, batch=samples, threads=threads)
    choices: tuple[LayerChoices, ...] = ()
    if kernels is not None:
        choices = layer_choices(graphs[0], input_names, output_names, separable, kernels, profile)
    return Inspection(
        name=Path(loaded.name).name,
        model=_facts(loaded, found),
        batch=samples,
        inputs=inputs,
        outputs=outputs,
        cost=found,
        opportunities=opportunities(loaded.proto, found, separable, profile.recipe),
        separable=separable,
        separated=separated_models(separable, found),
        warnings=(*loaded.warnings, *_unknown(found), *((reason,) if reason else ())),
        latency=latency,
        choices=choices,
        findings=tuple(check_model(loaded.proto, hardware)),
        dependencies=dependency_groups(loaded.proto, input_shapes) if groups else None,
    )


def _batch(main: Scope, inputs: Sequence[TensorSpec], asked: int) -> int:
    """The first axis of the inputs, as counted; what was asked for where they have none or differ."""
    sizes = {shape[0] for spec in inputs if (shape := main.shapes.get(spec.name))}
    return next(iter(sizes)) or asked if len(sizes) == 1 else asked


def _facts(loaded: LoadedModel, found: ModelCost) -> ModelFacts:
    return ModelFacts(
        path=str(loaded.path) if loaded.path else None,
        sha256=loaded.sha256,
        bytes=loaded.size,
        nodes=found.nodes,
        parameters=found.parameters,
        macs=found.macs,
        opset=_opset(loaded.proto),
    )


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _unknown(found: ModelCost) -> tuple[str, ...]:
    unknown = found.unknown
    if not unknown:
        return ()
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    advice = "; give the shapes with --input-shape NAME:1,3,224,224" if "shape of" in unknown[0] else ""
    return (f"multiply-adds of {len(unknown)} layers are unknown ({unknown[0]}{more}){advice}",)


__all__ = [
    "SCHEMA",
    "Inspection",
    "Latency",
    "LayerChoices",
    "LayerTime",
    "Opportunity",
    "SeparableLayer",
    "SeparatedModel",
    "inspect",
]
