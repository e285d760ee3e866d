"""What the kernels over rows of logits share: loading a tile, mixing models, sums over a tile, the plan of a row.

A row's *plan* is a line of integers and one of numbers, made by ``pack`` once per request change, so that a launch is a
function of tensors alone. A *tile* is ``BLOCK`` tokens: 4096, or for a small vocabulary the next power of two; that and
the order of every sum depend on the vocabulary alone.

Sums are taken in units of log2 and over whatever the memory holds: the special values show in the sum, which becomes
NaN, and then the tile is read again with care. A clean row, which is nearly every row, pays nothing for it.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "BANNED",
    "BIAS",
    "EDITS",
    "FLAG_EMPTY",
    "FLAG_UNCLEAN",
    "INTS",
    "KIND",
    "REALS",
    "SEEN",
    "WEIGHTS",
    "combine",
    "decide",
    "kind_of",
    "load",
    "mix",
    "mix_careful",
    "moments",
    "moments_careful",
    "moments_mixed",
    "tile_of_row",
]

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NEG_INF = tl.constexpr(float("-inf"))
INF = tl.constexpr(float("inf"))
LARGEST = tl.constexpr(3.4028234663852886e38)
FLOOR = tl.constexpr(-1000.0)  # of exponents in log2 units: 2 to it is 0, and so is 0 times it
DELTA = tl.constexpr(1.0e4)  # reference.mix.DELTA
FAR = tl.constexpr(1.0e30)
GROUP = tl.constexpr(64)  # reference.tiles.GROUP
TILE = tl.constexpr(4096)  # reference.tiles.TILE
FLAG_EMPTY = tl.constexpr(1)
FLAG_UNCLEAN = tl.constexpr(2)

# Columns of a plan's integers, int64 [R, INTS].
KEY = tl.constexpr(0)
POSITION = tl.constexpr(1)
KIND = tl.constexpr(2)
TOP_K = tl.constexpr(3)  # 0 where it does not bind
SLOT = tl.constexpr(4)  # which row of the buffer for edited rows
SEEN = tl.constexpr(5)  # begin and end in the list of ids; likewise the next two
BIAS = tl.constexpr(7)
BANNED = tl.constexpr(9)
GATE = tl.constexpr(11)  # 0 none, 1 entropy above, 2 top probability below
INTS = tl.constexpr(12)

# Columns of its numbers, float32 [R, REALS + models].
SCALE = tl.constexpr(0)  # 1 / temperature
TOP_P = tl.constexpr(1)
MIN_P = tl.constexpr(2)  # temperature * ln min_p
PENALTY = tl.constexpr(3)
LIMIT = tl.constexpr(4)  # of the gate
PLAUSIBLE = tl.constexpr(5)  # ln of plausibility
WEIGHTS = tl.constexpr(6)
REALS = tl.constexpr(6)

# Bits of KIND.
SAMPLED = tl.constexpr(1)
FILTERED = tl.constexpr(2)
EDITED = tl.constexpr(4)
SCALED = tl.constexpr(8)  # sampled, and needs masses of its own (not at temperature 1) or column maxima (top-k)
MIXED = tl.constexpr(16)
DEFERRED = tl.constexpr(32)  # mixed, but how needs the statistics of the base

# How many ids of a list are applied at once.
EDITS = tl.constexpr(128)


@triton.jit
def load(x, offs, other, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """float32 logits at ``offs`` = start of a tile + arange as they are, ``other`` after the last one.

    A mask that is no multiple of 16 would break every load into single elements; so full tiles do without.
    """
    if VOCABULARY % BLOCK == 0:
        z = tl.load(x + offs).to(tl.float32)
    elif VOCABULARY % 16 == 0:
        z = tl.load(x + offs, mask=offs < VOCABULARY, other=other).to(tl.float32)
    else:
        if tl.max(offs, 0) < VOCABULARY:
            z = tl.load(x + offs).to(tl.float32)
        else:
            z = tl.load(x + offs, mask=offs < VOCABULARY, other=other).to(tl.float32)
    return z


@triton.jit
def moments(z):
    """m = max z, s = sum of e^(z - m), t = sum of e^(z - m) (z - m) / ln 2; s is NaN for NaN, +inf or no finite z."""
    m = tl.max(z, 0)
    # Of (-1000, NaN) the NaN: it has to reach the sum.
    d = tl.maximum((z - m) * LOG2E, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    w = tl.exp2(d)
    return m, tl.sum(w, 0), tl.sum(w * d, 0)


@triton.jit
def moments_mixed(z, delta):
    """``moments`` of a mixture; s is NaN also where what was added to the base is NaN or infinite."""
    m = tl.max(z, 0)
    d = tl.maximum((z - m) * LOG2E, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    w = tl.exp2(d)
    return m, tl.sum(w + delta * 0.0, 0), tl.sum(w * d, 0)


@triton.jit
def moments_careful(z):
    """``moments`` of z without NaN and +inf; m = -inf and no mass where all are -inf."""
    m = tl.max(z, 0)
    d = tl.maximum((z - tl.where(m > NEG_INF, m, 0.0)) * LOG2E, FLOOR)
    w = tl.exp2(d)
    return m, tl.sum(w, 0), tl.sum(w * d, 0)


@triton.jit
def mix(x0, xs, strides, row, offs, weights, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """The mixture where every logit is finite or a ban of the base, and what the other models add, before its bound.

    Args:
        x0: float32, the base's logits at ``offs``.
        xs, strides: pointers to the logits of all M models and their row strides.
        row: int64.
        weights: pointer to the weights of the row.
    """
    delta = tl.zeros_like(x0)
    for j in tl.static_range(1, M):
        # After the last token 0, not -inf, which would look like an unclean model.
        x = load(xs[j] + row * strides[j], offs, 0.0, VOCABULARY, BLOCK)
        delta += tl.load(weights + j) * x
    return tl.load(weights) * x0 + tl.minimum(tl.maximum(delta, -DELTA), DELTA), delta


@triton.jit
def mix_careful(x0, xs, strides, row, offs, inside, weights, M: tl.constexpr, VOCABULARY: tl.constexpr):
    """The mixture by the rules of ``reference.mix``, and where another model is unclean.

    Args:
        x0: float32, the base's logits at ``offs``, -inf outside.
        offs: any block of offsets, not negative.
        inside: which of them count.
    """
    x0 = tl.where(x0 < INF, x0, NEG_INF)
    delta = tl.zeros_like(x0)
    unclean = x0 > INF
    for j in tl.static_range(1, M):
        weight = tl.load(weights + j)
        # Two masks: one as irregular as ``inside`` would break the load into single elements.
        x = tl.load(xs[j] + row * strides[j] + offs, mask=offs < VOCABULARY, other=0.0).to(tl.float32)
        x = tl.where(inside, x, 0.0)
        unclean = unclean | (((x != x) | (x == INF)) & (tl.zeros_like(x) + weight != 0))
        finite = (x < INF) & (x > -FAR)  # false for NaN
        delta += weight * tl.where(finite, x, -FAR)
    delta = tl.minimum(tl.maximum(delta, -DELTA), DELTA)
    banned = x0 == NEG_INF
    z = tl.minimum(tl.load(weights) * tl.where(banned, 0.0, x0) + delta, LARGEST)
    return tl.where(banned, NEG_INF, z), unclean


@triton.jit
def combine(parts, NT, TILES: tl.constexpr):
    """Merge the partials m, s, t, flag of a row, float32 [4, NT], in index order: top, mass, moment in nats, flags.

    A row with nothing finite has top -inf, mass 1 and moment 0.
    """
    tile = tl.arange(0, TILES)
    there = tile < NT
    m = tl.load(parts + tile, mask=there, other=NEG_INF)
    s = tl.load(parts + NT + tile, mask=there, other=0.0)
    t = tl.load(parts + 2 * NT + tile, mask=there, other=0.0)
    flag = tl.load(parts + 3 * NT + tile, mask=there, other=0.0)
    top = tl.max(m, 0)
    empty = top == NEG_INF
    gap = tl.maximum((m - tl.where(empty, 0.0, top)) * LOG2E, FLOOR)
    w = tl.exp2(gap)
    mass = tl.where(empty, 1.0, tl.sum(w * s, 0))
    moment = tl.where(empty, 0.0, tl.sum(w * (t + gap * s), 0) * LN2)
    flags = tl.where(tl.max(flag, 0) > 0, FLAG_UNCLEAN, 0) + tl.where(empty, FLAG_EMPTY, 0)
    return top, mass, moment, flags


@triton.jit
def decide(top, mass, moment, ints, reals):
    """Whether the mixture applies, by the merged partials of the base: 0 or 1."""
    gate = tl.load(ints + GATE)
    limit = tl.load(reals + LIMIT)
    entropy = tl.maximum(tl.log(mass) - moment / mass, 0.0)
    fires = (gate == 0) | ((gate == 1) & (entropy > limit)) | ((gate == 2) & (1.0 / mass < limit))
    return fires & (top > NEG_INF)


@triton.jit
def kind_of(ints, EDITABLE: tl.constexpr):
    """KIND of a row; a launch without a buffer for edited rows takes none for edited."""
    kind = tl.load(ints + KIND)
    if not EDITABLE:
        kind = kind & (-1 - EDITED)
    return kind


@triton.jit
def tile_of_row(
    xs,
    strides,
    row,
    tile,
    mixed,
    bound,
    weights,
    M: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Clean logits of a tile before edits, float32 [BLOCK].

    Args:
        mixed: whether the mixture applies.
        bound: the least logit of the base whose token stays.
    """
    offs = tile * BLOCK + tl.arange(0, BLOCK)
    z = load(xs[0] + row * strides[0], offs, NEG_INF, VOCABULARY, BLOCK)
    z = tl.where(z < INF, z, NEG_INF)
    if M > 1 and mixed:
        kept = (z >= bound) & (z > NEG_INF)
        z, _ = mix_careful(z, xs, strides, row, offs, kept, weights, M, VOCABULARY)
        z = tl.where(kept, z, NEG_INF)
    return z
