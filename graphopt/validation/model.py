"""An opened model that is fed samples: one door for accuracy and latency."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx

from graphopt import runtime
from graphopt.data.fit import is_float
from graphopt.data.sample import Array, Feed
from graphopt.errors import UnsupportedModelError

Model: TypeAlias = onnx.ModelProto | bytes | str | os.PathLike[str]

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class Runner:
    """A session with feeds and outputs adapted to the original's.

    Args:
        model: the model.
        called: what messages call it.
        threads: intra-op threads.
        providers: execution providers.

    Raises:
        UnsupportedModelError: ONNX Runtime refuses it, or it has no tensor output.
    """

    def __init__(self, model: Model, called: str, threads: int, providers: Sequence[str]) -> None:
        self.session = runtime.session(model, threads=threads, providers=providers)
        self.called = called
        self._inputs = {spec.name: spec.type for spec in self.session.get_inputs()}
        # Sequences and maps cannot be compared number by number.
        self._outputs = [spec.name for spec in self.session.get_outputs() if spec.type.startswith("tensor(")]
        if not self._outputs:
            raise UnsupportedModelError(f"{called} has no tensor output, so its answers cannot be compared")

    def feed(self, inputs: Feed) -> dict[str, Array]:
        """Return the feed with floats in the dtype that this model takes (a float16 model may take float16).

        Raises:
            UnsupportedModelError: the model has other inputs.
        """
        if set(inputs) != set(self._inputs):
            raise UnsupportedModelError(
                f"{self.called} has the inputs {', '.join(self._inputs)}, the data is for {', '.join(inputs)}"
            )
        return {name: _as_type(array, self._inputs[name]) for name, array in inputs.items()}

    def run(self, inputs: Feed, index: int, like: Mapping[str, Any] | None = None) -> dict[str, Array]:
        """Return the tensor outputs for one sample.

        Args:
            inputs: the feed.
            index: number of the sample, for messages.
            like: outputs of the original, whose names the result takes; None keeps the model's own.

        Raises:
            UnsupportedModelError: the run fails, or the outputs are not as many as the original's.
        """
        names = self._outputs
        if like is not None:
            if len(names) != len(like):
                raise UnsupportedModelError(f"{self.called} has {len(names)} outputs, the original {len(like)}")
            names = list(like) if set(like) == set(names) else names
        try:
            found = runtime.run(self.session, self.feed(inputs), names)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"sample {index}: {self.called}: {error}") from error
        return dict(zip(like if like is not None else names, map(np.asarray, found.values()), strict=True))


def _as_type(array: Array, wanted: str) -> Array:
    dtype = _FLOATS.get(wanted)
    return array.astype(dtype) if dtype is not None and is_float(array.dtype) and array.dtype != dtype else array
