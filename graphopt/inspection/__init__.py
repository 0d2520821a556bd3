"""What a model is: size, work by kind and by layer, and what each pass could do for it. Nothing is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from graphopt.channels import Dependencies, dependency_groups
from graphopt.errors import UsageError
from graphopt.graph.cost import ModelCost, count, scopes
from graphopt.inspection.groups import groups_as_json
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
from graphopt.runtime import TensorSpec, input_specs, output_specs
from graphopt.targets import load_target

SCHEMA = "graphopt.inspect/1"


@dataclass(frozen=True)
class Inspection:
    """What ``inspect`` found. ``str(inspection)`` is what a person reads.

    Attributes:
        name: the model's name for headings.
        model: path, hash, size and totals; multiply-adds are for the whole batch.
        batch: size of dynamic first axes that ``model`` and ``cost`` are for.
        inputs, outputs: as the model declares them.
        cost: the work by layer and by kind.
        opportunities: what each pass of the target's recipe could do.
        separable: the convolutions that could be written as depthwise and pointwise ones, and at what cost.
        separated: the whole model with those of them separated that would then have less to do, rank by rank.
        warnings: what the reader should know, one sentence each.
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
    dependencies: Dependencies | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as plain JSON values, schema ``graphopt.inspect/1``.

        ``latency`` is null: no target has a latency model yet. So are ``ms`` and ``bound`` of each layer.
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
                "ms": None,
                "bound": None,
            }
            for layer in self.cost.layers
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
            "latency": None,
            "warnings": list(self.warnings),
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
) -> Inspection:
    """Look at a model's structure; external weights may be absent.

    Args:
        model: path, bytes or ``onnx.ModelProto``.
        target: whose recipe's passes are counted.
        runtime: a runtime of the target; the latency estimates that it chooses between are not available yet.
        batch: size of dynamic first axes.
        input_shapes: shapes of inputs by name, for other dynamic axes.
        groups: find the groups of channels that can be cut, too.

    Raises:
        ModelError: the model cannot be read or is unsafe.
        UsageError: unknown target or runtime, or shapes that contradict the model.
    """
    profile = load_target(target)
    if runtime is not None and runtime != profile.hardware.runtime:
        raise UsageError(
            f"target {profile.name!r} has no runtime {runtime!r}; available now: {profile.hardware.runtime}"
        )
    loaded = read(model, weights=False)
    graphs = scopes(loaded.proto, input_shapes, batch)
    inputs, outputs = input_specs(loaded.proto), output_specs(loaded.proto)
    found = count(graphs, [spec.name for spec in outputs])
    separable = separable_layers(graphs[0], {spec.name for spec in inputs})
    return Inspection(
        name=Path(loaded.name).name,
        model=_facts(loaded, found),
        batch=batch,
        inputs=inputs,
        outputs=outputs,
        cost=found,
        opportunities=opportunities(loaded.proto, found, separable, profile.recipe),
        separable=separable,
        separated=separated_models(separable, found),
        warnings=(*loaded.warnings, *_unknown(found)),
        dependencies=dependency_groups(loaded.proto, input_shapes) if groups else None,
    )


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


__all__ = ["SCHEMA", "Inspection", "Opportunity", "SeparableLayer", "SeparatedModel", "inspect"]
