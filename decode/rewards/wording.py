"""How a text is worded: its readability (textstat) and whether it swears (alt-profanity-check)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.decode.rewards.base import LocalReward, Sample
from trimtab.decode.rewards.measures import LONGEST_FOR_LIBRARIES, measured
from trimtab.decode.rewards.options import choice, needed, number

__all__ = ["Profanity", "Readability", "profanity", "readability"]

# Formulas of textstat, and whether a larger value is easier to read.
_FORMULAS = {
    "flesch_reading_ease": True,
    "flesch_kincaid_grade": False,
    "gunning_fog": False,
    "smog_index": False,
    "automated_readability_index": False,
    "coleman_liau_index": False,
    "dale_chall_readability_score": False,
}


class Readability(LocalReward):
    """How easy a text is to read, or how close it is to a wanted level.

    Args:
        formula: ``flesch_reading_ease`` (0 to 100, more is easier) or one of the grade levels.
        target: wanted value of the formula; the reward is then minus the distance from it. None: easier is better.

    A text without a word has the reward of the least readable one, -100, and so has one that textstat can't measure. Of
    a text its first ``measures.LONGEST_FOR_LIBRARIES`` characters are read.
    """

    kind = "prefix"

    def __init__(self, formula: str = "flesch_reading_ease", target: float | None = None) -> None:
        self.formula = choice("formula", formula, tuple(_FORMULAS))
        self.target = None if target is None else number("target", target)
        self._measure: Any = getattr(needed("textstat", "rewards"), formula)
        self.description = formula if target is None else f"closeness of {formula} to {target:g}"

    def rate(self, samples: Sequence[Sample]) -> Sequence[float]:
        return [self._rated(sample.text) for sample in samples]

    def _rated(self, text: str) -> float:
        if not any(map(str.isalnum, text)):
            return -100.0
        return max(-100.0, measured(self._closeness, text, -100.0))

    def _closeness(self, text: str) -> float:
        value = float(self._measure(text))
        if self.target is not None:
            return -abs(value - self.target)
        return value if _FORMULAS[self.formula] else -value


class Profanity(LocalReward):
    """Minus the probability that a text is offensive, by a linear model over its words: in [-1, 0].

    Of a text its first ``measures.LONGEST_FOR_LIBRARIES`` characters are read; -1 where they can't be.
    """

    kind = "prefix"
    description = "minus the probability of profanity"

    def __init__(self) -> None:
        self._predict: Any = needed("profanity_check", "rewards").predict_prob

    def rate(self, samples: Sequence[Sample]) -> Sequence[float]:
        texts = [sample.text[:LONGEST_FOR_LIBRARIES] for sample in samples]
        try:
            return [-float(p) for p in self._predict(texts)]  # one text at a time takes ten times as long
        except ValueError:  # one of them can't be read
            return [measured(lambda text: -float(self._predict([text])[0]), text, -1.0) for text in texts]


def readability(formula: str = "flesch_reading_ease", target: float | None = None) -> Readability:
    """The type ``readability``."""
    return Readability(formula, target)


def profanity() -> Profanity:
    """The type ``profanity``."""
    return Profanity()
