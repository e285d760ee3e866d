"""Acceptance statistics: what became of a draft's blocks, and how likely the next tokens are accepted.

A token's probability of acceptance is a logistic regression on the log-odds of the probability that was read for it,
the draft's highest or that of its acceptance head, fitted as blocks are verified: two numbers, moved a little by every
token whose predecessors were accepted. At first they leave the probability as it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log

__all__ = ["AcceptanceStatistics"]

_MEMORY = 100.0  # blocks over which means are taken
_BELIEVED = 8.0  # blocks before means say something
_STEP = 0.02  # of the regression
_CHANCES = 64  # latest probabilities of acceptance, which stand for those to come
_PRIOR = 0.7  # one, before any


@dataclass(slots=True)
class AcceptanceStatistics:
    """Of the blocks of one draft for one target.

    Attributes:
        blocks: how many the means are of, at most those that are remembered.
        drafted, accepted: tokens of a block, mean.
        passes: of the draft in a round, mean.
        chances: latest probabilities of acceptance given that all before is accepted; of dropped tokens, too.
        intercept, slope: of the regression.
    """

    blocks: float = 0.0
    drafted: float = 0.0
    accepted: float = 0.0
    passes: float = 0.0
    chances: deque[float] = field(default_factory=lambda: deque([_PRIOR], _CHANCES))
    intercept: float = 0.0
    slope: float = 1.0
    _longest: int = 0  # passes that a block of the present round took

    @property
    def believed(self) -> bool:
        """Whether there are enough blocks to conclude anything from their means."""
        return self.blocks >= _BELIEVED

    @property
    def uncertainty(self) -> float:
        """Of the means beyond what it is in the long run, in standard deviations of a block."""
        return self.blocks**-0.5 - _MEMORY**-0.5 if self.blocks else 1.0

    def chance(self, read: float) -> float:
        """Probability that a token is accepted if all before it are.

        Args:
            read: the probability that was read for it.
        """
        found = self._predict(_log_odds(read))
        self.chances.append(found)
        return found

    def add(self, read: Sequence[float], accepted: int, passes: int) -> None:
        """A block was verified, or dropped whole.

        Args:
            read: for each of its tokens, the probability that was read.
            accepted: how many of them were.
            passes: of the draft.
        """
        for place, odds in enumerate(map(_log_odds, read[: accepted + 1])):
            error = (place < accepted) - self._predict(odds)
            self.intercept += _STEP * error
            self.slope += _STEP * error * odds / 4  # log-odds vary by a few units
        self.blocks = min(self.blocks + 1, _MEMORY)
        self.drafted += (len(read) - self.drafted) / self.blocks
        self.accepted += (accepted - self.accepted) / self.blocks
        self._longest = max(self._longest, passes)

    def end_round(self, rows: int) -> None:
        """The blocks of so many rows that shared passes were added."""
        if self._longest:
            self.passes += (self._longest - self.passes) * min(1.0, rows / self.blocks)
            self._longest = 0

    def fade(self) -> None:
        """Let what comes soon outweigh what was."""
        self.blocks = min(self.blocks, _BELIEVED)

    def _predict(self, odds: float) -> float:
        return 1 / (1 + exp(-self.intercept - self.slope * odds))


def _log_odds(probability: float) -> float:
    bounded = min(max(probability, 0.002), 0.998)
    return log(bounded / (1 - bounded))
