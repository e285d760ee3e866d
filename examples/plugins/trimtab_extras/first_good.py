"""Answers one after the other, until one is good enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

from trimtab.decode import AnyObjective
from trimtab.decode.extending import (
    Facts,
    Outcome,
    Range,
    Rated,
    Rating,
    Search,
    Setting,
    Writer,
    ranked,
    refuse_equals,
    rewards_of,
)


@dataclass(frozen=True, slots=True)
class FirstGood(Search):
    """Takes the first answer whose reward reaches the threshold: best of n that stops as soon as it may.

    If none does, the best one is given as an abstention.

    Attributes:
        objective: what is good.
        threshold: the least reward that is good enough.
        tries: answers at most; more than one needs sampling, since greedy ones are all equal.
    """

    objective: Annotated[AnyObjective, Rated()]
    threshold: Annotated[float, Range("(-inf, inf)", "of the objective")] = 0.0
    tries: Annotated[int, Range("[1, max_n]")] = 8

    @property
    def results(self) -> int:
        return self.tries

    def resolved(self, facts: Facts) -> Self:
        refuse_equals(facts, f"{self.path}.tries", self.tries, self.tries, "answers")
        return self

    async def run(self, setting: Setting) -> Outcome:
        """Write answers, in turn, until one reaches the threshold or there is no more time."""
        root = setting.root(setting.key)
        await root.prime()  # every try shares the prompt's cache
        writers: list[Writer] = []
        ratings: list[Rating] = []
        while len(writers) < self.tries and not (writers and setting.context.out_of_time()):
            number = len(writers)
            key = setting.key.child(0, number) if number else setting.key
            writer = root.fork(key, number)
            writers.append(writer)
            await writer.advance()
            writer.close()
            ratings += await setting.ratings(self.objective, [writer.answer])
            setting.progress(writers, max(rating.value for rating in ratings))
            if ratings[-1].value >= self.threshold:
                break
        selected = ranked([rating.value for rating in ratings])[0]
        candidates = tuple(w.answer.candidate(rewards_of(r)) for w, r in zip(writers, ratings, strict=True))
        setting.commit(candidates[selected])
        abstained = ratings[selected].value < self.threshold
        return Outcome(candidates, selected, abstained, all(writer.reproducible for writer in writers))
