"""Float16 where the target computes in it: weights, activations and the few Casts between the two precisions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx

from graphopt.passes.base import Candidate, Context, Declined


@dataclass(frozen=True)
class ConvertFloat16:
    """Conversion of a float32 model to float16.

    Attributes:
        keep_io: whether inputs and outputs of the model stay float32.
    """

    name: ClassVar[str] = "convert_float16"
    summary: ClassVar[str] = "float16 where ranges and operators allow it, with the fewest casts"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    keep_io: bool = True

    def candidates(self, model: onnx.ModelProto, context: Context) -> Iterator[Candidate]:
        """Yield models in float16, the fastest first, each later one with more nodes left in float32.

        Raises:
            Declined: nothing can or should run in float16 here; says why.
        """
        if "float16" not in context.hardware.precisions:
            raise Declined(f"the target {context.hardware.name} does not compute in float16")
        raise Declined("nothing is converted yet")
        yield
