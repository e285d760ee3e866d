"""Rating samples under an objective: every reward once, side by side, and one number per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.decode.errors import UnsupportedRequest
from trimtab.decode.frozen import FrozenDict
from trimtab.decode.ops import Context, gather
from trimtab.decode.request.objective import AnyObjective, Combine, Objective
from trimtab.decode.rewards.base import PairwiseReward, Reward, Sample
from trimtab.decode.rewards.combine import combine, log_sigmoid, sigmoid
from trimtab.decode.rewards.evaluation import evaluate, evaluate_pairs
from trimtab.decode.rewards.folding import fold, fold_pairs

__all__ = ["Rating", "compare", "rate"]


@dataclass(frozen=True, slots=True)
class Rating:
    """How good one sample is.

    Attributes:
        value: under the objective; more is better.
        by_name: what each reward of the objective said.
    """

    value: float
    by_name: Mapping[str, float]


async def rate(context: Context, objective: AnyObjective, samples: Sequence[Sample]) -> list[Rating]:
    """Rate samples under an objective; equal ones once.

    Args:
        context: of the request; knows the rewards by name.
        objective: one or several rewards and how they are combined.
        samples: answers or beginnings, of one prompt or of several.

    Returns:
        One rating per sample, in order. Each depends on its own sample alone.

    Raises:
        RewardFailed: a reward raised, took too long, or gave the wrong count or numbers that are not finite.
        UnsupportedRequest: a reward of the objective compares answers and can't rate one.
    """
    objective = Objective.of(objective)
    if not samples:
        return []
    names = tuple(dict.fromkeys(term.reward for term in objective.terms))
    rewards: dict[str, Reward] = {name: context.reward(name) for name in names}
    for name, reward in rewards.items():
        if reward.pairwise:
            accepted = "a reward that rates single answers; this one compares two, for choose = 'tournament'"
            raise UnsupportedRequest("objective.terms", name, accepted)
    return await _rate(context, objective, rewards, samples)


async def _rate(
    context: Context, objective: Objective, rewards: Mapping[str, Reward], given: Sequence[Sample]
) -> list[Rating]:
    samples, places = fold(given)
    names = tuple(rewards)
    columns = await gather(*(evaluate(context, rewards[name], samples) for name in names))
    values = dict(zip(names, columns, strict=True))
    terms = {name: values[name] for name in names}
    if objective.combine is Combine.LOG_SIGMOID:
        centred = await gather(*(_centred(context, rewards[name], samples, values[name]) for name in names))
        terms = {name: [log_sigmoid(value) for value in column] for name, column in zip(names, centred, strict=True)}
    weights = [term.weight for term in objective.terms]
    ratings = [
        Rating(
            combine(objective, weights, [terms[term.reward][i] for term in objective.terms]),
            FrozenDict({name: values[name][i] for name in names}),
        )
        for i in range(len(samples))
    ]
    return [ratings[place] for place in places]


async def compare(context: Context, objective: AnyObjective, pairs: Sequence[tuple[Sample, Sample]]) -> list[float]:
    """Which of two samples is better under an objective.

    A pairwise reward is asked; of other rewards the difference of the ratings is a log-odds (Bradley and Terry, 1952).
    Where an objective mixes both, its probabilities are averaged by weight. A sample is rated once, however many pairs
    it is in; a comparison is asked for once, and none of two equal samples.

    Returns:
        Per pair the probability that its first sample is the better one; p(a, b) = 1 - p(b, a).

    Raises:
        RewardFailed: as ``rate``.
        UnsupportedRequest: an objective with a pairwise reward is combined other than by ``Combine.SUM``.
    """
    objective = Objective.of(objective)
    if not pairs:
        return []
    flat = [sample for pair in pairs for sample in pair]
    rewards: dict[str, Reward] = {term.reward: context.reward(term.reward) for term in objective.terms}
    if not any(reward.pairwise for reward in rewards.values()):
        ratings = await _rate(context, objective, rewards, flat)
        return [sigmoid(a.value - b.value) for a, b in zip(ratings[::2], ratings[1::2], strict=True)]
    if objective.combine is not Combine.SUM:
        raise UnsupportedRequest("objective.combine", objective.combine.value, "'sum' with a pairwise reward")
    columns = await gather(*(_odds(context, reward, pairs, flat) for reward in rewards.values()))
    odds = dict(zip(rewards, columns, strict=True))
    total = sum(abs(term.weight) for term in objective.terms) or 1.0
    return [
        0.5 + sum(term.weight * (odds[term.reward][i] - 0.5) for term in objective.terms) / total
        for i in range(len(pairs))
    ]


async def _odds(
    context: Context, reward: Reward, pairs: Sequence[tuple[Sample, Sample]], flat: Sequence[Sample]
) -> list[float]:
    if not isinstance(reward, PairwiseReward):
        samples, places = fold(flat)
        found = await evaluate(context, reward, samples)
        values = [found[place] for place in places]
        return [sigmoid(a - b) for a, b in zip(values[::2], values[1::2], strict=True)]
    asked, answers = fold_pairs(pairs)
    odds = await evaluate_pairs(context, reward, asked) if asked else []
    return [0.5 if i is None else 1 - odds[i[0]] if i[1] else odds[i[0]] for i in answers]


async def _centred(context: Context, reward: Reward, samples: Sequence[Sample], values: Sequence[float]) -> list[float]:
    """Ratings from where the reward's reference puts zero, in its units."""
    if reward.reference is None:
        return list(values)
    places = await reward.reference.places(context, reward, samples)
    return [(value - centre) / scale for value, (centre, scale) in zip(values, places, strict=True)]
