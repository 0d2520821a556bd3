"""The passes by name. Each is a frozen dataclass whose fields are its options; see ``graphopt.passes.base``.

One pass a file, in this folder; what it is made of lies in a room beside it:

- ``affine``: chains of scales and shifts and the operators that take them up (fold_batchnorm, merge_convolutions)
- ``blocks``: residual blocks (prune_blocks)
- ``channel_shuffle``, ``convolutions``, ``layout``, ``quantize_int8``, ``subgraphs``: of one pass each
- ``constants``, ``sizes``: what is computed from nothing, and from sizes (fold_constants, simplify_reshapes)
- ``expressions``, ``movement``, ``no_ops``: equal nodes, moved data, nodes that do nothing
- ``patterns``: activations and normalizations in pieces
- ``pruning``: which filters to cut and how many (prune_filters)
- ``separable``: convolutions as depthwise and pointwise ones (separate_convolutions)
- ``sparse_weights``: magnitude pruning (prune_weights)
"""

from graphopt.passes.base import Pass
from graphopt.passes.cancel_transposes import CancelTransposes
from graphopt.passes.convert_float16 import ConvertFloat16
from graphopt.passes.eliminate_common import EliminateCommon
from graphopt.passes.eliminate_dead import EliminateDead
from graphopt.passes.fix_shapes import FixShapes
from graphopt.passes.fold_batchnorm import FoldBatchNorm
from graphopt.passes.fold_constants import FoldConstants
from graphopt.passes.fuse_activations import FuseActivations
from graphopt.passes.fuse_channel_shuffle import FuseChannelShuffle
from graphopt.passes.fuse_gemm import FuseGemm
from graphopt.passes.fuse_normalization import FuseNormalization
from graphopt.passes.fuse_padding import FusePadding
from graphopt.passes.inline import Inline
from graphopt.passes.lower_opset import LowerOpset
from graphopt.passes.merge_convolutions import MergeConvolutions
from graphopt.passes.merge_groups import MergeGroups
from graphopt.passes.prune_blocks import PruneBlocks
from graphopt.passes.prune_filters import PruneFilters
from graphopt.passes.prune_weights import PruneWeights
from graphopt.passes.quantize_int8 import QuantizeInt8
from graphopt.passes.raise_opset import RaiseOpset
from graphopt.passes.separate_convolutions import SeparateConvolutions
from graphopt.passes.simplify_reshapes import SimplifyReshapes
from graphopt.passes.write_out import WriteOut

PASSES: dict[str, type[Pass]] = {
    "cancel_transposes": CancelTransposes,
    "convert_float16": ConvertFloat16,
    "eliminate_common": EliminateCommon,
    "eliminate_dead": EliminateDead,
    "fix_shapes": FixShapes,
    "fold_batchnorm": FoldBatchNorm,
    "fold_constants": FoldConstants,
    "fuse_activations": FuseActivations,
    "fuse_channel_shuffle": FuseChannelShuffle,
    "fuse_gemm": FuseGemm,
    "fuse_normalization": FuseNormalization,
    "fuse_padding": FusePadding,
    "inline": Inline,
    "lower_opset": LowerOpset,
    "merge_convolutions": MergeConvolutions,
    "merge_groups": MergeGroups,
    "prune_blocks": PruneBlocks,
    "prune_filters": PruneFilters,
    "prune_weights": PruneWeights,
    "quantize_int8": QuantizeInt8,
    "raise_opset": RaiseOpset,
    "separate_convolutions": SeparateConvolutions,
    "simplify_reshapes": SimplifyReshapes,
    "write_out": WriteOut,
}

__all__ = ["PASSES"]
