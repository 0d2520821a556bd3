"""The factors that stand for one convolution's weights.

A k x k convolution is a sum of at most k^2 pairs of a depthwise and a pointwise convolution (Guo et al. 2018, network
decoupling, arXiv 1808.05517), in either order; or of a k x 1 and a 1 x k one with ``rank`` channels between them
(Jaderberg et al. 2014, arXiv 1405.3866).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Form: TypeAlias = Literal["depthwise_first", "pointwise_first", "spatial"]


@dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution's weights.

    Attributes:
        groups: number of groups.
        channels: input channels of a group.
        filters: output channels of a group.
        kernel: sizes of the kernel along the spatial axes.
    """

    groups: int
    channels: int
    filters: int
    kernel: tuple[int, ...]

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return prod(self.kernel)

    def full_rank(self, form: Form) -> int:
        """The rank at which a form is exact for any weights.

        ``spatial`` splits the first spatial axis from the others.
        """
        if form == "depthwise_first":
            return min(self.taps, self.filters)
        if form == "pointwise_first":
            return min(self.taps, self.channels)
        return min(self.channels * self.kernel[0], self.filters * self.taps // self.kernel[0])


@dataclass(frozen=True)
class Factors:
    """Weights as a product of two factors.

    The weight of tap t, channel c and filter f of a group is the sum over r of

    - ``depthwise_first``: ``first[g, r, c, t] * second[g, r, c, f]``
    - ``pointwise_first``: ``first[g, r, c, f] * second[g, r, f, t]``
    - ``spatial``: ``first[g, r, c, t0] * second[g, r, f, t1]``, t0 along the first spatial axis, t1 along the others.

    Attributes:
        form: which of them.
        geometry: sizes of the convolution.
        first: what reads the input, float32.
        second: what writes the output, float32.
    """

    form: Form
    geometry: Geometry
    first: Array
    second: Array

    @property
    def rank(self) -> int:
        """Number of terms."""
        return int(self.first.shape[1])

    def matrix(self) -> Array:
        """The weights in the common form of ``recovery``: [groups, taps and channels, filters of a group]."""
        sizes = self.geometry
        if self.form == "spatial":
            product = np.einsum("grca,grfb->gabcf", self.first, self.second, optimize=True)
        elif self.form == "depthwise_first":
            product = np.einsum("grct,grcf->gtcf", self.first, self.second, optimize=True)
        else:
            product = np.einsum("grcf,grft->gtcf", self.first, self.second, optimize=True)
        matrix: Array = product.reshape(sizes.groups, sizes.taps * sizes.channels, sizes.filters)
        return matrix
