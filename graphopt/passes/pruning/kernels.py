"""Nanoseconds of ONNX Runtime's CPU kernels, as formulas in the sizes of what they compute.

What ONNX Runtime 1.31's kernels did on one thread of an x86-64 CPU with AVX512 and VNNI (chains of equal layers of
different length, CPU time; channels 4 to 256 in steps of 2 to 16, convolutions 1x1 and 3x3 on 7x7 to 56x56, depthwise,
grouped, matrix products up to 2048). Every node takes 0.7 microseconds on top.

float32:

- Convolutions run on blocks of 16 channels on both sides: time is flat between multiples of 16 (64 inputs, 52 to 64
  outputs: the same to 1 %; 64 outputs, 52 to 64 inputs: likewise) and proportional to the rounded product, 58
  multiply-adds a nanosecond whatever the kernel size, stride and depth. Below 16 inputs a kernel that reads plain
  tensors takes over, proportional to the inputs; below 16 outputs the convolution leaves the blocked kernels and costs
  1.2 times as much as with 16.
- Inputs that are not a multiple of 4 leave the blocked kernels, too: 44 multiply-adds a nanosecond, unrounded, and both
  sides reordered; a depthwise of 30 channels ran at half the speed of 32.
- Grouped convolutions need multiples of 16 in every block; else 40 multiply-adds a nanosecond and, unless they are
  1x1, the windows written out (0.15 ns an element and 2.8 ns for each tap of each pixel of each block).
- Depthwise: 30 multiply-adds a nanosecond, rounded to 16.
- Pooling, concatenation and other movement keep the blocked layout only at multiples of 16; else the tensor is
  reordered before and behind (33 bytes a nanosecond).
- Matrix products: proportional to all three sides, 55 multiply-adds a nanosecond; one row of input: 20.

int8 (unsigned activations, signed weights, channels last):

- Convolutions: 230 multiply-adds a nanosecond, inputs rounded to 4 and outputs to 16 (28x28, 64 inputs: 73, 73, 104,
  104 us with 20, 32, 36, 48 outputs), 0.1 ns for each element of the output, 0.8 ns for each tap of each pixel. Off
  multiples of 4 on either side 1.4 times as much; below 16 outputs 1.7 times as much as with 16.
- Grouped: the same for each block, and 5 ns and 5 more for each tap, for each pixel of each block.
- Depthwise: 26 multiply-adds a nanosecond and 1.8 ns for each tap of each pixel, at multiples of 16; at multiples of 8
  1.5 times as much, else 3 times. So mostly it is no faster than in float.
- Addition, concatenation, maximum and global average: 20 bytes a nanosecond whatever the channels. Other movement
  (transposition above all) is slower in int8 than in float.
- Matrix products: 180 multiply-adds a nanosecond; one row of input: 60.
- A convolution that stays in float among others in int8 has its input and output converted and transposed, 0.3 ns an
  element; half of it is counted, for it may have neighbours in float. A depthwise convolution between pointwise ones
  so comes out level with int8, as measured.

Rounding in float goes by the multiple that the target names; on one without such multiples products are unrounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

# Nanoseconds of any node.
NODE = 700.0
# Multiply-adds and bytes a nanosecond; see above.
BLOCKED, UNBLOCKED, WINDOWS, DEPTHWISE, PRODUCT, ONE_ROW = 58.0, 44.0, 40.0, 30.0, 55.0, 20.0
BYTES = 33.0
WINDOW_ELEMENT, WINDOW_TAP = 0.15, 2.8
# Channels whose multiples stay on the blocked kernels at all, and those that int8 kernels take at once.
QUARTER = 4
DEPTH, COLUMNS = 4, 16
# The same of int8.
INT8_DENSE, INT8_DEPTHWISE, INT8_PRODUCT, INT8_ONE_ROW = 230.0, 26.0, 180.0, 60.0
INT8_BYTES = 20.0
CONVERTED = 0.15
INT8_ELEMENT, INT8_TAP, INT8_BLOCK, INT8_BLOCK_TAP, INT8_DEPTHWISE_TAP = 0.1, 0.8, 5.0, 5.0, 1.8
# Operators that move data in int8 without loss of speed.
INT8_MOVEMENT = frozenset({"Add", "Concat", "GlobalAveragePool", "MaxPool"})


@dataclass(frozen=True)
class Convolution:
    """The sizes of a convolution, numbers or arrays that broadcast.

    Attributes:
        pixels: positions of its output over all samples (of the input of a transposed one).
        taps: positions of its kernel.
        inside: input channels.
        outside: output channels.
        blocks: groups; 1 for a plain one.
        depthwise: whether each group reads one channel.
    """

    pixels: Counts
    taps: int
    inside: Counts
    outside: Counts
    blocks: int
    depthwise: bool

    @property
    def positions(self) -> Counts:
        """Taps of all pixels."""
        return np.asarray(self.pixels * self.taps)

    @property
    def macs(self) -> Floats:
        """Multiply-adds."""
        wide = self.outside if self.depthwise else self.inside * self.outside / self.blocks
        return np.asarray(self.positions * wide, dtype=np.float64)


def float_convolution(work: Convolution, multiple: int) -> Floats:
    """Time in float32; ``multiple``: channels that the target's kernels compute at a time."""
    inside, outside = work.inside, work.outside
    reorder = 8.0 * work.pixels * (inside + outside) / BYTES
    if work.depthwise:
        off = _off(inside, multiple)
        wide = np.where(off, 2.0 * outside, _up(outside, multiple))
        return np.asarray(work.positions * wide / DEPTHWISE + off * reorder)
    if work.blocks > 1:
        whole = (inside % (work.blocks * multiple) == 0) & (outside % (work.blocks * multiple) == 0)
        split = work.macs / WINDOWS + reorder
        if work.taps > 1:
            split = split + work.positions * (WINDOW_ELEMENT * inside + WINDOW_TAP * work.blocks)
        return np.asarray(np.where(whole, work.macs / BLOCKED, split))
    small = inside < multiple
    off = _off(inside, multiple) & ~small
    rounded = np.where(small, inside, _up(inside, multiple)) * _up(outside, multiple)
    blocked = work.positions * rounded / BLOCKED * np.where(outside < multiple, 1.2, 1.0)
    return np.asarray(np.where(off, work.macs / UNBLOCKED + reorder, blocked))


def int8_convolution(work: Convolution) -> Floats:
    """Time in int8."""
    if work.depthwise:
        slow = np.where(work.outside % 16 == 0, 1.0, np.where(work.outside % 8 == 0, 1.5, 3.0))
        each = _up(work.outside, COLUMNS) / INT8_DEPTHWISE * slow + INT8_DEPTHWISE_TAP
        return np.asarray(work.positions * each)
    inside, outside = work.inside // work.blocks, work.outside // work.blocks
    off = (inside % DEPTH != 0) | (outside % DEPTH != 0)
    slow = np.where(off, 1.4, 1.0)
    product = work.positions * work.blocks * (_up(inside, DEPTH) * _up(outside, COLUMNS)) / INT8_DENSE * slow
    windows = INT8_TAP * work.positions * (work.taps > 1)
    if work.blocks > 1:
        windows = work.blocks * (INT8_BLOCK * work.pixels + INT8_BLOCK_TAP * work.positions)
    narrow = np.where(outside < COLUMNS, 1.7, 1.0)
    return np.asarray(narrow * (product + INT8_ELEMENT * work.pixels * work.outside + windows))


def conversions(work: Convolution) -> Floats:
    """Time that a convolution in float costs among others in int8."""
    return np.asarray(CONVERTED * work.pixels * (work.inside + work.outside))


def float_movement(elements: Counts, ragged: npt.NDArray[np.bool_]) -> Floats:
    """Time to read or write a tensor; ``ragged``: its channels do not fit the blocked layout."""
    return np.asarray(np.where(ragged, 3.0, 1.0) * 4.0 * elements / BYTES)


def int8_movement(elements: Counts) -> Floats:
    """Time to read or write a tensor in int8."""
    return np.asarray(elements / INT8_BYTES)


def float_product(macs: Floats, one_row: bool) -> Floats:
    """Time of a matrix product in float32."""
    return macs / (ONE_ROW if one_row else PRODUCT)


def int8_product(macs: Floats, one_row: bool) -> Floats:
    """Time of a matrix product in int8."""
    return macs / (INT8_ONE_ROW if one_row else INT8_PRODUCT)


def _up(count: Counts, multiple: int) -> Counts:
    return -(-count // multiple) * multiple


def _off(count: Counts, multiple: int) -> npt.NDArray[np.bool_]:
    return np.asarray(count % min(QUARTER, multiple) != 0)
