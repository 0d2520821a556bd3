"""Residual blocks whose removal costs least are taken out.

::

    before   x ──┬── Conv ── Relu ── Conv ──┬── Add ── Relu ── y
                 └──────────────────────────┘
    after    x ── Relu ── y

A residual block adds something to its input; without the block the input goes on as it is. Whole blocks save time in
full, whatever the kernels: no layer becomes an odd width. Then every layer behind is refitted by least squares towards
what it gave before, on the same samples (``graphopt.recovery``): most of what a block adds can be made up for.

1. Find blocks (blocks/find.py).
2. Take out each alone, refit the next few layers, and measure the noise in the outputs.
3. Take out the block of least noise for the multiply-adds that it saves; measure the next ones anew on what is left;
   until the budget is reached, or the accuracy asked for is lost.
4. Offer what this came to, all layers refitted on all samples; then with fewer blocks taken out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log10
from typing import ClassVar

import onnx

from graphopt.errors import UsageError
from graphopt.passes.base import Candidate, Context, Declined, PassReport, Skip
from graphopt.passes.blocks.find import Block
from graphopt.passes.blocks.path import Step, take_out
from graphopt.passes.blocks.work import Work

MOST_CANDIDATES = 6
# Before all layers are refitted a model may have lost this many times the accuracy asked for...
LENIENCE = 2.0
# ... and have this noise-to-signal power in its outputs.
MOST_NOISE = 0.25


@dataclass(frozen=True)
class PruneBlocks:
    """Take residual blocks out and refit what is behind them.

    Attributes:
        blocks: how many blocks to take out; 0 goes by ``max_macs``.
        max_macs: multiply-adds to reach, as a share of the original's; None: what ``optimize`` was asked for, and where
            that is nothing, by accuracy: as many blocks go as it allows.
        samples: the most calibration samples to refit with.
        exclude: names of Adds, separated by spaces, whose blocks stay.
    """

    name: ClassVar[str] = "prune_blocks"
    summary: ClassVar[str] = "takes out the residual blocks that cost least, and refits the layers behind them"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    blocks: int = 0
    max_macs: float | None = None
    samples: int = 256
    exclude: str = ""

    def __post_init__(self) -> None:
        if self.blocks < 0:
            raise UsageError(f"prune_blocks.blocks is {self.blocks}; it must not be negative")
        if self.max_macs is not None and not 0 < self.max_macs <= 1:
            raise UsageError(f"prune_blocks.max_macs is {self.max_macs:g}; it is a share, above 0 and at most 1")
        if self.blocks and self.max_macs is not None:
            raise UsageError("prune_blocks.blocks and prune_blocks.max_macs cannot both be given")
        if self.samples < 1:
            raise UsageError(f"prune_blocks.samples is {self.samples}; at least one sample is needed")

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        """Yield the model with the most blocks taken out, then with fewer.

        Raises:
            Declined: there is no residual block, or nothing asks for fewer of them.
            DataError: calibration data is missing or empty.
            UsageError: an excluded block does not exist.
        """
        goals = context.goals
        budget = self.max_macs if self.max_macs is not None else goals.max_macs
        if self.blocks:
            budget = None
        elif budget is None and not goals.to_threshold and goals.min_speedup <= 1:
            raise Declined("nothing asks for fewer blocks: give --max-macs, or the option prune_blocks.blocks")
        work = Work(model, context, self.samples)
        able, skipped = self._able(work)
        untouched = PassReport(0, skipped)
        if not able:
            raise Declined("there is no residual block that can be taken out", untouched)
        macs = work.macs(model)
        original = goals.original_macs or macs
        if budget is not None and macs <= budget * original:
            raise Declined(f"the model has no more than {budget:.1%} of the multiply-adds as it is", untouched)
        try:
            path = self._path(work, able, None if budget is None else budget * original)
            if not path:
                raise Declined("no block can be taken out without losing the accuracy asked for", untouched)
            if budget is not None and path[-1].macs > budget * original:
                left = f"without all {len(path)} residual blocks {path[-1].macs / original:.1%} are left"
                raise Declined(f"{budget:.1%} of the multiply-adds cannot be reached: {left}", untouched)
            for count in _counts(len(path)) if budget is None else [len(path)]:
                yield self._candidate(work, path[:count], len(able), original, skipped)
        finally:
            work.close()

    def _path(self, work: Work, able: Sequence[Block], macs: float | None) -> list[Step]:
        """Take blocks out until as many are gone as wanted, ``macs`` are reached, or accuracy is lost."""
        path: list[Step] = []
        for step in take_out(work, able, by_macs=not self.blocks):
            if not self.blocks and macs is None and _is_too_much(step, work.context):
                break
            path.append(step)
            if len(path) == self.blocks or (macs is not None and step.macs <= macs):
                break
        return path

    @staticmethod
    def _candidate(
        work: Work, path: Sequence[Step], blocks: int, original: int, skipped: tuple[Skip, ...]
    ) -> Candidate:
        """The model without the blocks of ``path``, every layer behind them refitted."""
        recovered, fits = work.recovered([step.block for step in path])
        details = {
            "taken_out": [
                {"block": step.block.name, "nodes": step.block.nodes, "sqnr_alone_db": _decibel(step.alone)}
                for step in path
            ],
            "macs": round(work.macs(recovered) / original, 4),
            "sqnr_db": _decibel(work.noise(recovered)),
            "refitted_layers": sum(not fit.reason for fit in fits),
            "samples": len(work.feeds),
        }
        label = f"{len(path)} of {blocks} residual blocks taken out"
        return Candidate(recovered, PassReport(len(path), skipped, details), label)

    def _able(self, work: Work) -> tuple[list[Block], tuple[Skip, ...]]:
        excluded = self.exclude.split()
        unknown = set(excluded) - {block.name for block in work.blocks.all}
        if unknown:
            raise UsageError(f"prune_blocks.exclude names no residual block: {', '.join(sorted(unknown))}")
        able = [block for block in work.blocks.all if block.name not in excluded]
        skipped = [Skip(name, "excluded by the option prune_blocks.exclude") for name in excluded]
        return able, (*work.blocks.skipped, *skipped)


def _is_too_much(step: Step, context: Context) -> bool:
    """Whether a model has lost more than the refit of all layers may bring back."""
    if step.noise > MOST_NOISE:
        return True
    drop = context.goals.drop
    return drop is not None and drop(step.model) > LENIENCE * context.goals.max_drop


def _counts(most: int) -> list[int]:
    """How many blocks the candidates take out: all, then fewer in equal steps."""
    return sorted({-(-most * part // MOST_CANDIDATES) for part in range(1, MOST_CANDIDATES + 1)}, reverse=True)


def _decibel(noise: float) -> float:
    """The signal-to-noise ratio in dB, at most 200."""
    return round(-10 * log10(max(noise, 1e-20)), 2)
