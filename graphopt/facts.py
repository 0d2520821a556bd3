"""The figures of a model and of the machine, as the report wants them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import onnx

from graphopt.graph.cost import Costs
from graphopt.model.content import content_hash
from graphopt.report.schema import ModelFacts
from graphopt.targets import cpu_description


def model_facts(
    model: onnx.ModelProto,
    *,
    path: str | None = None,
    written: tuple[str, int] | None = None,
    costs: Costs | None = None,
) -> ModelFacts:
    """Return the figures of a model.

    Args:
        model: the model.
        path: where its file is.
        written: SHA-256 and bytes of its files; None computes them as ``save`` would write it.
        costs: counts them, for its shapes of dynamic inputs.
    """
    if written is None:
        digest, size = content_hash(model)
        written = digest.hexdigest(), size
    figures = (costs or Costs()).of(model)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return ModelFacts(path, *written, figures.nodes, figures.parameters, figures.macs, opset)


def environment(providers: Sequence[str]) -> dict[str, Any]:
    """Return what the figures of a run were measured with: versions, CPU, execution providers."""
    import numpy as np
    import onnxruntime

    return {
        "python": platform.python_version(),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_description(),
        "providers": list(providers),
    }
