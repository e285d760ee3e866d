"""The blocks of drafted tokens that are under way, and all that the controller of their lengths is asked and told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from trimtab.decode.engine.drafting import Block, Columns, Source, columns
from trimtab.decode.engine.lengths import LengthController
from trimtab.decode.engine.model_instance import ModelInstance
from trimtab.decode.engine.plan import Output, Plan
from trimtab.decode.engine.request_state import RequestState
from trimtab.decode.engine.work import SHORT, Item, Pending
from trimtab.decode.ops import Draft, Verify

__all__ = ["Blocks"]


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
        self.lengths = LengthController()
        self._blocks: dict[Pending, Block] = {}
        self._columns: dict[tuple[str, str], Columns | None] = {}
        self._rows: dict[str, int] = {}  # of the last pass that wrote, by model

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
        rule = self.lengths.length_rule(op.length, draft.name, op.target, self._load(op.target, rows))
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
        if block.rule.dropped and not block.tokens:  # no verification will tell
            self.lengths.observe_block(block.rule, 0)

    def verified(self, pending: Pending, accepted: int) -> None:
        """So many of the tokens that a ``Verify`` op has from a draft were accepted."""
        op = pending.op
        assert isinstance(op, Verify)
        source = op.drafted.source
        if isinstance(source, Source) and op.drafted.tokens:
            self.lengths.observe_block(source.rule, accepted)

    def forget(self, state: RequestState) -> None:
        """A request has ended."""
        for pending in [p for p in self._blocks if p.state is state]:
            del self._blocks[pending]

    def drop(self, pending: Pending) -> None:
        """An op is taken back."""
        self._blocks.pop(pending, None)

    def copies(self, target: str, chance: float, most: int, rows: int) -> int:
        """See ``Context``; so many rows wait for the target, or will."""
        return self.lengths.copies(target, chance, most, self._load(target, rows))

    def _load(self, target: str, rows: int) -> int:
        """Rows that will probably share the target's next pass: some of the last may only be about to ask."""
        return max(1, min(self._max_rows, max(rows, self._rows.get(target, 1))))

    def observe(self, plan: Plan, output: Output) -> None:
        """Take note of what a pass took, with all that was done for it. Passes that read prompts are no measure."""
        spans = [entry.span for entry in plan.entries]
        if output.failures or any(len(span.tokens) > SHORT for span in spans):
            return
        size = len(spans) if plan.drafting else sum(len(span.tokens) for span in spans)
        took = time.perf_counter() - output.began
        self.lengths.observe_pass(plan.model.name, size, took, drafting=plan.drafting)
        if not plan.drafting:
            self._rows[plan.model.name] = len(spans)
