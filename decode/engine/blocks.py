"""The blocks of drafted tokens that are under way, and all that the controller of their lengths is asked and told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from trimtab.decode.engine.attention import reading
from trimtab.decode.engine.costs import Load
from trimtab.decode.engine.drafting import Block, Columns, Source, columns
from trimtab.decode.engine.model_instance import ModelInstance
from trimtab.decode.engine.plan import Entry, Output, Plan
from trimtab.decode.engine.request_state import RequestState
from trimtab.decode.engine.rounds import Kind
from trimtab.decode.engine.speculation import Speculation, Spent
from trimtab.decode.engine.work import SHORT, Item, Pending
from trimtab.decode.ops import Draft, Verify

__all__ = ["Blocks"]


@dataclass(slots=True)
class _Drafts:
    """Of a round: the seconds that went into them, those of these that were for reading the past (``Spent``), the kinds
    of their lengths, and whether some were drafted only to learn.
    """

    seconds: float = 0.0
    reading: float = 0.0
    kinds: set[Kind] = field(default_factory=set)
    trial: bool = False


class Blocks:
    """Blocks under way, by op.

    Args:
        models: by name.
        same_ids: whether two models share one vocabulary.
        max_rows: sequences in one forward pass.
    """

    def __init__(
        self, models: Mapping[str, ModelInstance], same_ids: Callable[[str, str], bool], max_rows: int
    ) -> None:
        self._models, self._same_ids, self._max_rows = models, same_ids, max_rows
        self._speculation = Speculation()
        self._blocks: dict[Pending, Block] = {}
        self._columns: dict[tuple[str, str], Columns | None] = {}
        self._latest: dict[str, Load] = {}  # of the last pass that wrote, by model
        self._drafts: dict[str, _Drafts] = {}  # that the next pass of a target verifies

    def of(self, pending: Pending) -> Block | None:
        """The block of an op; None where it has none."""
        return self._blocks.get(pending)

    def begin(self, item: Item, rows: int) -> bool:
        """Start the block of a ``Draft`` op, unless speculation doesn't pay now.

        Args:
            item: of the op.
            rows: that wait for the target, or will.
        """
        op = item.pending.op
        assert isinstance(op, Draft)
        draft, target = item.sequence.instance, self._models[op.target]
        load, missing = self._load(op.target, rows), max(0, item.missing - 2)
        request = item.state.job.generation_id
        rule = self._speculation.rule(op.length, draft.name, op.target, request, load, missing)
        if rule is None:
            return False
        key = (draft.name, target.name)
        if key not in self._columns:
            self._columns[key] = columns(draft, target, self._same_ids(*key))
        ends = frozenset(target.vocabulary.eos_token_ids)
        self._blocks[item.pending] = Block(item, rule, self._columns[key], ends)
        return True

    def drafted(self, pending: Pending) -> None:
        """A block has stopped."""
        block = self._blocks.pop(pending)
        if block.rule.dropped is not None:
            op, request = block.op, pending.state.job.generation_id
            self._speculation.dropped(
                op.seq.model, op.target, request, op.length, *block.rule.dropped, alone=not block.tokens
            )

    def verified(self, pending: Pending, accepted: int) -> None:
        """So many of the tokens that a ``Verify`` op has from a draft were accepted."""
        op = pending.op
        assert isinstance(op, Verify)
        source, count = op.drafted.source, len(op.drafted.tokens)
        if isinstance(source, Source) and count:
            target, request = op.seq.model, pending.state.job.generation_id
            self._speculation.verified(source.model, target, request, source.length, count, accepted, source.passes)

    def forget(self, state: RequestState) -> None:
        """A request has ended."""
        for pending in [p for p in self._blocks if p.state is state]:
            del self._blocks[pending]

    def drop(self, pending: Pending) -> None:
        """An op is taken back."""
        self._blocks.pop(pending, None)

    def copies(self, target: str, chance: float, most: int, rows: int) -> int:
        """See ``Context``; so many rows wait for the target, or will."""
        return self._speculation.copies(target, chance, most, self._load(target, rows))

    def _load(self, target: str, rows: int) -> Load:
        """What will probably share the target's next pass: some that were in the last may only be about to ask."""
        latest = self._latest.get(target, Load(1))
        rows = max(1, min(self._max_rows, max(rows, latest.rows)))
        return Load(rows, latest.alone.positions * rows)

    def observe(self, plan: Plan, output: Output, written: int) -> None:
        """Take note of what a pass took, with all that was done for it. Passes that read prompts are no measure.

        Args:
            plan, output: of it.
            written: tokens.
        """
        spans = [entry.span for entry in plan.entries]
        if output.failures or any(len(span.tokens) > SHORT for span in spans):
            return
        took, tokens = time.perf_counter() - output.began, sum(len(span.tokens) for span in spans)
        positions = sum(span.end * reading(len(span.tokens)) for span in spans)
        spent = self._speculation.observe(plan.model.name, tokens, took, plan.part, positions)
        self._round(plan.model.name, plan.entries, tokens, spent, written, plan.part != "target")

    def _round(
        self, model: str, entries: Sequence[Entry], tokens: int, spent: Spent, written: int, drafting: bool
    ) -> None:
        """Add a pass to the round that it is part of, one that grew blocks or the target's, which ends it."""
        rows, seconds = len(entries), spent.seconds
        load = Load(rows, sum(entry.span.end for entry in entries))
        if drafting:
            if tokens > 2 * rows:
                # What a draft reads that was held back for long is no part of what a round takes.
                seconds = min(seconds, self._speculation.beginning(model, load) or seconds)
            for block in [entry.block for entry in entries if entry.block is not None]:
                drafts = self._drafts.setdefault(block.op.target, _Drafts())
                drafts.kinds.add((type(block.op.length), block.rule.even))
                drafts.trial |= block.rule.trial
                drafts.seconds += seconds / rows
                drafts.reading += min(spent.reading, seconds) / rows
            return
        self._latest[model] = load
        if not written:
            return
        drafts = self._drafts.pop(model, _Drafts())
        plain = not drafts.kinds and tokens == rows
        if (plain or len(drafts.kinds) == 1) and not drafts.trial:
            kind = None if plain else next(iter(drafts.kinds))
            seconds, read = seconds + drafts.seconds, spent.reading + drafts.reading
            self._speculation.rounds.add(model, kind, load, seconds, written, read)
