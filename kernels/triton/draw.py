"""Stages 2 to 4: statistics of rows from their tiles, and the token of each, drawn as ``reference.races`` has it.

``settle`` merges the tiles of a row in index order, finds the largest logit in the tile that holds it, and runs the
three races of unfiltered rows, which read again the one tile that wins. For filtered rows it finds a value that no
token to be kept is below; ``gather`` lists the tokens above it, and ``race`` finds the thresholds among these, by
bisection on the bits of the logits, and runs the race.

The list is in no fixed order. Nothing depends on it: counts and masses are added as integers (in units of 2^-40 of the
largest weight), and ties go to the lowest id. Where the list is too long, or turns out not to hold enough mass (rows
that are very flat), ``race`` goes over the whole row instead; the row alone decides that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.kernels.triton.rng import exponential, uniform
from trimtab.kernels.triton.rows import (
    EDITED,
    FILTERED,
    FLAG_UNCLEAN,
    GROUP,
    INF,
    INTS,
    KEY,
    LARGEST,
    LOG2E,
    MIN_P,
    MIXED,
    NEG_INF,
    PLAUSIBLE,
    POSITION,
    REALS,
    SAMPLED,
    SCALE,
    SCALED,
    SLOT,
    TOP_K,
    TOP_P,
    WEIGHTS,
    combine,
    decide,
    kind_of,
    mix_careful,
    tile_of_row,
)

__all__ = ["CAPACITY", "STATE", "gather", "race", "settle"]

# Streams of random numbers: kernels.Stream.
_TILE, _COLUMN, _LINE, _TOKEN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)

# Tokens in the list of a filtered row. Also how many are first taken to share the mass outside a nucleus.
CAPACITY = 4096
_CAPACITY = tl.constexpr(CAPACITY)
# What settle leaves for gather and race: top, mass, least logit listed, whether that is a guess, ln mass and top of the
# statistics, base's bound for plausible tokens, whether the mixture applies.
STATE = 8
_STATE = tl.constexpr(STATE)
_UNIT = tl.constexpr(1099511627776.0)  # 2^40
_NOBODY = tl.constexpr(2147483647)


@triton.jit
def _first_max(values, index):
    """The lowest index with the largest value, int32; no NaN."""
    return tl.min(tl.where(values == tl.max(values, 0), index, _NOBODY), 0)


@triton.jit
def _order(z):
    """int32 that compare as the float32 do; both zeros are one."""
    bits = tl.where(z == 0, 0.0, z).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _number(order):
    """The float32 of an ``_order``, a scalar."""
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _drawn_tile(
    xs,
    strides,
    row,
    tile,
    kind,
    slot,
    applied,
    bound,
    weights,
    edited,
    NT,
    M: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Clean, edited logits of a tile: what tokens are drawn from, but for the temperature."""
    if kind & EDITED:
        z = tl.load(edited + (slot * NT + tile) * BLOCK + tl.arange(0, BLOCK))
    else:
        z = tile_of_row(xs, strides, row, tile, applied, bound, weights, M, VOCABULARY, BLOCK)
    return z


@triton.jit
def _logprob(
    xs, strides, row, token, applied, bound, weights, top, log_mass, argmax, M: tl.constexpr, VOCABULARY: tl.constexpr
):
    """ln p of a token under the distribution of the statistics; -inf for token -1 and what is banned."""
    at = tl.maximum(token, 0).to(tl.int64) + tl.arange(0, 1)
    z = tl.load(xs[0] + row * strides[0] + at, mask=at < VOCABULARY, other=NEG_INF).to(tl.float32)
    z = tl.where(z < INF, z, NEG_INF)
    if M > 1 and applied:
        inside = (z >= bound) & (z > NEG_INF)
        z, _ = mix_careful(z, xs, strides, row, at, inside, weights, M, VOCABULARY)
        z = tl.where(inside, z, NEG_INF)
    value = tl.max(z, 0)
    usable = (value > NEG_INF) & (argmax >= 0) & (token >= 0)
    # The argmax has probability 1 / mass, whatever rounding did to its logit on the way here.
    logprob = tl.where(token == argmax, 0.0, value - tl.where(usable, top, 0.0)) - log_mass
    return tl.where(usable, logprob, NEG_INF)


@triton.jit
def settle(
    xs,
    strides,
    ints,
    reals,
    given,
    parts,
    draws,
    columns,
    edited,
    state,
    counts,
    numbers,
    ids,
    flags,
    decided,
    R,
    NT,
    M: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    GIVEN: tl.constexpr,
    DRAWN: tl.constexpr,
    MIXTURE: tl.constexpr,
    TOP: tl.constexpr,
    EDITABLE: tl.constexpr,
):
    """One program for each row.

    Args:
        given: int64 [R], tokens whose ln p is wanted, where GIVEN.
        parts, draws, columns, edited: from ``scan``.
        state, counts: float32 [R, STATE] and int32 [R], for the stages after this one.
        numbers: float32 [4, R], or [8, R] where MIXTURE: lse, entropy, top_prob, logprob of what is drawn from, then of
            the base.
        ids: int64 [2, R], or [3, R]: token, argmax, argmax of the base. A filtered row's token comes from ``race``.
        flags: uint8 [1, R], or [2, R], as numbers.
        decided: uint8 [R].
    """
    row = tl.program_id(0).to(tl.int64)
    parts += row * 8 * NT
    offs = tl.arange(0, BLOCK)
    tiles = tl.arange(0, TILES)
    there = tiles < NT
    top, mass, moment, flag = combine(parts, NT, TILES)
    m = tl.load(parts + tiles, mask=there, other=NEG_INF)
    s = tl.load(parts + NT + tiles, mask=there, other=0.0)
    weights = reals + row * (REALS + M) + WEIGHTS
    applied = False
    bound = NEG_INF
    if DRAWN:
        ints += row * INTS
        reals += row * (REALS + M)
        kind = kind_of(ints, EDITABLE)
    win = tl.minimum(_first_max(m, tiles), NT - 1)
    z = tile_of_row(xs, strides, row, win, False, NEG_INF, weights, 1, VOCABULARY, BLOCK)
    argmax = tl.where(top > NEG_INF, win * BLOCK + _first_max(z, offs), -1)
    if MIXTURE:
        log_mass = tl.log(mass)
        tl.store(numbers + 4 * R + row, top + log_mass)
        tl.store(numbers + 5 * R + row, tl.maximum(log_mass - moment / mass, 0.0))
        tl.store(numbers + 6 * R + row, tl.where(argmax < 0, 0.0, 1.0 / mass))
        tl.store(numbers + 7 * R + row, tl.where(argmax < 0, NEG_INF, -log_mass))
        tl.store(ids + 2 * R + row, argmax.to(tl.int64))
        tl.store(flags + R + row, flag.to(tl.uint8))
        applied = decide(top, mass, moment, ints, reals)
        tl.store(decided + row, applied.to(tl.uint8))
        bound = top + tl.load(reals + PLAUSIBLE)
        applied = applied & (kind & MIXED != 0)
        if applied:
            top, mass, moment, ours = combine(parts + 4 * NT, NT, TILES)
            flag = ours | (flag & FLAG_UNCLEAN)
            m = tl.load(parts + 4 * NT + tiles, mask=there, other=NEG_INF)
            s = tl.load(parts + 5 * NT + tiles, mask=there, other=0.0)
            win = tl.minimum(_first_max(m, tiles), NT - 1)
            z = tile_of_row(xs, strides, row, win, applied, bound, weights, M, VOCABULARY, BLOCK)
            argmax = tl.where(top > NEG_INF, win * BLOCK + _first_max(z, offs), -1)
    log_mass = tl.log(mass)
    tl.store(numbers + row, top + log_mass)
    tl.store(numbers + R + row, tl.maximum(log_mass - moment / mass, 0.0))
    tl.store(numbers + 2 * R + row, tl.where(argmax < 0, 0.0, 1.0 / mass))
    tl.store(ids + R + row, argmax.to(tl.int64))
    tl.store(flags + row, flag.to(tl.uint8))
    token = argmax
    filtered = False
    if GIVEN:
        token = tl.load(given + row).to(tl.int32)
    if DRAWN:
        scale = 1.0
        best = top
        if kind & (EDITED | SCALED):
            m = tl.load(draws + row * 2 * NT + tiles, mask=there, other=NEG_INF)
            s = tl.load(draws + row * 2 * NT + NT + tiles, mask=there, other=0.0)
            scale = tl.load(reals + SCALE)
            best = tl.max(m, 0)
        slot = tl.load(ints + SLOT)
        rate = tl.minimum(scale * LOG2E, LARGEST)
        w = tl.where(m > NEG_INF, tl.exp2((m - tl.where(best > NEG_INF, best, 0.0)) * rate) * s, 0.0)
        if best == NEG_INF:
            token = -1
        elif kind & SAMPLED == 0:
            if kind & EDITED:
                win = _first_max(m, tiles)
                z = tl.load(edited + (slot * NT + win) * BLOCK + offs)
                token = win * BLOCK + _first_max(z, offs)
        elif kind & FILTERED == 0:
            key = tl.load(ints + KEY)
            position = tl.load(ints + POSITION)
            clock = exponential(uniform(key, position, _TILE, tiles))
            win = _first_max(tl.where(there, w / clock, -1.0), tiles)
            z = _drawn_tile(
                xs, strides, row, win, kind, slot, applied, bound, weights, edited, NT, M, VOCABULARY, BLOCK
            )
            grid = tl.reshape(tl.exp2((z - best) * rate), (BLOCK // GROUP, GROUP))
            group = tl.arange(0, GROUP)
            clock = exponential(uniform(key, position, _COLUMN, group))
            column = _first_max(tl.sum(grid, 0) / clock, group)
            line = tl.arange(0, BLOCK // GROUP)
            held = tl.sum(tl.where(group[None, :] == column, grid, 0.0), 1)
            clock = exponential(uniform(key, position, _LINE, line))
            token = win * BLOCK + _first_max(held / clock, line) * GROUP + column
        else:
            filtered = True
            top_k = tl.load(ints + TOP_K)
            top_p = tl.load(reals + TOP_P)
            least = best + tl.load(reals + MIN_P)
            total = tl.sum(w, 0)
            guess = 0.0
            if top_k > 0:
                if TOP:
                    kth = _kth_column(columns + row * NT * GROUP, NT, top_k, best, TILES)
                    least = tl.where(top_p < 1, kth, tl.maximum(kth, least))
            elif top_p < 1:
                FEW: tl.constexpr = _CAPACITY if VOCABULARY > _CAPACITY else 2 * VOCABULARY
                share = best + tl.log((1.0 - top_p) * total / FEW) / scale
                guess = tl.where((share > least) & (VOCABULARY > _CAPACITY), 1.0, 0.0)
                least = tl.maximum(share, least)
            state += row * _STATE
            tl.store(state, best)
            tl.store(state + 1, total)
            tl.store(state + 2, tl.maximum(least, -LARGEST))
            tl.store(state + 3, guess)
            tl.store(state + 4, log_mass)
            tl.store(state + 5, top)
            tl.store(state + 6, bound)
            tl.store(state + 7, tl.where(applied, 1.0, 0.0))
        # Nothing to list of a row that is not filtered, or has nothing left.
        tl.store(counts + row, tl.where(filtered, 0, -1))
    tl.store(ids + row, token.to(tl.int64))
    tl.store(
        numbers + 3 * R + row,
        _logprob(xs, strides, row, token, applied, bound, weights, top, log_mass, argmax, M, VOCABULARY),
    )


@triton.jit
def _kth_column(columns, NT, k, best, TILES: tl.constexpr):
    """The k-th largest of a row's column maxima, which k logits are not below; -inf if there are not so many."""
    at = tl.arange(0, TILES * GROUP)
    key = _order(tl.load(columns + at, mask=at < NT * GROUP, other=NEG_INF))
    low, high = _order(best * 0 - LARGEST).to(tl.int64), _order(best).to(tl.int64) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        if tl.sum((key >= middle).to(tl.int32), 0) >= k:
            low = middle
        else:
            high = middle
    return tl.where(k > NT * GROUP, NEG_INF, _number(low.to(tl.int32)))


@triton.jit
def gather(
    xs,
    strides,
    ints,
    reals,
    parts,
    draws,
    edited,
    state,
    counts,
    listed,
    listed_ids,
    NT,
    M: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    MIXTURE: tl.constexpr,
    LIMIT: tl.constexpr,
    EDITABLE: tl.constexpr,
):
    """List the tokens of filtered rows that may be kept, a program for each tile.

    Args:
        listed, listed_ids: float32 and int32 [R, LIMIT]: logits and ids; those that find no room are only counted.
    """
    row = (tl.program_id(0) // NT).to(tl.int64)
    tile = tl.program_id(0) % NT
    if tl.load(counts + row) >= 0:
        ints += row * INTS
        weights = reals + row * (REALS + M) + WEIGHTS
        kind = kind_of(ints, EDITABLE)
        state += row * _STATE
        least = tl.load(state + 2)
        bound = tl.load(state + 6)
        applied = tl.load(state + 7) > 0
        top = tl.load(parts + row * 8 * NT + tile)
        if MIXTURE and applied:
            top = tl.load(parts + row * 8 * NT + 4 * NT + tile)
        if kind & (EDITED | SCALED):
            top = tl.load(draws + row * 2 * NT + tile)
        # The tile's maximum may have been rounded another way on its way here.
        if top + tl.abs(top) * 1e-5 >= least:
            slot = tl.load(ints + SLOT)
            z = _drawn_tile(
                xs, strides, row, tile, kind, slot, applied, bound, weights, edited, NT, M, VOCABULARY, BLOCK
            )
            found = z >= least
            number = found.to(tl.int32)
            n = tl.sum(number, 0)
            if n > 0:
                start = tl.atomic_add(counts + row, n, sem="relaxed")
                at = start + tl.cumsum(number, 0) - 1
                room = found & (at < LIMIT)
                offs = tl.arange(0, BLOCK)
                tl.store(listed + row * LIMIT + at, z, mask=room)
                tl.store(listed_ids + row * LIMIT + at, tile * BLOCK + offs, mask=room)


@triton.jit
def _mass(z, top, rate):
    """Weights e^((z - top) / temperature), and the same in units of 2^-40, int64."""
    w = tl.exp2((z - top) * rate)
    return w, (w * _UNIT).to(tl.int64)


@triton.jit
def _above(
    level,
    top,
    rate,
    xs,
    strides,
    row,
    kind,
    slot,
    applied,
    bound,
    weights,
    edited,
    NT,
    M: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Number and mass of the tokens of a whole row with an order above ``level``, int64."""
    count = tl.zeros((), tl.int64)
    mass = tl.zeros((), tl.int64)
    tile = 0
    while tile < NT:
        z = _drawn_tile(xs, strides, row, tile, kind, slot, applied, bound, weights, edited, NT, M, VOCABULARY, BLOCK)
        over = (_order(z) > level) & (z > NEG_INF)
        _, units = _mass(z, top, rate)
        count += tl.sum(over.to(tl.int64), 0)
        mass += tl.sum(tl.where(over, units, 0), 0)
        tile += 1
    return count, mass


@triton.jit
def race(
    xs,
    strides,
    ints,
    reals,
    edited,
    state,
    counts,
    listed,
    listed_ids,
    numbers,
    ids,
    nuclei,
    R,
    NT,
    M: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    LIMIT: tl.constexpr,
    NUCLEUS: tl.constexpr,
    EDITABLE: tl.constexpr,
):
    """The token of a filtered row and its ln p, a program for each row.

    Args:
        nuclei: float32 [3, R] where NUCLEUS: entropy, size and mass of what is kept, instead of a token.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.load(counts + row)
    if n >= 0:
        ints += row * INTS
        reals += row * (REALS + M)
        weights = reals + WEIGHTS
        kind = kind_of(ints, EDITABLE)
        top_k = tl.load(ints + TOP_K)
        key = tl.load(ints + KEY)
        position = tl.load(ints + POSITION)
        slot = tl.load(ints + SLOT)
        scale = tl.load(reals + SCALE)
        top_p = tl.load(reals + TOP_P)
        state += row * _STATE
        top = tl.load(state)
        whole = tl.load(state + 1)
        least = tl.load(state + 2)
        guess = tl.load(state + 3)
        bound = tl.load(state + 6)
        applied = tl.load(state + 7) > 0
        rate = tl.minimum(scale * LOG2E, LARGEST)
        floor = top + tl.load(reals + MIN_P)

        at = tl.arange(0, LIMIT)
        there = at < tl.where(n <= LIMIT, n, 0)
        z = tl.load(listed + row * LIMIT + at, mask=there, other=NEG_INF)
        w, units = _mass(z, top, rate)
        order = _order(z)
        found = tl.sum(tl.where(there, units, 0), 0)
        wanted = (top_p.to(tl.float64) * whole.to(tl.float64) * 1099511627776.0).to(tl.int64)
        # A list below a guess serves if it holds the nucleus, and a little against rounding.
        serves = (n <= LIMIT) & ((guess == 0) | (found.to(tl.float64) > wanted.to(tl.float64) * (1 + 1e-6)))

        low = _order(least).to(tl.int64)
        high = tl.maximum(_order(top), tl.max(tl.where(there, order, -2147483648), 0)).to(tl.int64) + 1
        if serves == 0:
            low = _order(least * 0 - LARGEST).to(tl.int64)
        if top_k > 0:
            while high - low > 1:
                middle = (low + high) >> 1
                if serves:
                    count = tl.sum((there & (order >= middle)).to(tl.int64), 0)
                else:
                    count, _ = _above(
                        middle - 1, top, rate, xs, strides, row, kind, slot, applied, bound, weights, edited, NT,
                        M, VOCABULARY, BLOCK,
                    )  # fmt: skip
                if count >= top_k:
                    low = middle
                else:
                    high = middle
            high = tl.maximum(_order(top), tl.max(tl.where(there, order, -2147483648), 0)).to(tl.int64) + 1
            if top_p < 1:
                if serves:
                    total = tl.sum(tl.where(there & (order >= low), units, 0), 0)
                else:
                    _, total = _above(
                        low - 1, top, rate, xs, strides, row, kind, slot, applied, bound, weights, edited, NT,
                        M, VOCABULARY, BLOCK,
                    )  # fmt: skip
                wanted = (top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
        if top_p < 1:
            # The lowest level with less than the wanted mass above it.
            low -= 1
            while high - low > 1:
                middle = (low + high) >> 1
                if serves:
                    mass = tl.sum(tl.where(there & (order > middle), units, 0), 0)
                else:
                    _, mass = _above(
                        middle, top, rate, xs, strides, row, kind, slot, applied, bound, weights, edited, NT,
                        M, VOCABULARY, BLOCK,
                    )  # fmt: skip
                if mass < wanted:
                    high = middle
                else:
                    low = middle
            low = high
        size = tl.zeros((), tl.int64)
        held = tl.zeros((), tl.int64)
        spread = tl.zeros((), tl.int64)
        token = tl.zeros((), tl.int32)
        if serves:
            kept = there & (order >= low) & (z >= floor)
            if NUCLEUS:
                size = tl.sum(kept.to(tl.int64), 0)
                held = tl.sum(tl.where(kept, units, 0), 0)
                spread = tl.sum(tl.where(kept, _spread(z, w, top), 0), 0)
            else:
                index = tl.load(listed_ids + row * LIMIT + at, mask=there, other=_NOBODY)
                ratio = tl.where(kept, w / exponential(uniform(key, position, _TOKEN, index)), -1.0)
                token = _first_max(ratio, index)
        else:
            best = tl.zeros((), tl.float32) - 1.0
            tile = 0
            while tile < NT:
                y = _drawn_tile(
                    xs, strides, row, tile, kind, slot, applied, bound, weights, edited, NT, M, VOCABULARY, BLOCK
                )
                v, weight = _mass(y, top, rate)
                stays = (_order(y) >= low) & (y >= floor) & (y > NEG_INF)
                if NUCLEUS:
                    size += tl.sum(stays.to(tl.int64), 0)
                    held += tl.sum(tl.where(stays, weight, 0), 0)
                    spread += tl.sum(tl.where(stays, _spread(y, v, top), 0), 0)
                else:
                    name = tile * BLOCK + tl.arange(0, BLOCK)
                    chance = tl.where(stays, v / exponential(uniform(key, position, _TOKEN, name)), -1.0)
                    most = tl.max(chance, 0)
                    if most > best:
                        token = _first_max(chance, name)
                        best = most
                tile += 1
        if NUCLEUS:
            mass = tl.maximum(held, 1).to(tl.float64) / 1099511627776.0
            entropy = tl.log(mass.to(tl.float32)) - (spread.to(tl.float64) / 1099511627776.0 / mass).to(tl.float32)
            tl.store(nuclei + row, tl.maximum(entropy, 0.0))
            tl.store(nuclei + R + row, size.to(tl.float32))
            tl.store(nuclei + 2 * R + row, tl.minimum(mass.to(tl.float32) / whole, 1.0))
        else:
            tl.store(ids + row, token.to(tl.int64))
            argmax = tl.load(ids + R + row).to(tl.int32)
            logprob = _logprob(
                xs,
                strides,
                row,
                token,
                applied,
                bound,
                weights,
                tl.load(state + 5),
                tl.load(state + 4),
                argmax,
                M,
                VOCABULARY,
            )
            tl.store(numbers + 3 * R + row, logprob)


@triton.jit
def _spread(z, w, top):
    """w ln w in units of 2^-40, at temperature 1; int64, not positive."""
    return (w * tl.maximum(z - top, -1000.0) * _UNIT).to(tl.int64)
