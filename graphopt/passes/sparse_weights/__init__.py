"""What magnitude pruning is made of: which weights can be pruned, which of their elements go, what it saves."""

from graphopt.passes.sparse_weights.choice import kept_above, kept_by_share
from graphopt.passes.sparse_weights.found import Found, Weight, find_weights
from graphopt.passes.sparse_weights.size import compressed_bytes

__all__ = ["Found", "Weight", "compressed_bytes", "find_weights", "kept_above", "kept_by_share"]
