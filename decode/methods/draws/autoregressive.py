"""One token per forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.desk import Desk
from trimtab.decode.methods.draws.base import TokenDraws
from trimtab.decode.ops import (
    Context,
    Extend,
    Mixed,
    Read,
    Seq,
)
from trimtab.decode.request.method import Draw
from trimtab.kernels.types import Pick

__all__ = ["Autoregressive", "AutoregressiveDraw", "Edit"]

# How the next token is drawn in view of all tokens before it, the prompt's too: the answer's pick, changed.
Edit = Callable[[Pick, Sequence[int]], Pick]


@dataclass(frozen=True, slots=True)
class Autoregressive(Draw):
    """One token per forward pass of the model."""

    def draws(self, desk: Desk, answer: Answer, seq: Seq) -> TokenDraws:
        return AutoregressiveDraw(desk.context, answer, seq)


class AutoregressiveDraw:
    """The plain ``TokenDraws``: proposes exactly one token.

    Args:
        context: of the request.
        answer: for the pick of each position.
        seq: the model's sequence, prompt included, or a mixture; tokens are appended to it as they are accepted.
        edit: for policies that ban or bias tokens by those that are there already.
    """

    reproducible = True

    def __init__(self, context: Context, answer: Answer, seq: Seq, edit: Edit | None = None) -> None:
        self._context, self._answer, self.seq, self._edit = context, answer, seq, edit
        self._accepted: list[int] = []

    @property
    def full(self) -> bool:
        """Whether a model's context has no room for another token."""
        parts = self.seq.parts if isinstance(self.seq, Mixed) else (self.seq,)
        ahead = len(self._accepted)
        return any(len(part.tokens) + ahead >= self._context.limit(part.model) for part in parts)

    async def prime(self) -> None:
        """Compute the tokens so far, drawing nothing, so that forks share the work."""
        accepted, self._accepted = self._accepted, []
        await Extend(self.seq, accepted)

    async def propose(self) -> list[Read]:
        """Next tokens with the statistics of the distribution that each was drawn from, at least one."""
        pick = self._answer.pick(self.seq.model)
        if self._edit is not None:
            pick = self._edit(pick, self.tokens())
        accepted, self._accepted = self._accepted, []
        return await Extend(self.seq, accepted, (pick,), self._answer.top)

    def accept(self, tokens: Sequence[int]) -> None:
        """Append tokens to the sequence: proposed ones, or others in their place."""
        self._accepted.extend(tokens)

    def tokens(self) -> list[int]:
        """All tokens of the sequence, accepted ones included; the next ``propose`` starts from these."""
        return [*self.seq.tokens, *self._accepted]

    def reset(self, length: int, tokens: Sequence[int]) -> None:
        """Replace everything from ``length`` on by ``tokens``."""
        self._accepted = []
        self.seq.rewind(length)
        self._accepted = list(tokens)

    def fork(self, answer: Answer) -> AutoregressiveDraw:
        """A second draw with the same accepted tokens, for a copy of the answer."""
        twin = AutoregressiveDraw(self._context, answer, self.seq.fork(), self._edit)
        twin._accepted = list(self._accepted)
        return twin

    def close(self) -> None:
        """Close the sequence, at once. Idempotent."""
        self.seq.close()
