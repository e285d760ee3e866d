"""Keys and values on pages, and attention over them, in Triton: the kernels behind ``dispatch.paged_attend``.

One program computes one split of one tile (see ``paging``) for one KV head: the online softmax of flash attention
(Dao, 2023, section 3.1) over blocks of positions that begin at multiples of their size, so that a row adds up the same
numbers in the same order whatever rows share its tile; a block that a row does not see leaves it as it was, bit for
bit. Scores stay in their own units until one fused multiply-add inside the exponential, so that masked and unmasked
blocks round alike. A tile of several splits stores its parts in float32, and ``_merge`` adds them in an order that
follows from their number alone, which follows from a row's own position and window.

Nothing here waits for the device, and grids follow from the buckets of ``paging``: launches can be captured in a CUDA
graph. ``trimtab::paged_write`` and ``trimtab::paged_attend`` are the same launches for ``torch.compile``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trimtab.kernels.paging import LONG_SPLIT, SHORT_SPLIT, Schedule, Spans

__all__ = ["paged_attend", "paged_write"]

_LOG2E = 1.4426950408889634
# How float32 is multiplied: by tensor cores, in three passes of tf32 that together have float32's accuracy.
_PRECISION = tl.constexpr("tf32x3")
_MERGED = tl.constexpr(16)  # splits read at once; split i is added to sum i % 16
# Where the running maximum starts: below every score, and finite, so that differences to it are never NaN.
_LOWEST = tl.constexpr(-1.0e30)


@triton.jit
def _write(
    POOL, KV, SLOTS, plane, row_stride, head_stride, HEADS: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One token's keys and values to its slot; ``plane`` elements are from a key to its value."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(SLOTS + row)
    if slot < 0:
        return
    page = (slot // PAGE).to(tl.int64)
    h = tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    real = (h < 2 * HEADS) & (d < DIM)
    kv = tl.load(KV + row * row_stride + h * head_stride + d, mask=real, other=0.0)
    at = (h // HEADS).to(tl.int64) * plane + ((page * HEADS + h % HEADS) * PAGE + slot % PAGE) * DIM + d
    tl.store(POOL + at, kv.to(POOL.dtype.element_ty), mask=real)


@triton.jit
def _sweep(
    acc, top, total, q, K, V, PAGES, begin, end, position, limit, window, scale, cap, inside, page_stride,
    MASKED: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PAGE: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Take the keys [begin, end) of the tile's pages into the running softmax (acc, top, total).

    Args:
        position: int32 [M], of each row's query.
        limit: positions of the sequence that may be read.
        scale: log2(e) times the scale of the scores; with SOFTCAP, log2(e).
        cap, inside: with SOFTCAP, the cap, and 2 log2(e) times the scale over the cap.
        WIDE: multiply in float32; the interpreter multiplies bfloat16 as if it were integers.
    """
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)[None, :]
    for at in range(begin, end, BLOCK_N):
        key = at + n
        if PAGE % BLOCK_N == 0:
            page = tl.load(PAGES + at // PAGE).to(tl.int64)
            line = page * page_stride + (at % PAGE + n) * DIM
        else:
            pages = tl.load(PAGES + key // PAGE, mask=key < limit, other=0).to(tl.int64)
            line = pages * page_stride + (key % PAGE) * DIM
        where = line[:, None] + d
        # Beyond the sequence a page holds whatever was there: 0 * NaN must not happen.
        if MASKED:
            k = tl.load(K + where, mask=(key < limit)[:, None] & (d < DIM), other=0.0)
            v = tl.load(V + where, mask=(key < limit)[:, None] & (d < DIM), other=0.0)
        elif BLOCK_D != DIM:
            k = tl.load(K + where, mask=d < DIM, other=0.0)
            v = tl.load(V + where, mask=d < DIM, other=0.0)
        else:
            k = tl.load(K + where)
            v = tl.load(V + where)
        if WIDE:
            k, v = k.to(tl.float32), v.to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision=_PRECISION)
        if SOFTCAP:
            # cap tanh(x) = cap (1 - 2 / (exp(2 x) + 1)), which has the right limits at both ends
            score = cap - 2.0 * cap / (tl.exp2(score * inside) + 1.0)
        if MASKED:
            seen = key[None, :] <= position[:, None]
            if WINDOW:
                seen = seen & (key[None, :] > position[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        shift = tl.broadcast_to((-higher * scale)[:, None], score.shape)
        weight = tl.exp2(tl.fma(score, tl.zeros_like(score) + scale, shift))
        kept = tl.exp2((top - higher) * scale)
        total = total * kept + tl.sum(weight, 1)
        acc = tl.dot(weight.to(v.dtype), v, acc * kept[:, None], input_precision=_PRECISION)
        top = higher
    return acc, top, total


@triton.jit
def _attend(
    Q, POOL, OUT, PARTS, SUMS, SPANS, PAGES, WORK, plane, slots, row_stride, head_stride, window, scale, cap, inside,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, PAGE: tl.constexpr,
    DIM: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    LONG: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One split of one tile, for one KV head.

    Args:
        PARTS: float32 [slots, Hq, D], unnormalised.
        SUMS: float32 [2, slots, Hq]: maximum (log2 units), sum.
        plane: elements from a key to its value.
    """
    item = WORK + tl.program_id(0) * 4
    span = tl.load(item)
    if span < 0:
        return
    head = tl.program_id(1)
    token, split, slot = tl.load(item + 1), tl.load(item + 2), tl.load(item + 3)
    place = SPANS + span * 4
    row, length, start, pages = tl.load(place), tl.load(place + 1), tl.load(place + 2), tl.load(place + 3)

    tokens = tl.minimum(BLOCK_M // GROUP, length - token)  # of this tile
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)[None, :]
    own, query_head = m // GROUP, head * GROUP + m % GROUP
    real = (own < tokens)[:, None] & (d < DIM)
    first = start + token  # position of the tile's first query; its keys end after its last one
    limit = first + tokens
    position = tl.minimum(first + own, limit - 1)
    q_row = (row + token + own).to(tl.int64)
    q = tl.load(Q + (q_row * row_stride + query_head * head_stride)[:, None] + d, mask=real, other=0.0)
    if WIDE:
        q = q.to(tl.float32)

    begin, end = split * SPLIT, tl.minimum((split + 1) * SPLIT, limit)
    if WINDOW:
        begin = tl.maximum(begin, (first - window + 1) // BLOCK_N * BLOCK_N)
    page_stride = HEADS * PAGE * DIM
    K = POOL + head.to(tl.int64) * (PAGE * DIM)
    V = K + plane
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], _LOWEST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    # fmt: off
    if LONG:
        # Blocks that every row of the tile sees whole need no mask: [seen, full) of [begin, end).
        seen = begin
        if WINDOW:
            seen = tl.minimum(tl.maximum(tl.cdiv(limit - window, BLOCK_N) * BLOCK_N, begin), end)
            acc, top, total = _sweep(
                acc, top, total, q, K, V, PAGES + pages, begin, seen, position, limit, window, scale, cap, inside,
                page_stride, True, WINDOW, SOFTCAP, PAGE, DIM, BLOCK_D, BLOCK_N, WIDE,
            )
        full = tl.maximum(tl.minimum((first + 1) // BLOCK_N * BLOCK_N, end), seen)
        acc, top, total = _sweep(
            acc, top, total, q, K, V, PAGES + pages, seen, full, position, limit, window, scale, cap, inside,
            page_stride, False, WINDOW, SOFTCAP, PAGE, DIM, BLOCK_D, BLOCK_N, WIDE,
        )
        begin = full
    acc, top, total = _sweep(
        acc, top, total, q, K, V, PAGES + pages, begin, end, position, limit, window, scale, cap, inside,
        page_stride, True, WINDOW, SOFTCAP, PAGE, DIM, BLOCK_D, BLOCK_N, WIDE,
    )
    # fmt: on

    if slot < 0:
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        out = OUT + (q_row * (HEADS * GROUP) + query_head)[:, None] * DIM + d
        tl.store(out, result.to(OUT.dtype.element_ty), mask=real)
    else:
        at = (slot + own).to(tl.int64) * (HEADS * GROUP) + query_head
        tl.store(PARTS + at[:, None] * DIM + d, acc, mask=real)
        tl.store(SUMS + at, top * scale, mask=own < tokens)
        tl.store(SUMS + slots.to(tl.int64) * (HEADS * GROUP) + at, total, mask=own < tokens)


@triton.jit
def _merge(PARTS, SUMS, OUT, MERGES, slots, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """One query row and head, of HEADS, from its splits."""
    item = MERGES + tl.program_id(0) * 4
    row = tl.load(item)
    if row < 0:
        return
    head = tl.program_id(1)
    first, step, count = tl.load(item + 1), tl.load(item + 2), tl.load(item + 3)
    k = tl.arange(0, _MERGED)
    d = tl.arange(0, BLOCK_D)
    tops = tl.full([_MERGED], _LOWEST, tl.float32)
    for begin in range(0, count, _MERGED):
        at = (first + (begin + k) * step).to(tl.int64) * HEADS + head
        tops = tl.maximum(tops, tl.load(SUMS + at, mask=begin + k < count, other=_LOWEST))
    top = tl.max(tops, 0)
    total = tl.zeros([_MERGED], tl.float32)
    acc = tl.zeros([_MERGED, BLOCK_D], tl.float32)
    for begin in range(0, count, _MERGED):
        there = begin + k < count
        at = (first + (begin + k) * step).to(tl.int64) * HEADS + head
        weight = tl.exp2(tl.load(SUMS + at, mask=there, other=_LOWEST) - top)
        total += weight * tl.load(SUMS + slots.to(tl.int64) * HEADS + at, mask=there, other=0.0)
        parts = tl.load(PARTS + at[:, None] * DIM + d[None, :], mask=there[:, None] & (d < DIM)[None, :], other=0.0)
        acc += weight[:, None] * parts
    at = (row.to(tl.int64) * HEADS + head) * DIM + d
    tl.store(OUT + at, (tl.sum(acc, 0) / tl.sum(total, 0)).to(OUT.dtype.element_ty), mask=d < DIM)


def _positions(dim: int, dtype: torch.dtype) -> int:
    """Positions per step, such that the registers hold what a step needs (compiled for sm_90)."""
    return (64 if dim <= 128 else 32) // (2 if dtype == torch.float32 else 1)


def _stages(dtype: torch.dtype, long: bool) -> int:
    """Depth of the load pipeline. Page ids take a stage of their own, and few rows need many loads in flight."""
    if dtype == torch.float32:
        return 2 if long else 3
    return 3 if long else 5


def paged_write(pool: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> None:
    """See ``dispatch.paged_write``."""
    (_write_op if torch.compiler.is_compiling() else _launch_write)(pool, kv, slots)


def paged_attend(
    q: torch.Tensor, pool: torch.Tensor, batch: Spans, work: Schedule, scale: float, softcap: float
) -> torch.Tensor:
    """See ``dispatch.paged_attend``."""
    launch = _attend_op if torch.compiler.is_compiling() else _launch_attend
    lists = (batch.table, batch.pages, work.short, work.long, work.merges)
    return launch(q, pool, *lists, work.slots, *work.rows, work.window or 0, scale, softcap)


def _launch_write(pool: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> None:
    if not len(slots):
        return
    _, _, heads, page_tokens, dim = pool.shape
    _write[(len(slots),)](
        pool,
        kv,
        slots,
        pool.stride(0),
        kv.stride(0),
        kv.stride(1),
        HEADS=heads,
        PAGE=page_tokens,
        DIM=dim,
        BLOCK_H=triton.next_power_of_2(2 * heads),
        BLOCK_D=triton.next_power_of_2(dim),
        num_warps=4,
    )


def _launch_attend(
    q: torch.Tensor,
    pool: torch.Tensor,
    table: torch.Tensor,
    pages: torch.Tensor,
    short: torch.Tensor,
    long: torch.Tensor,
    merges: torch.Tensor,
    slots: int,
    short_rows: int,
    long_rows: int,
    window: int,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    rows, q_heads, dim = q.shape
    heads, page_tokens = pool.shape[2:4]
    interpreted = q.device.type == "cpu"
    # The interpreter would cut bfloat16 off instead of rounding it.
    out = torch.empty((rows, q_heads, dim), dtype=torch.float32 if interpreted else q.dtype, device=q.device)
    parts = torch.empty((slots, q_heads, dim), dtype=torch.float32, device=q.device)
    sums = torch.empty((2, slots, q_heads), dtype=torch.float32, device=q.device)
    block_d = max(16, triton.next_power_of_2(dim))
    for items, tile, is_long in ((short, short_rows, False), (long, long_rows, True)):
        if not len(items):
            continue
        _attend[(len(items), heads)](
            q,
            pool,
            out,
            parts,
            sums,
            table,
            pages,
            items,
            pool.stride(0),
            slots,
            q.stride(0),
            q.stride(1),
            window,
            _LOG2E * (1.0 if softcap else scale),
            softcap,
            2 * _LOG2E * scale / softcap if softcap else 0.0,
            WINDOW=window > 0,
            SOFTCAP=softcap > 0,
            HEADS=heads,
            GROUP=q_heads // heads,
            PAGE=page_tokens,
            DIM=dim,
            SPLIT=LONG_SPLIT if is_long else SHORT_SPLIT,
            BLOCK_M=tile,
            BLOCK_N=_positions(dim, q.dtype),
            BLOCK_D=block_d,
            LONG=is_long,
            WIDE=interpreted,
            num_warps=8 if tile == 128 else 4,
            num_stages=_stages(q.dtype, is_long),
            enable_fp_fusion=False,
        )
    if len(merges):
        _merge[(len(merges), q_heads)](
            parts,
            sums,
            out,
            merges,
            slots,
            HEADS=q_heads,
            DIM=dim,
            BLOCK_D=block_d,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out.to(q.dtype) if interpreted else out


_write_op = torch.library.custom_op("trimtab::paged_write", _launch_write, mutates_args=("pool",))
_attend_op = torch.library.custom_op("trimtab::paged_attend", _launch_attend, mutates_args=())


@_attend_op.register_fake
def _(q: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)
