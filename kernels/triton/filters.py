"""Stages 3 and 4: the tokens of rows under top-k, top-p and min-p.

``gather`` lists the tokens that may be kept, and ``race`` finds the thresholds among these, by bisection on the bits of
the logits, and runs the race. Top-k and top-p are one question: which is the lowest level with fewer tokens, or less
mass, above it than is wanted?

The list is in no fixed order. Nothing depends on it: counts and masses are added as integers (in units of 2^-40 of the
largest weight), and ties go to the lowest id. Where the list is too long, or turns out not to hold enough mass (rows
that are very flat), ``race`` goes over the whole row instead; the row alone decides that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trimtab.kernels.triton.races import NOBODY, TOKEN, first_max, number, order, scores
from trimtab.kernels.triton.rows import (
    BOUND,
    DISTRIBUTION,
    EDITED,
    KEY,
    LARGEST,
    MASS,
    MIN_P,
    NEG_INF,
    POSITION,
    RATE,
    SCALED,
    TOP,
    TOP_K,
    TOP_P,
    drawn_tile,
    row_of,
)
from trimtab.kernels.triton.settle import GUESS, LEAST, LOG_MASS, PLAUSIBLE_FROM, STATE, WHOLE_TOP, logprob

__all__ = ["gather", "race"]

_UNIT = tl.constexpr(1099511627776.0)  # 2^40


@triton.jit
def gather(
    source, lists, scratch, NT, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr, LIMIT: tl.constexpr,
    EDITABLE: tl.constexpr,
):  # fmt: skip
    """List the tokens of filtered rows that may be kept, a program for each tile.

    Those that find no room in ``Scratch.listed`` are only counted.
    """
    row = (tl.program_id(0) // NT).to(tl.int64)
    tile = tl.program_id(0) % NT
    if tl.load(scratch.counts + row) >= 0:
        state = scratch.state + row * STATE
        least = tl.load(state + LEAST)
        bound = tl.load(state + PLAUSIBLE_FROM)
        r = row_of(source, lists, scratch, row, bound, NT, M, BLOCK, True, EDITABLE)
        top = tl.load(scratch.parts + row * 4 * NT + tile)
        if r.kind & (EDITED | SCALED):
            top = tl.load(scratch.draws + row * 2 * NT + tile)
        # The tile's maximum may have been rounded another way on its way here.
        if top + tl.abs(top) * 1e-5 >= least:
            z = drawn_tile(r, tile, M, VOCABULARY, BLOCK)
            found = z >= least
            one = found.to(tl.int32)
            n = tl.sum(one, 0)
            if n > 0:
                start = tl.atomic_add(scratch.counts + row, n, sem="relaxed")
                at = start + tl.cumsum(one, 0) - 1
                room = found & (at < LIMIT)
                tl.store(scratch.listed + row * LIMIT + at, z, mask=room)
                tl.store(scratch.listed_ids + row * LIMIT + at, tile * BLOCK + tl.arange(0, BLOCK), mask=room)


@triton.jit
def _units(z, top, rate):
    """Weights e^((z - top) / temperature), and the same in units of 2^-40, int64."""
    w = tl.exp2((z - top) * rate)
    return w, (w * _UNIT).to(tl.int64)


@triton.jit
def _above(
    level, r, listed, units, serves, top, rate, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Number and mass of the tokens with an order above ``level``, int64: of the list if it serves, else of the row."""
    count = tl.zeros((), tl.int64)
    mass = tl.zeros((), tl.int64)
    if serves:
        over = listed > level
        count = tl.sum(over.to(tl.int64), 0)
        mass = tl.sum(tl.where(over, units, 0), 0)
    else:
        tile = 0
        while tile < r.NT:
            z = drawn_tile(r, tile, M, VOCABULARY, BLOCK)
            over = (order(z) > level) & (z > NEG_INF)
            _, weight = _units(z, top, rate)
            count += tl.sum(over.to(tl.int64), 0)
            mass += tl.sum(tl.where(over, weight, 0), 0)
            tile += 1
    return count, mass


@triton.jit
def _threshold(
    wanted, COUNT: tl.constexpr, low, high, held, r, listed, units, serves, top, rate, M: tl.constexpr,
    VOCABULARY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One below the lowest level that less than ``wanted`` is above, in (low, high], and the mass above it.

    Args:
        wanted: int64, of tokens if COUNT, else of mass.
        held: the mass above ``low``.
    """
    while high - low > 1:
        middle = (low + high) >> 1
        count, mass = _above(middle, r, listed, units, serves, top, rate, M, VOCABULARY, BLOCK)
        found = mass
        if COUNT:
            found = count
        if found < wanted:
            high = middle
        else:
            low = middle
            held = mass
    return low, held


@triton.jit
def race(
    source, lists, scratch, results, R, NT, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr,
    LIMIT: tl.constexpr, EDITABLE: tl.constexpr,
):  # fmt: skip
    """The token of a filtered row, its ln p and its distribution, a program for each row."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.load(scratch.counts + row)
    if n >= 0:
        state = scratch.state + row * STATE
        r = row_of(source, lists, scratch, row, tl.load(state + PLAUSIBLE_FROM), NT, M, BLOCK, True, EDITABLE)
        distribution = results.distributions + row * DISTRIBUTION
        top, rate = tl.load(distribution + TOP), tl.load(distribution + RATE)
        whole = tl.load(distribution + MASS).to(tl.float64) * _UNIT
        top_k, top_p = tl.load(r.ints + TOP_K), tl.load(r.reals + TOP_P)
        floor = top + tl.load(r.reals + MIN_P)

        at = tl.arange(0, LIMIT)
        there = at < tl.where(n <= LIMIT, n, 0)
        z = tl.load(scratch.listed + row * LIMIT + at, mask=there, other=NEG_INF)
        w, units = _units(z, top, rate)
        listed = tl.where(there, order(z), -2147483648)
        found = tl.sum(tl.where(there, units, 0), 0)
        wanted = (top_p.to(tl.float64) * whole).to(tl.int64)
        # A list below a guess serves if it holds the nucleus, and a little against rounding.
        sure = tl.load(state + GUESS) == 0
        serves = (n <= LIMIT) & (sure | (found.to(tl.float64) > wanted.to(tl.float64) * (1 + 1e-6)))

        lowest = tl.where(serves, tl.load(state + LEAST), -LARGEST)
        low = order(lowest).to(tl.int64) - 1
        high = tl.maximum(order(top), tl.max(listed, 0)).to(tl.int64)
        held = tl.where(serves, found, whole.to(tl.int64))
        if top_k > 0:
            low, held = _threshold(
                top_k, True, low, high, held, r, listed, units, serves, top, rate, M, VOCABULARY, BLOCK
            )
            wanted = (top_p.to(tl.float64) * held.to(tl.float64)).to(tl.int64)
        if top_p < 1:
            low, held = _threshold(
                wanted, False, low, high, held, r, listed, units, serves, top, rate, M, VOCABULARY, BLOCK
            )
        token, held = _winner(
            r, scratch, z, w, units, listed, serves, low, floor, top, rate, M, VOCABULARY, BLOCK, LIMIT
        )
        tl.store(results.ids + row, token.to(tl.int64))
        tl.store(distribution + BOUND, tl.maximum(number((low + 1).to(tl.int32)), floor))
        tl.store(distribution + MASS, held.to(tl.float64) / _UNIT)
        argmax = tl.load(results.ids + R + row).to(tl.int32)
        of_row, log_mass = tl.load(state + WHOLE_TOP), tl.load(state + LOG_MASS)
        tl.store(results.numbers + 3 * R + row, logprob(r, token, of_row, log_mass, argmax, M, VOCABULARY))


@triton.jit
def _winner(
    r, scratch, z, w, units, listed, serves, low, floor, top, rate, M: tl.constexpr, VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """The token that wins among those of an order above ``low`` and at least ``floor``, and their mass."""
    key, position = tl.load(r.ints + KEY), tl.load(r.ints + POSITION)
    token = tl.zeros((), tl.int32)
    held = tl.zeros((), tl.int64)
    if serves:
        kept = (listed > low) & (z >= floor)
        held = tl.sum(tl.where(kept, units, 0), 0)
        at = tl.arange(0, LIMIT)
        index = tl.load(scratch.listed_ids + r.row * LIMIT + at, mask=listed > -2147483648, other=NOBODY)
        token = first_max(tl.where(kept, scores(w, key, position, TOKEN, index), -1.0), index)
    else:
        best = tl.zeros((), tl.float32) - 1.0
        tile = 0
        while tile < r.NT:
            y = drawn_tile(r, tile, M, VOCABULARY, BLOCK)
            v, weight = _units(y, top, rate)
            stays = (order(y) > low) & (y >= floor) & (y > NEG_INF)
            held += tl.sum(tl.where(stays, weight, 0), 0)
            index = tile * BLOCK + tl.arange(0, BLOCK)
            score = tl.where(stays, scores(v, key, position, TOKEN, index), -1.0)
            most = tl.max(score, 0)
            if most > best:
                token = first_max(score, index)
                best = most
            tile += 1
    return token, held
