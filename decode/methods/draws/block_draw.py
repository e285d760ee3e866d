"""Several tokens per forward pass: a drafter proposes a block, the target accepts a prefix of it and adds a token.

The answer's distribution is the target's own (Leviathan, Kalman, Matias, 2023; Chen et al., 2023): the op ``Verify``
decides. Here is what surrounds it: which blocks may be drafted, and sequences that follow whatever becomes of them.

*Limits.* A block of K tokens yields up to K + 1. No more are drafted than may still be written, and than fit into the
contexts with plain decoding's own rule, so that an answer ends at the same token, for the same reason.

*Sequences.* The target's may run ahead of what was accepted, by what was proposed: a caller that takes the rest loses
no work, one that puts another token in its place rewinds it. Proposals that nobody took stay valid for as long as the
tokens accepted are those proposed, whoever wrote them, since each was drawn given these; so they are offered again.

*Random numbers* (law 3). A draft draws under ``Key.drafting``: with the target's own bits it would propose the more
readily what the target is about to draw, and what follows a rejection would no longer be independent of it. In coupled
mode that is the purpose, and the tokens equal those of plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Protocol, Self

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.draws.length import Fixed, Length
from trimtab.decode.methods.draws.length_rules import longest
from trimtab.decode.ops import (
    Context,
    Draft,
    Drafted,
    Extend,
    Mixed,
    Picks,
    Read,
    Seq,
    Verify,
)
from trimtab.kernels.types import Pick

__all__ = ["Drafter", "ModelDrafter", "SpeculativeDraw"]


class Drafter(Protocol):
    """Proposes blocks that continue a text of the target's tokens.

    It is told when the text changes other than by growth, and catches up by itself with what was added.
    """

    @property
    def reproducible(self) -> bool:
        """Whether the lengths of its blocks depend on the text alone."""
        ...

    def room(self, text: int) -> int:
        """Tokens of the longest block, after a text of that many tokens; 0 where there can be none."""
        ...

    async def draft(self, text: Sequence[int], picks: Sequence[Pick], coupled: bool) -> Drafted:
        """A block of at most ``len(picks)`` tokens, which may be empty.

        Args:
            text: all tokens of the target, prompt included.
            picks: how the target draws each token of the block.
            coupled: the block is verified as coupled.
        """
        ...

    def rewind(self, length: int) -> None:
        """Only the first ``length`` tokens of the text given last still stand."""
        ...

    def fork(self) -> Self:
        """A second one that has read the same."""
        ...

    def close(self) -> None:
        """Give everything back, at once. Idempotent."""
        ...


class SpeculativeDraw:
    """Proposes the tokens of one block at a time; a drop-in for ``AutoregressiveDraw``.

    Args:
        context: of the request.
        answer: for the pick of each position.
        seq: the target's sequence, prompt included, or a mixture.
        drafter: proposes blocks; it is closed with the draw.
        coupled: draw as plain decoding would, token for token, and accept what agrees.
    """

    def __init__(
        self,
        context: Context,
        answer: Answer,
        seq: Seq | Mixed,
        drafter: Drafter,
        *,
        coupled: bool = False,
    ) -> None:
        self._context, self._answer, self.seq = context, answer, seq
        self._drafter, self._coupled = drafter, coupled
        self._accepted: list[int] = []  # not in the sequence yet; empty while that runs ahead
        self._offered: list[Read] = []  # proposed and not accepted so far
        self._ahead = 0  # tokens of the sequence that are the first of the offered ones

    # ------------------------------------------------------------------------------------------------- what is settled

    @property
    def _length(self) -> int:
        return len(self.seq.tokens) - self._ahead + len(self._accepted)

    @property
    def _room(self) -> int:
        """Tokens by which all of the target's contexts can grow."""
        parts = self.seq.parts if isinstance(self.seq, Mixed) else (self.seq,)
        grown = len(self._accepted) - self._ahead
        return min(self._context.limit(part.model) - len(part.tokens) - grown for part in parts)

    @property
    def full(self) -> bool:
        """Whether a model's context has no room for another token."""
        return self._room <= 0

    @property
    def reproducible(self) -> bool:
        """Whether the tokens depend on the request and its seed alone (law 3)."""
        plain = self._coupled or self._answer.filters.temperature == 0
        return plain or self._drafter.reproducible

    def tokens(self) -> list[int]:
        """All tokens of the sequence, accepted ones included; the next ``propose`` starts from these."""
        tokens = self.seq.tokens
        return [*tokens[: len(tokens) - self._ahead], *self._accepted]

    # ------------------------------------------------------------------------------------------------------- proposing

    async def prime(self) -> None:
        """Compute the tokens so far, drawing nothing, so that forks share the work."""
        if not self._offered:
            accepted, self._accepted = self._accepted, []
            await Extend(self.seq, accepted)

    async def propose(self) -> list[Read]:
        """Next tokens with the statistics of the distribution that each was drawn from, at least one."""
        if not self._offered:
            self._offered = await self._next()
            self._ahead = len(self._offered) - 1
        return list(self._offered)

    async def _next(self) -> list[Read]:
        answer, model = self._answer, self.seq.model
        text = self.tokens()
        # The last token of the longest block is read at a length that plain decoding would read, too.
        longest = min(answer.remaining - 1, self._room - 1, self._drafter.room(len(text)))
        picks = answer.picks(model, max(longest, 0) + 1)
        drafted = Drafted(())
        if longest > 0:
            drafted = await self._drafter.draft(text, picks[:-1], self._coupled)
        count = len(drafted.tokens)
        accepted, self._accepted = self._accepted, []
        if not count:
            return await Extend(self.seq, accepted, list(picks[:1]), answer.top)
        reads = await Verify(self.seq, accepted, drafted, list(picks[: count + 1]), answer.top, self._coupled)
        self._context.count(count, len(reads) - 1)
        if len(reads) <= count:
            self._drafter.rewind(len(text) + len(reads) - 1)
        return reads

    # ------------------------------------------------------------------------------------------- what becomes of blocks

    def accept(self, tokens: Sequence[int]) -> None:
        """Append tokens to the sequence: proposed ones, or others in their place."""
        for token in tokens:
            if self._offered and self._offered[0].token == token:
                del self._offered[0]
                if self._ahead:
                    self._ahead -= 1
                    continue
            elif self._offered:
                self._withdraw()
            self._accepted.append(token)

    def _withdraw(self) -> None:
        """Take back what is offered."""
        self._offered = []
        if self._ahead:
            length, self._ahead = self._length, 0
            self.seq.rewind(length)
            self._drafter.rewind(length)

    def reset(self, length: int, tokens: Sequence[int]) -> None:
        """Replace everything from ``length`` on by ``tokens``.

        Raises:
            ValueError: there are fewer tokens than ``length``.
        """
        self._withdraw()
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot reset {self._length} tokens to {length}")
        inside = len(self.seq.tokens)
        if length < inside:
            self.seq.rewind(length)
        self._drafter.rewind(length)
        self._accepted = [*self._accepted[: max(0, length - inside)], *tokens]

    def fork(self, answer: Answer) -> Self:
        """A second draw with the same accepted tokens, for a copy of the answer; what is cached is shared.

        What is offered stays so in the copy if that has the same random numbers. With others it draws anew: candidates
        must be independent.
        """
        twin = type(self)(self._context, answer, self.seq.fork(), self._drafter.fork(), coupled=self._coupled)
        twin._accepted, twin._offered, twin._ahead = list(self._accepted), list(self._offered), self._ahead
        if answer.key != self._answer.key:
            twin._withdraw()
        return twin

    def close(self) -> None:
        """Close the sequences, at once. Idempotent."""
        self.seq.close()
        self._drafter.close()


class ModelDrafter:
    """Drafts with a model that has the target's token ids.

    Args:
        seq: of the draft, with its prompt.
        target: name of the target, and
        prompt: tokens of its prompt; the two prompts may differ.
        length: when to stop.
        limit: longest sequence of the draft.
    """

    def __init__(self, seq: Seq, target: str, prompt: int, length: Length, limit: int) -> None:
        self.seq, self._target, self._length, self._limit = seq, target, length, limit
        self._shift = len(seq.tokens) - prompt  # from places in the text to places in the draft's sequence

    @property
    def reproducible(self) -> bool:
        return isinstance(self._length, Fixed)

    def room(self, text: int) -> int:
        return min(longest(self._length), self._limit - text - self._shift)

    async def draft(self, text: Sequence[int], picks: Sequence[Pick], coupled: bool) -> Drafted:
        missing = text[len(self.seq.tokens) - self._shift :]
        own = picks if coupled else Picks.of_draft(picks)
        return await Draft(self.seq, missing, own, self._length, self._target, coupled)

    def rewind(self, length: int) -> None:
        if length + self._shift < len(self.seq.tokens):
            self.seq.rewind(length + self._shift)

    def fork(self) -> ModelDrafter:
        twin = copy(self)
        twin.seq = self.seq.fork()
        return twin

    def close(self) -> None:
        self.seq.close()
