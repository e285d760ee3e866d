"""Choosing among finished texts without a reward: by what they say, or by how much they are alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["agreement", "conclusion", "copeland", "majority", "similarity"]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_WORD = re.compile(r"\w+", re.UNICODE)


def conclusion(text: str) -> str:
    """What an answer comes to, in a form that equal answers share.

    The last number in it, without thousands separators and trailing zeros; else its words in lower case, without
    punctuation. So "… = 1,200.50." and "1200.5" agree, as do "Yes!" and "yes".
    """
    numbers = _NUMBER.findall(text)
    if not numbers:
        return " ".join(_WORD.findall(text.casefold()))
    digits = numbers[-1].replace(",", "")
    negative, digits = digits.startswith("-"), digits.lstrip("-")
    whole, _, fraction = digits.partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if negative and number != "0" else number


def majority(texts: Sequence[str]) -> list[int]:
    """Indices of the answers that conclude what most do; ties go to the conclusion given first.

    An answer that says nothing has no vote, unless none says anything.
    """
    said = [conclusion(text) for text in texts]
    votes = Counter(what for what in said if what) or Counter(said)
    most = max(votes.values())
    winner = next(what for what in said if votes[what] == most)
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
