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

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.chance import Choice, chance
from trimtab.decode.methods.searches.boundary import Boundary
from trimtab.decode.methods.searches.setting import Outcome, Setting, rewards_of, written
from trimtab.decode.methods.writer import Writer
from trimtab.decode.request.events import Progress
from trimtab.decode.request.methods import RejectSegments
from trimtab.decode.rewards.rating import Rating
from trimtab.kernels.types import Key

__all__ = ["reject_segments"]


async def reject_segments(setting: Setting, search: RejectSegments) -> Outcome:
    """Write the answer; there is one candidate."""
    return await _RejectSegments(setting, search).run()


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
