"""The laws of ``reference.law`` in Triton: of many rows at once, thresholds found without a sort and without the host.

``_partials`` takes the maximum and the mass of every tile; ``_close`` adds them in index order and, where filters leave
tokens out, looks for their thresholds among the 2^32 float32 numbers, eight at a time: each pass over the tiles whose
maximum can still matter leaves an eighth of the numbers, so eleven passes end on the logit itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from trimtab.kernels.reference import tiles
from trimtab.kernels.reference.filters import inverse_temperature
from trimtab.kernels.triton.edits import ALIGN
from trimtab.kernels.triton.rows import load
from trimtab.kernels.types import RowPick

__all__ = ["FILTERED", "GREEDY", "SKIPPED", "WHOLE", "aligned", "clean", "laws", "on", "prob", "wanted"]

# What a row's law is made of.
SKIPPED, WHOLE, FILTERED, GREEDY = 0, 1, 2, 3
_SKIPPED, _WHOLE, _FILTERED, _GREEDY = (tl.constexpr(kind) for kind in (SKIPPED, WHOLE, FILTERED, GREEDY))

_NEG_INF = tl.constexpr(float("-inf"))
_INF = tl.constexpr(float("inf"))
_LOWEST = tl.constexpr(float(np.finfo(np.float32).min))
_PIVOTS = tl.constexpr(8)
_ALIGN = tl.constexpr(ALIGN)
_BLOCK = 1024  # tokens beside the pivots in registers


@triton.jit
def aligned(V):
    """Numbers from an edited row to the next."""
    return (V + _ALIGN - 1) // _ALIGN * _ALIGN


@triton.jit
def clean(LOGITS, stride, row, EDITED, at, offs, V: tl.constexpr, BLOCK: tl.constexpr):
    """Clean float32 logits at ``offs`` = start of a block + arange of a row, -inf after the last token.

    They come from EDITED where at >= 0; see ``Edits.apply``.
    """
    if at >= 0:
        z = load(EDITED + at * aligned(V), offs, _NEG_INF, V, BLOCK)
    else:
        z = load(LOGITS + row * stride, offs, _NEG_INF, V, BLOCK)
    return tl.where((z > _NEG_INF) & (z < _INF), z, _NEG_INF)


@triton.jit
def prob(z, top, scale, bound, mass):
    """``Law.prob``."""
    p = tl.exp((z - top) * scale) * (1.0 / mass)
    return tl.where(z >= bound, p, 0.0)


@triton.jit
def _rank(z):
    """float32 to int32, order kept; both zeros are one."""
    bits = tl.where(z == 0, 0.0, z).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _unrank(rank):
    bits = rank.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _partials(
    LOGITS, stride, EDITED, AT, KIND, SCALE, M, S, at_stride, kind_stride, scale_stride, V: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Largest logit of a tile, and the sum of exp((z - it) / temperature)."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if tl.load(KIND + row * kind_stride) == _SKIPPED:
        return
    offs = tile * TILE + tl.arange(0, TILE)
    z = clean(LOGITS, stride, row, EDITED, tl.load(AT + row * at_stride), offs, V, TILE)
    m = tl.max(z, 0)
    scale = tl.load(SCALE + row * scale_stride).to(tl.float32)
    s = tl.sum(tl.exp((z - tl.where(m == _NEG_INF, 0.0, m)) * scale), 0)
    at = row * tl.num_programs(1) + tile
    tl.store(M + at, m)
    tl.store(S + at, s)


@triton.jit
def _count_or_mass(
    LOGITS, stride, row, EDITED, at, M, least, top, scale, pivots, COUNT: tl.constexpr, STRICT: tl.constexpr,
    V: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For each pivot the number of tokens, or their mass, at or (STRICT) above it, in tiles that reach ``least``."""
    total = tl.zeros((_PIVOTS,), tl.float32)
    for tile in range(TILES):
        if _rank(tl.load(M + row * TILES + tile)).to(tl.int64) >= least:
            for part in range(TILE // BLOCK):
                offs = tile * TILE + part * BLOCK + tl.arange(0, BLOCK)
                z = clean(LOGITS, stride, row, EDITED, at, offs, V, BLOCK)
                rank = _rank(z).to(tl.int64)
                weight = tl.where(z > _NEG_INF, 1.0, 0.0) if COUNT else tl.exp((z - top) * scale)
                kept = rank[None, :] > pivots[:, None] if STRICT else rank[None, :] >= pivots[:, None]
                total += tl.sum(tl.where(kept, weight[None, :], 0.0), 1)
    return total


@triton.jit
def _close(
    LOGITS, stride, EDITED, AT, KIND, REALS, TOP_K, M, S, LAW, ONLY, at_stride, kind_stride, k_stride, reals_stride,
    V: tl.constexpr, TILES: tl.constexpr, SLOTS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row's law: (top, scale, bound, mass) to LAW, and to ONLY the one token of a greedy row, else -1."""
    row = tl.program_id(0).to(tl.int64)
    kind = tl.load(KIND + row * kind_stride)
    if kind == _SKIPPED:
        return
    scale = tl.load(REALS + row * reals_stride).to(tl.float32)
    at = tl.load(AT + row * at_stride)
    slot = tl.arange(0, SLOTS)
    m = tl.load(M + row * TILES + slot, mask=slot < TILES, other=_NEG_INF)
    s = tl.load(S + row * TILES + slot, mask=slot < TILES, other=0.0)
    top = tl.max(m, 0)
    if top == _NEG_INF:
        tl.store(LAW + row * 4, top)
        tl.store(LAW + row * 4 + 1, scale)
        tl.store(LAW + row * 4 + 2, top)
        tl.store(LAW + row * 4 + 3, 1.0)
        tl.store(ONLY + row, -1)
        return
    mass = tl.sum(tl.exp((m - top) * scale) * s, 0)
    bound = top * 0.0 + _NEG_INF
    only = row * 0 - 1
    if kind == _GREEDY:
        tile = tl.min(tl.where(m == top, slot, SLOTS), 0)
        offs = tile * TILE + tl.arange(0, TILE)
        z = clean(LOGITS, stride, row, EDITED, at, offs, V, TILE)
        only = tl.min(tl.where(z == top, offs, V), 0).to(tl.int64)
        mass = mass * 0.0 + 1.0
    if kind == _FILTERED:
        top_k = tl.load(TOP_K + row * k_stride)
        top_p = tl.load(REALS + row * reals_stride + 1)
        highest = _rank(top).to(tl.int64)
        least = _rank(top * 0.0 + _LOWEST).to(tl.int64)
        i = tl.arange(0, _PIVOTS).to(tl.int64)
        if (top_k > 0) & (top_k < V):
            low, high = least, highest  # the largest number that top_k logits reach lies within
            while low < high:
                pivots = low + ((high - low) * (i + 1) + _PIVOTS - 1) // _PIVOTS
                reached = _count_or_mass(
                    LOGITS, stride, row, EDITED, at, M, low, top, scale, pivots, True, False, V, TILES, TILE, BLOCK
                )
                ok = tl.sum((reached >= top_k.to(tl.float32)).to(tl.int64), 0)
                span = high - low
                high = tl.where(ok < _PIVOTS, low + (span * (ok + 1) + _PIVOTS - 1) // _PIVOTS - 1, high)
                low = tl.where(ok > 0, low + (span * ok + _PIVOTS - 1) // _PIVOTS, low)
            least = low
            if top_p < 1:
                all_ = _count_or_mass(
                    LOGITS, stride, row, EDITED, at, M, least, top, scale, least + i * 0, False, False, V, TILES, TILE,
                    BLOCK,
                )  # fmt: skip
                mass = tl.sum(tl.where(i == 0, all_, 0.0), 0)
        if top_p < 1:
            # Tokens that each weigh less than (1 - p) mass / 2 V weigh less than half of 1 - p together.
            far = top + tl.log((1 - top_p).to(tl.float32) * mass / (2.0 * V)) / scale
            low, high = tl.maximum(least, _rank(far).to(tl.int64)), highest
            while low < high:
                pivots = low + ((high - low) * i) // _PIVOTS
                above = _count_or_mass(
                    LOGITS, stride, row, EDITED, at, M, low, top, scale, pivots, False, True, V, TILES, TILE, BLOCK
                )
                bad = tl.sum((above.to(tl.float64) >= top_p * mass).to(tl.int64), 0)
                span = high - low
                high = tl.where(bad < _PIVOTS, low + (span * bad) // _PIVOTS, high)
                low = tl.where(bad > 0, low + (span * (bad - 1)) // _PIVOTS + 1, low)
            least = low
        lowest_p = (top.to(tl.float64) + tl.load(REALS + row * reals_stride + 2)).to(tl.float32)
        least = tl.maximum(least, _rank(lowest_p).to(tl.int64))
        kept = _count_or_mass(
            LOGITS, stride, row, EDITED, at, M, least, top, scale, least + i * 0, False, False, V, TILES, TILE, BLOCK
        )
        mass = tl.sum(tl.where(i == 0, kept, 0.0), 0)
        bound = _unrank(least)
    tl.store(LAW + row * 4, top)
    tl.store(LAW + row * 4 + 1, scale)
    tl.store(LAW + row * 4 + 2, bound)
    tl.store(LAW + row * 4 + 3, mass)
    tl.store(ONLY + row, only)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels are launched on the current device; this makes it ``device``."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def wanted(rows: Sequence[RowPick | None], vocabulary: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What ``laws`` takes, on the host: int64 [R, 2] (kind, top_k) and float64 [R, 3]; None is a row without a law."""
    whole = np.zeros((len(rows), 2), np.int64)
    reals = np.tile(np.array([1.0, 1.0, -np.inf]), (len(rows), 1))
    for i, row in enumerate(rows):
        if row is None:
            continue
        filters = row.filters
        if filters.temperature == 0:
            whole[i, 0] = GREEDY
            continue
        whole[i] = FILTERED if row.restricts(vocabulary) else WHOLE, filters.top_k
        low = filters.temperature * math.log(filters.min_p) if filters.min_p else -math.inf
        reals[i] = inverse_temperature(filters), filters.top_p, low
    return whole, reals


def laws(
    logits: torch.Tensor, edited: torch.Tensor, at: torch.Tensor, kind: torch.Tensor, top_k: torch.Tensor,
    reals: torch.Tensor, law: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The laws of R rows.

    Args:
        logits: [R, V], the last dimension contiguous.
        edited: float32 [E, V], rows that are changed before the temperature; see ``edit_rows``.
        at: int64 [R], the row of ``edited`` that stands for a row, or -1.
        kind: int64 [R], SKIPPED (its law stays as it is), WHOLE, FILTERED or GREEDY.
        top_k: int64 [R]; 0 keeps all.
        reals: float64 [R, 3]: 1 / temperature, top_p, temperature ln(min_p).
        law: float32 [R, 4] to write to.

    Returns:
        float32 [R, 4] (top, scale, bound, mass) as in ``reference.law``, and int64 [R], the token of greedy rows, else
        -1.
    """
    rows, vocabulary = logits.shape
    count, width = tiles.tiling(vocabulary)
    width = triton.next_power_of_2(width)
    if law is None:
        law = torch.empty((rows, 4), dtype=torch.float32, device=logits.device)
    only = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        m, s = torch.empty((2, rows, count), dtype=torch.float32, device=logits.device)
        with on(logits.device):
            _partials[(rows, count)](
                logits, logits.stride(0), edited, at, kind, reals, m, s, at.stride(0), kind.stride(0), reals.stride(0),
                V=vocabulary, TILE=width,
            )  # fmt: skip
            _close[(rows,)](
                logits, logits.stride(0), edited, at, kind, reals, top_k, m, s, law, only, at.stride(0),
                kind.stride(0), top_k.stride(0), reals.stride(0), V=vocabulary, TILES=count,
                SLOTS=triton.next_power_of_2(count), TILE=width, BLOCK=min(width, _BLOCK),
            )  # fmt: skip
    return law, only
