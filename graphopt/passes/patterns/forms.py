"""What a spelled-out activation is called: from the facts of a match to the operator that computes it.

``P * g(t(x)) * x + Q * x`` with ``g`` the core, ``t`` a polynomial of ``x``. With ``HS`` HardSigmoid:

- ``clip(s*x + t, 0, h) = h * HS(x; s/h, t/h)``, and ``x * HS(x; 1/6, 1/2)`` is HardSwish;
- ``x/2 * (1 + erf(x / sqrt 2))`` is Gelu, ``x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`` its approximation;
- ``x * tanh(softplus(x))`` is Mish, ``x * sigmoid(a*x)`` Swish, ``1 / (1 + exp(-x))`` Sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.passes.patterns.scalar_terms import Term, close

_TANH = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Limits:
    """The operator set in force, whether Swish is wanted, and operators that the target does not take."""

    opset: int
    swish: bool
    unwanted: frozenset[str] = frozenset()

    def allow(self, op: str, since: int) -> bool:
        """Whether an operator that came with opset ``since`` may be made."""
        return self.opset >= since and op not in self.unwanted


@dataclass(frozen=True)
class Core:
    """The operator in the middle of an activation.

    Attributes:
        kind: 'clip' (with ``low`` and ``high``), 'erf', 'tanh', 'softplus' (tanh of it), 'sigmoid' or 'exp'.
        argument: what it is applied to, as a polynomial of x.
        dtype: what constants are written in.
    """

    kind: str
    argument: Term
    dtype: np.dtype[Any]
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Form:
    """``factor * op(x)``, or ``factor * x * op(x)`` where ``product`` is set."""

    name: str
    op: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    product: bool = False
    factor: float = 1.0

    @property
    def nodes(self) -> int:
        """How many nodes it takes."""
        return 1 + self.product + (self.factor != 1.0)


def gated(core: Core, p: float, q: float, limits: Limits) -> Form | None:
    """The form of ``p * core * x + q * x``."""
    if not math.isfinite(p) or p == 0:
        return None
    rule = {"clip": _hard, "erf": _gelu, "tanh": _gelu, "softplus": _mish, "sigmoid": _swish, "exp": _swish}[core.kind]
    return rule(core, p, q, limits)


def alone(core: Core, p: float, q: float, limits: Limits) -> Form | None:
    """The form of ``p * core + q``: HardSigmoid or Sigmoid."""
    if q != 0 or core.argument.constant or len(core.argument.coefficients) > 2:
        return None
    if core.kind == "clip" and _cuts_at_zero(core) and close(p * core.high, 1.0, core.dtype):
        if not limits.allow("HardSigmoid", 7):
            return None
        return Form("hard_sigmoid", "HardSigmoid", _hard_sigmoid(core))
    if core.kind == "exp" and core.argument == Term((0.0, 1.0), core.argument.rank) and close(p, 1.0, core.dtype):
        return Form("sigmoid", "Sigmoid")
    return None


def _cuts_at_zero(core: Core) -> bool:
    return core.low == 0 and 0 < core.high < math.inf and core.dtype != np.float64


def _hard_sigmoid(core: Core) -> dict[str, float]:
    return {"alpha": core.argument[1] / core.high, "beta": core.argument[0] / core.high}


def _factor(value: float, dtype: np.dtype[Any]) -> float:
    return 1.0 if close(value, 1.0, dtype) else value


def _hard(core: Core, p: float, q: float, limits: Limits) -> Form | None:
    if q != 0 or not _cuts_at_zero(core) or len(core.argument.coefficients) != 2:
        return None
    attrs, factor = _hard_sigmoid(core), _factor(p * core.high, core.dtype)
    soft = close(attrs["alpha"], 1 / 6, core.dtype) and close(attrs["beta"], 0.5, core.dtype)
    if soft and limits.allow("HardSwish", 14):
        return Form("hard_swish", "HardSwish", factor=factor)
    if not limits.allow("HardSigmoid", 7):
        return None
    return Form("hard_sigmoid_times_x", "HardSigmoid", attrs, product=True, factor=factor)


def _gelu(core: Core, p: float, q: float, limits: Limits) -> Form | None:
    argument = core.argument
    if not limits.allow("Gelu", 20) or core.dtype != np.float32 or not close(q, p, core.dtype) or argument[0] != 0:
        return None
    factor = _factor(2 * p, core.dtype)
    if core.kind == "erf":
        good = len(argument.coefficients) == 2 and close(argument[1], math.sqrt(0.5), core.dtype)
        return Form("gelu", "Gelu", factor=factor) if good else None
    good = (
        argument[2] == 0 and close(argument[1], _TANH, core.dtype) and close(argument[3], 0.044715 * _TANH, core.dtype)
    )
    return Form("gelu_tanh", "Gelu", {"approximate": "tanh"}, factor=factor) if good else None


def _mish(core: Core, p: float, q: float, limits: Limits) -> Form | None:
    if not limits.allow("Mish", 18) or q != 0 or core.argument != Term((0.0, 1.0), core.argument.rank):
        return None
    return Form("mish", "Mish", factor=_factor(p, core.dtype))


def _swish(core: Core, p: float, q: float, limits: Limits) -> Form | None:
    argument = core.argument
    if q != 0 or len(argument.coefficients) != 2 or argument[0] != 0:
        return None
    factor = _factor(p, core.dtype)
    if limits.swish and limits.allow("Swish", 24):
        slope = _factor(argument[1], core.dtype)
        return Form("swish", "Swish", {} if slope == 1.0 else {"alpha": slope}, factor=factor)
    if core.kind == "exp" and close(argument[1], 1.0, core.dtype):
        return Form("sigmoid_times_x", "Sigmoid", product=True, factor=factor)
    return None
