"""Early rejection: weak beginnings of candidates are dropped on the way.

Sun et al., "Fast Best-of-N Decoding via Speculative Rejection", NeurIPS 2024. A check ranks the partial answers with
those that have ended, and drops the worst share of all. What is dropped on the way is closed before anything else runs;
nothing is computed again. Checks come after so many tokens, or, as published, when the candidates fill the memory that
they may hold, of which there are as many at first as have room for ``MIN_HELD_TOKENS`` each.

Unlike in the paper, the memory is a share of the request's own and not all of the device's, so the candidates are the
same whatever else runs; a full memory drops so many that every other one has room for ``MIN_HELD_TOKENS`` more, so none
is rated at every token; and an answer that has ended and is ranked out competes no more, but remains to be chosen: it
costs nothing more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from trimtab.decode.methods.searches.setting import together
from trimtab.decode.methods.writer import Writer
from trimtab.decode.request.result import FinishReason
from trimtab.decode.rewards.rating import Rating

if TYPE_CHECKING:
    from trimtab.decode.methods.searches.best_of_n import BestOfN

__all__ = ["MIN_HELD_TOKENS", "Rejection"]

# Tokens that each answer under way has room for before early rejection by memory rates it, and between two ratings.
MIN_HELD_TOKENS = 8


class Rejection:
    """Writes candidates, and drops them by turns.

    Args:
        writers: of the candidates.
        search: with ``reject_fraction`` and when to check.
        rate: rates those of the given numbers as they are.
        ratings: what they were rated last, by number.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        search: BestOfN,
        rate: Callable[[Sequence[int]], Awaitable[None]],
        ratings: Mapping[int, Rating],
    ) -> None:
        self._writers, self._search, self._rate, self._ratings = writers, search, rate, ratings
        self._running = list(range(len(writers)))
        self._competing = list(self._running)

    async def run(self) -> list[int]:
        """Write and drop until there is nothing more to drop; returns those that are unfinished."""
        due = 0
        while step := self._step(due):
            due += step
            await together(self._advance(i, due) for i in self._running)
            self._running = [i for i in self._running if not self._writers[i].answer.done]
            if not self._has_room(due):
                await self._check(due)
        return self._running

    def _step(self, due: int) -> int:
        """Tokens of each until the next check; 0 if there is to be none."""
        search, held = self._search, self._search.max_held_tokens
        if held is not None:
            return max(MIN_HELD_TOKENS, held // len(self._running) - due) if len(self._running) > 1 else 0
        return (search.check_every_tokens or 0) if self._running and self._share() else 0

    def _share(self) -> int:
        """How many of those that compete are dropped: never all, rounded down but for rounding of the fraction."""
        fraction, count = self._search.reject_fraction or 0.0, len(self._competing)
        return min(count - 1, int(fraction * count + 1e-9))

    def _has_room(self, due: int) -> bool:
        """Whether memory decides, and there is enough: some have ended."""
        held = self._search.max_held_tokens
        return held is not None and (len(self._running) < 2 or len(self._running) * (due + MIN_HELD_TOKENS) <= held)

    async def _check(self, due: int) -> None:
        await self._rate(self._competing)
        worst = sorted(self._competing, key=lambda i: (self._ratings[i].value, -i))
        for i in worst[: self._share()]:
            self._drop(i)
        if self._search.max_held_tokens is not None:
            for i in [i for i in worst if i in self._running]:
                if self._has_room(due):
                    break
                self._drop(i)

    def _drop(self, i: int) -> None:
        self._competing.remove(i)
        if i in self._running:
            self._running.remove(i)
            self._writers[i].answer.finish(FinishReason.PRUNED)
            self._writers[i].close()

    async def _advance(self, i: int, due: int) -> None:
        writer = self._writers[i]
        await writer.advance(lambda: len(writer.answer.tokens) >= due)
        if writer.answer.done:
            writer.close()
