"""What a search maximises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from trimtab.decode.request.fields import Many, Range, Rated

__all__ = ["AnyObjective", "Combine", "Objective", "RewardTerm"]


@dataclass(frozen=True, slots=True)
class RewardTerm:
    """A reward by name, and its weight."""

    reward: Annotated[str, Rated(beginnings=None)]
    weight: Annotated[float, Range("(-inf, inf)")] = 1.0


class Combine(StrEnum):
    """How the terms of an objective become one number."""

    SUM = "sum"  # weighted sum
    LOG_SIGMOID = "log_sigmoid"  # weighted sum of ln sigmoid(reward, centred by its calibration): a soft AND
    MIN = "min"  # of weight x reward
    CONSERVATIVE = "conservative"  # weighted mean minus the spread: against over-optimisation


@dataclass(frozen=True, slots=True)
class Objective:
    """What a search maximises. Wherever one is wanted, the name of a reward will do.

    Attributes:
        terms: one or several rewards.
        combine: how they are put together.
        spread: factor of the standard deviation for ``Combine.CONSERVATIVE``.
    """

    terms: Annotated[tuple[RewardTerm, ...], Many(1, 32)]
    combine: Combine = Combine.SUM
    spread: Annotated[float, Range("[0, inf)")] = 1.0

    @classmethod
    def of(cls, value: str | Mapping[str, float] | Objective) -> Objective:
        """From the name of a reward, or from names and weights."""
        if isinstance(value, Objective):
            return value
        if isinstance(value, str):
            return cls((RewardTerm(value),))
        return cls(tuple(RewardTerm(name, weight) for name, weight in value.items()))


AnyObjective = str | Mapping[str, float] | Objective
