"""Stage 1: one pass over the vocabulary, a program for a few tiles of a row.

Each tile leaves its maximum, mass and moment, of the base and of the mixture, and where the row is drawn from logits
that are scaled or edited, the maximum and mass of those. It keeps no argmax: finding the index with the maximum would
double the work of a tile, and the next stage reads the tiles that win again anyhow.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.kernels.triton.rows import (
    BANNED,
    BIAS,
    DEFERRED,
    EDITED,
    EDITS,
    GROUP,
    INF,
    INTS,
    LARGEST,
    LOG2E,
    MIXED,
    NEG_INF,
    PENALTY,
    PLAUSIBLE,
    REALS,
    SCALE,
    SCALED,
    SEEN,
    SLOT,
    WEIGHTS,
    combine,
    decide,
    kind_of,
    load,
    mix,
    mix_careful,
    moments,
    moments_careful,
    moments_mixed,
)

__all__ = ["scan", "scan_deferred"]


@triton.jit
def _store(parts, NT, tile, m, s, t, flag):
    tl.store(parts + tile, m)
    tl.store(parts + NT + tile, s)
    tl.store(parts + 2 * NT + tile, t)
    tl.store(parts + 3 * NT + tile, flag)


@triton.jit
def _edit(z, tile, ints, reals, ids, values, buffer, BLOCK: tl.constexpr):
    """Penalty, bias and bans applied to a tile of clean logits, which passes through ``buffer``, [BLOCK] of its own.

    Lists are sparse and a tile is spread over registers, so the ids are looked up in memory; barriers keep the phases
    apart. Ids of one list differ (bans may not), so a phase has no conflicts within itself.
    """
    offs = tl.arange(0, BLOCK)
    start = tile * BLOCK
    tl.store(buffer + offs, z)
    tl.debug_barrier()
    lane = tl.arange(0, EDITS)
    penalty = tl.load(reals + PENALTY)
    i, end = tl.load(ints + SEEN), tl.load(ints + SEEN + 1)
    while i < end:
        at = tl.load(ids + i + lane, mask=i + lane < end, other=-1) - start
        here = (at >= 0) & (at < BLOCK)
        value = tl.load(buffer + at, mask=here, other=0.0)
        value = tl.where(value < 0, value * penalty, tl.div_rn(value, tl.zeros_like(value) + penalty))
        tl.store(buffer + at, tl.minimum(value, LARGEST), mask=here)
        i += EDITS
    tl.debug_barrier()
    i, end = tl.load(ints + BIAS), tl.load(ints + BIAS + 1)
    while i < end:
        there = i + lane < end
        at = tl.load(ids + i + lane, mask=there, other=-1) - start
        here = (at >= 0) & (at < BLOCK)
        value = tl.load(buffer + at, mask=here, other=0.0) + tl.load(values + i + lane, mask=here, other=0.0)
        tl.store(buffer + at, tl.minimum(value, LARGEST), mask=here)
        i += EDITS
    tl.debug_barrier()
    i, end = tl.load(ints + BANNED), tl.load(ints + BANNED + 1)
    while i < end:
        at = tl.load(ids + i + lane, mask=i + lane < end, other=-1) - start
        tl.store(buffer + at, tl.zeros((EDITS,), tl.float32) + NEG_INF, mask=(at >= 0) & (at < BLOCK))
        i += EDITS
    tl.debug_barrier()
    return tl.load(buffer + offs)


@triton.jit
def _weigh(
    z, row, tile, kind, ints, reals, NT, draws, columns, ids, values, edited, BLOCK: tl.constexpr, TOP: tl.constexpr
):
    """Leave what drawing from a tile needs beyond its partials; z is final but for cleaning and edits."""
    if kind & (EDITED | SCALED):
        z = tl.where(z < INF, z, NEG_INF)
        if kind & EDITED:
            buffer = edited + (tl.load(ints + SLOT) * NT + tile) * BLOCK
            z = _edit(z, tile, ints, reals, ids, values, buffer, BLOCK)
        m = tl.max(z, 0)
        scale = tl.minimum(tl.load(reals + SCALE) * LOG2E, LARGEST)
        s = tl.sum(tl.exp2((z - tl.where(m > NEG_INF, m, 0.0)) * scale), 0)
        tl.store(draws + row * 2 * NT + tile, m)
        tl.store(draws + row * 2 * NT + NT + tile, s)
        if TOP:
            column = tl.max(tl.reshape(z, (BLOCK // GROUP, GROUP)), 0)
            tl.store(columns + (row * NT + tile) * GROUP + tl.arange(0, GROUP), column)


@triton.jit
def scan(
    xs,
    strides,
    ints,
    reals,
    ids,
    values,
    parts,
    draws,
    columns,
    edited,
    NT,
    M: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    SPAN: tl.constexpr,
    DRAWN: tl.constexpr,
    TOP: tl.constexpr,
    EDITABLE: tl.constexpr,
):
    """Partials of the base, and of what is drawn from unless the row is deferred.

    Args:
        xs, strides: M pointers to logits [R, V] and their row strides.
        ints, reals, ids, values: the plan; see ``pack``.
        parts: float32 [R, 8, NT]: m, s, t, flag of the base, then of the mixture where the row is mixed.
        draws: float32 [R, 2, NT]: m, s of scaled or edited logits.
        columns: float32 [R, NT, GROUP]: column maxima, where TOP.
        edited: float32 [rows with edits, NT, BLOCK].
        SPAN: tiles for each program; changes nothing in the result.
        DRAWN: whether anything is drawn from any row.
        TOP, EDITABLE: whether top-k binds in any row, whether any is edited.
    """
    groups = tl.cdiv(NT, SPAN)
    row = (tl.program_id(0) // groups).to(tl.int64)
    first = (tl.program_id(0) % groups) * SPAN
    parts += row * 8 * NT
    x = xs[0] + row * strides[0]
    if DRAWN:
        ints += row * INTS
        reals += row * (REALS + M)
        kind = kind_of(ints, EDITABLE)
        mixed = (M > 1) & (kind & (MIXED | DEFERRED) == MIXED)
    else:
        mixed = False
    for j in range(SPAN):
        tile = first + j
        if tile < NT:
            offs = tile * BLOCK + tl.arange(0, BLOCK)
            z = load(x, offs, NEG_INF, VOCABULARY, BLOCK)
            if mixed:
                # Every model is asked for before anything is waited for.
                y, delta = mix(z, xs, strides, row, offs, reals + WEIGHTS, M, VOCABULARY, BLOCK)
                flag = _base(z, parts, NT, tile)
                z = _mixed(z, y, delta, flag, xs, strides, row, offs, tile, reals, parts, NT, M, VOCABULARY)
            else:
                _base(z, parts, NT, tile)
            if DRAWN:  # noqa: SIM102 (kind exists then only)
                if kind & DEFERRED == 0:
                    _weigh(z, row, tile, kind, ints, reals, NT, draws, columns, ids, values, edited, BLOCK, TOP)


@triton.jit
def _base(z, parts, NT, tile):
    """Store the partials of a tile of one model's logits; 1.0 if the tile is unclean."""
    m, s, t = moments(z)
    flag = 0.0
    if s != s:
        flag = tl.max(((z != z) | (z == INF)).to(tl.int32), 0).to(tl.float32)
        m, s, t = moments_careful(tl.where(z < INF, z, NEG_INF))
    _store(parts, NT, tile, m, s, t, flag)
    return flag


@triton.jit
def _mixed(
    z,
    y,
    delta,
    flag,
    xs,
    strides,
    row,
    offs,
    tile,
    reals,
    parts,
    NT,
    M: tl.constexpr,
    VOCABULARY: tl.constexpr,
):
    """Store the partials of a tile y, delta of ``mix`` of the base's logits z, and return the mixture."""
    m, s, t = moments_mixed(y, delta)
    if (s != s) or (flag > 0):
        y, unclean = mix_careful(z, xs, strides, row, offs, offs < VOCABULARY, reals + WEIGHTS, M, VOCABULARY)
        m, s, t = moments_careful(y)
        flag = tl.maximum(flag, tl.max(unclean.to(tl.int32), 0).to(tl.float32))
    _store(parts + 4 * NT, NT, tile, m, s, t, flag)
    return y


@triton.jit
def scan_deferred(
    xs,
    strides,
    ints,
    reals,
    ids,
    values,
    parts,
    draws,
    columns,
    edited,
    NT,
    M: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    TOP: tl.constexpr,
    EDITABLE: tl.constexpr,
):
    """The rest of ``scan`` for rows whose mixture depends on the whole base: gates and plausibility.

    Where the gate does not fire only the base is read, and under plausibility the others only in tiles where a token
    may stay.
    """
    row = (tl.program_id(0) // NT).to(tl.int64)
    tile = tl.program_id(0) % NT
    parts += row * 8 * NT
    ints += row * INTS
    reals += row * (REALS + M)
    kind = kind_of(ints, EDITABLE)
    if kind & DEFERRED:
        top, mass, moment, _ = combine(parts, NT, TILES)
        mixed = decide(top, mass, moment, ints, reals)
        bound = top + tl.load(reals + PLAUSIBLE)
        m, s, t = tl.load(parts + tile), tl.load(parts + NT + tile), tl.load(parts + 2 * NT + tile)
        flag = tl.load(parts + 3 * NT + tile)
        offs = tile * BLOCK + tl.arange(0, BLOCK)
        if mixed and m < bound:
            z = tl.zeros((BLOCK,), tl.float32) + NEG_INF
            _store(parts + 4 * NT, NT, tile, NEG_INF, 0.0, 0.0, 0.0)
        else:
            z = load(xs[0] + row * strides[0], offs, NEG_INF, VOCABULARY, BLOCK)
            if mixed and bound == NEG_INF:
                y, delta = mix(z, xs, strides, row, offs, reals + WEIGHTS, M, VOCABULARY, BLOCK)
                z = _mixed(z, y, delta, flag, xs, strides, row, offs, tile, reals, parts, NT, M, VOCABULARY)
            elif mixed:
                z = tl.where(z < INF, z, NEG_INF)
                kept = (z >= bound) & (z > NEG_INF)
                z, unclean = mix_careful(z, xs, strides, row, offs, kept, reals + WEIGHTS, M, VOCABULARY)
                z = tl.where(kept, z, NEG_INF)
                m, s, t = moments_careful(z)
                _store(parts + 4 * NT, NT, tile, m, s, t, tl.max(unclean.to(tl.int32), 0).to(tl.float32))
            else:
                _store(parts + 4 * NT, NT, tile, m, s, t, flag)
        _weigh(z, row, tile, kind, ints, reals, NT, draws, columns, ids, values, edited, BLOCK, TOP)
