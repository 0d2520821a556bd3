"""Unstructured magnitude pruning: the smallest elements of weights become zero.

::

    before   x -> Conv(w) -> y          w = [0.31, -0.02, 0.07, -0.45]
    after    x -> Conv(w) -> y          w = [0.31,  0,    0,    -0.45]

Han et al. 2015 (arXiv 1506.02626). The graph, its multiply-adds and the size of the file stay what they are. What it is
for: a model that is compressed for transport or storage, and runtimes with sparse kernels. ONNX Runtime's kernels are
dense: they run no faster.

A weight is pruned where a Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU or RNN multiplies with it, it is stored as
float, and nothing else reads it (a table of embeddings, say, that a matrix product shares). Biases are untouched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import onnx

from graphopt.errors import UsageError
from graphopt.graph import Index, WorkGraph, constant, export_graph, import_graph, remove_unused, replace_uses
from graphopt.passes.base import Candidate, Context, Declined, PassReport
from graphopt.passes.sparse_weights import Found, Weight, compressed_bytes, find_weights, kept_above, kept_by_share
from graphopt.passes.sparse_weights.choice import Mask
from graphopt.recovery import Recorded, RefitOptions, record, refit
from graphopt.report.figures import readable_bytes

RECOVERIES = ("auto", "none", "refit")
SCOPES = ("global", "lamp", "layer")
# What is asked for, then gentler: the share, or the threshold, times these.
BACK_OFF = (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class PruneWeights:
    """Set the smallest weights to zero.

    Attributes:
        share: share of the elements of all weights that become zero, those that are zero already included.
        threshold: magnitude below which elements become zero; 0 goes by the share.
        scope: what the share is of: ``layer``: each weight; ``global``: all together, by magnitude; ``lamp``: all
            together, by magnitude beside the rest of the layer.
        keep_first: leave layers alone that no other layer stands before.
        keep_last: leave layers alone that no other layer stands behind.
        recovery: ``refit``: the weights that are left are refitted on calibration samples towards what each layer gave
            before, layer after layer; ``none``; ``auto``: by whether there are samples.
        samples: the most calibration samples to refit with.
        exclude: names of nodes, separated by spaces, that are left alone.
    """

    name: ClassVar[str] = "prune_weights"
    summary: ClassVar[str] = "sets the smallest weights to zero, for size once compressed and for sparse runtimes"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    share: float = 0.5
    threshold: float = 0.0
    scope: str = "lamp"
    keep_first: bool = False
    keep_last: bool = False
    recovery: str = "auto"
    samples: int = 256
    exclude: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"prune_weights.share is {self.share:g}; it must lie between 0 and 1")
        if not self.threshold >= 0:
            raise UsageError(f"prune_weights.threshold is {self.threshold:g}; it must not be negative")
        if self.scope not in SCOPES:
            raise UsageError(f"prune_weights.scope is '{self.scope}'; it must be one of {', '.join(SCOPES)}")

        if self.recovery not in RECOVERIES:
            raise UsageError(f"prune_weights.recovery is '{self.recovery}'; it must be one of {', '.join(RECOVERIES)}")
        if self.samples < 1:
            raise UsageError(f"prune_weights.samples is {self.samples}; at least one sample is needed")

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        """Yield the model with what was asked for set to zero, then with three quarters, half and a quarter of it.

        Raises:
            Declined: there is no weight that can be pruned, or none so small.
            UsageError: an excluded node does not exist.
        """
        found = self._find(import_graph(model))
        untouched = PassReport(0, found.skipped)
        if not found.weights:
            raise Declined("there are no weights that can be pruned", untouched)
        weights = [weight.values for weight in found.weights]
        zeros_before = sum(int((weight == 0).sum()) for weight in weights)
        bytes_before = compressed_bytes(weights)
        last = 0
        recovery = _Recovery(model, context, self.samples) if self._recovers(context) else None
        try:
            for factor in BACK_OFF:
                masks = self._masks(weights, factor)
                pruned = [
                    np.where(mask, weight, weight.dtype.type(0)) for mask, weight in zip(masks, weights, strict=True)
                ]
                zeros = sum(int((weight == 0).sum()) for weight in pruned)
                if factor == BACK_OFF[0] and zeros == zeros_before:
                    raise Declined(self._nothing(zeros, sum(weight.size for weight in weights)), untouched)
                if zeros in (zeros_before, last):
                    continue
                last = zeros
                smaller = self._rewritten(model, pruned)
                how = "none: there are no calibration samples" if self.recovery == "auto" else "none"
                if recovery is not None:
                    smaller, how = recovery.refitted(smaller)
                    pruned = [weight.values for weight in self._find(import_graph(smaller)).weights]
                details = _details(found.weights, pruned, bytes_before) | {"recovery": how}
                report = PassReport(zeros - zeros_before, found.skipped, details)
                yield Candidate(smaller, report, _label(details), faster=False)
        finally:
            if recovery is not None:
                recovery.close()

    def _recovers(self, context: Context) -> bool:
        if self.recovery == "refit" and context.calibration is None:
            raise Declined("prune_weights.recovery is 'refit', and there are no calibration samples")
        return self.recovery != "none" and context.calibration is not None

    def _find(self, work: WorkGraph) -> Found:
        return find_weights(work.gs, keep_first=self.keep_first, keep_last=self.keep_last, exclude=self.exclude.split())

    def _rewritten(self, model: onnx.ModelProto, pruned: Sequence[Any]) -> onnx.ModelProto:
        """The model with new values for its weights, in the order in which they are found."""
        work = import_graph(model)
        index = Index(work.gs)
        for weight, values in zip(self._find(work).weights, pruned, strict=True):
            replace_uses(index, weight.tensor, constant(index, f"{weight.tensor.name}_pruned", values))
        remove_unused(work.gs)
        return export_graph(work)

    def _masks(self, weights: Sequence[Any], factor: float) -> list[Mask]:
        if self.threshold > 0:
            return kept_above(weights, self.threshold * factor)
        return kept_by_share(weights, self.share * factor, self.scope)

    def _nothing(self, zeros: int, total: int) -> str:
        if self.threshold > 0:
            return f"no weight is smaller than {self.threshold:g}, but those that are zero"
        return f"{zeros / total:.1%} of the weights are zero already"


class _Recovery:
    """Refits what is left of the weights, towards one original on the same samples."""

    def __init__(self, model: onnx.ModelProto, context: Context, samples: int) -> None:
        self._model, self._context, self._samples = model, context, samples

    @cached_property
    def _recorded(self) -> Recorded:
        feeds = islice(iter(self._context.calibration or ()), self._samples)
        return record(self._model, feeds, threads=self._context.jobs, seed=self._context.seed)

    def refitted(self, pruned: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
        """The pruned model with the weights that are left refitted, and what was done in words."""
        found = refit(
            self._model,
            pruned,
            {},
            (),
            options=RefitOptions(keep_zeros=True),
            threads=self._context.jobs,
            seed=self._context.seed,
            progress=self._context.progress,
            recorded=self._recorded,
        )
        count = sum(not fit.reason for fit in found.fits)
        return found.model, f"{count} layers refitted on {self._recorded.samples} samples"

    def close(self) -> None:
        """Give memory and files back."""
        if "_recorded" in self.__dict__:
            self._recorded.close()


def _label(details: Mapping[str, Any]) -> str:
    before, after = (readable_bytes(details[key]) for key in ("compressed_bytes_before", "compressed_bytes"))
    return f"{details['zeros']:.1%} of the weights zero: {before} compressed become {after}, no faster in ONNX Runtime"


def _details(weights: Sequence[Weight], pruned: Sequence[Any], bytes_before: int) -> dict[str, Any]:
    zeros = [int((values == 0).sum()) for values in pruned]
    total = sum(values.size for values in pruned)
    return {
        "zeros": round(sum(zeros) / total, 4),
        "zeros_by_layer": {
            weight.layer: round(count / weight.values.size, 4) for weight, count in zip(weights, zeros, strict=True)
        },
        "weight_bytes": sum(values.nbytes for values in pruned),
        "compressed_bytes_before": bytes_before,
        "compressed_bytes": compressed_bytes(pruned),
        "speed": "none is gained in ONNX Runtime, whose kernels are dense",
    }
