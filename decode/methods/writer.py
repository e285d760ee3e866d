"""What a search drives: one candidate with all that writes it, which can stop at any token, go on, and be forked there.

A policy is a ``Writer``: it says which token comes next (``_next``) and takes note when that token is written
(``_took``). All its state lies in fields, so between two tokens nothing is hidden in a suspended coroutine: writing in
pieces gives the tokens of writing in one go, and a fork with the same key gives those of the original.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from trimtab.decode.methods.answer import Answer
from trimtab.decode.request.events import Chunk
from trimtab.decode.request.result import Token

if TYPE_CHECKING:
    from trimtab.kernels.types import Key

__all__ = ["Team", "Writer", "never"]


def never() -> bool:
    """Don't stop before the answer ends."""
    return False


class Team:
    """The writers of one request that are open, so that however it ends none is left behind."""

    def __init__(self) -> None:
        self._open: dict[Writer, None] = {}

    def join(self, writer: Writer) -> None:
        self._open[writer] = None

    def leave(self, writer: Writer) -> None:
        self._open.pop(writer, None)

    def close(self) -> None:
        """Close them all, at once. Idempotent."""
        for writer in list(self._open):
            writer.close()


class Writer(abc.ABC):
    """Writes one answer by one policy.

    Args:
        answer: what is written.
        team: closes the writer with the request.
    """

    def __init__(self, answer: Answer, team: Team) -> None:
        self.answer, self.team = answer, team
        team.join(self)

    @property
    @abc.abstractmethod
    def reproducible(self) -> bool:
        """Whether the tokens depend on the request and its seed alone, not on load (law 3)."""

    async def advance(self, until: Callable[[], bool] = never, before: Callable[[Token], bool] | None = None) -> None:
        """Write until the answer is done.

        Args:
            until: stops where it holds; asked before the first token and after each one.
            before: stops before a token for which it holds; that token stays drawn, and is what comes next.
        """
        while not self.answer.done and not until():
            token = await self._next()
            if token is None or (before is not None and before(token)):
                return
            self.answer.write([token])
            self._took(token)

    @abc.abstractmethod
    async def prime(self) -> None:
        """Compute what has been read so far, the prompt above all, so that forks share the work."""

    @abc.abstractmethod
    async def _next(self) -> Token | None:
        """The token that comes next, the same until it is taken; None if the answer was ended instead."""

    @abc.abstractmethod
    def _took(self, token: Token) -> None:
        """``token`` has been written. If that ended the answer, ``self.answer.done``."""

    @abc.abstractmethod
    def _forget(self) -> None:
        """Drop what was drawn and not written: the next tokens are drawn with other random numbers."""

    @abc.abstractmethod
    def _copy(self, answer: Answer) -> Self:
        """This state, for a copy of the answer; caches are shared."""

    @abc.abstractmethod
    def _resume(self, other: Self) -> None:
        """Bring the sequences, of a fresh writer, to what ``other`` has written."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Close the sequences."""

    def fork(
        self, key: Key | None = None, index: int | None = None, emit: Callable[[Chunk], None] | None = None
    ) -> Self:
        """A second writer at the same token, which goes on by itself.

        Args:
            key: of its random numbers. With those of this writer, None, it writes the same.
            index: number of the candidate; None keeps it.
            emit: takes the chunks of its text.
        """
        key = self.answer.key if key is None else key
        twin = self._copy(self.answer.fork(key, index, emit))
        if key != self.answer.key:
            twin._forget()
        return twin

    def adopt(self, other: Self) -> None:
        """Go on with the answer of another writer of this policy, whose prompt may be another.

        Only the writer's own prompt and random numbers stay. The answer's tokens are read again after this prompt.
        """
        self.answer.adopt(other.answer)
        self._resume(other)

    def close(self) -> None:
        """Give everything back, at once; what was written stays. Idempotent."""
        self.team.leave(self)
        self._release()
