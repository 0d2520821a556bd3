"""Runs a net piece by piece over many batches, every step once, keeping only what later steps still read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx

from graphopt import runtime
from graphopt.errors import UnsupportedModelError
from graphopt.recovery.net import Net, reads
from graphopt.recovery.store import Store

# From this IR version on initializers need not be listed as inputs (onnx/docs/IR.md, 'Graphs').
CONSTANT_INITIALIZERS = 4


class Runner:
    """Computes tensors of a net on demand for all batches.

    A step is run when a tensor that depends on it is first wanted: steps may be replaced until then.
    """

    def __init__(self, net: Net, store: Store, batches: int, wanted: Iterable[str], threads: int = 1) -> None:
        """Make a runner.

        Args:
            net: what is run.
            store: holds the net's inputs, and is where all else goes.
            batches: how many batches the store holds.
            wanted: every tensor that ``reach`` will be asked for, as often as ``release`` will be called for it.
            threads: intra-op threads.
        """
        self.net = net
        self.store = store
        self._batches = batches
        self._threads = threads
        self._done: set[int] = set()
        self._uses: dict[str, int] = {}
        wanted = list(wanted)
        for name in wanted:
            self._uses[name] = self._uses.get(name, 0) + 1
        self._needed = self._before(wanted)
        for number in self._needed:
            for name in self._computed(number):
                self._uses[name] = self._uses.get(name, 0) + 1

    def reach(self, names: Sequence[str]) -> None:
        """Compute tensors, and whatever they depend on.

        Raises:
            UnsupportedModelError: ONNX Runtime cannot run a part of the net, or something else than tensors would
                have to be kept.
        """
        steps = sorted(self._before(names))
        if not steps:
            return
        read = list(dict.fromkeys(name for step in steps for name in reads(self.net.steps[step])))
        written = {name: None for step in steps for node in self.net.steps[step] for name in node.output if name}
        inside: dict[str, int] = {}
        for step in steps:
            for name in self._computed(step):
                inside[name] = inside.get(name, 0) + 1
        outputs = [name for name in written if self._uses.get(name, 0) > inside.get(name, 0)]
        inputs = [name for name in read if name not in written and name not in self.net.constants]
        part = self._part(steps, inputs, outputs, [name for name in read if name in self.net.constants])
        opened = runtime.session(part, threads=self._threads)
        for batch in range(self._batches):
            results = runtime.run(opened, {name: self.store.get(name, batch) for name in inputs}, outputs)
            for name, value in results.items():
                if not isinstance(value, np.ndarray):
                    self.store.drop(outputs)
                    raise UnsupportedModelError(f"'{name}' is not a tensor, and cannot be kept")
                self.store.put(name, batch, value)
        self._done.update(steps)
        for name, count in inside.items():
            self._use(name, count)

    def release(self, name: str) -> None:
        """Say that a wanted tensor is not wanted any more."""
        self._use(name, 1)

    def _computed(self, step: int) -> list[str]:
        """What a step reads that is no constant."""
        return [name for name in reads(self.net.steps[step]) if name not in self.net.constants]

    def _use(self, name: str, count: int) -> None:
        self._uses[name] -= count
        if self._uses[name] == 0:
            self.store.drop([name])

    def _before(self, names: Iterable[str]) -> set[int]:
        """Steps that must be run for these tensors."""
        steps: set[int] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            number = self.net.producer.get(name)
            if number is None or number in steps or number in self._done or name in self.store:
                continue
            steps.add(number)
            pending.extend(reads(self.net.steps[number]))
        return steps

    def _part(
        self, steps: Sequence[int], inputs: Sequence[str], outputs: Sequence[str], constants: Sequence[str]
    ) -> onnx.ModelProto:
        part = onnx.ModelProto(ir_version=max(self.net.model.ir_version, CONSTANT_INITIALIZERS))
        part.opset_import.extend(self.net.model.opset_import)
        part.functions.extend(self.net.model.functions)
        part.graph.name = "part"
        for name in inputs:
            part.graph.input.append(self._declared(name))
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        part.graph.node.extend(node for step in steps for node in self.net.steps[step])
        for name in constants:
            tensor = part.graph.initializer.add()
            tensor.CopyFrom(self.net.constants[name])
            tensor.name = name
        return part

    def _declared(self, name: str) -> onnx.ValueInfoProto:
        """Declare an input of a part; axes on which batches differ stay open."""
        shapes = [self.store.shape(name, batch) for batch in range(self._batches)]
        rank = min(len(shape) for shape in shapes)
        same = [shapes[0][axis] if len({shape[axis] for shape in shapes}) == 1 else None for axis in range(rank)]
        dtype = onnx.helper.np_dtype_to_tensor_dtype(self.store.dtype(name))
        return onnx.helper.make_tensor_value_info(name, dtype, same)
