"""Segment by segment with rejection (CARDS; Li, Wang and Zhang, "Cascade Reward Sampling for Efficient Decoding-Time
Alignment", COLM 2025).

A segment ends where the model becomes unsure. It is kept with probability min(1, exp((reward - bar) / beta)), and
drawn anew otherwise. The bar rises linearly with the tokens written, from between the prompt's own rating and the
target to the target at token 128, as published, or at ``search.target_tokens``; from there on it is the target. The
bar of a segment is that of its first token, so it is the same for every draw of the segment, however long: a reward
that rates everything alike leaves the model's distribution as it is. An accepted segment is final, and is sent to the
reader.

Unlike the published code, which always writes about 128 tokens, an answer ends where the model ends it, before the bar
has reached the target if it is short; and retries go on from the computed prefix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Self

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.chance import Choice, chance
from trimtab.decode.methods.searches.boundary import Boundary
from trimtab.decode.methods.searches.setting import Outcome, Setting, refuse_equals, rewards_of, written
from trimtab.decode.methods.writer import Writer
from trimtab.decode.request.check import Check
from trimtab.decode.request.events import Progress
from trimtab.decode.request.fields import Range, Rated
from trimtab.decode.request.method import Facts, Search
from trimtab.decode.request.objective import AnyObjective
from trimtab.decode.rewards.rating import Rating
from trimtab.kernels.types import Key

__all__ = ["RejectSegments"]


@dataclass(frozen=True, slots=True)
class RejectSegments(Search):
    """Draws segment by segment and redraws those whose answer so far is rated too low (CARDS; Li et al., 2024).

    A segment ends before a token whose entropy is above ``entropy_above``. It is accepted with probability
    min(1, exp((reward - bar) / beta)); the bar rises linearly from the prompt's own rating to ``target``. More than one
    try needs sampling, since greedy ones are all equal.

    Attributes:
        objective: what is good; its rewards must be able to rate a beginning.
        target: the reward that a whole answer should have.
        beta: tolerance; 0 accepts exactly what reaches the bar.
        entropy_above: nats.
        min_tokens, max_tokens: bounds on a segment.
        max_tries: draws of one segment; then the best of them is taken.
        start: share of ``target`` in the bar of the first segment, in [0, 1].
        target_tokens: where the bar reaches ``target``; 128 in the published code, whatever the answer's limit. 0: at
            ``stopping.max_new_tokens``.
    """

    objective: Annotated[AnyObjective, Rated(beginnings=True)]
    target: Annotated[float, Range("(-inf, inf)", "of the objective")]
    beta: Annotated[float, Range("[0, inf)")] = 0.7
    entropy_above: Annotated[float, Range("[0, inf)", "of nats")] = 3.0
    min_tokens: Annotated[int, Range("[1, inf)")] = 4
    max_tokens: Annotated[int, Range("[1, inf)")] = 64
    max_tries: Annotated[int, Range("[1, 1000]")] = 20
    start: Annotated[float, Range("[0, 1]")] = 0.5
    target_tokens: Annotated[int, Range("[0, inf)")] = 128

    def check(self, check: Check) -> None:
        if check.fine(self.path, "min_tokens", "max_tokens") and self.max_tokens < self.min_tokens:
            check.refuse(
                f"{self.path}.max_tokens", self.max_tokens, f"a whole number >= min_tokens = {self.min_tokens}"
            )

    def resolved(self, facts: Facts) -> Self:
        refuse_equals(facts, f"{self.path}.max_tries", self.max_tries, self.max_tries, "draws of a segment")
        return self

    async def run(self, setting: Setting) -> Outcome:
        """Write the answer; there is one candidate."""
        return await _RejectSegments(setting, self).run()


class _RejectSegments:
    def __init__(self, setting: Setting, search: RejectSegments) -> None:
        self.setting, self.search = setting, search
        self.boundary = Boundary(search.max_tokens, search.min_tokens, entropy_above=search.entropy_above)
        self.generated = 0

    async def run(self) -> Outcome:
        setting, search = self.setting, self.search
        writer = setting.root(setting.key)
        sent = writer.answer.fork(setting.key, emit=setting.emit)
        rating: Rating | None = None
        low = await self._lowest(writer.answer)
        rise = search.target_tokens or setting.request.stopping.max_new_tokens
        await writer.prime()
        while not writer.answer.done:
            share = min(1.0, len(writer.answer.tokens) / rise)
            writer, rating = await self._segment(writer, low + share * (search.target - low))
            sent.replay(writer.answer, None if writer.answer.done else len(writer.answer.tokens))
        candidate = writer.answer.candidate(rewards_of(rating))
        return Outcome((candidate,), reproducible=writer.reproducible)

    async def _lowest(self, empty: Answer) -> float:
        """The bar of the first segment."""
        start, target = self.search.start, self.search.target
        if start >= 1:
            return target
        (rating,) = await self.setting.ratings(self.search.objective, [empty])
        return (1 - start) * rating.value + start * target

    async def _segment(self, writer: Writer, bar: float) -> tuple[Writer, Rating]:
        """Draw a segment until one is accepted; the writer goes on as one that has written it."""
        key, position = writer.answer.key, len(writer.answer.tokens)
        best: tuple[Writer, Rating] | None = None
        for k in range(self.search.max_tries):
            own = key if k == 0 else key.child(position, k)
            last = k == self.search.max_tries - 1
            attempt = writer if last and best is None else writer.fork(own)
            await self.boundary.advance(attempt)
            self.generated += len(attempt.answer.tokens) - position
            (rating,) = await self.setting.ratings(self.search.objective, [attempt.answer])
            accepted = self._accepts(rating.value - bar, own, position)
            # A draw of the same tokens as the best is no better: what differs is rounding.
            if (
                accepted
                or best is None
                or (rating.value > best[1].value and written(attempt.answer) != written(best[0].answer))
            ):
                if best is not None:
                    best[0].close()
                best = attempt, rating
            else:
                attempt.close()
            self.setting.emit(Progress(1, 0, self.generated, best[1].value))
            if accepted or self.setting.context.out_of_time():
                break
        assert best is not None
        if best[0] is not writer:
            writer.close()
        return best

    def _accepts(self, margin: float, key: Key, position: int) -> bool:
        if margin >= 0:
            return True
        beta = self.search.beta
        return beta > 0 and chance(key, position, Choice.SEGMENT) < math.exp(margin / beta)
