"""The forward pass of a plan, what is read from its rows, and whose fault it is where either fails.

Nothing is remembered from one plan to the next. The only things changed are the blocks that grow, and the cache behind
pages that the plan reserved.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimtab.decode.engine.batch import RaggedBatch
from trimtab.decode.engine.drafting import Block, Source, grow
from trimtab.decode.engine.isolate import isolated
from trimtab.decode.engine.model_instance import ModelInstance
from trimtab.decode.engine.plan import Entry, Failure, Output, Plan
from trimtab.decode.engine.sampler import CERTAIN, Row, Window, read, seeing
from trimtab.decode.engine.work import Item, Pending
from trimtab.decode.ops import (
    Draft,
    Extend,
    Mixed,
    Read,
    Value,
    Verify,
)
from trimtab.kernels.types import Pick

__all__ = ["run"]


class _Passed(NamedTuple):
    """What the model gives for an entry, for each of its span's reads: logits [n, V], and the state behind them where
    a block asks for it.
    """

    entry: Entry
    logits: Tensor
    hidden: Tensor | None


class _Asked(NamedTuple):
    """A window of an op, and its rows of logits [K + 1, V], of each of the op's models."""

    pending: Pending
    window: Window
    rows: tuple[Tensor, ...]


def run(plan: Plan) -> Output:
    """Compute what a plan says. What a row or an op raises by itself is its own failure, and nobody else's."""
    output = Output(time.perf_counter())
    passed: list[_Passed] = []
    for entry, found in zip(plan.entries, isolated(partial(_forward, plan.model), plan.entries), strict=True):
        if isinstance(found, Exception):
            output.fail([entry], f"a forward pass of model {plan.model.name!r} failed", found)
        else:
            passed.append(found)
    try:
        _grow(plan.model, [row for row in passed if row.entry.block is not None and row.entry.span.reads], output)
        whole = _whole([row.entry for row in passed], output)
        _read([row for row in passed if row.entry.block is None], whole, output)
        _answer([row.entry for row in passed], whole, output)
    except Exception as error:  # not of one row: those are told apart
        output.fail(plan.entries, f"reading a pass of model {plan.model.name!r} failed", error)
    return output


def _whole(entries: Sequence[Entry], output: Output) -> set[Pending]:
    """Ops that are computed whole."""
    finished = Counter(entry.item.pending for entry in entries if entry.last and entry.item not in output.growing)
    return {pending for pending, count in finished.items() if count == pending.open}


def _forward(model: ModelInstance, entries: Sequence[Entry]) -> Iterable[_Passed]:
    """One pass over the spans of some entries."""
    batch = RaggedBatch.pack([entry.span for entry in entries], model.storage.page_tokens)
    device = model.model.device
    arguments = (
        torch.from_numpy(batch.tokens).to(device),
        torch.from_numpy(batch.positions).to(device),
        model.storage.begin(batch),
        torch.from_numpy(batch.rows).to(device),
    )
    sizes = [entry.span.reads for entry in entries]
    hidden: Sequence[Tensor | None] = [None] * len(entries)
    forward_hidden = model.model.forward_hidden
    if forward_hidden is not None and any(e.block is not None and e.block.rule.wants_acceptance for e in entries):
        logits, states = forward_hidden(*arguments)
        hidden = states.split_with_sizes(sizes)
    else:
        logits = model.model.forward(*arguments)
    if logits.shape[1] > model.width and model.model.labels is None:
        logits = logits[:, : model.width]
    return map(_Passed, entries, logits.split_with_sizes(sizes), hidden)


def _grow(model: ModelInstance, passed: Sequence[_Passed], output: Output) -> None:
    """One token more for each block."""
    if not passed:
        return
    blocks = [row.entry.block for row in passed if row.entry.block is not None]
    accepts: list[float | None] = [None] * len(blocks)
    hidden = [row.hidden for row in passed if row.hidden is not None]
    if len(hidden) == len(blocks) and model.model.acceptance is not None:
        greedy = torch.tensor([block.op.picks[0].filters.temperature == 0 for block in blocks])
        accepts = model.model.acceptance(_joined(hidden), greedy.to(hidden[0].device)).tolist()
    for row, on in zip(passed, grow(blocks, _joined([row.logits for row in passed]), accepts), strict=True):
        if isinstance(on, Exception):
            output.fail([row.entry], "reading Draft failed", on)
        elif on:
            output.growing.add(row.entry.item)


def _read(passed: Sequence[_Passed], whole: set[Pending], output: Output) -> None:
    """Read what can be read by now, and keep the rows of the rest."""
    output.rows.update((row.entry.item, row.logits) for row in passed if row.entry.span.reads)
    asked: list[_Asked] = []
    for pending in dict.fromkeys(row.entry.item.pending for row in passed):
        first = pending.items[0]
        if pending.read_at_once and first in output.rows:
            asked += _asked(pending, first.got, [output.rows.pop(first)])
        elif pending in whole and isinstance(pending.op, (Extend, Verify)):
            asked += _asked(pending, 0, [_rows(item, output) for item in pending.items])
    groups: dict[tuple[bool, tuple[str, ...]], list[_Asked]] = {}
    for one in asked:
        models = tuple(item.sequence.model for item in one.pending.items)
        groups.setdefault((one.window.given, models), []).append(one)
    for group in groups.values():
        for one, reads in zip(group, isolated(_read_together, group), strict=True):
            if isinstance(reads, Exception):
                output.failures[one.pending] = Failure(f"reading {type(one.pending.op).__name__} failed", reads)
            else:
                output.reads.setdefault(one.pending, []).extend(reads)


def _rows(item: Item, output: Output) -> Tensor:
    """All rows of an item that is computed whole, [wanted, V]; the last ones may have come with an earlier pass."""
    return _joined([*item.rows, output.rows[item]] if item in output.rows else item.rows)


def _asked(pending: Pending, start: int, parts: Sequence[Tensor]) -> Iterable[_Asked]:
    """Windows of an op, from its rows of output, of each of its models, from number ``start`` on."""
    op, item = pending.op, pending.items[0]
    assert isinstance(op, (Extend, Verify))
    blend = op.seq.blend if isinstance(op.seq, Mixed) else None
    rows = [_row(item, op, start + i) for i in range(parts[0].shape[0])]
    if isinstance(op, Verify):
        source = op.drafted.source
        draft = None if op.coupled else source.draft if isinstance(source, Source) else CERTAIN
        return [_Asked(pending, Window(rows, op.drafted.tokens, draft, blend), tuple(parts))]
    each = zip(*(part.split_with_sizes([1] * len(rows)) for part in parts), strict=True)
    return [_Asked(pending, Window((row,), blend=blend), own) for row, own in zip(rows, each, strict=True)]


def _row(item: Item, op: Extend | Verify, index: int) -> Row:
    """How row ``index`` of an op is read."""
    pick = op.picks[index]
    if isinstance(pick, Pick) and pick.filters.repetition_penalty != 1.0:
        tokens = item.sequence.tokens
        pick = seeing(pick, tokens[: len(tokens) - item.wanted + 1 + index])
    return Row(pick, op.top)


def _read_together(asked: Sequence[_Asked]) -> list[list[Read]]:
    """What windows of the same models read, with one call of the kernels."""
    logits = [_joined(parts) for parts in zip(*(one.rows for one in asked), strict=True)]
    piece = asked[0].pending.items[0].sequence.instance.vocabulary.piece
    return read(logits, [one.window for one in asked], piece)


def _answer(entries: Sequence[Entry], whole: set[Pending], output: Output) -> None:
    """Answer ops that are computed whole."""
    for pending, block in {entry.item.pending: entry.block for entry in entries}.items():
        if pending in whole and pending not in output.failures:
            try:
                output.answers[pending] = _answer_to(pending, block, output)
            except Exception as error:
                output.failures[pending] = Failure(f"reading {type(pending.op).__name__} failed", error)


def _answer_to(pending: Pending, block: Block | None, output: Output) -> Any:
    match pending.op:
        case Draft():
            assert block is not None
            return block.drafted()
        case Value():
            return _rows(pending.items[0], output).float().mean(0).tolist()
        case _:
            return [*pending.reads, *output.reads.get(pending, ())]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows one below another, [sum of n, V]; those of one pass that lie so already are not copied."""
    first, count = parts[0], 0
    if len(parts) == 1:
        return first
    memory, stride, offset = first.untyped_storage().data_ptr(), first.stride(), first.storage_offset()
    for part in parts:
        here = offset + count * stride[0]
        if (part.storage_offset(), part.stride(), part.untyped_storage().data_ptr()) != (here, stride, memory):
            return torch.cat(list(parts))
        count += part.shape[0]
    return first.as_strided((count, first.shape[1]), stride)
