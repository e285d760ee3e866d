"""How several rewards become one number. Pure formulas; ratings in, a rating out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimtab.decode.request.objective import Combine, Objective

__all__ = ["combine", "log_sigmoid", "sigmoid"]


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def log_sigmoid(x: float) -> float:
    """ln sigmoid(x): almost x below zero and almost 0 above, so that no reward can buy what another lacks.

    With x centred on what a base model reaches, a sum of these is a soft AND (Wang et al., "Transforming and Combining
    Rewards for Aligning Large Language Models", ICML 2024, sections 3 and 4).
    """
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def combine(objective: Objective, weights: Sequence[float], values: Sequence[float]) -> float:
    """One number from the objective's terms.

    Args:
        objective: says how.
        weights: per term.
        values: per term; for ``LOG_SIGMOID`` already transformed.

    ``SUM`` and ``LOG_SIGMOID``: sum of weight x value. ``MIN``: the least weight x value.

    ``CONSERVATIVE``: mean - spread x standard deviation over the terms; their shares are as the sizes of their weights,
    and a negative weight turns its reward round (Coste et al., "Reward Model Ensembles Help Mitigate Overoptimization",
    ICLR 2024, section 3.2, with the standard deviation in place of the variance).
    """
    products = [weight * value for weight, value in zip(weights, values, strict=True)]
    match objective.combine:
        case Combine.SUM | Combine.LOG_SIGMOID:
            return math.fsum(products)
        case Combine.MIN:
            return min(products)
        case Combine.CONSERVATIVE:
            total = math.fsum(map(abs, weights))
            if not total:
                return 0.0
            mean = math.fsum(products) / total
            turned = [math.copysign(1.0, weight) * value for weight, value in zip(weights, values, strict=True)]
            variance = math.fsum(abs(w) * (v - mean) ** 2 for w, v in zip(weights, turned, strict=True)) / total
            return mean - objective.spread * math.sqrt(variance)
