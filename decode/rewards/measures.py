"""What can be counted in a text, and how close a count is to what was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from trimtab.decode.rewards.options import OptionError, whole

__all__ = ["UNITS", "Bounds", "paragraphs", "sentences", "words"]

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]”’]*\s+")
_BULLET = re.compile(r"^\s*(?:-|\*(?!\*)|•)\s*\S", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]+\]")
_HIGHLIGHT = re.compile(r"\*\*[^*\n]*[^*\s][^*\n]*\*\*|\*[^*\n]*[^*\s][^*\n]*\*")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many there should be.

    Attributes:
        low: at least so many.
        high: at most so many; None is no bound.
    """

    low: int = 0
    high: int | None = None

    @classmethod
    def of(cls, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> Bounds:
        """From the options of a count; at least one of them is needed.

        Raises:
            OptionError: none, one that is no whole number >= 0, or bounds that exclude one another.
        """
        given = {"at_least": at_least, "at_most": at_most, "exactly": exactly}
        for key, value in given.items():
            if value is not None:
                whole(key, value)
        if exactly is not None and (at_least is not None or at_most is not None):
            raise OptionError("exactly", exactly, "no at_least or at_most beside it")
        if all(value is None for value in given.values()):
            raise OptionError("at_least", None, "a whole number here, or as at_most or exactly")
        if exactly is not None:
            return cls(exactly, exactly)
        if at_least is not None and at_most is not None and at_least > at_most:
            raise OptionError("at_least", at_least, f"a whole number <= at_most = {at_most}")
        return cls(at_least or 0, at_most)

    def closeness(self, count: int, finished: bool = True) -> float:
        """1 exactly where the count is within the bounds, else in [0, 1), the more the closer.

        Below the lower bound the share that is there; above the upper one (high + 1) / (count + 1). Of a beginning
        more may come, but what is too much already stays so: it is rated as it stands.
        """
        if count < self.low:
            return count / self.low
        if self.high is not None and count > self.high:
            return (self.high + 1) / (count + 1)
        return 1.0


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Pieces that end in '.', '!' or '?' before white space. A plain rule: abbreviations count as ends."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


def paragraphs(text: str, divider: str = "\n\n") -> list[str]:
    """Pieces between dividers, stripped; empty ones too."""
    return [part.strip() for part in text.strip().split(divider)]


UNITS: dict[str, Callable[[str], int]] = {
    "characters": len,
    "words": lambda text: len(words(text)),
    "sentences": lambda text: len(sentences(text)),
    "paragraphs": lambda text: sum(map(bool, paragraphs(text))),
    "lines": lambda text: sum(map(bool, map(str.strip, text.splitlines()))),
    "bullets": lambda text: len(_BULLET.findall(text)),
    "placeholders": lambda text: len(_PLACEHOLDER.findall(text)),
    "highlights": lambda text: len(_HIGHLIGHT.findall(text)),
    "capital_words": lambda text: sum(map(str.isupper, words(text))),
    "commas": lambda text: text.count(","),
}
"""What ``length`` and the constraints count, by name."""
