"""Models that several priced passes make together, at one price."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from graphopt.exact import PROPAGATED, told
from graphopt.passes.base import Candidate, Dial, Kept

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixed:
    """A model that passes made together.

    Attributes:
        model: the model.
        kept: what remains in it of the tensors of the model before.
        price: the price that all passes were told; 0 where none took part.
        names: passes that were asked.
        parts: what each pass did that found something to do at this price, in order.
        drop: by how much the metric falls on the selection samples; None where it was not measured.
    """

    model: onnx.ModelProto
    kept: Kept = field(default_factory=dict)
    price: float = 0.0
    names: tuple[str, ...] = ()
    parts: Mapping[str, Candidate] = field(default_factory=dict)
    drop: float | None = None


class Mixer:
    """Lets priced passes work on one model together.

    Attributes:
        model: the model before them.
        dials: the passes that can work on it, by name, in order.
        failures: passes that failed, and how.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.dials: dict[str, Dial] = {}
        self.failures: dict[str, str] = {}

    def mix(self, names: Sequence[str], price: float) -> Mixed:
        """Let passes work one after the other, each told the same price; the last that does anything recovers."""
        asked = tuple(names)
        wanted = [name for name in asked if name not in self.failures]
        while wanted:
            done = self._once(wanted, price)
            if done is None:
                wanted = [name for name in wanted if name not in self.failures]
                continue
            model, kept, parts = done
            if not parts or list(parts)[-1] == wanted[-1]:
                return Mixed(model, kept, price, asked, parts)
            wanted = list(parts)
        return Mixed(self.model, {}, price, asked)

    def close(self) -> None:
        """Give memory and files back."""
        for dial in self.dials.values():
            dial.close()

    def _once(self, names: Sequence[str], price: float) -> tuple[onnx.ModelProto, Kept, dict[str, Candidate]] | None:
        model, kept = self.model, {}  # type: onnx.ModelProto, Kept
        parts: dict[str, Candidate] = {}
        for name in names:
            try:
                found = self.dials[name].at(price, model, kept, recover=name == names[-1])
            except PROPAGATED:
                raise
            except Exception as error:  # a pass that fails costs only itself; the report names it
                log.debug("%s failed", name, exc_info=error)
                self.failures[name] = told(error)
                return None
            if found is not None:
                parts[name] = found
                model, kept = found.model, found.kept
        return model, kept, parts
