"""Each token by the base's probability and a reward of the answer with it (ARGS; Khanov et al., ICLR 2024).

The most likely tokens are rated, all in one call, and one is chosen by ln p + weight x reward: the best at temperature
0 (the paper's greedy), else drawn from the softmax of that score over the temperature (the paper's stochastic variant).

Explicit rules where the published code has none:

* A token that ends the answer is a candidate like any other; it is rated as the finished answer. The code never ends.
* Bias and bans move a token in or out, and the repetition penalty scales its ln p (never positive), before the width is
  applied; top-k, top-p and min-p then leave out candidates by the base's probability alone, before any reward counts.
  Their mass is the candidates'. A positive bias lifts a token only from among the ``_LIFTED`` likeliest beyond these.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

from trimtab.decode.methods.answer import Answer, Preview
from trimtab.decode.methods.chance import Choice, chance, drawn
from trimtab.decode.methods.desk import Desk
from trimtab.decode.methods.writer import Team, Writer
from trimtab.decode.ops import Context, Extend, Read, Seq
from trimtab.decode.request.fields import Range, Rated
from trimtab.decode.request.method import Policy
from trimtab.decode.request.result import FinishReason, Token, TopLogprob

__all__ = ["RateAnswers", "TokenReward", "TokenRewardWriter"]


@dataclass(frozen=True, slots=True)
class TokenReward(Policy):
    """Each token is chosen among the base's most likely ones by ln p + weight x reward (ARGS; Khanov et al., 2024).

    Attributes:
        reward: name of a prefix or token reward; it rates the answer with each token appended.
        weight: of the reward against ln p.
        width: tokens rated per position, in [2, 64].
    """

    reward: Annotated[str, Rated(beginnings=True)]
    weight: Annotated[float, Range("[-1e6, 1e6]")] = 1.0
    width: Annotated[int, Range("[2, 64]")] = 10

    # Its distribution needs a rating of every likely token, so there is nothing to verify at once.
    speculates: ClassVar[bool] = False

    def writer(self, desk: Desk) -> Writer:
        rate = desk.rating_of(self.reward)
        return TokenRewardWriter(desk.context, desk.open(), desk.answer(), desk.team, rate, self.weight, self.width)


_LIFTED = 64

# Rewards of what an answer would become: one number each, in order.
RateAnswers = Callable[[Sequence[Preview]], Awaitable[list[float]]]


class TokenRewardWriter(Writer):
    """Writes with a base whose likeliest tokens are rated.

    Args:
        context: of the request.
        seq: the base's prompt.
        answer, team: see ``Writer``.
        rate: rewards of answers.
        weight: of the reward against ln p.
        width: tokens rated per position.
    """

    def __init__(
        self,
        context: Context,
        seq: Seq,
        answer: Answer,
        team: Team,
        rate: RateAnswers,
        weight: float,
        width: int,
    ) -> None:
        super().__init__(answer, team)
        self._context, self._seq, self._rate = context, seq, rate
        self._weight, self._width = weight, width
        self._prompt = len(seq.tokens)
        self._unread: list[int] = []  # tokens of the answer that the base has not read
        self._chosen: Token | None = None  # not yet written

    @property
    def reproducible(self) -> bool:
        return True

    async def prime(self) -> None:
        unread, self._unread = self._unread, []
        await Extend(self._seq, unread)

    async def _next(self) -> Token | None:
        if self._chosen is not None:
            return self._chosen
        if len(self._seq.tokens) + len(self._unread) >= self._context.limit(self._seq.model):
            self.answer.finish(FinishReason.CONTEXT_FULL)
            return None
        pick = self.answer.pick(self._seq.model)
        edited = {*pick.banned, *pick.filters.bias}
        unread, self._unread = self._unread, []
        lifts = any(bias > 0 for bias in pick.filters.bias.values())
        wanted = max(self._width + len(edited) + _LIFTED * lifts, self.answer.top)
        (read,) = await Extend(self._seq, unread, (None,), wanted)
        scored = self._candidates(read, tuple(pick.banned))
        tokens = [self._token(read, found) for found, _ in scored]
        rewards = await self._rate([self.answer.preview([token]) for token in tokens])
        scores = [logp + self._weight * reward for (_, logp), reward in zip(scored, rewards, strict=True)]
        best = self._choose(scores)
        self._chosen = replace(tokens[best], reward=rewards[best])
        return self._chosen

    def _candidates(self, read: Read, banned: Sequence[int]) -> list[tuple[TopLogprob, float]]:
        """Tokens to be rated with their edited ln p, most likely first; at least one."""
        filters = self.answer.filters
        seen = set(self._seq.tokens) if filters.repetition_penalty != 1.0 else ()
        edited: list[tuple[TopLogprob, float]] = []
        for found in read.top:
            logp = found.logprob * (filters.repetition_penalty if found.id in seen else 1.0)
            logp += filters.bias.get(found.id, 0.0)
            if found.id not in banned and logp > -math.inf:
                edited.append((found, logp))
        edited.sort(key=lambda item: (-item[1], item[0].id))
        count = min(self._width, filters.top_k or self._width)
        kept = edited[:count]
        if filters.temperature == 0 or not kept:
            return kept
        top = kept[0][1]
        weights = [math.exp((logp - top) / filters.temperature) for _, logp in kept]
        total, before, last = sum(weights), 0.0, 0
        for i, weight in enumerate(weights):
            full = filters.top_p < 1 and before >= filters.top_p * total  # of a cold row one weight is the whole sum
            if full or weight < filters.min_p:
                break
            before, last = before + weight, i
        return kept[: last + 1]

    def _choose(self, scores: Sequence[float]) -> int:
        """The best, ties to the more likely one; or one drawn at the request's temperature."""
        best = max(range(len(scores)), key=lambda i: (scores[i], -i))
        temperature = self.answer.filters.temperature
        if temperature == 0:
            return best
        weights = [math.exp((score - scores[best]) / temperature) for score in scores]
        return drawn(weights, chance(self.answer.key, len(self.answer.tokens), Choice.TOKEN))

    def _token(self, read: Read, found: TopLogprob) -> Token:
        top = read.top[: self.answer.top]
        return Token(
            found.id,
            found.piece,
            self._seq.model,
            logprob=found.logprob,
            entropy=read.entropy,
            top_prob=read.top_prob,
            top=top,
        )

    def _took(self, token: Token) -> None:
        self._chosen = None
        self._unread.append(token.id)

    def _forget(self) -> None:
        self._chosen = None

    def _copy(self, answer: Answer) -> Self:
        twin = type(self)(self._context, self._seq.fork(), answer, self.team, self._rate, self._weight, self._width)
        twin._prompt, twin._unread, twin._chosen = self._prompt, list(self._unread), self._chosen
        return twin

    def _resume(self, other: Self) -> None:
        self._chosen = None
        self._seq.rewind(self._prompt)
        self._unread = [*other._seq.tokens[other._prompt :], *other._unread]

    def _release(self) -> None:
        self._seq.close()
