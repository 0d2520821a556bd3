"""Convolutions as sums of depthwise and pointwise ones: decomposition, fit, ranks and writing."""
