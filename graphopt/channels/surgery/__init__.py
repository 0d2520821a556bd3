"""The edits that make tensors narrower: one module for each family of operators.

``operate`` does it all; what remains of every tensor is known beforehand (``narrowing``), so each operator is adjusted
on its own, by the rule of its kind.
"""

from graphopt.channels.surgery.narrowing import Narrowing, narrow
from graphopt.channels.surgery.operation import operate

__all__ = ["Narrowing", "narrow", "operate"]
