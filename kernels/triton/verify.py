"""The operation ``verify``: windows as tensors, and the launches of ``logits`` and ``acceptance``.

``torch.ops.trimtab.verify`` is the same over plain tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton

from trimtab.kernels.cpu.verify import columns_of
from trimtab.kernels.results import Verified
from trimtab.kernels.triton import acceptance
from trimtab.kernels.triton.acceptance import CERTAIN, COLUMNS, OWN, Outcome, Side, Windows
from trimtab.kernels.triton.logits import Shape, on, run, stats_of
from trimtab.kernels.triton.pack import Plan, moved, pack
from trimtab.kernels.types import Pick, Window

__all__ = ["Batch", "pack_windows", "verify"]

Tensor = torch.Tensor
Verification = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

_NOTHING = Pick()


class Batch(NamedTuple):
    """Windows as tensors; a launch is a function of these and the target's logits.

    Attributes:
        draft: [M, Vd], the rows that tokens were drawn from, one below the other; none if no token stands by p / q.
        windows: see ``Windows``; column is empty where column = id.
        plan, draft_plan: of the target's rows and of the draft's.
        longest: of the windows, in drafted tokens.
        tested: whether some token stands or falls by p / q.
    """

    draft: Tensor
    windows: Windows
    plan: Plan
    draft_plan: Plan
    longest: int
    tested: bool

    @property
    def flat(self) -> tuple[object, ...]:
        """As the operator takes it, after the target's logits."""
        return (self.draft, list(self.windows), *self.plan.flat, *self.draft_plan.flat, self.longest, self.tested)


def pack_windows(windows: Sequence[Window], vocabulary: int, device: torch.device) -> Batch:
    """Windows whose drafts share one vocabulary; see ``_vocabulary_of``."""
    rows: list[Pick] = []
    draft_rows: list[Pick] = []
    sources: list[Tensor] = []
    start, ints, tested = [0], [], False
    for w, window in enumerate(windows):
        draft, count = window.draft, len(window.tokens)
        ratio = [draft is not None and row.filters.temperature > 0 for row in window.rows[:count]]
        drawn = draft is not None and draft.logits is not None and any(ratio)
        tested |= any(ratio)
        for j, row in enumerate(window.rows):
            source = OWN.value
            if j < count and ratio[j]:
                source = len(draft_rows) + j if drawn else CERTAIN.value
            residual = row.key.residual.bits if source > OWN.value else 0
            residual -= residual >> 63 << 64
            ints.append((window.tokens[j] if j < count else -1, source, residual, w, j))
        rows += window.rows
        if drawn:
            assert draft is not None
            assert draft.logits is not None
            sources.append(draft.logits.detach())
            draft_rows += [row if here else _NOTHING for row, here in zip(draft.rows, ratio, strict=True)]
        start.append(len(rows))
    together = _stacked(sources) if sources else torch.empty((0, 1), dtype=torch.float32, device=device)
    ids = next((w.draft.ids for w in windows if w.draft is not None and _vocabulary_of(w) is not None), None)
    lists = Windows(
        moved(np.array(start), device),
        moved(np.array(ints, np.int64).reshape(-1, COLUMNS.value), device),
        _column(ids, vocabulary, device),
    )
    longest = max((len(window.tokens) for window in windows), default=0)
    draft_plan = pack(draft_rows, together.shape[1], device)
    return Batch(together, lists, pack(rows, vocabulary, device), draft_plan, longest, tested)


def _column(ids: Tensor | None, vocabulary: int, device: torch.device) -> Tensor:
    """``Windows.column``. Ids on the device are not checked: that would wait for it."""
    if ids is None:
        return torch.empty(0, dtype=torch.int64, device=device)
    if ids.device.type == "cpu":
        return torch.from_numpy(columns_of(ids, vocabulary).column).to(device)
    column = torch.full((vocabulary,), -1, dtype=torch.int64, device=ids.device)
    column[ids] = torch.arange(len(ids), device=ids.device)
    return column


def _stacked(sources: Sequence[Tensor]) -> Tensor:
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


def _vocabulary_of(window: Window) -> tuple[object, ...] | None:
    """What drafts of one launch share: the dtype, the number of columns and their ids. None: fits any."""
    draft = window.draft
    if draft is None or draft.logits is None or not len(window.tokens):
        return None
    ids = draft.ids
    return draft.logits.dtype, draft.logits.shape[1], None if ids is None else (ids.data_ptr(), ids.stride())


def _side(logits: Tensor, plan: Plan) -> tuple[Side, tuple[Tensor, Tensor, Tensor]]:
    """Rows after ``run``, and numbers, ids, flags."""
    shape = Shape.of([logits])
    (numbers, ids, flags, distributions), edited = run([logits], plan)
    width = shape.tiles * shape.block
    (x,), (stride,) = shape.source
    return Side(x, stride, plan.lists.ints, edited, width, distributions, ids[0]), (numbers, ids, flags)


@torch.library.custom_op("trimtab::verify", mutates_args=())
def _verify(
    logits: Tensor,
    draft: Tensor,
    windows: Sequence[Tensor],
    lists: Sequence[Tensor],
    kinds: Sequence[int],
    draft_lists: Sequence[Tensor],
    draft_kinds: Sequence[int],
    longest: int,
    tested: bool,
) -> Verification:
    """accepted int64 [R], token int64 [R], and numbers, ids, flags of all rows (``Results``)."""
    shape, places = Shape.of([logits]), Windows(*windows)
    target, (numbers, ids, flags) = _side(logits, Plan.of(lists, kinds))
    source = _side(draft, Plan.of(draft_lists, draft_kinds))[0] if len(draft) else target
    count = len(places.start) - 1
    sizes = (count, shape.tiles, 2) if tested else (1,)
    types = (*(torch.int64,) * 4, torch.float32, torch.int32)
    outcome = Outcome._make(
        torch.empty(sizes if i > 3 else count, dtype=dtype, device=logits.device) for i, dtype in enumerate(types)
    )
    if count:
        which = {"HAS_DRAFT": len(draft) > 0, "HAS_COLUMN": len(places.column) > 0}
        sides = (target, source, places, outcome)
        whole = {"V": shape.vocabulary, "VD": draft.shape[1], "BLOCK": shape.block, **which}
        slots = triton.next_power_of_2(shape.tiles)
        with on(logits.device):
            steps = triton.next_power_of_2(max(longest, 1))
            acceptance.accept[(count,)](*sides, draft.shape[1], LONGEST=steps, **which)
            if tested:
                acceptance.residual[(count * shape.tiles,)](*sides, shape.tiles, **whole, num_warps=8)
                acceptance.choose[(count,)](*sides, shape.tiles, SLOTS=slots, **whole)
        numbers[3] = _logprobs(logits, numbers, ids, places.ints, outcome)
    return outcome.accepted, outcome.token, numbers, ids, flags


@_verify.register_fake
def _(logits: Tensor, draft: Tensor, windows: Sequence[Tensor], *_: object) -> Verification:
    accepted, token = (windows[0].new_empty(windows[0].shape[0] - 1) for _ in range(2))
    rows = logits.shape[0]
    numbers, flags = logits.new_empty((4, rows), dtype=torch.float32), logits.new_empty(rows, dtype=torch.uint8)
    return accepted, token, numbers, windows[0].new_empty((2, rows)), flags


def _logprobs(logits: Tensor, numbers: Tensor, ids: Tensor, places: Tensor, outcome: Outcome) -> Tensor:
    """ln p of the tokens that were written, -inf beyond the last of a window; float32 [N]."""
    drafted, _, _, window, place = places.unbind(1)
    stand = outcome.accepted[window]
    chosen = torch.where(place < stand, drafted, torch.where(place == stand, outcome.token[window], -1))
    both = torch.stack([chosen, ids[1]], -1).clamp(min=0)
    value, top = logits.detach().gather(1, both).float().unbind(1)
    usable = (chosen >= 0) & (ids[1] >= 0) & (value > -torch.inf) & (value < torch.inf)
    return torch.where(usable, value - top + numbers[2].log(), -torch.inf)


def verify(logits: Tensor, windows: Sequence[Window]) -> Verified:
    """See ``dispatch.verify``."""
    for i, window in enumerate(windows):
        if window.draft is not None and window.draft.logits is not None and window.draft.logits.device != logits.device:
            found = window.draft.logits.device
            raise ValueError(f"windows[{i}].draft.logits.device = {found}: accepted: {logits.device}, that of logits")
    kinds = [_vocabulary_of(window) for window in windows]
    several = list(dict.fromkeys(kind for kind in kinds if kind is not None))
    if len(several) < 2:
        accepted, token, *rest = _verify(logits, *pack_windows(windows, logits.shape[1], logits.device).flat)
        return Verified(accepted, token, stats_of(*rest))
    start = np.cumsum([0, *(len(window.rows) for window in windows)])
    accepted, token = torch.empty((2, len(windows)), dtype=torch.int64, device=logits.device)
    numbers, ids = torch.empty((4, len(logits)), device=logits.device), token.new_empty((2, len(logits)))
    flags = torch.empty(len(logits), dtype=torch.uint8, device=logits.device)
    for kind in several:
        mine = [i for i, other in enumerate(kinds) if other == kind or (other is None and kind == several[0])]
        rows = torch.from_numpy(np.concatenate([np.arange(start[i], start[i + 1]) for i in mine])).to(logits.device)
        batch = pack_windows([windows[i] for i in mine], logits.shape[1], logits.device)
        accepted[mine], token[mine], numbers[:, rows], ids[:, rows], flags[rows] = _verify(logits[rows], *batch.flat)
    return Verified(accepted, token, stats_of(numbers, ids, flags))
