"""The requested model alone, or a mixture in its place: each token as the draw proposes it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Self

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.desk import Desk
from trimtab.decode.methods.draws.base import TokenDraws
from trimtab.decode.methods.writer import Team, Writer
from trimtab.decode.ops import Read
from trimtab.decode.request.method import Policy
from trimtab.decode.request.result import FinishReason, Token

__all__ = ["Base", "BaseWriter"]


@dataclass(frozen=True, slots=True)
class Base(Policy):
    """Each token comes from the requested model alone."""

    def writer(self, desk: Desk) -> Writer:
        answer = desk.answer()
        return BaseWriter(desk.draws(answer, desk.open()), answer, desk.team)


class BaseWriter(Writer):
    """Writes what a draw proposes.

    Args:
        draw: of the requested model's sequence, which is the prompt.
        answer, team: see ``Writer``.
    """

    def __init__(self, draw: TokenDraws, answer: Answer, team: Team) -> None:
        super().__init__(answer, team)
        self._draw = draw
        self._prompt = len(draw.seq.tokens)
        self._reads: deque[Read] = deque()  # proposed, not yet written

    @property
    def reproducible(self) -> bool:
        return self._draw.reproducible

    async def prime(self) -> None:
        await self._draw.prime()

    async def _next(self) -> Token | None:
        if not self._reads:
            if self._draw.full:
                self.answer.finish(FinishReason.CONTEXT_FULL)
                return None
            self._reads.extend(await self._draw.propose())
        read = self._reads[0]
        return self.answer.token(self._draw.seq.model, read)

    def _took(self, token: Token) -> None:
        self._reads.popleft()
        self._draw.accept([token.id])

    def _forget(self) -> None:
        self._reads.clear()

    def _copy(self, answer: Answer) -> Self:
        twin = type(self)(self._draw.fork(answer), answer, self.team)
        twin._prompt, twin._reads = self._prompt, self._reads.copy()
        return twin

    def _resume(self, other: Self) -> None:
        self._reads.clear()
        self._draw.reset(self._prompt, other._draw.tokens()[other._prompt :])

    def _release(self) -> None:
        self._draw.close()
