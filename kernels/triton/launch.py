"""Launching the kernels: shapes, scratch and grids. No copy to the host, no synchronisation.

A row's bits depend on its logits, its plan, their type and whether its stride is a multiple of 16 numbers (the width
of loads decides which numbers a thread adds first), never on the rest of the batch.

As ``torch.library`` operators (``torch.ops.trimtab.stats``, ``pick``, ``mix``, ``blend``, ``nucleus``) over plain
tensors the same functions go through ``torch.compile`` and CUDA graphs.

Results come as a few tensors rather than one for each statistic:
    numbers: float32 [4, R]: lse, entropy, top_prob, logprob; for ``mix`` [8, R], those of the base after them.
    ids: int64 [2, R]: token, argmax; for ``mix`` [3, R], with the argmax of the base.
    flags: uint8 [1, R]; for ``mix`` [2, R].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from trimtab.kernels.reference.entropy import Nucleus, Stats, check_tokens
from trimtab.kernels.reference.filters import check_rows
from trimtab.kernels.reference.mix import Blended, Mixed, check_blends
from trimtab.kernels.reference.pick import Picked
from trimtab.kernels.reference.tiles import GROUP, TILE, check_logits
from trimtab.kernels.triton.draw import CAPACITY, STATE, gather, race, settle
from trimtab.kernels.triton.pack import Plan, pack
from trimtab.kernels.triton.rows import (
    FILTERED,
    INTS,
    KIND,
    MIN_P,
    MIXED,
    PLAUSIBLE,
    REALS,
    SAMPLED,
    SCALE,
    TOP_P,
    WEIGHTS,
    combine,
    decide,
    tile_of_row,
)
from trimtab.kernels.triton.scan import scan, scan_deferred
from trimtab.kernels.types import Blend, Filters, RowPick

__all__ = [
    "blend",
    "block_of",
    "mix",
    "nucleus",
    "pick",
    "run",
    "span_of",
    "stats",
    "top_logprobs",
    "warps_of",
    "write",
]

Tensor = torch.Tensor

# Programs beyond this many bring no further parallelism, but each costs its start; then one takes several tiles.
_PROGRAMS = 4096


def _power_of_2(n: int) -> int:
    """The next power of two, or n."""
    return 1 << (n - 1).bit_length()


def block_of(vocabulary: int) -> int:
    """Tokens in a tile: TILE, or the next power of two of a smaller vocabulary, at least GROUP."""
    return min(TILE, max(GROUP, _power_of_2(vocabulary)))


def warps_of(vocabulary: int, models: int) -> int:
    """Warps of a program: a function of what decides the order of sums, never of the number of rows."""
    # The loads of a tile that is not aligned, with and without a mask, need registers beside those of other models.
    most = 8 if models > 1 and vocabulary % 16 else 4
    return max(1, min(most, block_of(vocabulary) // 256))


def span_of(programs: int) -> int:
    """Tiles for one program of stage 1; no result depends on it."""
    return max(1, min(8, _power_of_2(programs // _PROGRAMS + 1) // 2))


class _Shape(NamedTuple):
    """Sizes that every launch of a call shares."""

    rows: int
    tiles: int
    block: int
    vocabulary: int
    models: int
    xs: tuple[Tensor, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, logits: Sequence[Tensor]) -> _Shape:
        rows, vocabulary = logits[0].shape
        block = block_of(vocabulary)
        xs = tuple(x.detach() if x.stride(1) == 1 or vocabulary == 1 else x.detach().contiguous() for x in logits)
        if any(x.dtype != xs[0].dtype for x in xs):
            xs = tuple(x.float() for x in xs)
        return cls(rows, -(-vocabulary // block), block, vocabulary, len(xs), xs, tuple(x.stride(0) for x in xs))

    def constants(self) -> dict[str, Any]:
        return {
            "M": self.models,
            "VOCABULARY": self.vocabulary,
            "BLOCK": self.block,
            "num_warps": warps_of(self.vocabulary, self.models),
            "enable_fp_fusion": True,
        }


class _Outcome(NamedTuple):
    numbers: Tensor
    ids: Tensor
    flags: Tensor
    decided: Tensor
    nuclei: Tensor


def run(
    logits: Sequence[Tensor],
    plan: Plan | None,
    given: Tensor | None = None,
    mixture: bool = False,
    nuclear: bool = False,
    span: int | None = None,
    parts: Tensor | None = None,
) -> _Outcome:
    """All stages that the plan needs."""
    shape = _Shape.of(logits)
    rows, tiles = shape.rows, shape.tiles
    device = logits[0].device
    sets = 2 if mixture else 1

    def new(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    numbers, ids = new(4 * sets, rows), new(1 + sets, rows, dtype=torch.int64)
    flags, decided = new(sets, rows, dtype=torch.uint8), new(rows, dtype=torch.uint8)
    nuclei = new(3, rows if nuclear else 0)
    if nuclear:
        nuclei.zero_()
    outcome = _Outcome(numbers, ids, flags, decided, nuclei)
    if rows == 0:
        return outcome
    drawn = plan is not None
    parts = new(rows, 8, tiles) if parts is None else parts
    # One element stands for a buffer that no kernel touches.
    draws = new(rows, 2, tiles) if drawn else new(1)
    ints, reals, listed_edits, values = plan[:4] if plan is not None else (ids, parts, ids, parts)
    columns = new(rows, tiles, GROUP) if plan is not None and plan.limited else new(1)
    edited = new(plan.edited, tiles, shape.block) if plan is not None and plan.edited else new(1)
    state, counts = (new(rows, STATE), new(rows, dtype=torch.int32)) if drawn else (new(1), new(1, dtype=torch.int32))
    top = plan is not None and plan.limited
    span = span_of(rows * tiles) if span is None else span
    row_args = (ints, reals, listed_edits, values, parts, draws, columns, edited, tiles)
    editable = plan is not None and plan.edited > 0
    constants = shape.constants() | {"EDITABLE": editable}
    steps = _power_of_2(tiles)
    with _on(device):
        scan[(rows * triton.cdiv(tiles, span),)](
            shape.xs, shape.strides, *row_args, SPAN=span, DRAWN=drawn, TOP=top, **constants
        )
        if plan is not None and plan.deferred:
            scan_deferred[(rows * tiles,)](shape.xs, shape.strides, *row_args, TILES=steps, TOP=top, **constants)
        settle[(rows,)](
            shape.xs,
            shape.strides,
            ints,
            reals,
            ids if given is None else given,
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
            rows,
            tiles,
            TILES=steps,
            GIVEN=given is not None,
            DRAWN=drawn,
            MIXTURE=mixture,
            TOP=top,
            **constants,
        )
        if plan is not None and plan.filtered:
            listed, listed_ids = new(rows, CAPACITY), new(rows, CAPACITY, dtype=torch.int32)
            gather[(rows * tiles,)](
                shape.xs,
                shape.strides,
                ints,
                reals,
                parts,
                draws,
                edited,
                state,
                counts,
                listed,
                listed_ids,
                tiles,
                MIXTURE=mixture,
                LIMIT=CAPACITY,
                **constants,
            )
            race[(rows,)](
                shape.xs,
                shape.strides,
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
                rows,
                tiles,
                LIMIT=CAPACITY,
                NUCLEUS=nuclear,
                **{**constants, "num_warps": 8},
            )
    return outcome


def _on(device: torch.device) -> Any:
    """Kernels are launched on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else torch.device("cpu")


def _blend(logits: Sequence[Tensor], plan: Plan) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The mixture of every row, float32 [R, V]; then numbers, ids, flags of the base and which rows were mixed."""
    shape = _Shape.of(logits)
    result = torch.empty((shape.rows, shape.vocabulary), dtype=torch.float32, device=logits[0].device)
    if shape.rows == 0:
        return result, *run(logits[:1], None)[:3], torch.empty(0, dtype=torch.uint8, device=result.device)
    parts = torch.empty((shape.rows, 8, shape.tiles), dtype=torch.float32, device=result.device)
    base = run(logits[:1], None, parts=parts)
    with _on(result.device):
        write[(shape.rows * shape.tiles,)](
            shape.xs,
            shape.strides,
            plan.ints,
            plan.reals,
            parts,
            base.decided,
            result,
            shape.tiles,
            TILES=_power_of_2(shape.tiles),
            **shape.constants(),
        )
    return result, *base[:4]


@triton.jit
def write(
    xs,
    strides,
    ints,
    reals,
    parts,
    decided,
    result,
    NT,
    M: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """Write the mixture down, a program for each tile; parts from ``scan`` of the base."""
    row = (tl.program_id(0) // NT).to(tl.int64)
    tile = tl.program_id(0) % NT
    ints += row * INTS
    reals += row * (REALS + M)
    top, mass, moment, _ = combine(parts + row * 8 * NT, NT, TILES)
    applied = decide(top, mass, moment, ints, reals)
    bound = top + tl.load(reals + PLAUSIBLE)
    mixed = applied & (tl.load(ints + KIND) & MIXED != 0)
    z = tile_of_row(xs, strides, row, tile, mixed, bound, reals + WEIGHTS, M, VOCABULARY, BLOCK)
    offs = tile * BLOCK + tl.arange(0, BLOCK)
    tl.store(result + row * VOCABULARY + offs, z, mask=offs < VOCABULARY)
    if tile == 0:
        tl.store(decided + row, applied.to(tl.uint8))


@torch.library.custom_op("trimtab::stats", mutates_args=())
def _stats(logits: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return run([logits], None, given=tokens)[:3]


@_stats.register_fake
def _(logits: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(logits, 1)


@torch.library.custom_op("trimtab::pick", mutates_args=())
def _pick(
    logits: Tensor, ints: Tensor, reals: Tensor, ids: Tensor, values: Tensor, edited: int, filtered: bool, limited: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return run([logits], Plan(ints, reals, ids, values, edited, filtered, limited, False))[:3]


@_pick.register_fake
def _(
    logits: Tensor, ints: Tensor, reals: Tensor, ids: Tensor, values: Tensor, edited: int, filtered: bool, limited: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(logits, 1)


@torch.library.custom_op("trimtab::mix", mutates_args=())
def _mix(
    logits: Sequence[Tensor],
    ints: Tensor,
    reals: Tensor,
    ids: Tensor,
    values: Tensor,
    edited: int,
    filtered: bool,
    limited: bool,
    deferred: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return run(logits, Plan(ints, reals, ids, values, edited, filtered, limited, deferred), mixture=True)[:4]


@_mix.register_fake
def _(
    logits: Sequence[Tensor],
    ints: Tensor,
    reals: Tensor,
    ids: Tensor,
    values: Tensor,
    edited: int,
    filtered: bool,
    limited: bool,
    deferred: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_empty(logits[0], 2), logits[0].new_empty(logits[0].shape[0], dtype=torch.uint8)


@torch.library.custom_op("trimtab::nucleus", mutates_args=())
def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    rows = logits.shape[0]
    ints = torch.zeros((rows, INTS.value), dtype=torch.int64, device=logits.device)
    reals = torch.zeros((rows, REALS.value + 1), dtype=torch.float32, device=logits.device)
    ints[:, KIND.value] = SAMPLED.value | FILTERED.value
    reals[:, SCALE.value], reals[:, TOP_P.value], reals[:, MIN_P.value] = 1.0, top_p, -torch.inf
    return run([logits], Plan(ints, reals, ints, reals, 0, True, False, False), nuclear=True).nuclei


@_nucleus.register_fake
def _(logits: Tensor, top_p: float) -> Tensor:
    return logits.new_empty((3, logits.shape[0]), dtype=torch.float32)


def _empty(logits: Tensor, sets: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    return (
        logits.new_empty((4 * sets, rows), dtype=torch.float32),
        logits.new_empty((1 + sets, rows), dtype=torch.int64),
        logits.new_empty((sets, rows), dtype=torch.uint8),
    )


@torch.library.custom_op("trimtab::blend", mutates_args=())
def _blend_op(logits: Sequence[Tensor], ints: Tensor, reals: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    nothing = ints.new_zeros(1, dtype=torch.int32), reals.new_zeros(1)
    return _blend(logits, Plan(ints, reals, *nothing, 0, False, False, False))


@_blend_op.register_fake
def _(logits: Sequence[Tensor], ints: Tensor, reals: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    base = logits[0]
    written = base.new_empty(base.shape, dtype=torch.float32)
    return written, *_empty(base, 1), base.new_empty(base.shape[0], dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------- as dispatch has them


def stats(logits: Tensor, tokens: Tensor | None = None) -> Stats:
    """``reference.entropy.stats``, which says what is accepted; tokens are not checked to be in the vocabulary, which
    would wait for the device: others have no logprob but that of -1."""
    check_logits(logits)
    if tokens is not None:
        check_tokens(tokens, logits, values=False)
    found = run([logits], None, given=tokens)
    return _stats_of(found, 0)


def pick(logits: Tensor, rows: Sequence[RowPick]) -> Picked:
    """``reference.pick.pick``."""
    check_logits(logits)
    check_rows(rows, logits.shape[0])
    found = run([logits], pack(rows, logits.shape[1], logits.device))
    return Picked(found.ids[0], _stats_of(found, 0))


def mix(logits: Sequence[Tensor], blends: Sequence[Blend], rows: Sequence[RowPick]) -> Mixed:
    """``reference.mix.mix``."""
    check_blends(logits, blends)
    check_rows(rows, logits[0].shape[0])
    plan = pack(rows, logits[0].shape[1], logits[0].device, blends)
    found = run(logits, plan, mixture=True)
    return Mixed(found.ids[0], _stats_of(found, 0), _stats_of(found, 1), found.decided)


def blend(logits: Sequence[Tensor], blends: Sequence[Blend]) -> Blended:
    """``reference.mix.blend``."""
    check_blends(logits, blends)
    plan = pack([RowPick()] * len(blends), logits[0].shape[1], logits[0].device, blends)
    written, numbers, ids, flags, decided = _blend(logits, plan)
    base = _Outcome(numbers, ids, flags, decided, numbers)
    return Blended(written, _stats_of(base, 0), decided)


def nucleus(logits: Tensor, top_p: float) -> Nucleus:
    """``reference.entropy.nucleus_entropy``."""
    check_logits(logits)
    Filters(1.0, top_p=top_p)  # refuses what is no probability
    entropy, size, mass = _nucleus(logits, top_p)
    return Nucleus(entropy, size.long(), mass)


def top_logprobs(logits: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """``reference.entropy.top_logprobs``, without the host: a selection among numbers that hold logit and id."""
    check_logits(logits)
    rows, vocabulary = logits.shape
    if not 1 <= n <= vocabulary:
        raise ValueError(f"n = {n}: accepted: 1 to the size of the vocabulary, {vocabulary}")
    z = logits.detach().float()
    z = torch.where(z < torch.inf, z, -torch.inf) + 0.0  # both zeros are one
    bits = z.view(torch.int32)
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # compares as the logits do
    last = vocabulary - 1
    found = ((order << 32) | (last - torch.arange(vocabulary, device=z.device))).topk(n).values
    ids = last - (found & 0xFFFFFFFF)
    lse = run([logits], None).numbers[0] if rows else z[:, 0]
    value = z.gather(1, ids)
    finite = value > -torch.inf
    return torch.where(finite, ids, -1), torch.where(finite, value - lse[:, None], -torch.inf)


def _stats_of(found: _Outcome, which: int) -> Stats:
    lse, entropy, top_prob, logprob = found.numbers[4 * which : 4 * which + 4]
    return Stats(lse, entropy, top_prob, found.ids[1 + which], logprob, found.flags[which])
