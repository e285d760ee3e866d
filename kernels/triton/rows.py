"""What the kernels over rows of logits share: loading a tile, mixing models, sums over a tile, the plan of a row.

A row's *plan* is a line of integers and one of numbers, made by ``pack`` once per request change, so that a launch is a
function of tensors alone. A *tile* is ``BLOCK`` tokens: 4096, or for a small vocabulary the next power of two; that and
the order of every sum depend on the vocabulary alone.

Sums are taken in units of log2 and over whatever the memory holds: the special values show in the sum, which becomes
NaN, and then the tile is read again with care. A clean row, which is nearly every row, pays nothing for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = ["Lists", "Results", "Row", "Scratch", "Source", "bound_of", "drawn_tile", "row_of", "tile_of_row"]

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NEG_INF = tl.constexpr(float("-inf"))
INF = tl.constexpr(float("inf"))
LARGEST = tl.constexpr(3.4028234663852886e38)
FLOOR = tl.constexpr(-1000.0)  # of exponents in log2 units: 2 to it is 0, and so is 0 times it
DELTA = tl.constexpr(1.0e4)  # cpu.mix.DELTA
FAR = tl.constexpr(1.0e30)
GROUP = tl.constexpr(64)  # cpu.tiles.GROUP
TILE = tl.constexpr(4096)  # cpu.tiles.TILE

# Columns of a plan's integers, int64 [R, INTS].
KEY = tl.constexpr(0)
POSITION = tl.constexpr(1)
KIND = tl.constexpr(2)
TOP_K = tl.constexpr(3)  # 0 where it does not bind
SLOT = tl.constexpr(4)  # which row of the buffer for edited rows
SEEN = tl.constexpr(5)  # begin and end in the list of ids; likewise the next two
BIAS = tl.constexpr(7)
BANNED = tl.constexpr(9)
INTS = tl.constexpr(11)

# Columns of its numbers, float32 [R, REALS + models].
SCALE = tl.constexpr(0)  # 1 / temperature
TOP_P = tl.constexpr(1)
MIN_P = tl.constexpr(2)  # temperature * ln min_p
PENALTY = tl.constexpr(3)
PLAUSIBLE = tl.constexpr(4)  # ln of plausibility
WEIGHTS = tl.constexpr(5)
REALS = tl.constexpr(5)

# Bits of KIND.
SAMPLED = tl.constexpr(1)
FILTERED = tl.constexpr(2)
EDITED = tl.constexpr(4)
SCALED = tl.constexpr(8)  # sampled, and needs masses of its own (not at temperature 1) or column maxima (top-k)

# Columns of a distribution, float32 [R, DISTRIBUTION]: ``cpu.distribution``. A greedy row has all mass on its token.
TOP, RATE, BOUND, MASS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
DISTRIBUTION = tl.constexpr(4)


class Source(NamedTuple):
    """Logits of M models: pointers and row strides."""

    xs: Any
    strides: Any


class Lists(NamedTuple):
    """A plan on the device; see ``pack``."""

    ints: Any
    reals: Any
    ids: Any
    biases: Any


class Scratch(NamedTuple):
    """What one stage leaves for the next.

    Attributes:
        base: float32 [R, 2, NT]: largest logit of the base, whether it is unclean; of rows with plausible tokens.
        parts: float32 [R, 4, NT]: m, s, t, flag of what the statistics are of.
        draws: float32 [R, 2, NT]: m, s of scaled or edited logits.
        columns: float32 [R, NT, GROUP]: column maxima, where top-k binds in some row.
        edited: float32 [rows with edits, NT, BLOCK].
        state, counts: float32 [R, STATE] and int32 [R]; see ``settle``.
        listed, listed_ids: float32 and int32 [R, CAPACITY]: logits and ids that filters may keep.
    """

    base: Any
    parts: Any
    draws: Any
    columns: Any
    edited: Any
    state: Any
    counts: Any
    listed: Any
    listed_ids: Any


class Results(NamedTuple):
    """What comes out.

    Attributes:
        numbers: float32 [4, R]: lse, entropy, top_prob, logprob.
        ids: int64 [2, R]: token, argmax.
        flags: uint8 [R].
        distributions: float32 [R, DISTRIBUTION], what each token was drawn from.
    """

    numbers: Any
    ids: Any
    flags: Any
    distributions: Any


class Row(NamedTuple):
    """One row at work.

    Attributes:
        source: the logits.
        row: its number, int64.
        ints, reals: its plan.
        kind: bits.
        edited: its tiles after edits.
        bound: the least logit of the base whose token is plausible; -inf: all are.
        NT: tiles.
    """

    source: Any
    row: Any
    ints: Any
    reals: Any
    kind: Any
    edited: Any
    bound: Any
    NT: Any


@triton.jit
def bound_of(lists, scratch, row, NT, M: tl.constexpr, TILES: tl.constexpr, MASKED: tl.constexpr):
    """``Row.bound``; MASKED: whether some row has plausible tokens."""
    bound = tl.zeros((), tl.float32) + NEG_INF
    if MASKED:
        plausible = tl.load(lists.reals + row * (REALS + M) + PLAUSIBLE)
        if plausible > NEG_INF:
            tile = tl.arange(0, TILES)
            bound = tl.max(tl.load(scratch.base + row * 2 * NT + tile, mask=tile < NT, other=NEG_INF), 0) + plausible
    return bound


@triton.jit
def row_of(
    source, lists, scratch, row, bound, NT, M: tl.constexpr, BLOCK: tl.constexpr, DRAWN: tl.constexpr,
    EDITABLE: tl.constexpr,
):  # fmt: skip
    """The row; DRAWN: whether there is a plan. A launch without a buffer for edited rows takes none for edited."""
    ints, reals, edited = lists.ints, lists.reals, scratch.edited
    kind = tl.zeros((), tl.int32)
    if DRAWN:
        ints += row * INTS
        reals += row * (REALS + M)
        kind = tl.load(ints + KIND).to(tl.int32)
        if EDITABLE:
            edited += tl.load(ints + SLOT) * NT * BLOCK
        else:
            kind = kind & (-1 - EDITED)
    return Row(source, row, ints, reals, kind, edited, bound, NT)


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
def mix(r, x0, offs, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """The mixture where every logit is finite or a ban of the base, and what the other models add, before its bound.

    x0 are the base's logits at ``offs``, float32.
    """
    delta = tl.zeros_like(x0)
    for j in tl.static_range(1, M):
        # After the last token 0, not -inf, which would look like an unclean model.
        x = load(r.source.xs[j] + r.row * r.source.strides[j], offs, 0.0, VOCABULARY, BLOCK)
        delta += tl.load(r.reals + WEIGHTS + j) * x
    return tl.load(r.reals + WEIGHTS) * x0 + tl.minimum(tl.maximum(delta, -DELTA), DELTA), delta


@triton.jit
def mix_careful(r, x0, offs, inside, M: tl.constexpr, VOCABULARY: tl.constexpr):
    """The mixture by the rules of ``cpu.mix``, and where a model is unclean.

    Args:
        x0: float32, the base's logits at ``offs``, -inf outside.
        offs: any block of offsets, not negative.
        inside: which of them count.
    """
    unclean = (x0 < INF) == 0
    x0 = tl.where(unclean, NEG_INF, x0)
    delta = tl.zeros_like(x0)
    for j in tl.static_range(1, M):
        weight = tl.load(r.reals + WEIGHTS + j)
        # Two masks: one as irregular as ``inside`` would break the load into single elements.
        x = r.source.xs[j] + r.row * r.source.strides[j] + offs
        x = tl.where(inside, tl.load(x, mask=offs < VOCABULARY, other=0.0).to(tl.float32), 0.0)
        unclean = unclean | (((x != x) | (x == INF)) & (tl.zeros_like(x) + weight != 0))
        finite = (x < INF) & (x > -FAR)  # false for NaN
        delta += weight * tl.where(finite, x, -FAR)
    delta = tl.minimum(tl.maximum(delta, -DELTA), DELTA)
    banned = x0 == NEG_INF
    z = tl.minimum(tl.load(r.reals + WEIGHTS) * tl.where(banned, 0.0, x0) + delta, LARGEST)
    return tl.where(banned, NEG_INF, z), unclean


@triton.jit
def masked(r, z, offs, M: tl.constexpr, VOCABULARY: tl.constexpr):
    """The mixture of plausible tokens, -inf elsewhere, and where a model is unclean; z is the base, clean."""
    kept = (z >= r.bound) & (z > NEG_INF)
    z, unclean = mix_careful(r, z, offs, kept, M, VOCABULARY)
    return tl.where(kept, z, NEG_INF), unclean


@triton.jit
def tile_of_row(r, tile, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """Clean logits of a tile before edits, float32 [BLOCK]."""
    offs = tile * BLOCK + tl.arange(0, BLOCK)
    z = load(r.source.xs[0] + r.row * r.source.strides[0], offs, NEG_INF, VOCABULARY, BLOCK)
    z = tl.where(z < INF, z, NEG_INF)
    if M > 1:
        z, _ = masked(r, z, offs, M, VOCABULARY)
    return z


@triton.jit
def drawn_tile(r, tile, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """Clean, edited logits of a tile: what tokens are drawn from, but for the temperature."""
    if r.kind & EDITED:
        z = tl.load(r.edited + tile * BLOCK + tl.arange(0, BLOCK))
    else:
        z = tile_of_row(r, tile, M, VOCABULARY, BLOCK)
    return z
