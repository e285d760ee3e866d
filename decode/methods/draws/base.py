"""What policies ask of a draw: the next tokens of one sequence, some of which they may turn down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from trimtab.decode.methods.answer import Answer
from trimtab.decode.ops import Read, Seq

__all__ = ["TokenDraws"]


class TokenDraws(Protocol):
    """Proposes the next tokens of one sequence. What is proposed is not yet part of the sequence.

    Between two proposals a caller accepts some of the proposed tokens, one at a time or several at once, or others in
    the place of the first one that it turns down; a proposal starts from what was accepted.
    """

    seq: Seq

    @property
    def full(self) -> bool:
        """Whether a model's context has no room for another token."""
        ...

    @property
    def reproducible(self) -> bool:
        """Whether the tokens depend on the request and its seed alone, not on load (law 3)."""
        ...

    async def prime(self) -> None:
        """Compute the tokens so far, drawing nothing, so that forks share the work."""
        ...

    async def propose(self) -> list[Read]:
        """Next tokens with the statistics of the distribution that each was drawn from, at least one."""
        ...

    def accept(self, tokens: Sequence[int]) -> None:
        """Append tokens to the sequence: proposed ones, or others in their place."""
        ...

    def tokens(self) -> list[int]:
        """All tokens of the sequence, accepted ones included; the next ``propose`` starts from these."""
        ...

    def reset(self, length: int, tokens: Sequence[int]) -> None:
        """Replace everything from ``length`` on by ``tokens``."""
        ...

    def fork(self, answer: Answer) -> Self:
        """A second draw with the same accepted tokens, for a copy of the answer; what is cached is shared.

        Tokens that were proposed and not accepted are left behind where the copy has random numbers of its own. Where
        it has the same ones, the caller goes on accepting them in the copy, too.
        """
        ...

    def close(self) -> None:
        """Close the sequences, at once. Idempotent."""
        ...
