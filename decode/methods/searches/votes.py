"""Choosing among finished texts by votes, by how much they are alike, or by comparing pairs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["agreement", "copeland", "majority", "similarity", "tally", "vote_weights"]

_WORD = re.compile(r"\w+", re.UNICODE)


def vote_weights(ratings: Sequence[float]) -> list[float]:
    """What each answer's vote counts: its rating; where one is negative, how much better it is than the worst.

    So a vote never counts against its conclusion, and a better answer counts more whatever the scale.
    """
    least = min((0.0, *ratings))
    return [rating - least for rating in ratings]


def tally(said: Sequence[str], weights: Sequence[float] | None = None) -> list[float]:
    """Per answer the share of the votes that its conclusion has, in [0, 1].

    Args:
        said: conclusions; an empty one has no vote, unless all are empty.
        weights: of the votes, >= 0; None counts each as one, as does a sum of zero.
    """
    if not any(said):
        return [1.0] * len(said)
    votes: dict[str, float] = {}
    for what, weight in zip(said, [1.0] * len(said) if weights is None else weights, strict=True):
        if what:
            votes[what] = votes.get(what, 0.0) + weight
    total = sum(votes.values())
    if not total:
        return tally(said)
    return [votes.get(what, 0.0) / total for what in said]


def majority(said: Sequence[str], weights: Sequence[float] | None = None) -> list[int]:
    """Indices of the answers whose conclusion has the most votes; ties go to the conclusion given first.

    Arguments as ``tally``. The sum of ratings per conclusion is the weighted vote of Li et al. ("Making Language Models
    Better Reasoners with Step-Aware Verifier", ACL 2023), the count alone self-consistency (Wang et al., ICLR 2023).
    """
    shares = tally(said, weights)
    most = max(shares)
    # What is equal but for the order of a sum is a tie.
    winner = next(what for what, share in zip(said, shares, strict=True) if share >= most - 1e-12 * most)
    return [i for i, what in enumerate(said) if what == winner]


def similarity(a: Counter[tuple[str, ...]], b: Counter[tuple[str, ...]]) -> float:
    """F1 of shared n-grams, in [0, 1]; 1 for two empty texts."""
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0


def agreement(texts: Sequence[str]) -> list[float]:
    """Mean similarity of each text to the others: its expected utility under the candidates (minimum Bayes risk).

    The utility is the F1 of words and pairs of words in lower case. 0 for a single text.
    """
    grams = [_grams(text) for text in texts]
    sums = [0.0] * len(texts)
    for i in range(len(texts)):
        for j in range(i):
            alike = similarity(grams[i], grams[j])
            sums[i] += alike
            sums[j] += alike
    return [value / max(1, len(texts) - 1) for value in sums]


def _grams(text: str) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    return Counter([*((word,) for word in words), *pairwise(words)])


def copeland(n: int, odds: Sequence[float]) -> list[tuple[float, float]]:
    """Per contestant the share of the others that it beats (ties count half), and its mean margin over them.

    Copeland's rule: whoever beats all others wins, and where there is a cycle nobody in it gains by it.

    Args:
        n: contestants.
        odds: probability that i beats j, for all i < j in lexicographic order.
    """
    wins, margins = [0.0] * n, [0.0] * n
    pairs = ((i, j) for i in range(n) for j in range(i + 1, n))
    for (i, j), p in zip(pairs, odds, strict=True):
        won = 0.5 if p == 0.5 else float(p > 0.5)
        wins[i] += won
        wins[j] += 1 - won
        margins[i] += p - 0.5
        margins[j] += 0.5 - p
    others = max(1, n - 1)
    return [(win / others, margin / others) for win, margin in zip(wins, margins, strict=True)]
