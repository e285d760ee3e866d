"""Verification of speculation in Triton: the decisions of ``cpu.verify``, without the host.

Rows of the target and of the draft go through the stages of ``logits.run``, which leave each row's distribution in four
numbers, so neither p nor q is ever written down. Then come three launches. ``accept`` takes a window for each program:
the tokens of a window are tested side by side, and the first that falls ends it. ``residual`` takes a tile of each
window that lost a token: the mass of max(p - q, 0) in it, or under filters the winner of the race among its tokens.
``choose`` takes a window again: the tile, and then the column and the line within it.

A window's numbers depend on its own rows alone: tiles are fixed, and sums over them go in index order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from trimtab.kernels.triton.races import ACCEPT, NOBODY, TILES, TOKEN, first_max, race_inside, scores
from trimtab.kernels.triton.rng import exponential, uniform
from trimtab.kernels.triton.rows import (
    BOUND,
    DISTRIBUTION,
    EDITED,
    FILTERED,
    INF,
    INTS,
    KEY,
    KIND,
    LN2,
    MASS,
    NEG_INF,
    POSITION,
    RATE,
    SAMPLED,
    SLOT,
    TOP,
    load,
)

__all__ = ["Outcome", "Side", "Windows", "accept", "choose", "residual"]

# Columns of ``Windows.ints``, int64 [N, COLUMNS].
DRAFTED = tl.constexpr(0)  # the drafted token; -1 after the last
DRAFT_ROW = tl.constexpr(1)  # its row of draft logits; CERTAIN: q = 1; OWN: the target's own pick decides
RESIDUAL = tl.constexpr(2)  # the key of draws after a rejection
WINDOW = tl.constexpr(3)
PLACE = tl.constexpr(4)  # in its window
COLUMNS = tl.constexpr(5)
CERTAIN, OWN = tl.constexpr(-1), tl.constexpr(-2)


class Side(NamedTuple):
    """Rows of the target, or of the draft, after ``logits.run``.

    Attributes:
        logits, stride: raw, any accepted type.
        ints: int64 [N, INTS], their plan.
        edited, width: float32 [rows with edits, width].
        distributions: float32 [N, DISTRIBUTION].
        tokens: int64 [N], what was drawn.
    """

    logits: Any
    stride: Any
    ints: Any
    edited: Any
    width: Any
    distributions: Any
    tokens: Any


class Windows(NamedTuple):
    """Attributes:
    start: int64 [R + 1], the first row of each window.
    ints: int64 [N, COLUMNS].
    column: int64 [V], the draft's column of a token, or -1; not read where column = id.
    """

    start: Any
    ints: Any
    column: Any


class Outcome(NamedTuple):
    """Attributes:
    accepted, token: int64 [R].
    final: int64 [R], the row whose residual is drawn, or -1 where ``token`` is settled.
    refused: int64 [R], the token that has nothing left there, or -1.
    score: float32 [R, NT, 2], of what is left and of p: a tile's mass, or under filters its best score.
    winner: int32 [R, NT, 2], under filters the token that has it.
    """

    accepted: Any
    token: Any
    final: Any
    refused: Any
    score: Any
    winner: Any


@triton.jit
def _log_prob(side, row, token, real):
    """ln of the probability of tokens under the distributions of rows, blocks both; -inf where not ``real``."""
    ints = side.ints + row * INTS
    kind = tl.load(ints + KIND, mask=real, other=0)
    edited = real & (kind & EDITED != 0)
    raw = tl.load(side.logits + row * side.stride + token, mask=real & (edited == 0), other=NEG_INF).to(tl.float32)
    slot = tl.load(ints + SLOT, mask=edited, other=0)
    z = tl.where(edited, tl.load(side.edited + slot * side.width + token, mask=edited, other=NEG_INF), raw)
    distribution = side.distributions + row * DISTRIBUTION
    top = tl.load(distribution + TOP, mask=real, other=NEG_INF)
    rate = tl.load(distribution + RATE, mask=real, other=1.0)
    mass = tl.load(distribution + MASS, mask=real, other=1.0)
    inside = (z >= tl.load(distribution + BOUND, mask=real, other=INF)) & (z > NEG_INF) & (z < INF) & (top > NEG_INF)
    gap = tl.where(inside, z, 0.0) - tl.where(inside, top, 0.0)
    found = tl.where(inside, gap * rate * LN2 - tl.log(mass), NEG_INF)
    own = tl.load(side.tokens + row, mask=real, other=-1)
    return tl.where(kind & SAMPLED == 0, tl.where(real & (own == token), 0.0, NEG_INF), found), top


@triton.jit
def _probs(side, row, z, index):
    """Probabilities of tokens ``index`` of one row, whose edited logits are z, not cleaned."""
    z = tl.where((z > NEG_INF) & (z < INF), z, NEG_INF)
    distribution = side.distributions + row * DISTRIBUTION
    p = tl.exp2((z - tl.load(distribution + TOP)) * tl.load(distribution + RATE)) / tl.load(distribution + MASS)
    p = tl.where(z >= tl.load(distribution + BOUND), p, 0.0)
    if tl.load(side.ints + row * INTS + KIND) & SAMPLED == 0:
        p = tl.where(index == tl.load(side.tokens + row), 1.0, 0.0)
    return p


@triton.jit
def _edits_of(side, row):
    """Where the row's edited logits begin, if it has any."""
    ints = side.ints + row * INTS
    return tl.load(ints + KIND) & EDITED != 0, side.edited + tl.load(ints + SLOT) * side.width


@triton.jit
def _left(
    target, draft, windows, row, refused, tile, V: tl.constexpr, VD: tl.constexpr, BLOCK: tl.constexpr,
    HAS_DRAFT: tl.constexpr, HAS_COLUMN: tl.constexpr,
):  # fmt: skip
    """max(p - q, 0) and p of a tile of row ``row``."""
    offs = tile * BLOCK + tl.arange(0, BLOCK)
    is_edited, edited = _edits_of(target, row)
    if is_edited:  # noqa: SIM108
        z = tl.load(edited + offs)
    else:
        z = load(target.logits + row * target.stride, offs, NEG_INF, V, BLOCK)
    p = _probs(target, row, z, offs)
    left = p
    if HAS_DRAFT:
        source = tl.load(windows.ints + row * COLUMNS + DRAFT_ROW)
        if source >= 0:  # noqa: SIM102 (there are distributions then only)
            if tl.load(draft.distributions + source * DISTRIBUTION + TOP) > NEG_INF:
                column = offs
                if HAS_COLUMN:
                    column = tl.load(windows.column + offs, mask=offs < V, other=-1).to(tl.int32)
                there = (column >= 0) & (column < VD)
                is_edited, edited = _edits_of(draft, source)
                if is_edited:
                    zq = tl.load(edited + column, mask=there, other=NEG_INF)
                else:
                    raw = draft.logits + source * draft.stride + column
                    zq = tl.load(raw, mask=there, other=NEG_INF).to(tl.float32)
                left = tl.maximum(p - _probs(draft, source, zq, column), 0.0)
    return tl.where(offs == refused, 0.0, left), p


@triton.jit
def accept(
    target, draft, windows, outcome, VD, HAS_DRAFT: tl.constexpr, HAS_COLUMN: tl.constexpr, LONGEST: tl.constexpr
):  # fmt: skip
    """How many tokens of a window stand: ``Outcome`` but for score and winner."""
    window = tl.program_id(0).to(tl.int64)
    start = tl.load(windows.start + window)
    count = tl.load(windows.start + window + 1) - start - 1
    j = tl.arange(0, LONGEST)
    real = j < count
    row = start + j
    y = tl.load(windows.ints + row * COLUMNS + DRAFTED, mask=real, other=0)
    source = tl.load(windows.ints + row * COLUMNS + DRAFT_ROW, mask=real, other=OWN)
    ratio = real & (source > OWN)
    log_p, top = _log_prob(target, row, y, ratio)
    log_q = tl.zeros((LONGEST,), tl.float32)
    if HAS_DRAFT:
        drawn = ratio & (source >= 0)
        column = y
        if HAS_COLUMN:
            column = tl.load(windows.column + y, mask=drawn, other=-1)
        there = drawn & (column >= 0) & (column < VD)
        found, _ = _log_prob(draft, source, column, there)
        log_q = tl.where(there, found, tl.where(drawn, NEG_INF, log_q))
    ints = target.ints + row * INTS
    key = tl.load(ints + KEY, mask=ratio, other=0)
    u = uniform(key, tl.load(ints + POSITION, mask=ratio, other=0), ACCEPT, j * 0)
    possible = (log_p > NEG_INF) & (log_q > NEG_INF)
    gain = tl.where(possible, log_p, 0.0) - tl.where(possible, log_q, 0.0)
    own = tl.load(target.tokens + row, mask=real, other=-1)
    stands = tl.where(ratio, possible & ((gain >= 0) | (tl.log(u) < gain)), own == y)
    n = tl.min(tl.where(real & (stands == 0), j, count.to(tl.int32)), 0)
    here = (j == n) & ratio
    refused = tl.max(here.to(tl.int32), 0) > 0
    empty = tl.max((here & (top == NEG_INF)).to(tl.int32), 0) > 0
    certain = tl.max((here & (log_q > NEG_INF)).to(tl.int32), 0) > 0
    token = tl.load(target.tokens + start + n)
    tl.store(outcome.accepted + window, n.to(tl.int64))
    tl.store(outcome.token + window, tl.where(empty, token * 0 - 1, token))
    tl.store(outcome.final + window, tl.where(refused & (empty == 0), start + n, start * 0 - 1))
    gone = tl.sum(tl.where(here, y, 0), 0)
    tl.store(outcome.refused + window, tl.where(certain, gone, gone * 0 - 1))


@triton.jit
def _best(weights, score, index):
    """The best score, and the lowest index of those that have it and any weight."""
    best = tl.max(score, 0)
    return best, tl.min(tl.where((score == best) & (weights > 0), index, NOBODY), 0)


@triton.jit
def residual(
    target, draft, windows, outcome, NT, V: tl.constexpr, VD: tl.constexpr, BLOCK: tl.constexpr,
    HAS_DRAFT: tl.constexpr, HAS_COLUMN: tl.constexpr,
):  # fmt: skip
    """``Outcome.score`` and ``winner`` of a tile."""
    window, tile = (tl.program_id(0) // NT).to(tl.int64), tl.program_id(0) % NT
    row = tl.load(outcome.final + window)
    if row < 0:
        return
    refused = tl.load(outcome.refused + window)
    left, p = _left(target, draft, windows, row, refused, tile, V, VD, BLOCK, HAS_DRAFT, HAS_COLUMN)
    at = (window * NT + tile) * 2
    ints = target.ints + row * INTS
    if tl.load(ints + KIND) & FILTERED == 0:
        tl.store(outcome.score + at, tl.sum(left, 0))
        tl.store(outcome.score + at + 1, tl.sum(p, 0))
    elif tl.max(p, 0) > 0:
        index = tile * BLOCK + tl.arange(0, BLOCK)
        key, position = tl.load(windows.ints + row * COLUMNS + RESIDUAL), tl.load(ints + POSITION)
        clocks = exponential(uniform(key, position, TOKEN, index))
        best, winner = _best(left, left / clocks, index)
        tl.store(outcome.score + at, best)
        tl.store(outcome.winner + at, winner)
        best, winner = _best(p, p / clocks, index)
        tl.store(outcome.score + at + 1, best)
        tl.store(outcome.winner + at + 1, winner)
    else:
        tl.store(outcome.score + at, 0.0)
        tl.store(outcome.score + at + 1, 0.0)


@triton.jit
def choose(
    target, draft, windows, outcome, NT, V: tl.constexpr, VD: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
    HAS_DRAFT: tl.constexpr, HAS_COLUMN: tl.constexpr,
):  # fmt: skip
    """The token of a window that lost one; from p itself where nothing is left."""
    window = tl.program_id(0).to(tl.int64)
    row = tl.load(outcome.final + window)
    if row < 0:
        return
    slot = tl.arange(0, SLOTS)
    at = (window * NT + slot) * 2
    left = tl.load(outcome.score + at, mask=slot < NT, other=0.0)
    whole = tl.max(left, 0) <= 0
    score = tl.where(whole, tl.load(outcome.score + at + 1, mask=slot < NT, other=0.0), left)
    ints = target.ints + row * INTS
    if tl.load(ints + KIND) & FILTERED:
        tile = first_max(score, slot)
        token = tl.load(outcome.winner + (window * NT + tile) * 2 + whole.to(tl.int32))
    else:
        key, position = tl.load(windows.ints + row * COLUMNS + RESIDUAL), tl.load(ints + POSITION)
        tile = first_max(scores(score, key, position, TILES, slot), slot)
        refused = tl.load(outcome.refused + window)
        rest, p = _left(target, draft, windows, row, refused, tile, V, VD, BLOCK, HAS_DRAFT, HAS_COLUMN)
        token = tile * BLOCK + race_inside(tl.where(whole, p, rest), key, position, BLOCK)
    tl.store(outcome.token + window, token.to(tl.int64))
