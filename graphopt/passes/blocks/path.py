"""In which order residual blocks go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from graphopt.passes.blocks.find import Block
from graphopt.passes.blocks.work import Work

# Blocks that are measured anew before each step, those that looked best before.
RETRIED = 3


@dataclass(frozen=True)
class Step:
    """A model with one block less than the step before.

    Attributes:
        block: what was taken out.
        alone: noise-to-signal power of the outputs when it alone is taken out.
        noise: the same of this model.
        macs: multiply-adds of this model.
        model: the model, the layers right behind each block refitted on a few samples.
    """

    block: Block
    alone: float
    noise: float
    macs: int
    model: onnx.ModelProto


def take_out(work: Work, blocks: Sequence[Block], *, by_macs: bool) -> Iterator[Step]:
    """Take blocks out one by one, the cheapest first, until none is left.

    Args:
        work: the model and the samples.
        blocks: those that may go.
        by_macs: whether what a block costs is seen against the multiply-adds that it saves.
    """
    progress = work.context.progress
    now, noise, macs = work.model, 0.0, work.macs(work.model)
    known: list[tuple[float, Step]] = []
    alone: dict[str, float] = {}
    for number, block in enumerate(blocks):
        step = _tried(work, now, block, None)
        alone[block.output] = step.noise
        known.append((_price(step, noise, macs, by_macs), step))
        progress("prune_blocks: blocks alone", number + 1, len(blocks))
    taken = 0
    while known:
        known.sort(key=lambda entry: entry[0])
        if taken:
            again = [_tried(work, now, step.block, alone[step.block.output]) for _, step in known[:RETRIED]]
            known[:RETRIED] = [(_price(step, noise, macs, by_macs), step) for step in again]
            known.sort(key=lambda entry: entry[0])
        step = known.pop(0)[1]
        now, noise, macs = step.model, step.noise, step.macs
        taken += 1
        progress("prune_blocks: blocks taken out", taken, taken + len(known))
        yield step
        there = {name for node in now.graph.node for name in node.output}
        known = [entry for entry in known if entry[1].block.output in there]


def _tried(work: Work, now: onnx.ModelProto, block: Block, alone: float | None) -> Step:
    model = work.without(now, block)
    noise = work.noise(model)
    return Step(block, noise if alone is None else alone, noise, work.macs(model), model)


def _price(step: Step, noise: float, macs: int, by_macs: bool) -> float:
    """Noise that a step adds, for each multiply-add that it saves."""
    return (step.noise - noise) / max(1, macs - step.macs) if by_macs else step.noise - noise
