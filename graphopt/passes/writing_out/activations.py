"""Activations as arithmetic and simpler activations. Formulas: ONNX operator documentation."""

from __future__ import annotations

import math

from graphopt.passes.writing_out.draft import CannotWriteError, Draft


def hard_swish(draft: Draft) -> None:
    """``x * HardSigmoid(x; 1/6, 1/2)``."""
    source = draft.node.inputs[0]
    gate = draft.op("HardSigmoid", source, alpha=1 / 6, beta=0.5)
    draft.op("Mul", source, gate)


def hard_sigmoid(draft: Draft) -> None:
    """``clip(alpha * x + beta, 0, 1)``."""
    alpha, beta = (draft.scalar(draft.attr(*each)) for each in (("alpha", 0.2), ("beta", 0.5)))
    line = draft.op("Add", draft.op("Mul", draft.node.inputs[0], alpha), beta)
    draft.clip(line, draft.scalar(0.0), draft.scalar(1.0))


def swish(draft: Draft) -> None:
    """``x * sigmoid(alpha * x)``."""
    source, alpha = draft.node.inputs[0], float(draft.attr("alpha", 1.0))
    argument = source if alpha == 1.0 else draft.op("Mul", source, draft.scalar(alpha))
    draft.op("Mul", source, draft.op("Sigmoid", argument))


def mish(draft: Draft) -> None:
    """``x * tanh(softplus(x))``."""
    source = draft.node.inputs[0]
    draft.op("Mul", source, draft.op("Tanh", draft.op("Softplus", source)))


def gelu(draft: Draft) -> None:
    """``x/2 * (1 + erf(x / sqrt 2))``, or by tanh ``x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))``."""
    source, one, half = draft.node.inputs[0], draft.scalar(1.0), draft.scalar(0.5)
    if draft.attr("approximate", "none") == "tanh":
        cube = draft.op("Mul", draft.op("Mul", source, source), source)
        inner = draft.op("Add", source, draft.op("Mul", cube, draft.scalar(0.044715)))
        curve = draft.op("Tanh", draft.op("Mul", inner, draft.scalar(math.sqrt(2 / math.pi))))
    else:
        curve = draft.op("Erf", draft.op("Div", source, draft.scalar(math.sqrt(2))))
    product = draft.op("Mul", source, draft.op("Add", curve, one))
    draft.op("Mul", product, half)


def celu(draft: Draft) -> None:
    """``alpha * Elu(x / alpha)``."""
    source, alpha = draft.node.inputs[0], float(draft.attr("alpha", 1.0))
    if alpha <= 0:
        raise CannotWriteError("its alpha is not positive")
    if alpha == 1.0:
        draft.op("Elu", source)
        return
    factor = draft.scalar(alpha)
    draft.op("Mul", draft.op("Elu", draft.op("Div", source, factor)), factor)


def elu(draft: Draft) -> None:
    """``relu(x) + alpha * (exp(min(x, 0)) - 1)``."""
    source, alpha = draft.node.inputs[0], draft.scalar(float(draft.attr("alpha", 1.0)))
    low = draft.op("Neg", draft.op("Relu", draft.op("Neg", source)))
    below = draft.op("Mul", draft.op("Sub", draft.op("Exp", low), draft.scalar(1.0)), alpha)
    draft.op("Add", draft.op("Relu", source), below)
