"""A model as the target runs it: what answers for one whose runtime rounds by itself, and what is timed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import onnx

from graphopt.latency import as_placed_by_runtime
from graphopt.model.content import content_hash
from graphopt.speed import Weighed
from graphopt.targets import Hardware


@dataclass
class AsRun:
    """Knows of every model that a pass has proposed what stands for it on this machine.

    Attributes:
        original: the model that is asked for most often.
        hardware: facts of the target; None: models run as they are.
    """

    original: onnx.ModelProto
    hardware: Hardware | None
    _simulations: dict[str, onnx.ModelProto] = field(default_factory=dict, init=False)
    _placed: dict[str, onnx.ModelProto] = field(default_factory=dict, init=False)
    _times: Counter[str] = field(default_factory=Counter, init=False)

    def digest(self, model: onnx.ModelProto) -> str:
        """A hash of a model's content."""
        return self._original_digest if model is self.original else content_hash(model)[0].hexdigest()

    def stand_in(self, model: onnx.ModelProto, simulation: onnx.ModelProto, current: onnx.ModelProto) -> None:
        """Let ``simulation`` answer for ``model``, which the runtime rounds by itself.

        What answers for ``current``, the model before, goes on to do so: it is rounded more.
        """
        digest, older = self.digest(model), self.digest(current)
        self._times[digest] += 1
        self._simulations[digest] = self._simulations.get(older, simulation)
        rules = self.hardware.int8 if self.hardware is not None else None
        if rules is not None and rules.implicit:
            # The graph is left in float and says nothing of what the runtime makes of it.
            known = self._placed.get(older)
            self._placed[digest] = as_placed_by_runtime(simulation) if known is None else known

    def forget(self, model: onnx.ModelProto) -> None:
        """Let go of what stands for a model that does not hold, unless the same was proposed before.

        A simulation is as large as the model.
        """
        if not self._times:
            return
        digest = self.digest(model)
        self._times[digest] -= 1
        if self._times[digest] <= 0:
            del self._times[digest]
            self._simulations.pop(digest, None)
            self._placed.pop(digest, None)

    def answering(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """What answers for a model."""
        return self._simulations.get(self.digest(model), model) if self._simulations else model

    def weighed(self, model: onnx.ModelProto, float32: frozenset[str] | None) -> Weighed:
        """What is timed for a model of which the nodes ``float32`` stay in float32; None: all."""
        digest = self.digest(model)
        if self.hardware is None or self.hardware.strongly_typed:
            float32 = frozenset()
        return Weighed(self._placed.get(digest, model), digest, float32)

    @cached_property
    def _original_digest(self) -> str:
        return content_hash(self.original)[0].hexdigest()
