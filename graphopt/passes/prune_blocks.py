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

from collections.abc import Iterator
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
        max_macs: multiply-adds to reach, as a share of the model's; 0 goes by the budget of the run, and where that has
            none, by accuracy: as many blocks go as it allows.
        samples: the most calibration samples to refit with.
        exclude: names of Adds, separated by spaces, whose blocks stay.
    """

    name: ClassVar[str] = "prune_blocks"
    summary: ClassVar[str] = "takes out the residual blocks that cost least, and refits the layers behind them"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    blocks: int = 0
    max_macs: float = 0.0
    samples: int = 256
    exclude: str = ""

    def __post_init__(self) -> None:
        if self.blocks < 0:
            raise UsageError(f"prune_blocks.blocks is {self.blocks}; it must not be negative")
        if not 0 <= self.max_macs < 1:
            raise UsageError(f"prune_blocks.max_macs is {self.max_macs:g}; it must be a share, 0 to 1")
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
        work = Work(model, context, self.samples)
        able, skipped = self._able(work)
        untouched = PassReport(0, skipped)
        if not able:
            raise Declined("there is no residual block that can be taken out", untouched)
        macs = work.macs(model)
        wanted = self.max_macs * macs
        if not self.blocks and not self.max_macs and goals.max_macs is not None:
            wanted = goals.max_macs * (goals.original_macs or macs)
            if macs <= wanted:
                raise Declined("the model is within its budget of multiply-adds", untouched)
        if not self.blocks and not wanted and not goals.to_threshold and goals.min_speedup <= 1:
            raise Declined(
                "nothing asks for fewer blocks: give --max-macs, --min-speedup or the option prune_blocks.blocks",
                untouched,
            )
        path: list[Step] = []
        for step in take_out(work, able, by_macs=not self.blocks):
            if not self.blocks and not wanted and self._is_too_much(step, context):
                break
            path.append(step)
            if len(path) == self.blocks or step.macs <= wanted:
                break
        if not path:
            raise Declined("no block can be taken out without losing the accuracy asked for", untouched)
        for count in _counts(len(path)):
            chosen = path[:count]
            recovered, fits = work.recovered([step.block for step in chosen])
            details = {
                "taken_out": [
                    {"block": step.block.name, "nodes": step.block.nodes, "sqnr_alone_db": _decibel(step.alone)}
                    for step in chosen
                ],
                "macs": round(work.macs(recovered) / macs, 4),
                "sqnr_db": _decibel(work.noise(recovered)),
                "refitted_layers": sum(not fit.reason for fit in fits),
                "samples": len(work.feeds),
            }
            label = f"{count} of {len(able)} residual blocks taken out"
            yield Candidate(recovered, PassReport(count, skipped, details), label)
        work.close()

    def _able(self, work: Work) -> tuple[list[Block], tuple[Skip, ...]]:
        excluded = self.exclude.split()
        unknown = set(excluded) - {block.name for block in work.blocks.all}
        if unknown:
            raise UsageError(f"prune_blocks.exclude names no residual block: {', '.join(sorted(unknown))}")
        able = [block for block in work.blocks.all if block.name not in excluded]
        skipped = [Skip(name, "excluded by the option prune_blocks.exclude") for name in excluded]
        return able, (*work.blocks.skipped, *skipped)

    def _is_too_much(self, step: Step, context: Context) -> bool:
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
