"""One token per forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.decode.answer import Answer
from trimtab.decode.ops import Context, Extend, Read, Seq
from trimtab.decode.types import FinishReason

__all__ = ["AutoregressiveDraw", "write_base"]


class AutoregressiveDraw:
    """Proposes the next token of one sequence. What is proposed is not yet part of the sequence.

    Args:
        context: of the request.
        answer: for the pick of each position.
        seq: the model's sequence, prompt included; tokens are appended to it as they are accepted.
    """

    def __init__(self, context: Context, answer: Answer, seq: Seq) -> None:
        self._context, self._answer, self.seq = context, answer, seq
        self._accepted: list[int] = []

    @property
    def full(self) -> bool:
        """Whether the model's context has no room for another token."""
        return len(self.seq.tokens) + len(self._accepted) >= self._context.limit(self.seq.model)

    async def propose(self) -> list[Read]:
        """Next tokens with the statistics of the distribution that each was drawn from, at least one."""
        accepted, self._accepted = self._accepted, []
        model = self.seq.model
        return await Extend(self.seq, accepted, (self._answer.pick(model),), self._answer.top)

    def accept(self, tokens: Sequence[int]) -> None:
        """Append tokens to the sequence: proposed ones, or others in their place."""
        self._accepted.extend(tokens)

    def settle(self) -> list[int]:
        """All tokens of the sequence, accepted ones included; the next ``propose`` starts from these."""
        return [*self.seq.tokens, *self._accepted]

    def reset(self, length: int, tokens: Sequence[int]) -> None:
        """Replace everything from ``length`` on by ``tokens``."""
        self._accepted = []
        self.seq.rewind(length)
        self._accepted = list(tokens)


async def write_base(draw: AutoregressiveDraw, answer: Answer) -> None:
    """Write an answer from the base's own distribution."""
    model = draw.seq.model
    while not answer.done:
        if draw.full:
            answer.finish(FinishReason.CONTEXT_FULL)
            return
        reads = await draw.propose()
        taken = answer.write([answer.token(model, read) for read in reads])
        draw.accept([read.token for read in reads[:taken]])
