"""The operations over rows of logits: shapes, scratch and grids. No copy to the host, no synchronisation.

A row's bits depend on its logits, its plan, their type and whether its stride is a multiple of 16 numbers (the width
of loads decides which numbers a thread adds first), never on the rest of the batch.

As ``torch.library`` operators over plain tensors (``torch.ops.trimtab.stats``, ``mix``, ``blend``) the same functions
go through ``torch.compile`` and CUDA graphs; ``mix`` of one model is ``pick``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from trimtab.kernels.results import Picked, Stats
from trimtab.kernels.triton.filters import gather, race
from trimtab.kernels.triton.pack import Plan, pack
from trimtab.kernels.triton.rows import (
    DISTRIBUTION,
    GROUP,
    TILE,
    Lists,
    Results,
    Scratch,
    Source,
    bound_of,
    row_of,
    tile_of_row,
)
from trimtab.kernels.triton.scan import scan, scan_base
from trimtab.kernels.triton.settle import CAPACITY, STATE, settle
from trimtab.kernels.types import Blend, Pick

__all__ = ["Shape", "blend", "block_of", "mix", "on", "pick", "run", "span_of", "stats", "stats_of", "top_logprobs"]

Tensor = torch.Tensor

# Programs beyond this many bring no further parallelism, but each costs its start; then one takes several tiles.
_PROGRAMS = 4096


def block_of(vocabulary: int) -> int:
    """Tokens in a tile: TILE, or the next power of two of a smaller vocabulary, at least GROUP."""
    return int(min(TILE.value, max(GROUP.value, triton.next_power_of_2(vocabulary))))


def warps_of(vocabulary: int, models: int) -> int:
    """Warps of a program: a function of what decides the order of sums, never of the number of rows."""
    # The loads of a tile that is not aligned, with and without a mask, need registers beside those of other models.
    most = 8 if models > 1 and vocabulary % 16 else 4
    return max(1, min(most, block_of(vocabulary) // 256))


def span_of(programs: int) -> int:
    """Tiles for one program of stage 1; no result depends on it."""
    return int(max(1, min(8, triton.next_power_of_2(programs // _PROGRAMS + 1) // 2)))


class Shape(NamedTuple):
    """Sizes that every launch of a call shares."""

    rows: int
    tiles: int
    block: int
    vocabulary: int
    models: int
    source: Source

    @classmethod
    def of(cls, logits: Sequence[Tensor]) -> Shape:
        rows, vocabulary = logits[0].shape
        block = block_of(vocabulary)
        xs = tuple(x.detach() if x.stride(1) == 1 or vocabulary == 1 else x.detach().contiguous() for x in logits)
        if any(x.dtype != xs[0].dtype for x in xs):
            xs = tuple(x.float() for x in xs)
        source = Source(xs, tuple(x.stride(0) for x in xs))
        return cls(rows, -(-vocabulary // block), block, vocabulary, len(xs), source)

    def constants(self) -> dict[str, Any]:
        return {
            "M": self.models,
            "VOCABULARY": self.vocabulary,
            "BLOCK": self.block,
            "num_warps": warps_of(self.vocabulary, self.models),
            "enable_fp_fusion": True,
        }


def on(device: torch.device) -> Any:
    """Kernels are launched on the current device; this makes it ``device``."""
    return torch.cuda.device(device) if device.type == "cuda" else torch.device("cpu")


def _results(rows: int, device: torch.device) -> Results:
    return Results(
        torch.empty((4, rows), dtype=torch.float32, device=device),
        torch.empty((2, rows), dtype=torch.int64, device=device),
        torch.empty(rows, dtype=torch.uint8, device=device),
        torch.empty((rows, DISTRIBUTION.value), dtype=torch.float32, device=device),
    )


def _scratch(shape: Shape, plan: Plan | None, device: torch.device) -> Scratch:
    """Buffers; one number stands for each that no kernel touches."""
    rows, tiles = shape.rows, shape.tiles

    def new(needed: bool, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size if needed else 1, dtype=dtype, device=device)

    drawn, kinds = plan is not None, plan or Plan(Lists(*(None,) * 4))
    return Scratch(
        base=new(kinds.masked, rows, 2, tiles),
        parts=new(True, rows, 4, tiles),
        draws=new(drawn, rows, 2, tiles),
        columns=new(kinds.limited, rows, tiles, GROUP.value),
        edited=new(kinds.edited > 0, kinds.edited, tiles, shape.block),
        state=new(drawn, rows, STATE.value),
        counts=new(drawn, rows, dtype=torch.int32),
        listed=new(kinds.filtered, rows, CAPACITY.value),
        listed_ids=new(kinds.filtered, rows, CAPACITY.value, dtype=torch.int32),
    )


def run(
    logits: Sequence[Tensor], plan: Plan | None, given: Tensor | None = None, span: int | None = None
) -> tuple[Results, Tensor]:
    """All stages that the plan needs (None: statistics alone): the results, and ``Scratch.edited``."""
    shape = Shape.of(logits)
    rows, tiles, device = shape.rows, shape.tiles, logits[0].device
    results, scratch = _results(rows, device), _scratch(shape, plan, device)
    if rows == 0:
        return results, scratch.edited
    lists = plan.lists if plan is not None else Lists(results.ids, scratch.parts, results.ids, scratch.parts)
    kinds = plan or Plan(lists)
    span = span_of(rows * tiles) if span is None else span
    source, constants = shape.source, shape.constants()
    editable = {"EDITABLE": kinds.edited > 0}
    stage = (
        constants
        | editable
        | {
            "TILES": triton.next_power_of_2(tiles),
            "DRAWN": plan is not None,
            "LIMITED": kinds.limited,
            "MASKED": kinds.masked,
        }
    )
    with on(device):
        if kinds.masked:
            scan_base[(rows * tiles,)](source, lists, scratch, tiles, **constants)
        scan[(rows * triton.cdiv(tiles, span),)](source, lists, scratch, tiles, SPAN=span, **stage)
        tokens = results.ids if given is None else given
        settle[(rows,)](source, lists, scratch, results, tokens, rows, tiles, GIVEN=given is not None, **stage)
        if kinds.filtered:
            limits = constants | editable | {"LIMIT": CAPACITY.value}
            gather[(rows * tiles,)](source, lists, scratch, tiles, **limits)
            race[(rows,)](source, lists, scratch, results, rows, tiles, **limits | {"num_warps": 8})
    return results, scratch.edited


@triton.jit
def write(
    source, lists, scratch, result, NT, M: tl.constexpr, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr,
    TILES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Write the mixture down, a program for each tile."""
    row = (tl.program_id(0) // NT).to(tl.int64)
    tile = tl.program_id(0) % NT
    bound = bound_of(lists, scratch, row, NT, M, TILES, MASKED)
    r = row_of(source, lists, scratch, row, bound, NT, M, BLOCK, True, False)
    z = tile_of_row(r, tile, M, VOCABULARY, BLOCK)
    offs = tile * BLOCK + tl.arange(0, BLOCK)
    tl.store(result + row * VOCABULARY + offs, z, mask=offs < VOCABULARY)


@torch.library.custom_op("trimtab::stats", mutates_args=())
def _stats(logits: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    numbers, ids, flags, _ = run([logits], None, tokens)[0]
    return numbers, ids, flags


@torch.library.custom_op("trimtab::mix", mutates_args=())
def _mix(logits: Sequence[Tensor], lists: Sequence[Tensor], kinds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    numbers, ids, flags, _ = run(logits, Plan.of(lists, kinds))[0]
    return numbers, ids, flags


@torch.library.custom_op("trimtab::blend", mutates_args=())
def _blend(logits: Sequence[Tensor], lists: Sequence[Tensor], kinds: Sequence[int]) -> Tensor:
    shape, plan = Shape.of(logits), Plan.of(lists, kinds)
    result = torch.empty((shape.rows, shape.vocabulary), dtype=torch.float32, device=logits[0].device)
    if shape.rows:
        scratch = _scratch(shape, plan, result.device)
        grid, constants = (shape.rows * shape.tiles,), shape.constants()
        steps = triton.next_power_of_2(shape.tiles)
        with on(result.device):
            if plan.masked:
                scan_base[grid](shape.source, plan.lists, scratch, shape.tiles, **constants)
            write[grid](
                shape.source, plan.lists, scratch, result, shape.tiles, TILES=steps, MASKED=plan.masked, **constants
            )
    return result


@_stats.register_fake
def _(logits: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _results(logits.shape[0], logits.device)[:3]


@_mix.register_fake
def _(logits: Sequence[Tensor], *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _results(logits[0].shape[0], logits[0].device)[:3]


@_blend.register_fake
def _(logits: Sequence[Tensor], *_: object) -> Tensor:
    return logits[0].new_empty(logits[0].shape, dtype=torch.float32)


def stats_of(numbers: Tensor, ids: Tensor, flags: Tensor) -> Stats:
    """Of ``Results``."""
    lse, entropy, top_prob, logprob = numbers
    return Stats(lse, entropy, top_prob, ids[1], logprob, flags)


def stats(logits: Tensor, tokens: Tensor | None) -> Stats:
    """See ``dispatch.stats``; tokens outside the vocabulary have no logprob but that of -1."""
    return stats_of(*run([logits], None, tokens)[0][:3])


def pick(logits: Tensor, rows: Sequence[Pick]) -> Picked:
    """See ``dispatch.pick``."""
    found, _ = run([logits], pack(rows, logits.shape[1], logits.device))
    return Picked(found.ids[0], stats_of(*found[:3]))


def mix(logits: Sequence[Tensor], blends: Sequence[Blend], rows: Sequence[Pick]) -> Picked:
    """See ``dispatch.mix``."""
    found, _ = run(logits, pack(rows, logits[0].shape[1], logits[0].device, blends))
    return Picked(found.ids[0], stats_of(*found[:3]))


def blend(logits: Sequence[Tensor], blends: Sequence[Blend]) -> Tensor:
    """See ``dispatch.blend``."""
    plan = pack([Pick()] * len(blends), logits[0].shape[1], logits[0].device, blends)
    result: Tensor = _blend(list(logits), *plan.flat)
    return result


def top_logprobs(logits: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """See ``dispatch.top_logprobs``: without the host, a selection among numbers that hold logit and id."""
    rows, vocabulary = logits.shape
    z = logits.detach().float()
    z = torch.where(z < torch.inf, z, -torch.inf) + 0.0  # both zeros are one
    bits = z.view(torch.int32)
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()  # compares as the logits do
    last = vocabulary - 1
    found = ((order << 32) | (last - torch.arange(vocabulary, device=z.device))).topk(n).values
    ids = last - (found & 0xFFFFFFFF)
    lse = run([logits], None)[0].numbers[0] if rows else z[:, 0]
    value = z.gather(1, ids)
    finite = value > -torch.inf
    return torch.where(finite, ids, -1), torch.where(finite, value - lse[:, None], -torch.inf)
