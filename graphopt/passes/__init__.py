"""The passes by name. Each is a frozen dataclass whose fields are its options; see ``graphopt.passes.base``."""

from graphopt.passes.base import Pass
from graphopt.passes.eliminate_dead import EliminateDead
from graphopt.passes.fold_batchnorm import FoldBatchNorm
from graphopt.passes.fold_constants import FoldConstants
from graphopt.passes.quantize_int8 import QuantizeInt8

PASSES: dict[str, type[Pass]] = {
    "eliminate_dead": EliminateDead,
    "fold_batchnorm": FoldBatchNorm,
    "fold_constants": FoldConstants,
    "quantize_int8": QuantizeInt8,
}

__all__ = ["PASSES"]
