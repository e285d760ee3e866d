"""Stage 1: one pass over the vocabulary, a program for a few tiles of a row.

Each tile leaves its maximum, mass and moment, and where the row is drawn from logits that are scaled or edited, the
maximum and mass of those. It keeps no argmax: finding the index with the maximum would double the work of a tile, and
the next stage reads the tiles that win again anyhow.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.kernels.triton.rows import (
    BANNED,
    BIAS,
    EDITED,
    GROUP,
    INF,
    LARGEST,
    LOG2E,
    NEG_INF,
    PENALTY,
    PLAUSIBLE,
    REALS,
    SCALE,
    SCALED,
    SEEN,
    bound_of,
    load,
    masked,
    mix,
    mix_careful,
    moments,
    moments_careful,
    moments_mixed,
    row_of,
)

__all__ = ["scan", "scan_base"]

# How many ids of a list are applied at once.
EDITS = tl.constexpr(128)


@triton.jit
def scan_base(source, lists, scratch, NT, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """``Scratch.base``, a program for each tile: what decides which tokens are plausible."""
    row = (tl.program_id(0) // NT).to(tl.int64)
    tile = tl.program_id(0) % NT
    if tl.load(lists.reals + row * (REALS + M) + PLAUSIBLE) > NEG_INF:
        offs = tile * BLOCK + tl.arange(0, BLOCK)
        z = load(source.xs[0] + row * source.strides[0], offs, NEG_INF, VOCABULARY, BLOCK)
        clean = z < INF
        base = scratch.base + row * 2 * NT + tile
        tl.store(base, tl.max(tl.where(clean, z, NEG_INF), 0))
        tl.store(base + NT, tl.max(tl.where(clean, 0.0, 1.0), 0))


@triton.jit
def _edit(r, lists, z, tile, BLOCK: tl.constexpr):
    """Penalty, bias and bans applied to a tile of clean logits, which passes through its place in ``Row.edited``.

    Lists are sparse and a tile is spread over registers, so the ids are looked up in memory; barriers keep the phases
    apart. Ids of one list differ (bans may not), so a phase has no conflicts within itself.
    """
    buffer = r.edited + tile * BLOCK
    offs = tl.arange(0, BLOCK)
    start = tile * BLOCK
    tl.store(buffer + offs, z)
    tl.debug_barrier()
    lane = tl.arange(0, EDITS)
    penalty = tl.load(r.reals + PENALTY)
    i, end = tl.load(r.ints + SEEN), tl.load(r.ints + SEEN + 1)
    while i < end:
        at = tl.load(lists.ids + i + lane, mask=i + lane < end, other=-1) - start
        here = (at >= 0) & (at < BLOCK)
        value = tl.load(buffer + at, mask=here, other=0.0)
        value = tl.where(value < 0, value * penalty, tl.div_rn(value, tl.zeros_like(value) + penalty))
        tl.store(buffer + at, tl.minimum(value, LARGEST), mask=here)
        i += EDITS
    tl.debug_barrier()
    i, end = tl.load(r.ints + BIAS), tl.load(r.ints + BIAS + 1)
    while i < end:
        there = i + lane < end
        at = tl.load(lists.ids + i + lane, mask=there, other=-1) - start
        here = (at >= 0) & (at < BLOCK)
        value = tl.load(buffer + at, mask=here, other=0.0) + tl.load(lists.biases + i + lane, mask=here, other=0.0)
        tl.store(buffer + at, tl.minimum(value, LARGEST), mask=here)
        i += EDITS
    tl.debug_barrier()
    i, end = tl.load(r.ints + BANNED), tl.load(r.ints + BANNED + 1)
    while i < end:
        at = tl.load(lists.ids + i + lane, mask=i + lane < end, other=-1) - start
        tl.store(buffer + at, tl.zeros((EDITS,), tl.float32) + NEG_INF, mask=(at >= 0) & (at < BLOCK))
        i += EDITS
    tl.debug_barrier()
    return tl.load(buffer + offs)


@triton.jit
def _weigh(r, lists, scratch, z, tile, BLOCK: tl.constexpr, LIMITED: tl.constexpr):
    """Leave what drawing from a tile needs beyond its partials; z is final but for cleaning and edits."""
    if r.kind & (EDITED | SCALED):
        z = tl.where(z < INF, z, NEG_INF)
        if r.kind & EDITED:
            z = _edit(r, lists, z, tile, BLOCK)
        m = tl.max(z, 0)
        scale = tl.minimum(tl.load(r.reals + SCALE) * LOG2E, LARGEST)
        s = tl.sum(tl.exp2((z - tl.where(m > NEG_INF, m, 0.0)) * scale), 0)
        draws = scratch.draws + r.row * 2 * r.NT + tile
        tl.store(draws, m)
        tl.store(draws + r.NT, s)
        if LIMITED:
            column = tl.max(tl.reshape(z, (BLOCK // GROUP, GROUP)), 0)
            tl.store(scratch.columns + (r.row * r.NT + tile) * GROUP + tl.arange(0, GROUP), column)


@triton.jit
def scan(
    source, lists, scratch, NT, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
    SPAN: tl.constexpr, DRAWN: tl.constexpr, LIMITED: tl.constexpr, EDITABLE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """``Scratch.parts``, ``draws``, ``columns`` and ``edited``.

    Args:
        SPAN: tiles for each program; changes nothing in the result.
        DRAWN: whether anything is drawn from any row.
        LIMITED, EDITABLE, MASKED: whether top-k binds in any row, any is edited, any has a bound on plausibility.
    """
    groups = tl.cdiv(NT, SPAN)
    row = (tl.program_id(0) // groups).to(tl.int64)
    first = (tl.program_id(0) % groups) * SPAN
    bound = bound_of(lists, scratch, row, NT, M, TILES, MASKED)
    r = row_of(source, lists, scratch, row, bound, NT, M, BLOCK, DRAWN, EDITABLE)
    for j in range(SPAN):
        tile = first + j
        if tile < NT:
            if M == 1:
                z, m, s, t, flag = _single(r, tile, VOCABULARY, BLOCK)
            elif MASKED:
                if r.bound > NEG_INF:
                    z, m, s, t, flag = _plausible(r, scratch, tile, M, VOCABULARY, BLOCK)
                else:
                    z, m, s, t, flag = _mixture(r, tile, M, VOCABULARY, BLOCK)
            else:
                z, m, s, t, flag = _mixture(r, tile, M, VOCABULARY, BLOCK)
            parts = scratch.parts + row * 4 * NT + tile
            tl.store(parts, m)
            tl.store(parts + NT, s)
            tl.store(parts + 2 * NT, t)
            tl.store(parts + 3 * NT, flag)
            if DRAWN:
                _weigh(r, lists, scratch, z, tile, BLOCK, LIMITED)


@triton.jit
def _single(r, tile, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of one model's logits, not cleaned, and its partials: m, s, t, and 1.0 if it is unclean."""
    offs = tile * BLOCK + tl.arange(0, BLOCK)
    z = load(r.source.xs[0] + r.row * r.source.strides[0], offs, NEG_INF, VOCABULARY, BLOCK)
    m, s, t = moments(z)
    flag = 0.0
    if s != s:
        flag = tl.max(((z != z) | (z == INF)).to(tl.int32), 0).to(tl.float32)
        m, s, t = moments_careful(tl.where(z < INF, z, NEG_INF))
    return z, m, s, t, flag


@triton.jit
def _mixture(r, tile, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """As ``_single``, of the mixture."""
    offs = tile * BLOCK + tl.arange(0, BLOCK)
    x = load(r.source.xs[0] + r.row * r.source.strides[0], offs, NEG_INF, VOCABULARY, BLOCK)
    z, delta = mix(r, x, offs, M, VOCABULARY, BLOCK)
    m, s, t = moments_mixed(z, delta)
    flag = 0.0
    if s != s:
        z, unclean = mix_careful(r, x, offs, offs < VOCABULARY, M, VOCABULARY)
        m, s, t = moments_careful(z)
        flag = tl.max(unclean.to(tl.int32), 0).to(tl.float32)
    return z, m, s, t, flag


@triton.jit
def _plausible(r, scratch, tile, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr):
    """As ``_mixture`` under a bound: the other models are read only in tiles where a token may stay."""
    base = scratch.base + r.row * 2 * r.NT + tile
    flag = tl.load(base + r.NT)
    z = tl.zeros((BLOCK,), tl.float32) + NEG_INF
    m, s, t = NEG_INF, 0.0, 0.0
    if tl.load(base) >= r.bound:
        offs = tile * BLOCK + tl.arange(0, BLOCK)
        z = load(r.source.xs[0] + r.row * r.source.strides[0], offs, NEG_INF, VOCABULARY, BLOCK)
        z, unclean = masked(r, tl.where(z < INF, z, NEG_INF), offs, M, VOCABULARY)
        m, s, t = moments_careful(z)
        flag = tl.maximum(flag, tl.max(unclean.to(tl.int32), 0).to(tl.float32))
    return z, m, s, t, flag
