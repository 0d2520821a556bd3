"""What the candidates of prune_blocks share: samples, the original's answers, and models with blocks taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy.typing as npt
import onnx

from graphopt import runtime
from graphopt.calibration.collect import observing
from graphopt.errors import DataError
from graphopt.graph import Shape, import_graph, infer_types
from graphopt.graph.cost import cost
from graphopt.passes.base import Context
from graphopt.passes.blocks.drop import without_blocks
from graphopt.passes.blocks.find import Block, Blocks, find_blocks
from graphopt.passes.quality import Probe, make_probe, noise
from graphopt.recovery import LayerFit, Recorded, Refitted, record, refit

Feed = Mapping[str, npt.NDArray[Any]]

# Samples that a choice between blocks is made on: fewer than the result is refitted with.
CHOICE_SAMPLES = 64
PROBE_SAMPLES = 32
# Layers behind a block that are refitted before it is judged: those of about two blocks.
NEIGHBOURS = 6
_FLOATS = (0, *(getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16")))
_LAYERS = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul")


class Work:
    """A model, its residual blocks and the samples that they are judged by.

    Attributes:
        model: the model as it is, which answers right.
        context: what the pass may use.
        blocks: its residual blocks.
    """

    def __init__(self, model: onnx.ModelProto, context: Context, samples: int) -> None:
        self.model = model
        self.context = context
        self.feeds: Sequence[Feed] = list(islice(iter(context.calibration or ()), samples))
        if not self.feeds:
            raise DataError("calibration data holds no sample; give at least one")
        self.blocks = self._find()

    def _find(self) -> Blocks:
        """Find the blocks, with the shapes that tensors have for the first sample: exporters leave many open."""
        graph = import_graph(self.model).gs
        types = infer_types(self.model)
        integers = {name for name, found in types.items() if found.dtype not in _FLOATS}
        unsized = find_blocks(graph, None, integers)
        names = list(dict.fromkeys(name for block in unsized.all for name in (block.stream, block.output)))
        shapes: dict[str, Shape] = {name: tuple(values.shape) for name, values in self.feeds[0].items()}
        computed = [name for name in names if name not in shapes]
        if computed:
            opened = observing(self.model, computed, self.context.jobs)
            found = runtime.run(opened, self.feeds[0], computed)
            shapes |= {name: tuple(values.shape) for name, values in found.items()}
        return find_blocks(graph, shapes, integers)

    def macs(self, model: onnx.ModelProto) -> int:
        """Multiply-adds of a model for the size of the first sample."""
        return cost(model, {name: tuple(values.shape) for name, values in self.feeds[0].items()}).known_macs

    @cached_property
    def _probe(self) -> Probe:
        source = self.context.selection if self.context.selection is not None else self.feeds
        return make_probe(self.model, source, PROBE_SAMPLES, self.context.jobs)

    @cached_property
    def _few(self) -> Recorded:
        return self._record(self.feeds[:CHOICE_SAMPLES])

    @cached_property
    def _all(self) -> Recorded:
        return self._record(self.feeds)

    def _record(self, feeds: Sequence[Feed]) -> Recorded:
        return record(self.model, feeds, threads=self.context.jobs, seed=self.context.seed)

    def noise(self, model: onnx.ModelProto) -> float:
        """Noise-to-signal power of a model's outputs, on samples for choices where there are any."""
        return noise(model, self._probe, self.context.jobs)

    def without(self, changed: onnx.ModelProto, block: Block) -> onnx.ModelProto:
        """A model with one block less, and the layers behind it refitted on a few samples."""
        dropped = without_blocks(changed, [block])
        names = _neighbours(dropped, block)
        return self._refit(dropped, self._few, names).model if names else dropped

    def recovered(self, blocks: Sequence[Block]) -> tuple[onnx.ModelProto, tuple[LayerFit, ...]]:
        """The model without these blocks, and all layers behind them refitted on all samples."""
        found = self._refit(without_blocks(self.model, blocks), self._all, None)
        return found.model, found.fits

    def _refit(self, changed: onnx.ModelProto, recorded: Recorded, layers: set[str] | None) -> Refitted:
        return refit(
            self.model,
            changed,
            {},
            (),
            layers=layers,
            threads=self.context.jobs,
            seed=self.context.seed,
            recorded=recorded,
        )

    def close(self) -> None:
        """Give memory and files back."""
        for name in ("_few", "_all"):
            if name in self.__dict__:
                self.__dict__[name].close()


def _neighbours(model: onnx.ModelProto, block: Block) -> set[str]:
    """What the first layers behind a dropped block write, with the tensors on the way."""
    reached = {block.stream, block.output}
    names: set[str] = set()
    layers = 0
    for node in model.graph.node:
        if reached.isdisjoint(node.input):
            continue
        layers += node.op_type in _LAYERS
        if layers > NEIGHBOURS:
            break
        reached.update(node.output)
        names.update(node.output)
    return names if layers else set()
