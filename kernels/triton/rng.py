"""Random numbers in Triton: the bits of ``trimtab.kernels.rng``.

The counter is (position, stream, index // 4, 0) and word ``index % 4`` of the block is taken. Each index computes its
whole block: the races of a row need fewer than 200 numbers, about one for each thread, so sharing a block among four
indices would save nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["exponential", "uniform", "word"]

_SCALE = tl.constexpr(4.6566127342e-10)
_SMALLEST = tl.constexpr(2.0**-31)
_SERIES_BELOW = tl.constexpr(1.0 / 64)
_HALF, _THIRD, _QUARTER = tl.constexpr(1 / 2), tl.constexpr(1 / 3), tl.constexpr(1 / 4)


@triton.jit
def word(key, position, stream, index):
    """Random words uint32, shaped as ``index``.

    Args:
        key: int64 scalar, the 64 bits of ``Key.bits``.
        position: scalar, below 2^32.
        stream: a ``Stream``.
        index: int32 or int64 block, non-negative.
    """
    zero = (index * 0).to(tl.uint32)
    c0 = zero + position.to(tl.uint32)
    c1 = zero + stream
    c2 = (index >> 2).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(key, c0, c1, c2, zero)
    which = index & 3
    return tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))


@triton.jit
def uniform(key, position, stream, index):
    """Uniform float32 in [2^-31, 1 - 2^-24], shaped as ``index``, bit for bit those of ``rng.uniform``."""
    signed = word(key, position, stream, index).to(tl.int32, bitcast=True)
    folded = tl.where(signed < 0, -signed - 1, signed)
    return tl.maximum(folded.to(tl.float32) * _SCALE, _SMALLEST)


@triton.jit
def exponential(u):
    """Exponential clocks of uniform numbers: ``rng.exponential`` but for the last bit of the logarithm."""
    series = u * (1 + u * (_HALF + u * (_THIRD + u * _QUARTER)))
    return tl.where(u < _SERIES_BELOW, series, -tl.log(1 - u))
