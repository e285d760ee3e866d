"""The last product of a model, its statistics and the pick in two launches: the kernels of ``dispatch.lm_head``.

``_project`` multiplies blocks of 128 tokens of the vocabulary by all rows, with the vocabulary along the long side of
the tensor cores' tiles, and while a block's logits are in registers sums up what statistics and races need: maximum,
mass and first moment at temperature 1, mass at the row's own temperature. ``_finish`` merges them in index order and
runs the three races of ``reference.races``.

The second and third race look at the logits of one tile of 4096 tokens. ``_project`` keeps all logits in the model's
dtype for that: to compute the tile's again would read 4096 rows of the head for each row, 1 / 32 of the whole head at
V = 131,072, where storing a row's logits writes 1 / D of it, and nobody reads them back but for that one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from trimtab.kernels.reference.entropy import Stats
from trimtab.kernels.reference.filters import inverse_temperature
from trimtab.kernels.reference.lm_head import MOST_ROWS, check
from trimtab.kernels.reference.pick import Picked
from trimtab.kernels.reference.tiles import FLAG_EMPTY, FLAG_UNCLEAN, GROUP, TILE
from trimtab.kernels.triton.rng import exponential, uniform
from trimtab.kernels.types import RowPick, Stream

__all__ = ["lm_head"]

_BLOCK_V = 128
_PARTIALS = 5  # maximum, mass, moment, mass at the row's temperature, whether something was not clean
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_PRECISION = tl.constexpr("tf32x3")
_FLOOR = tl.constexpr(-1000.0)  # exp of it is 0 in float32, and 0 times it is 0
_TILE, _GROUP = tl.constexpr(TILE), tl.constexpr(GROUP)
_TILE_STREAM = tl.constexpr(int(Stream.TILE))
_COLUMN_STREAM = tl.constexpr(int(Stream.COLUMN))
_LINE_STREAM = tl.constexpr(int(Stream.LINE))
_FLAG_EMPTY, _FLAG_UNCLEAN = tl.constexpr(FLAG_EMPTY), tl.constexpr(FLAG_UNCLEAN)


@triton.jit
def _rounded(x, dtype: tl.constexpr, WIDE: tl.constexpr):
    """x rounded to dtype, as float32. The interpreter would cut bfloat16 off instead of rounding it."""
    if WIDE and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(dtype).to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
def _project(
    HIDDEN,
    HEAD,
    BIAS,
    SHARPNESS,  # float32 [R], 1 / temperature
    LOGITS,  # [R, blocks * BLOCK_V] in the model's dtype; -inf beyond the vocabulary
    PARTS,  # float32 [5, R, blocks]
    rows,
    vocabulary,
    blocks,
    hidden_stride,
    head_stride,
    scale,
    cap,
    SIZE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Logits of one block of the vocabulary for all rows, and their partial sums."""
    block = tl.program_id(0)
    v = block * BLOCK_V + tl.arange(0, BLOCK_V)
    r = tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    real, held = v < vocabulary, r < rows
    heads = HEAD + v.to(tl.int64)[:, None] * head_stride + k[None, :]
    hiddens = HIDDEN + r.to(tl.int64)[:, None] * hidden_stride + k[None, :]
    z = tl.zeros([BLOCK_V, BLOCK_R], tl.float32)
    for at in range(0, SIZE, BLOCK_K):
        if SIZE % BLOCK_K == 0:
            a = tl.load(heads + at, mask=real[:, None], other=0.0)
            b = tl.load(hiddens + at, mask=held[:, None], other=0.0)
        else:
            inside = (at + k < SIZE)[None, :]
            a = tl.load(heads + at, mask=real[:, None] & inside, other=0.0)
            b = tl.load(hiddens + at, mask=held[:, None] & inside, other=0.0)
        if WIDE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        z = tl.dot(a, tl.trans(b), z, input_precision=_PRECISION)

    z *= scale
    if HAS_BIAS:
        z += tl.load(BIAS + v, mask=real, other=0.0).to(tl.float32)[:, None]
    if SOFTCAP:
        z = cap - 2.0 * cap / (tl.exp2(z * (2.0 * _LOG2E / cap)) + 1.0)
    z = _rounded(z, LOGITS.dtype.element_ty, WIDE)
    clean = (z == z) & (z < float("inf"))
    z = tl.where(clean & real[:, None], z, float("-inf"))
    width = blocks * BLOCK_V
    logits = LOGITS + r.to(tl.int64)[None, :] * width + v[:, None]
    tl.store(logits, z.to(LOGITS.dtype.element_ty), mask=held[None, :])

    top = tl.max(z, 0)
    shifted = tl.maximum(z - tl.where(top == float("-inf"), 0.0, top)[None, :], _FLOOR)
    weight = tl.exp2(shifted * _LOG2E)
    sharpness = tl.load(SHARPNESS + r, mask=held, other=1.0)
    own = tl.exp2(shifted * sharpness[None, :] * _LOG2E)
    at = PARTS + r.to(tl.int64) * blocks + block
    step = rows.to(tl.int64) * blocks
    tl.store(at, top, mask=held)
    tl.store(at + step, tl.sum(weight, 0), mask=held)
    tl.store(at + 2 * step, tl.sum(weight * shifted, 0), mask=held)
    tl.store(at + 3 * step, tl.sum(own, 0), mask=held)
    tl.store(at + 4 * step, tl.max(tl.where(clean | ~real[:, None], 0.0, 1.0), 0), mask=held)


@triton.jit(do_not_specialize=["rows"])
def _finish(
    LOGITS,
    PARTS,
    KEYS,  # int64 [3, R]: key, position, whether the row is sampled
    SHARPNESS,
    IDS,  # int64 [2, R]: token, argmax
    REALS,  # float32 [4, R]: lse, entropy, top probability, logprob
    FLAGS,  # uint8 [R]
    rows,
    blocks,
    BLOCK_V: tl.constexpr,
    TILES: tl.constexpr,  # of 4096 tokens, rounded up to a power of two
):
    """Statistics and token of one row."""
    row = tl.program_id(0).to(tl.int64)
    parts = PARTS + row * blocks
    step = rows.to(tl.int64) * blocks
    width = blocks * BLOCK_V
    tile = tl.arange(0, TILES)
    of_tile: tl.constexpr = _TILE // BLOCK_V
    block = tile[:, None] * of_tile + tl.arange(0, of_tile)[None, :]
    there = block < blocks
    m = tl.load(parts + block, mask=there, other=float("-inf"))
    s = tl.load(parts + step + block, mask=there, other=0.0)
    t = tl.load(parts + 2 * step + block, mask=there, other=0.0)
    own = tl.load(parts + 3 * step + block, mask=there, other=0.0)
    unclean = tl.max(tl.max(tl.load(parts + 4 * step + block, mask=there, other=0.0), 1), 0)

    top = tl.max(tl.max(m, 1), 0)
    empty = top == float("-inf")
    base = tl.where(empty, 0.0, top)
    gap = tl.maximum(m - base, _FLOOR)
    share = tl.exp2(gap * _LOG2E)
    mass = tl.where(empty, 1.0, tl.sum(tl.sum(share * s, 1), 0))
    moment = tl.sum(tl.sum(share * (t + gap * s), 1), 0)
    log_mass = tl.log2(mass) * _LN2
    first = tl.min(tl.min(tl.where(m == top, block, 1 << 30), 1), 0)
    line = LOGITS + row * width
    offset = tl.arange(0, BLOCK_V)
    peak = tl.load(line + tl.minimum(first, blocks - 1) * BLOCK_V + offset).to(tl.float32)
    best = first * BLOCK_V + tl.min(tl.where(peak == top, offset, BLOCK_V), 0)
    token = best

    if tl.load(KEYS + 2 * rows + row) != 0:
        key, position = tl.load(KEYS + row), tl.load(KEYS + rows + row)
        sharpness = tl.load(SHARPNESS + row) * _LOG2E
        masses = tl.sum(own * tl.exp2((m - base) * sharpness), 1)
        winner = tl.argmax(masses / exponential(uniform(key, position, _TILE_STREAM, tile)), 0)
        lines, columns = tl.arange(0, _TILE // _GROUP), tl.arange(0, _GROUP)
        at = winner * _TILE + lines[:, None] * _GROUP + columns[None, :]
        z = tl.load(line + at, mask=at < width, other=float("-inf")).to(tl.float32)
        weight = tl.exp2((z - base) * sharpness)
        race = tl.sum(weight, 0) / exponential(uniform(key, position, _COLUMN_STREAM, columns))
        column = tl.argmax(race, 0)
        race = tl.sum(tl.where(columns[None, :] == column, weight, 0.0), 1)
        race = race / exponential(uniform(key, position, _LINE_STREAM, lines))
        token = winner * _TILE + tl.argmax(race, 0) * _GROUP + column

    chosen = tl.load(line + tl.where(empty, 0, token)).to(tl.float32)
    tl.store(IDS + row, tl.where(empty, -1, token))
    tl.store(IDS + rows + row, tl.where(empty, -1, best))
    tl.store(REALS + row, top + log_mass)
    tl.store(REALS + rows + row, tl.where(empty, 0.0, tl.maximum(log_mass - moment / mass, 0.0)))
    tl.store(REALS + 2 * rows + row, tl.where(empty, 0.0, 1.0 / mass))
    tl.store(REALS + 3 * rows + row, tl.where(empty, float("-inf"), chosen - base - log_mass))
    flags = tl.where(empty, _FLAG_EMPTY, 0) + tl.where(unclean > 0, _FLAG_UNCLEAN, 0)
    tl.store(FLAGS + row, flags.to(tl.uint8))


def lm_head(
    hidden: torch.Tensor,
    head: torch.Tensor,
    rows: Sequence[RowPick],
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> Picked:
    """See ``dispatch.lm_head``; the rows are fusable."""
    check(hidden, head, rows, bias, scale, softcap)
    keys, sharpness = pack(rows, hidden.device)
    launch = _op if torch.compiler.is_compiling() else _launch
    ids, reals, flags = launch(hidden, head, bias, keys, sharpness, scale, softcap)
    return Picked(ids[0], Stats(reals[0], reals[1], reals[2], ids[1], reals[3], flags))


def pack(rows: Sequence[RowPick], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernels read of the rows: int64 [3, R] key, position, whether sampled; float32 [R] 1 / temperature."""
    keys = torch.tensor(
        [[_signed(row.key.bits) for row in rows], [row.position for row in rows], [_sampled(row) for row in rows]],
        dtype=torch.int64,
    )
    sharp = [float(inverse_temperature(row.filters)) if _sampled(row) else 1.0 for row in rows]
    sharpness = torch.tensor(sharp, dtype=torch.float32)
    if device.type == "cuda":
        keys, sharpness = keys.pin_memory(), sharpness.pin_memory()
    return keys.to(device, non_blocking=True), sharpness.to(device, non_blocking=True)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


def _sampled(row: RowPick) -> int:
    return int(row.filters.temperature > 0)


def _launch(
    hidden: torch.Tensor,
    head: torch.Tensor,
    bias: torch.Tensor | None,
    keys: torch.Tensor,
    sharpness: torch.Tensor,
    scale: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, size = hidden.shape
    vocabulary, device = head.shape[0], hidden.device
    if rows > MOST_ROWS:
        raise ValueError(f"hidden.shape = {tuple(hidden.shape)}: accepted: at most {MOST_ROWS} rows")
    hidden = hidden if hidden.stride(1) == 1 else hidden.contiguous()
    head = head if head.stride(1) == 1 else head.contiguous()
    ids, reals, flags = _outputs(rows, device)
    if not rows:
        return ids, reals, flags
    blocks = triton.cdiv(vocabulary, _BLOCK_V)
    logits = torch.empty((rows, blocks * _BLOCK_V), dtype=hidden.dtype, device=device)
    parts = torch.empty((_PARTIALS, rows, blocks), dtype=torch.float32, device=device)
    narrow = hidden.dtype == torch.float32
    _project[(blocks,)](
        hidden,
        head,
        hidden if bias is None else bias,
        sharpness,
        logits,
        parts,
        rows,
        vocabulary,
        blocks,
        hidden.stride(0),
        head.stride(0),
        scale,
        softcap,
        SIZE=size,
        HAS_BIAS=bias is not None,
        SOFTCAP=softcap > 0,
        BLOCK_V=_BLOCK_V,
        BLOCK_R=max(16, triton.next_power_of_2(rows)),
        BLOCK_K=32 if narrow else 64,
        WIDE=device.type == "cpu",
        num_warps=4,
        num_stages=3 if narrow else 4,
        enable_fp_fusion=False,
    )
    _finish[(rows,)](
        logits,
        parts,
        keys,
        sharpness,
        ids,
        reals,
        flags,
        rows,
        blocks,
        BLOCK_V=_BLOCK_V,
        TILES=triton.next_power_of_2(triton.cdiv(vocabulary, TILE)),
        num_warps=8,
        enable_fp_fusion=False,
    )
    return ids, reals, flags


def _outputs(rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.empty((2, rows), dtype=torch.int64, device=device),
        torch.empty((4, rows), dtype=torch.float32, device=device),
        torch.empty(rows, dtype=torch.uint8, device=device),
    )


_op = torch.library.custom_op("trimtab::lm_head", _launch, mutates_args=())


@_op.register_fake
def _(hidden: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _outputs(hidden.shape[0], hidden.device)
