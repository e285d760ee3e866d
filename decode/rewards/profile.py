"""A named objective that is itself a reward: a preference direction over several rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trimtab.decode.request.objective import Combine, Objective, RewardTerm
from trimtab.decode.rewards.base import EngineReward, Kind, Sample
from trimtab.decode.rewards.options import OptionError, choice, number, table
from trimtab.decode.rewards.rating import rate

if TYPE_CHECKING:
    from trimtab.decode.ops import Context
    from trimtab.decode.rewards.base import Reward
    from trimtab.decode.rewards.registry import Site

__all__ = ["Profile", "profile"]

_ORDER: tuple[Kind, ...] = ("sequence", "prefix", "token")


class Profile(EngineReward):
    """Rates by an objective over other rewards; it can rate what all of them can.

    Args:
        objective: over rewards of the same engine.
        rewards: those that it names.
    """

    def __init__(self, objective: Objective, rewards: Sequence[Reward]) -> None:
        self.objective = objective
        self.kind = min((reward.kind for reward in rewards), key=_ORDER.index)
        self.models = tuple(dict.fromkeys(model for reward in rewards for model in reward.models))
        self.needs_reference = any(reward.needs_reference for reward in rewards)
        self.reads_prompt = any(reward.reads_prompt or reward.reference is not None for reward in rewards)
        terms = ", ".join(f"{term.reward} x {term.weight:g}" for term in objective.terms)
        self.description = f"{objective.combine.value} of {terms}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        return [rating.value for rating in await rate(context, self.objective, samples)]


def profile(terms: Mapping[str, float], site: Site, combine: str = "sum", spread: float = 1.0) -> Profile:
    """The type ``profile``: weights of other rewards by name, and how they are combined."""
    weights = table("terms", terms, "a table of rewards and their weights")
    found = []
    for name, weight in weights.items():
        number(f"terms.{name}", weight)
        found.append(site.reward(f"terms.{name}", name))
        if found[-1].pairwise:
            raise OptionError(f"terms.{name}", weight, "rewards that rate single answers; this one compares two")
    how = Combine(choice("combine", combine, [c.value for c in Combine]))
    number("spread", spread, 0)
    made = Profile(Objective(tuple(RewardTerm(n, w) for n, w in terms.items()), how, spread), found)
    made.brings = {name: config for reward in found for name, config in reward.brings.items()}
    return made
