"""Fix the sizes of dynamic inputs, where asked to: the result accepts these shapes only.

``x: float[N,3,H,W]`` with ``inputs="x:1,3,224,224"`` becomes ``x: float[1,3,224,224]``, and every computation that
depends on these sizes alone (target shapes, paddings, anchors) folds away afterwards. This is the one pass that changes
the interface, and so it does nothing unless told, or unless the target takes no open sizes
(``Hardware.dynamic_shapes``): then inputs get the sizes that the model is judged with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.errors import UsageError
from graphopt.graph import Shape, infer_again, shape_of
from graphopt.passes.base import Context, PassReport


@dataclass(frozen=True)
class FixShapes:
    """Fix the sizes of dynamic inputs, where asked to.

    Attributes:
        inputs: ``NAME:1,3,224,224``, several separated by ``;``; empty leaves all inputs as they are.
    """

    name: ClassVar[str] = "fix_shapes"
    summary: ClassVar[str] = "fix the sizes of dynamic inputs, where asked to"
    exact: ClassVar[bool] = True

    inputs: str = ""

    def apply(self, graph: gs.Graph, context: Context) -> PassReport:
        """Edit ``graph`` in place.

        Raises:
            UsageError: the text cannot be read, or does not fit the inputs of the model.
        """
        by_name = {tensor.name: tensor for tensor in graph.inputs}
        wanted = {**_demanded(by_name, context), **parse(self.inputs)}
        fixed = []
        for name, shape in wanted.items():
            if name not in by_name:
                raise UsageError(
                    f"fix_shapes: the model has no input '{name}'; its inputs are {', '.join(by_name) or 'none'}"
                )
            declared = shape_of(by_name[name])
            if not _fits(declared, shape):
                raise UsageError(f"fix_shapes: input '{name}' is declared as {declared}, which {shape} does not fit")
            if declared != shape:
                by_name[name].shape = shape
                fixed.append(name)
        if fixed:
            infer_again(graph)
        return PassReport(len(fixed), details={"fixed": fixed} if fixed else {})


def _demanded(inputs: Mapping[str, gs.Tensor], context: Context) -> dict[str, tuple[int, ...]]:
    """Sizes of the open inputs where the target takes none that are open."""
    if context.hardware.dynamic_shapes != "fixed" or context.shapes is None:
        return {}
    return {
        name: tuple(shape)
        for name, shape in context.shapes.items()
        if name in inputs and _fits(shape_of(inputs[name]), tuple(shape))
    }


def parse(text: str) -> dict[str, tuple[int, ...]]:
    """Read ``NAME:1,3,224,224; NAME2:...``.

    Raises:
        UsageError: a part has another form, or a size is not positive.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for part in (part.strip() for part in text.split(";")):
        if not part:
            continue
        name, colon, sizes = part.rpartition(":")
        numbers = [size.strip() for size in sizes.split(",") if size.strip()]
        if not colon or not name or not all(size.isdecimal() and int(size) > 0 for size in numbers):
            raise UsageError(f"fix_shapes.inputs: '{part}' is not of the form NAME:1,3,224,224")
        shapes[name.strip()] = tuple(int(size) for size in numbers)
    return shapes


def as_text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Write shapes so that ``parse`` reads them."""
    return "; ".join(f"{name}:{','.join(str(size) for size in shape)}" for name, shape in shapes.items())


def _fits(declared: Shape | None, shape: tuple[int, ...]) -> bool:
    if declared is None:
        return True
    if len(declared) != len(shape):
        return False
    return all(not isinstance(old, int) or old == new for old, new in zip(declared, shape, strict=True))
