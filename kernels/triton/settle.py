"""Stage 2: statistics of a row from its tiles, and its token where no filter leaves tokens out.

``settle`` merges the tiles of a row in index order, finds the largest logit in the tile that holds it, and runs the
three races of unfiltered rows, which read again the one tile that wins. For filtered rows it finds a value that no
token to be kept is below, for ``filters``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.kernels.triton.races import TILES as TILE_STREAM
from trimtab.kernels.triton.races import first_max, number, order, race_inside, scores
from trimtab.kernels.triton.rows import (
    BOUND,
    DISTRIBUTION,
    EDITED,
    FILTERED,
    FLOOR,
    GROUP,
    INF,
    KEY,
    LARGEST,
    LN2,
    LOG2E,
    MASS,
    MIN_P,
    NEG_INF,
    POSITION,
    RATE,
    SAMPLED,
    SCALE,
    SCALED,
    TOP,
    TOP_K,
    TOP_P,
    bound_of,
    drawn_tile,
    masked,
    row_of,
    tile_of_row,
)

__all__ = ["CAPACITY", "STATE", "logprob", "settle"]

# Tokens in the list of a filtered row. Also how many are first taken to share the mass outside a nucleus.
CAPACITY = tl.constexpr(4096)
# Columns of what settle leaves for filtered rows: least logit listed, whether that is a guess, ln mass and top of the
# statistics, ``Row.bound``. Rows with nothing to list have a count of -1.
LEAST, GUESS, LOG_MASS, WHOLE_TOP, PLAUSIBLE_FROM = (tl.constexpr(i) for i in range(5))
STATE = tl.constexpr(5)
_EMPTY, _UNCLEAN = tl.constexpr(1), tl.constexpr(2)  # results.FLAG_EMPTY, FLAG_UNCLEAN


@triton.jit
def settle(
    source, lists, scratch, results, given, R, NT, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr,
    TILES: tl.constexpr, GIVEN: tl.constexpr, DRAWN: tl.constexpr, LIMITED: tl.constexpr, EDITABLE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """One program for each row; ``given`` int64 [R] are tokens whose ln p is wanted, where GIVEN."""
    row = tl.program_id(0).to(tl.int64)
    r = row_of(
        source, lists, scratch, row, bound_of(lists, scratch, row, NT, M, TILES, MASKED), NT, M, BLOCK, DRAWN, EDITABLE
    )
    tile = tl.arange(0, TILES)
    there = tile < NT
    parts = scratch.parts + row * 4 * NT + tile
    m = tl.load(parts, mask=there, other=NEG_INF)
    s = tl.load(parts + NT, mask=there, other=0.0)
    t = tl.load(parts + 2 * NT, mask=there, other=0.0)
    flag = tl.max(tl.load(parts + 3 * NT, mask=there, other=0.0), 0)
    # Tiles merge in index order; a row with nothing finite has top -inf, mass 1 and moment 0.
    top = tl.max(m, 0)
    empty = top == NEG_INF
    gap = tl.maximum((m - tl.where(empty, 0.0, top)) * LOG2E, FLOOR)
    w = tl.exp2(gap)
    mass = tl.where(empty, 1.0, tl.sum(w * s, 0))
    moment = tl.where(empty, 0.0, tl.sum(w * (t + gap * s), 0) * LN2)
    win = tl.minimum(first_max(m, tile), NT - 1)
    z = tile_of_row(r, win, M, VOCABULARY, BLOCK)
    argmax = tl.where(empty, -1, win * BLOCK + first_max(z, tl.arange(0, BLOCK)))
    log_mass = tl.log(mass)
    token = argmax
    if GIVEN:
        token = tl.load(given + row).to(tl.int32)
    if DRAWN:
        token = _draw(r, scratch, results, m, s, top, log_mass, token, M, VOCABULARY, BLOCK, TILES, LIMITED)
    tl.store(results.numbers + row, top + log_mass)
    tl.store(results.numbers + R + row, tl.maximum(log_mass - moment / mass, 0.0))
    tl.store(results.numbers + 2 * R + row, tl.where(empty, 0.0, 1.0 / mass))
    tl.store(results.numbers + 3 * R + row, logprob(r, token, top, log_mass, argmax, M, VOCABULARY))
    tl.store(results.ids + row, token.to(tl.int64))
    tl.store(results.ids + R + row, argmax.to(tl.int64))
    tl.store(results.flags + row, (tl.where(flag > 0, _UNCLEAN, 0) + tl.where(empty, _EMPTY, 0)).to(tl.uint8))


@triton.jit
def logprob(r, token, top, log_mass, argmax, M: tl.constexpr, VOCABULARY: tl.constexpr):
    """ln p of a token under the distribution of the statistics; -inf for token -1 and what is banned."""
    at = tl.maximum(token, 0).to(tl.int64) + tl.arange(0, 1)
    z = tl.load(r.source.xs[0] + r.row * r.source.strides[0] + at, mask=at < VOCABULARY, other=NEG_INF).to(tl.float32)
    z = tl.where(z < INF, z, NEG_INF)
    if M > 1:
        z, _ = masked(r, z, at, M, VOCABULARY)
    value = tl.max(z, 0)
    usable = (value > NEG_INF) & (argmax >= 0) & (token >= 0)
    # The argmax has probability 1 / mass, whatever rounding did to its logit on the way here.
    found = tl.where(token == argmax, 0.0, value - tl.where(usable, top, 0.0)) - log_mass
    return tl.where(usable, found, NEG_INF)


@triton.jit
def _draw(
    r, scratch, results, m, s, top, log_mass, token, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr,
    TILES: tl.constexpr, LIMITED: tl.constexpr,
):  # fmt: skip
    """The token of a row and its distribution; under filters ``filters.race`` has both later.

    m and s are partials of the row's tiles, ``token`` is the argmax.
    """
    tile = tl.arange(0, TILES)
    there = tile < r.NT
    scale = 1.0
    best = top
    if r.kind & (EDITED | SCALED):
        draws = scratch.draws + r.row * 2 * r.NT + tile
        m = tl.load(draws, mask=there, other=NEG_INF)
        s = tl.load(draws + r.NT, mask=there, other=0.0)
        scale = tl.load(r.reals + SCALE)
        best = tl.max(m, 0)
    rate = tl.minimum(scale * LOG2E, LARGEST)
    w = tl.where(m > NEG_INF, tl.exp2((m - tl.where(best > NEG_INF, best, 0.0)) * rate) * s, 0.0)
    total = tl.where(best > NEG_INF, tl.sum(w, 0), 1.0)
    bound = tl.zeros((), tl.float32) + NEG_INF
    count = -1
    if best == NEG_INF:
        token = -1
    elif r.kind & SAMPLED == 0:
        if r.kind & EDITED:
            win = first_max(m, tile)
            z = tl.load(r.edited + win * BLOCK + tl.arange(0, BLOCK))
            token = win * BLOCK + first_max(z, tl.arange(0, BLOCK))
        bound = best
        total = 1.0
    elif r.kind & FILTERED == 0:
        key = tl.load(r.ints + KEY)
        position = tl.load(r.ints + POSITION)
        win = first_max(tl.where(there, scores(w, key, position, TILE_STREAM, tile), -1.0), tile)
        z = drawn_tile(r, win, M, VOCABULARY, BLOCK)
        token = win * BLOCK + race_inside(tl.exp2((z - best) * rate), key, position, BLOCK)
    else:
        count = 0
        _prepare(r, scratch, best, scale, total, VOCABULARY, TILES, LIMITED)
        state = scratch.state + r.row * STATE
        tl.store(state + LOG_MASS, log_mass)
        tl.store(state + WHOLE_TOP, top)
        tl.store(state + PLAUSIBLE_FROM, r.bound)
    tl.store(scratch.counts + r.row, count)
    distribution = results.distributions + r.row * DISTRIBUTION
    tl.store(distribution + TOP, best)
    tl.store(distribution + RATE, rate)
    tl.store(distribution + BOUND, bound)
    tl.store(distribution + MASS, total)
    return token


@triton.jit
def _prepare(r, scratch, best, scale, total, VOCABULARY: tl.constexpr, TILES: tl.constexpr, LIMITED: tl.constexpr):
    """Leave a value that no token to be kept is below, or that few are thought to be below (a guess)."""
    top_k = tl.load(r.ints + TOP_K)
    top_p = tl.load(r.reals + TOP_P)
    least = best + tl.load(r.reals + MIN_P)
    guess = 0.0
    if top_k > 0:
        if LIMITED:
            kth = _kth_column(scratch.columns + r.row * r.NT * GROUP, r.NT, top_k, best, TILES)
            least = tl.where(top_p < 1, kth, tl.maximum(kth, least))
    elif top_p < 1:
        FEW: tl.constexpr = CAPACITY if VOCABULARY > CAPACITY else 2 * VOCABULARY
        share = best + tl.log((1.0 - top_p) * total / FEW) / scale
        guess = tl.where((share > least) & (VOCABULARY > CAPACITY), 1.0, 0.0)
        least = tl.maximum(share, least)
    state = scratch.state + r.row * STATE
    tl.store(state + LEAST, tl.maximum(least, -LARGEST))
    tl.store(state + GUESS, guess)


@triton.jit
def _kth_column(columns, NT, k, best, TILES: tl.constexpr):
    """The k-th largest of a row's column maxima, which k logits are not below; -inf if there are not so many."""
    at = tl.arange(0, TILES * GROUP)
    key = order(tl.load(columns + at, mask=at < NT * GROUP, other=NEG_INF))
    low, high = order(best * 0 - LARGEST).to(tl.int64), order(best).to(tl.int64) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        if tl.sum((key >= middle).to(tl.int32), 0) >= k:
            low = middle
        else:
            high = middle
    return tl.where(k > NT * GROUP, NEG_INF, number(low.to(tl.int32)))
