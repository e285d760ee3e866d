"""Verification of speculation in Triton: the decisions of ``reference.verify``, without the host.

After the laws of the rows (``law``) come three launches. ``_accept`` takes a window for each program: the tokens of a
window are tested side by side, and the first that falls ends it. ``_residual`` takes a tile of each window that lost a
token: the mass of max(p - q, 0) in it, or under filters the winner of the race among its tokens. ``_choose`` takes a
window again: the tile, and then the column and the line within it. Laws enter as four numbers a row, so neither p nor q
is ever written down.

A window's numbers depend on its own rows alone: tiles are fixed, and sums over them go in index order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from trimtab.kernels.reference import tiles
from trimtab.kernels.reference.entropy import Stats
from trimtab.kernels.reference.pick import Picked
from trimtab.kernels.reference.verify import Verified, Window, check, columns_of, picks_of
from trimtab.kernels.triton import launch
from trimtab.kernels.triton.edits import Edits
from trimtab.kernels.triton.law import aligned, clean, laws, on, prob, wanted
from trimtab.kernels.triton.rng import exponential, uniform
from trimtab.kernels.types import RowPick, Stream

__all__ = ["Plan", "pack", "run", "verify"]

_NEG_INF = tl.constexpr(float("-inf"))
_INF = tl.constexpr(float("inf"))
_GROUP = tl.constexpr(tiles.GROUP)
_TILE_STREAM, _COLUMN_STREAM, _LINE_STREAM, _TOKEN_STREAM, _ACCEPT_STREAM = (
    tl.constexpr(int(stream)) for stream in (Stream.TILE, Stream.COLUMN, Stream.LINE, Stream.TOKEN, Stream.ACCEPT)
)

# Columns of a plan's integers about the target's rows, int64 [N, _INTS].
_TOKEN = tl.constexpr(0)  # the drafted token; -1 after the last
_DRAFT = tl.constexpr(1)  # its row of draft logits; -1: certain; -2: the target's own pick decides
_KEY = tl.constexpr(2)
_RESIDUAL = tl.constexpr(3)  # the key of draws after a rejection
_POSITION = tl.constexpr(4)
_AT = tl.constexpr(5)  # where the edited row is, or -1
_KIND = tl.constexpr(6)  # of ``law``
_TOP_K = tl.constexpr(7)
_WINDOW = tl.constexpr(8)
_PLACE = tl.constexpr(9)  # in its window
_INTS = tl.constexpr(10)
_COLUMNS_OF_DRAFT = 3  # edited row, kind, top_k
_FILTERED = tl.constexpr(2)  # of ``law``


@triton.jit
def _logprob(z, top, scale, bound, mass):
    """``Law.logprob``."""
    inside = (z >= bound) & (z > _NEG_INF) & (z < _INF)
    gap = tl.where(inside, z, 0.0) - tl.where(inside, top, 0.0)
    return tl.where(inside, gap * scale - tl.log(mass), _NEG_INF)


@triton.jit
def _values(LOGITS, stride, row, EDITED, at, V, token, real):
    """Logits of tokens, all blocks; not cleaned."""
    raw = tl.load(LOGITS + row * stride + token, mask=real & (at < 0), other=_NEG_INF).to(tl.float32)
    edited = tl.load(EDITED + at * aligned(V) + token, mask=real & (at >= 0), other=_NEG_INF)
    return tl.where(at < 0, raw, edited)


@triton.jit
def _accept(
    LOGITS, stride, EDITED, DRAFT, draft_stride, DRAFT_EDITED, DRAFT_INTS, COLUMN, START, INTS, PICKED, LAW, DRAFT_LAW,
    ONLY, ACCEPTED, TOKEN, FINAL, REFUSED, V, VD, HAS_DRAFT: tl.constexpr, HAS_COLUMN: tl.constexpr,
    LONGEST: tl.constexpr, COLS: tl.constexpr, DRAFT_COLS: tl.constexpr,
):  # fmt: skip
    """How many tokens of a window stand.

    FINAL gets the row whose residual is drawn, or -1 where TOKEN is settled; REFUSED the token that has nothing left
    there, or -1.
    """
    window = tl.program_id(0).to(tl.int64)
    start = tl.load(START + window)
    count = tl.load(START + window + 1) - start - 1
    j = tl.arange(0, LONGEST)
    real = j < count
    row = start + j
    ints = INTS + row * COLS
    y = tl.load(ints + _TOKEN, mask=real, other=0)
    draft = tl.load(ints + _DRAFT, mask=real, other=-2)
    ratio = real & (draft > -2)
    picked = tl.load(PICKED + row, mask=real, other=-1)
    law = LAW + row * 4
    top = tl.load(law, mask=ratio, other=0.0)
    z = _values(LOGITS, stride, row, EDITED, tl.load(ints + _AT, mask=ratio, other=-1), V, y, ratio)
    log_p = _logprob(
        z, top, tl.load(law + 1, mask=ratio, other=1.0), tl.load(law + 2, mask=ratio, other=0.0),
        tl.load(law + 3, mask=ratio, other=1.0),
    )  # fmt: skip
    log_q = tl.zeros((LONGEST,), tl.float32)
    if HAS_DRAFT:
        drawn = ratio & (draft >= 0)
        column = y
        if HAS_COLUMN:
            column = tl.load(COLUMN + y, mask=drawn, other=-1)
        there = drawn & (column >= 0) & (column < VD)
        q = DRAFT_LAW + draft * 4
        q_top = tl.load(q, mask=there, other=0.0)
        at = tl.load(DRAFT_INTS + draft * DRAFT_COLS, mask=there, other=-1)
        drawn_log = _logprob(
            _values(DRAFT, draft_stride, draft, DRAFT_EDITED, at, VD, column, there), q_top,
            tl.load(q + 1, mask=there, other=1.0), tl.load(q + 2, mask=there, other=0.0),
            tl.load(q + 3, mask=there, other=1.0),
        )  # fmt: skip
        only = tl.load(ONLY + draft, mask=there, other=-1)
        drawn_log = tl.where(only >= 0, tl.where(only == column, 0.0, _NEG_INF), drawn_log)
        drawn_log = tl.where(there & (q_top > _NEG_INF), drawn_log, _NEG_INF)
        log_q = tl.where(drawn, drawn_log, log_q)
    key = tl.load(ints + _KEY, mask=ratio, other=0)
    u = uniform(key, tl.load(ints + _POSITION, mask=ratio, other=0), _ACCEPT_STREAM, j * 0)
    possible = (log_p > _NEG_INF) & (log_q > _NEG_INF)
    gain = tl.where(possible, log_p, 0.0) - tl.where(possible, log_q, 0.0)
    stands = tl.where(ratio, possible & ((gain >= 0) | (tl.log(u) < gain)), picked == y)
    n = tl.min(tl.where(real & (stands == 0), j, count.to(tl.int32)), 0)
    tl.store(ACCEPTED + window, n.to(tl.int64))
    here = j == n
    refused = tl.max((here & ratio).to(tl.int32), 0) > 0
    empty = tl.max((here & ratio & (top == _NEG_INF)).to(tl.int32), 0) > 0
    certain = tl.max((here & ratio & (log_q > _NEG_INF)).to(tl.int32), 0) > 0
    token = tl.load(PICKED + start + n)
    tl.store(TOKEN + window, tl.where(empty, token * 0 - 1, token))
    tl.store(FINAL + window, tl.where(refused & (empty == 0), start + n, start * 0 - 1))
    gone = tl.sum(tl.where(here & ratio, y, 0), 0)
    tl.store(REFUSED + window, tl.where(certain, gone, gone * 0 - 1))


@triton.jit
def _left(
    LOGITS, stride, EDITED, DRAFT, draft_stride, DRAFT_EDITED, DRAFT_INTS, COLUMN, INTS, LAW, DRAFT_LAW, ONLY, row,
    refused, tile, V: tl.constexpr, VD: tl.constexpr, HAS_DRAFT: tl.constexpr, HAS_COLUMN: tl.constexpr,
    TILE: tl.constexpr, COLS: tl.constexpr, DRAFT_COLS: tl.constexpr,
):  # fmt: skip
    """max(p - q, 0) and p of a tile of row ``row``."""
    offs = tile * TILE + tl.arange(0, TILE)
    ints = INTS + row * COLS
    law = LAW + row * 4
    z = clean(LOGITS, stride, row, EDITED, tl.load(ints + _AT), offs, V, TILE)
    p = prob(z, tl.load(law), tl.load(law + 1), tl.load(law + 2), tl.load(law + 3))
    left = p
    if HAS_DRAFT:
        draft = tl.load(ints + _DRAFT)
        if draft >= 0:
            q_law = DRAFT_LAW + draft * 4
            if tl.load(q_law) > _NEG_INF:
                column = offs
                if HAS_COLUMN:
                    column = tl.load(COLUMN + offs, mask=offs < V, other=-1)
                there = (column >= 0) & (column < VD)
                at = tl.load(DRAFT_INTS + draft * DRAFT_COLS)
                if at >= 0:
                    zq = tl.load(DRAFT_EDITED + at * aligned(VD) + column, mask=there, other=_NEG_INF)
                else:
                    zq = tl.load(DRAFT + draft * draft_stride + column, mask=there, other=_NEG_INF).to(tl.float32)
                zq = tl.where((zq > _NEG_INF) & (zq < _INF), zq, _NEG_INF)
                only = tl.load(ONLY + draft)
                q = prob(zq, tl.load(q_law), tl.load(q_law + 1), tl.load(q_law + 2), tl.load(q_law + 3))
                q = tl.where(only >= 0, tl.where(column == only, 1.0, 0.0), q)
                left = tl.maximum(p - q, 0.0)
    return tl.where(offs == refused, 0.0, left), p


@triton.jit
def _race(weights, clocks, index, none):
    """The best w / E and the lowest index that has it; index ``none`` where no weight is left."""
    score = weights / clocks
    best = tl.max(score, 0)
    return best, tl.min(tl.where((score == best) & (weights > 0), index, none), 0)


@triton.jit
def _residual(
    LOGITS, stride, EDITED, DRAFT, draft_stride, DRAFT_EDITED, DRAFT_INTS, COLUMN, INTS, LAW, DRAFT_LAW, ONLY, FINAL,
    REFUSED, SCORE, WINNER, V: tl.constexpr, VD: tl.constexpr, HAS_DRAFT: tl.constexpr, HAS_COLUMN: tl.constexpr,
    TILE: tl.constexpr, COLS: tl.constexpr, DRAFT_COLS: tl.constexpr,
):  # fmt: skip
    """For a tile, of what is left and of p: the mass, or under filters the race's best score and its token."""
    window, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(FINAL + window)
    if row < 0:
        return
    left, p = _left(
        LOGITS, stride, EDITED, DRAFT, draft_stride, DRAFT_EDITED, DRAFT_INTS, COLUMN, INTS, LAW, DRAFT_LAW, ONLY, row,
        tl.load(REFUSED + window), tile, V, VD, HAS_DRAFT, HAS_COLUMN, TILE, COLS, DRAFT_COLS,
    )  # fmt: skip
    at = (window * tl.num_programs(1) + tile) * 2
    ints = INTS + row * COLS
    if tl.load(ints + _KIND) != _FILTERED:
        tl.store(SCORE + at, tl.sum(left, 0))
        tl.store(SCORE + at + 1, tl.sum(p, 0))
    elif tl.max(p, 0) > 0:
        offs = tile * TILE + tl.arange(0, TILE)
        key, position = tl.load(ints + _RESIDUAL), tl.load(ints + _POSITION)
        clocks = exponential(uniform(key, position, _TOKEN_STREAM, offs))
        best, winner = _race(left, clocks, offs, V)
        tl.store(SCORE + at, best)
        tl.store(WINNER + at, winner)
        best, winner = _race(p, clocks, offs, V)
        tl.store(SCORE + at + 1, best)
        tl.store(WINNER + at + 1, winner)
    else:
        tl.store(SCORE + at, 0.0)
        tl.store(SCORE + at + 1, 0.0)


@triton.jit
def _choose(
    LOGITS, stride, EDITED, DRAFT, draft_stride, DRAFT_EDITED, DRAFT_INTS, COLUMN, INTS, LAW, DRAFT_LAW, ONLY, FINAL,
    REFUSED, SCORE, WINNER, TOKEN, V: tl.constexpr, VD: tl.constexpr, HAS_DRAFT: tl.constexpr,
    HAS_COLUMN: tl.constexpr, TILES: tl.constexpr, SLOTS: tl.constexpr, TILE: tl.constexpr, COLS: tl.constexpr,
    DRAFT_COLS: tl.constexpr,
):  # fmt: skip
    """The token of a window that lost one; from p itself where nothing is left."""
    window = tl.program_id(0).to(tl.int64)
    row = tl.load(FINAL + window)
    if row < 0:
        return
    slot = tl.arange(0, SLOTS)
    at = (window * TILES + slot) * 2
    left = tl.load(SCORE + at, mask=slot < TILES, other=0.0)
    whole = tl.max(left, 0) <= 0
    score = tl.where(whole, tl.load(SCORE + at + 1, mask=slot < TILES, other=0.0), left)
    ints = INTS + row * COLS
    if tl.load(ints + _KIND) == _FILTERED:
        best = tl.max(score, 0)
        tile = tl.min(tl.where(score == best, slot, SLOTS), 0)
        tl.store(TOKEN + window, tl.load(WINNER + (window * TILES + tile) * 2 + whole.to(tl.int32)).to(tl.int64))
    else:
        key, position = tl.load(ints + _RESIDUAL), tl.load(ints + _POSITION)
        _, tile = _race(score, exponential(uniform(key, position, _TILE_STREAM, slot)), slot, SLOTS)
        residual, p = _left(
            LOGITS, stride, EDITED, DRAFT, draft_stride, DRAFT_EDITED, DRAFT_INTS, COLUMN, INTS, LAW, DRAFT_LAW, ONLY,
            row, tl.load(REFUSED + window), tile, V, VD, HAS_DRAFT, HAS_COLUMN, TILE, COLS, DRAFT_COLS,
        )  # fmt: skip
        grid = tl.reshape(tl.where(whole, p, residual), (TILE // _GROUP, _GROUP))
        index = tl.arange(0, _GROUP)
        _, column = _race(tl.sum(grid, 0), exponential(uniform(key, position, _COLUMN_STREAM, index)), index, _GROUP)
        lines = tl.sum(tl.where(index[None, :] == column, grid, 0.0), 1)
        index = tl.arange(0, TILE // _GROUP)
        _, line = _race(lines, exponential(uniform(key, position, _LINE_STREAM, index)), index, TILE // _GROUP)
        tl.store(TOKEN + window, (tile * TILE + line * _GROUP + column).to(tl.int64))


def _laws(
    logits: torch.Tensor,
    edited: torch.Tensor,
    draft: torch.Tensor,
    draft_edited: torch.Tensor,
    ints: torch.Tensor,
    reals: torch.Tensor,
    draft_ints: torch.Tensor,
    draft_reals: torch.Tensor,
    argmax: torch.Tensor,
    top_prob: torch.Tensor,
    tested: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Laws of the target's rows, those that nothing changes by their statistics; of the draft's; its greedy tokens."""
    if not tested:
        nothing = top_prob.new_empty((0, 4))
        return nothing, nothing, argmax
    empty = argmax < 0
    top = logits.gather(1, argmax.clamp(min=0)[:, None])[:, 0].float().masked_fill(empty, -torch.inf)
    mass = (1 / top_prob).masked_fill(empty, 1.0)
    law = torch.stack([top, torch.ones_like(top), torch.full_like(top, -torch.inf), mass], -1)
    laws(logits, edited, ints[:, _AT.value], ints[:, _KIND.value], ints[:, _TOP_K.value], reals, law)
    at, kind, top_k = draft_ints.unbind(1)
    return law, *laws(draft, draft_edited, at, kind, top_k, draft_reals)


@torch.library.custom_op("trimtab::verify", mutates_args=())
def _verify(
    logits: torch.Tensor,
    edited: torch.Tensor,
    draft: torch.Tensor,
    draft_edited: torch.Tensor,
    column: torch.Tensor,
    start: torch.Tensor,
    ints: torch.Tensor,
    reals: torch.Tensor,
    draft_ints: torch.Tensor,
    draft_reals: torch.Tensor,
    picked: torch.Tensor,
    argmax: torch.Tensor,
    top_prob: torch.Tensor,
    longest: int,
    tested: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """accepted int64 [R], token int64 [R], and the token of each row, int64 [N], -1 beyond the last."""
    vocabulary = logits.shape[1]
    windows = len(start) - 1
    accepted, token, final, refused = (start.new_empty(windows) for _ in range(4))
    if windows:
        both = {
            "HAS_DRAFT": len(draft) > 0,
            "HAS_COLUMN": len(column) > 0,
            "COLS": ints.shape[1],
            "DRAFT_COLS": draft_ints.shape[1],
        }
        law, draft_law, only = _laws(
            logits, edited, draft, draft_edited, ints, reals, draft_ints, draft_reals, argmax, top_prob, tested
        )
        source = (logits, logits.stride(0), edited, draft, draft.stride(0), draft_edited, draft_ints, column)
        with on(logits.device):
            _accept[(windows,)](
                *source, start, ints, picked, law, draft_law, only, accepted, token, final, refused, vocabulary,
                draft.shape[1], LONGEST=triton.next_power_of_2(max(longest, 1)), **both,
            )  # fmt: skip
            if tested:
                count, width = tiles.tiling(vocabulary)
                score = torch.empty((windows, count, 2), dtype=torch.float32, device=logits.device)
                winner = torch.empty((windows, count, 2), dtype=torch.int32, device=logits.device)
                rest = (*source, ints, law, draft_law, only, final, refused, score, winner)
                whole = {"V": vocabulary, "VD": draft.shape[1], "TILE": triton.next_power_of_2(width), **both}
                _residual[(windows, count)](*rest, **whole, num_warps=8)
                _choose[(windows,)](*rest, token, TILES=count, SLOTS=triton.next_power_of_2(count), **whole)
    window, place, drafted = ints[:, _WINDOW.value], ints[:, _PLACE.value], ints[:, _TOKEN.value]
    stand = accepted[window]
    chosen = torch.where(place < stand, drafted, torch.where(place == stand, token[window], -1))
    return accepted, token, chosen


@_verify.register_fake
def _(
    logits: torch.Tensor,
    edited: torch.Tensor,
    draft: torch.Tensor,
    draft_edited: torch.Tensor,
    column: torch.Tensor,
    start: torch.Tensor,
    ints: torch.Tensor,
    reals: torch.Tensor,
    draft_ints: torch.Tensor,
    draft_reals: torch.Tensor,
    picked: torch.Tensor,
    argmax: torch.Tensor,
    top_prob: torch.Tensor,
    longest: int,
    tested: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    windows = start.shape[0] - 1
    return start.new_empty(windows), start.new_empty(windows), start.new_empty(logits.shape[0])


class Plan(NamedTuple):
    """Windows as tensors; a launch is a function of these. Where nothing is edited, logits alone may change between.

    Attributes:
        edits, draft_edits: of the target's rows and of the draft's.
        draft: [M, Vd], the rows that tokens were drawn from, one below the other.
        column: int64 [V], the draft's column of a token, or -1; empty where column = id.
        start: int64 [R + 1], the first row of each window.
        ints, reals: int64 [N, 10] and float64 [N, 3], about the target's rows.
        draft_ints, draft_reals: int64 [M, 3] and float64 [M, 3], about the draft's.
        longest: of the windows, in drafted tokens.
        tested: whether some token stands or falls by p / q.
    """

    edits: Edits
    draft_edits: Edits
    draft: torch.Tensor
    column: torch.Tensor
    start: torch.Tensor
    ints: torch.Tensor
    reals: torch.Tensor
    draft_ints: torch.Tensor
    draft_reals: torch.Tensor
    longest: int
    tested: bool


def pack(windows: Sequence[Window], vocabulary: int, device: torch.device) -> Plan:
    """A plan of windows whose drafts share one vocabulary; see ``vocabulary_of``."""
    rows: list[RowPick | None] = []
    draft_rows: list[RowPick | None] = []
    sources: list[torch.Tensor] = []
    start, ints = [0], []
    for w, window in enumerate(windows):
        count = len(window.tokens)
        drawn = window.draft is not None and window.draft.logits is not None and count > 0
        for j, row in enumerate(window.rows):
            ratio = window.draft is not None and row.filters.temperature > 0 and j < count
            plain = not row.edits and row.filters.temperature == 1 and not row.restricts(vocabulary)
            # The law of a plain row follows from its statistics.
            rows.append(row if ratio and not plain else None)
            source = -2 if not ratio else len(draft_rows) if drawn else -1
            if drawn and j < count:
                assert window.draft is not None
                draft_rows.append(window.draft.rows[j] if ratio else None)
            residual = row.key.residual.bits if ratio else 0
            token = window.tokens[j] if j < count else -1
            ints.append((token, source, row.key.bits, residual, row.position, -1, 0, 0, w, j))
        if drawn:
            assert window.draft is not None
            assert window.draft.logits is not None
            sources.append(window.draft.logits.detach())
        start.append(len(rows))
    draft = _stacked(sources) if sources else torch.empty((0, 1), dtype=torch.float32, device=device)
    edits, draft_edits = Edits(rows, vocabulary, device), Edits(draft_rows, draft.shape[1], device)
    about = np.array([[number & 0xFFFFFFFFFFFFFFFF for number in line] for line in ints], np.uint64).view(np.int64)
    about = about.reshape(len(rows), _INTS.value)
    about[:, _AT.value] = edits.at
    about[:, _KIND.value : _TOP_K.value + 1], reals = wanted(rows, vocabulary)
    draft_about = np.empty((len(draft_rows), _COLUMNS_OF_DRAFT), np.int64)
    draft_about[:, 0] = draft_edits.at
    draft_about[:, 1:], draft_reals = wanted(draft_rows, draft.shape[1])
    ids = next((window.draft.ids for window in windows if window.draft is not None and vocabulary_of(window)), None)
    start_, about_, reals_, draft_about_, draft_reals_ = (
        torch.from_numpy(part).to(device) for part in (np.array(start), about, reals, draft_about, draft_reals)
    )
    return Plan(
        edits=edits,
        draft_edits=draft_edits,
        draft=draft,
        column=_column(ids, vocabulary, device),
        start=start_,
        ints=about_,
        reals=reals_,
        draft_ints=draft_about_,
        draft_reals=draft_reals_,
        longest=max((len(window.tokens) for window in windows), default=0),
        tested=bool((about[:, _DRAFT.value] > -2).any()),
    )


def _column(ids: torch.Tensor | None, vocabulary: int, device: torch.device) -> torch.Tensor:
    """``Plan.column``. Ids on the device are not checked: that would wait for it."""
    if ids is None:
        return torch.empty(0, dtype=torch.int64, device=device)
    if ids.device.type == "cpu":
        return torch.from_numpy(columns_of(ids, vocabulary).column).to(device)
    column = torch.full((vocabulary,), -1, dtype=torch.int64, device=ids.device)
    column[ids] = torch.arange(len(ids), device=ids.device)
    return column


def _stacked(sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """The matrices one below the other; no copy where they lie so in memory already."""
    first = sources[0]
    if first.stride(1) != 1:
        return torch.cat(list(sources))
    size, stride, at = first.element_size(), first.stride(0), first.data_ptr()
    for source in sources:
        together = source.data_ptr() == at and source.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not together or source.stride() != first.stride():
            return torch.cat(list(sources))
        at += len(source) * stride * size
    return first.as_strided((sum(map(len, sources)), first.shape[1]), first.stride())


def vocabulary_of(window: Window) -> tuple[object, ...] | None:
    """What drafts of one launch share: the dtype, the number of columns and their ids. None: fits any."""
    draft = window.draft
    if draft is None or draft.logits is None or not len(window.tokens):
        return None
    ids = draft.ids
    return draft.logits.dtype, draft.logits.shape[1], None if ids is None else (ids.data_ptr(), ids.stride())


def verify(logits: torch.Tensor, windows: Sequence[Window]) -> Verified:
    """``reference.verify.verify``."""
    check(logits, windows)
    for i, window in enumerate(windows):
        if window.draft is not None and window.draft.logits is not None and window.draft.logits.device != logits.device:
            found = window.draft.logits.device
            raise ValueError(f"windows[{i}].draft.logits.device = {found}: accepted: {logits.device}, that of logits")
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    picked = launch.pick(logits, picks_of(windows))
    kinds = [vocabulary_of(window) for window in windows]
    several = {kind for kind in kinds if kind is not None}
    if len(several) < 2:
        accepted, token, chosen = run(logits, pack(windows, logits.shape[1], logits.device), picked)
        return complete(logits, picked.stats, accepted, token, chosen)
    start = np.cumsum([0, *(len(window.rows) for window in windows)])
    accepted, token = torch.empty((2, len(windows)), dtype=torch.int64, device=logits.device)
    chosen = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    rest = [i for i, kind in enumerate(kinds) if kind is None]
    for kind in several:
        mine, rest = sorted(rest + [i for i, other in enumerate(kinds) if other == kind]), []
        rows = torch.from_numpy(np.concatenate([np.arange(start[i], start[i + 1]) for i in mine])).to(logits.device)
        plan = pack([windows[i] for i in mine], logits.shape[1], logits.device)
        part = Picked(picked.token[rows], Stats(*(column[rows] for column in picked.stats)))
        accepted[mine], token[mine], chosen[rows] = run(logits[rows], plan, part)
    return complete(logits, picked.stats, accepted, token, chosen)


def run(logits: torch.Tensor, plan: Plan, picked: Picked) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Accepted int64 [R], token int64 [R], and the token of each row, int64 [N], -1 where there is none."""
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _verify(
        logits.detach(),
        plan.edits.apply(logits.detach()),
        plan.draft,
        plan.draft_edits.apply(plan.draft),
        *plan[3:-2],
        picked.token,
        picked.stats.argmax,
        picked.stats.top_prob,
        plan.longest,
        plan.tested,
    )
    return found


def complete(
    logits: torch.Tensor, stats: Stats, accepted: torch.Tensor, token: torch.Tensor, chosen: torch.Tensor
) -> Verified:
    """Statistics with the logprobs of the chosen tokens."""
    if len(logits):
        both = torch.stack([chosen, stats.argmax], -1).clamp(min=0)
        value, top = logits.detach().gather(1, both).float().unbind(1)
        usable = (chosen >= 0) & (stats.argmax >= 0) & (value > -torch.inf) & (value < torch.inf)
        stats = stats._replace(logprob=torch.where(usable, value - top + stats.top_prob.log(), -torch.inf))
    return Verified(accepted, token, stats)
