"""Races of exponential clocks, as ``cpu.races`` has them, and an order of float32 in which thresholds are found."""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.kernels.triton.rng import exponential, uniform
from trimtab.kernels.triton.rows import GROUP
from trimtab.kernels.types import Stream

__all__ = ["ACCEPT", "COLUMN", "LINE", "TILES", "TOKEN", "first_max", "number", "order", "race_inside", "scores"]

TILES, COLUMN, LINE, TOKEN, ACCEPT = (
    tl.constexpr(int(stream)) for stream in (Stream.TILE, Stream.COLUMN, Stream.LINE, Stream.TOKEN, Stream.ACCEPT)
)
NOBODY = tl.constexpr(2147483647)


@triton.jit
def first_max(values, index):
    """The lowest index with the largest value, int32; no NaN."""
    return tl.min(tl.where(values == tl.max(values, 0), index, NOBODY), 0)


@triton.jit
def scores(weights, key, position, stream, index):
    """w / E: whose score is the largest wins the race."""
    return weights / exponential(uniform(key, position, stream, index))


@triton.jit
def race_inside(weights, key, position, BLOCK: tl.constexpr):
    """The place in a tile that wins the second and the third race, by weights [BLOCK]."""
    grid = tl.reshape(weights, (BLOCK // GROUP, GROUP))
    group = tl.arange(0, GROUP)
    column = first_max(scores(tl.sum(grid, 0), key, position, COLUMN, group), group)
    line = tl.arange(0, BLOCK // GROUP)
    held = tl.sum(tl.where(group[None, :] == column, grid, 0.0), 1)
    return first_max(scores(held, key, position, LINE, line), line) * GROUP + column


@triton.jit
def order(z):
    """int32 that compare as the float32 do; both zeros are one."""
    bits = tl.where(z == 0, 0.0, z).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def number(ordered):
    """The float32 of an ``order``, a scalar."""
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
