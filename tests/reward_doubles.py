"""Rewards that are functions given by a test, and what they were asked.

An engine serves a copy of the reward that it is given; the copy writes into the same lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.decode.rewards.base import Kind, LocalReward, PairwiseReward, Sample


class Rated(LocalReward):
    """A reward by a function of the answer.

    Attributes:
        samples: rated so far.
        calls: how many samples each call had.
    """

    def __init__(self, of: Callable[[Sample], float], kind: Kind = "token", **attributes: Any) -> None:
        self.of, self.kind = of, kind
        self.samples: list[Sample] = []
        self.calls: list[int] = []
        vars(self).update(attributes)

    def rate(self, samples: Sequence[Sample]) -> Sequence[float]:
        self.calls.append(len(samples))
        self.samples += samples
        return [self.of(sample) for sample in samples]

    def forget(self) -> None:
        self.calls.clear()
        self.samples.clear()


class Compared(PairwiseReward):
    """A pairwise reward by a function of two texts: the probability that the first is the better one.

    Attributes:
        pairs: texts compared so far.
    """

    def __init__(self, of: Callable[[str, str], float]) -> None:
        self.of = of
        self.pairs: list[tuple[str, str]] = []

    async def compare(self, context: Any, pairs: Sequence[tuple[Sample, Sample]]) -> Sequence[float]:
        texts = [(first.text, second.text) for first, second in pairs]
        self.pairs += texts
        return [self.of(*two) for two in texts]

    def forget(self) -> None:
        self.pairs.clear()
