"""A logistic composition of features, fitted to preferences (compositional preference models; Go et al., ICLR 2024).

Features are other rewards of the engine, each about one thing; their weights are fitted to pairs of answers of which
one is preferred, so that the difference of two ratings is the log-odds of the preference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.decode.ops import Context, gather
from trimtab.decode.rewards.base import EngineReward, Kind, Reward, Sample
from trimtab.decode.rewards.evaluation import evaluate
from trimtab.decode.rewards.options import OptionError, needed, number, table, text

if TYPE_CHECKING:
    from trimtab.decode.rewards.registry import Site

__all__ = ["Composition", "Logistic", "fit", "logistic"]

_ORDER: tuple[Kind, ...] = ("sequence", "prefix", "token")


@dataclass(frozen=True, slots=True)
class Composition:
    """Weights of features in their own units.

    Attributes:
        weights: reward -> log-odds per unit.
        intercept: of a single answer's rating; cancels in every comparison.
    """

    weights: Mapping[str, float]
    intercept: float = 0.0

    def save(self, path: Path) -> None:
        """Write it as JSON, for the option ``path`` of the type ``logistic``."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def fit(
    features: Sequence[str],
    preferred: Sequence[Sequence[float]],
    other: Sequence[Sequence[float]],
    regularisation: float = 1.0,
) -> Composition:
    """Fit weights to preferences; needs scikit-learn (the extra ``rewards``).

    Args:
        features: names of rewards.
        preferred, other: [n, features]: what they say of the better and the worse answer of each pair.
        regularisation: inverse variance of a normal prior over the weights of standardised features.

    Raises:
        OptionError: no pairs, ragged rows or numbers that are not finite.
    """
    import numpy as np

    better, worse = np.asarray(preferred, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if better.ndim != 2 or better.shape != worse.shape or better.shape[1] != len(features) or not len(better):
        shapes = f"{better.shape} and {worse.shape}"
        raise OptionError("preferred", shapes, f"two tables of one shape, [pairs, {len(features)}]")
    if not (np.isfinite(better).all() and np.isfinite(worse).all()):
        raise OptionError("preferred", "not finite", "finite numbers")
    number("regularisation", regularisation, above=0)
    linear = needed("sklearn.linear_model", "rewards")
    both = np.concatenate((better, worse))
    unit = both.std(axis=0)
    unit[unit == 0] = 1.0
    difference = (better - worse) / unit
    # Each pair in both orders: the two classes are balanced, and no order is preferred.
    model = linear.LogisticRegression(C=1 / (2 * regularisation), fit_intercept=False, max_iter=1000)
    model.fit(np.concatenate((difference, -difference)), np.repeat([1, 0], len(difference)))
    weights = model.coef_[0] / unit
    return Composition(dict(zip(features, map(float, weights), strict=True)), -float(weights @ both.mean(axis=0)))


class Logistic(EngineReward):
    """Rates by a composition: intercept + sum of weight x feature, in log-odds.

    Args:
        composition: names the rewards.
        rewards: they themselves, in that order.
    """

    def __init__(self, composition: Composition, rewards: Sequence[Reward]) -> None:
        self.composition = composition
        self.rewards = {reward.name: reward for reward in rewards}
        self.kind = min((reward.kind for reward in rewards), key=_ORDER.index)
        self.models = tuple(dict.fromkeys(model for reward in rewards for model in reward.models))
        self.needs_reference = any(reward.needs_reference for reward in rewards)
        self.reads_prompt = any(reward.reads_prompt for reward in rewards)
        self.description = f"log-odds fitted over {', '.join(composition.weights)}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        columns = await gather(*(evaluate(context, reward, samples) for reward in self.rewards.values()))
        weights = list(self.composition.weights.values())
        return [
            self.composition.intercept + sum(w * v for w, v in zip(weights, row, strict=True))
            for row in zip(*columns, strict=True)
        ]


def logistic(
    site: Site, path: str | None = None, weights: Mapping[str, float] | None = None, intercept: float = 0.0
) -> Logistic:
    """The type ``logistic``: a composition from a file that ``Composition.save`` wrote, or its weights themselves."""
    if (path is None) == (weights is None):
        raise OptionError("path", path, "a file, or else weights")
    key = "weights"
    if path is not None:
        key = "path"
        try:
            read = json.loads(Path(text("path", path)).read_text(encoding="utf-8"))
            weights, intercept = read["weights"], read["intercept"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError("path", path, f"a file that Composition.save wrote ({error})") from error
    found = table(key, weights, "a table of rewards and their weights")
    checked = {name: number(f"{key}.{name}", value) for name, value in found.items()}
    rewards = [site.reward(f"{key}.{name}", name) for name in checked]
    for reward in rewards:
        if reward.pairwise:
            raise OptionError(f"{key}.{reward.name}", reward.name, "rewards that rate single answers")
    made = Logistic(Composition(checked, number("intercept", intercept)), rewards)
    made.brings = {name: config for reward in rewards for name, config in reward.brings.items()}
    return made
