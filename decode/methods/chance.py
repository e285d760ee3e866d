"""Random choices other than tokens: which candidate, whether to accept, whom to replace.

They have a stream of random numbers to themselves; within it every purpose has an index of its own, so that two choices
at one position are independent.
"""

from __future__ import annotations

from enum import IntEnum

from trimtab.kernels.types import Key, Stream

__all__ = ["Choice", "Line", "chance", "drawn"]


class Line(IntEnum):
    """Branches at position 0 for lines of tokens beside the candidates; a search's forks and retries count from 0.

    Two lines that should be independent never share a branch, even where their seeds are equal.
    """

    HELPER = 2**32 - 1  # of models that help to write an answer
    CALIBRATION = 2**32 - 2  # of a base model's own answers, by which a reward is calibrated


class Choice(IntEnum):
    """What a number decides; part of the contract, as streams are."""

    TOKEN = 0  # among rated tokens
    SEGMENT = 1  # whether a segment is accepted
    CANDIDATE = 2  # among finished candidates
    PARENT = 3  # which instruction is rewritten
    SURVIVOR = 4  # who replaces a candidate; its number counts on from here


def chance(key: Key, position: int, choice: int) -> float:
    """A uniform number in (0, 1), of this branch and position."""
    return key.uniform(position, Stream.SEARCH, choice)


def drawn(weights: list[float], u: float) -> int:
    """The index that ``u``, uniform, draws in proportion to ``weights``; at least one is positive."""
    left = u * sum(weights)
    for i, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return i
    return max(i for i, weight in enumerate(weights) if weight > 0)
