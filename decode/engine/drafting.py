"""Blocks of drafted tokens while they grow: one forward pass of the draft per token, no round trip to the method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from trimtab.decode.engine.isolate import isolated
from trimtab.decode.engine.model_instance import ModelInstance
from trimtab.decode.engine.sampler import seeing
from trimtab.decode.engine.work import Item
from trimtab.decode.methods.draws.cross_vocabulary import shared_tokens
from trimtab.decode.methods.draws.length_rules import Rule, together
from trimtab.decode.ops import Draft, Drafted
from trimtab.kernels import dispatch, types
from trimtab.kernels.types import Pick

__all__ = ["Block", "Columns", "Source", "columns", "grow"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which tokens of the target the outputs of a draft stand for.

    Attributes:
        ids: int64 [n], the target's ids, for the kernels.
        select: int64 [n], the outputs that stand for a token of the target; None: all of them.
        own: the ids that the draft reads, by position in ``ids``.
        of: position in ``ids`` by target id, -1 where the draft has none.
        vocabulary: size of the target's.
    """

    ids: Tensor
    select: Tensor | None
    own: list[int]
    of: np.ndarray[tuple[int], np.dtype[np.int64]]
    vocabulary: int

    def map(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """Positions in ``ids`` of those target ids that have one."""
        return tuple(int(self.of[token]) for token in tokens if self.of[token] >= 0)


def columns(draft: ModelInstance, target: ModelInstance, shared: bool) -> Columns | None:
    """What ``draft`` can say of the vocabulary of ``target``; None if its outputs are the target's ids.

    Args:
        draft, target: the models.
        shared: whether they share one vocabulary. If not, the draft is held to the tokens that both have, byte for
            byte (token-level intersection; Timor et al., 2025).
    """
    device = draft.model.device
    size = target.width
    if shared:
        if draft.model.draft_ids is None:
            return None
        ids = draft.model.draft_ids.to(device)
        select, own = None, ids.tolist()
    else:
        pairs = shared_tokens(draft.vocabulary, target.vocabulary)
        ids = torch.tensor([theirs for _, theirs in pairs], device=device)
        own = [mine for mine, _ in pairs]
        select = torch.tensor(own, device=device)
    of = np.full(size, -1, np.int64)
    of[ids.cpu().numpy()] = np.arange(len(ids))
    return Columns(ids, select, own, of, size)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a block comes from.

    Attributes:
        rule: that it was drafted by.
        draft: the distributions that it was drawn from, as the kernels verify it; None for a coupled block.
    """

    rule: Rule
    draft: types.Draft | None


@dataclass(eq=False, slots=True)
class Block:
    """One ``Draft`` op under way.

    Attributes:
        item: the draft's sequence; drafted tokens are appended to it as they are read.
        rule: says when to stop.
        columns: see ``columns``.
        ends: the target's ids that end an answer, and so the block.
        tokens: drafted so far, the target's ids.
    """

    item: Item
    rule: Rule
    columns: Columns | None
    ends: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    _rows: list[Tensor] = field(default_factory=list)
    _picks: list[Pick] = field(default_factory=list)
    _tops: list[float] = field(default_factory=list)
    _last: int = -1  # as the draft knows it

    @property
    def op(self) -> Draft:
        op = self.item.pending.op
        assert isinstance(op, Draft)
        return op

    def pick(self, seen: Sequence[int]) -> Pick:
        """How the next token is drawn, in the draft's columns unless it is coupled to the target's draw."""
        if self.columns is not None and self.columns.select is not None:
            seen = ()  # a foreign draft's tokens aren't the target's, so it can't tell what the penalty falls on
        found = seeing(self.op.picks[len(self.tokens)], seen)
        if self.columns is None or self.op.coupled:
            return found
        bias = {int(self.columns.of[t]): v for t, v in found.filters.bias.items() if self.columns.of[t] >= 0}
        filters = replace(found.filters, bias=bias) if found.filters.bias else found.filters
        seen, banned = self.columns.map(found.seen), self.columns.map(found.banned)
        return Pick(filters, found.key, found.position, seen, banned)

    def row(self, logits: Tensor) -> Tensor:
        """What the token is drawn from, [n], of the draft's output [Vd]."""
        if self.columns is None:
            return logits
        if self.columns.select is not None:
            logits = logits.index_select(0, self.columns.select)
        if not self.op.coupled:
            return logits
        # The same clocks pick the same token only where both vocabularies are laid out alike.
        full = logits.new_full((self.columns.vocabulary,), float("-inf"))
        full[self.columns.ids] = logits
        return full

    def take(self, token: int, logits: Tensor, pick: Pick, top_prob: float, accepts: float | None) -> bool:
        """Add a token, given as drawn from ``logits``, if it is worth verifying; whether to draft another
        one: then ``follow``.
        """
        if not self.rule.keeps(top_prob, accepts):
            return False
        own = token
        if self.columns is not None:
            if self.op.coupled:
                own = self.columns.own[int(self.columns.of[token])]
            else:
                own, token = self.columns.own[token], int(self.columns.ids[token])
        self.tokens.append(token)
        self._rows.append(logits)
        self._picks.append(pick)
        self._tops.append(top_prob)
        if token in self.ends or len(self.tokens) >= min(len(self.op.picks), self.rule.max_tokens):
            return False
        if not self.rule.goes_on(top_prob):
            return False
        self._last = own
        return True

    def follow(self) -> None:
        """Have the draft read the last token."""
        self.item.sequence.tokens.append(self._last)

    def drafted(self) -> Drafted:
        """The op's answer."""
        draft = None
        if self.tokens and not self.op.coupled:
            ids = None if self.columns is None else self.columns.ids
            draft = types.Draft(torch.stack(self._rows), self._picks, ids, self._tops)
        return Drafted(tuple(self.tokens), Source(self.rule, draft))


def grow(blocks: Sequence[Block], logits: Tensor, accepts: Sequence[float | None]) -> list[bool | Exception]:
    """One token for each block, from logits [n, Vd]; whether each goes on, or what drawing its token raised.

    Args:
        blocks: n of them, of one draft model.
        logits: its outputs after the last tokens of their sequences.
        accepts: for each, the acceptance head's probability that what follows is accepted; None without a head.
    """
    rows = [block.row(row) for block, row in zip(blocks, logits, strict=True)]
    # With the target's seen tokens: what has been drafted counts, too.
    picks = [block.pick(block.item.sequence.tokens) for block in blocks]
    by_size: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_size.setdefault(len(row), []).append(i)
    on: list[bool | Exception] = [False] * len(blocks)
    plain = all(block.columns is None for block in blocks)

    def drawn(which: Sequence[int]) -> Iterable[tuple[int, float]]:
        stacked = logits if plain and len(which) == len(blocks) else torch.stack([rows[i] for i in which])
        found = dispatch.pick(stacked, [picks[i] for i in which])
        return zip(found.token.tolist(), found.stats.top_prob.tolist(), strict=True)

    for which in by_size.values():
        for i, outcome in zip(which, isolated(drawn, which), strict=True):
            if isinstance(outcome, Exception):
                on[i] = outcome
            elif outcome[0] >= 0:
                on[i] = blocks[i].take(outcome[0], rows[i], picks[i], outcome[1], accepts[i])
    going = [block for block, more in zip(blocks, on, strict=True) if more is True]
    if not together([block.rule for block in going]):
        return [more if isinstance(more, Exception) else False for more in on]
    for block in going:
        block.follow()
    return on
