"""What a search maximises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.request.fields import Many, Range, Rated

__all__ = ["AnyObjective", "Combine", "Objective", "RewardFunction", "RewardTerm"]

RewardFunction = Callable[[str, str], float]  # of the prompt's text and an answer's


@dataclass(frozen=True, slots=True)
class RewardTerm:
    """A reward by name, and its weight."""

    reward: Annotated[str, Rated(beginnings=None)]
    weight: Annotated[float, Range("[-1e6, 1e6]")] = 1.0


class Combine(StrEnum):
    """How the terms of an objective become one number."""

    SUM = "sum"  # weighted sum
    LOG_SIGMOID = "log_sigmoid"  # weighted sum of ln sigmoid(reward, centred by its calibration): a soft AND
    MIN = "min"  # of weight x reward
    CONSERVATIVE = "conservative"  # weighted mean minus the spread: against over-optimisation


@dataclass(frozen=True, slots=True)
class Objective:
    """What a search maximises. Wherever one is wanted, the name of a reward will do.

    In a program a function of the prompt and an answer will do as well: it rates the answers of that one request, under
    its own name. Such a request can't be sent to a server, nor written as JSON.

    Attributes:
        terms: one or several rewards.
        combine: how they are put together.
        spread: factor of the standard deviation for ``Combine.CONSERVATIVE``.
    """

    terms: Annotated[tuple[RewardTerm, ...], Many(1, 32)]
    combine: Combine = Combine.SUM
    spread: Annotated[float, Range("[0, 1e6]")] = 1.0

    @classmethod
    def of(cls, value: AnyObjective) -> Objective:
        """From the name of a reward, or from names and weights.

        Raises:
            InvalidRequest: it is a function, which has a name only in an engine (see ``rewards.own``).
        """
        if isinstance(value, Objective):
            return value
        if isinstance(value, str):
            return cls((RewardTerm(value),))
        if not isinstance(value, Mapping):
            raise InvalidRequest.of("objective", value, FUNCTION_ACCEPTED)
        return cls(tuple(RewardTerm(name, weight) for name, weight in value.items()))


AnyObjective = str | Mapping[str, float] | Objective | RewardFunction
FUNCTION_ACCEPTED = (
    "the name of a reward: a function is for an engine in the same program; to name it, give it to "
    "Engine(rewards={NAME: function}), or to a server's configuration as type = 'python'"
)
