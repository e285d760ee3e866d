"""What can be counted in a text, and how close a count is to what was asked for.

What the public checkers of IFEval count (Zhou et al., 2023; the files in lm-eval) is counted as they do: ``words``,
``sentences``, ``bullets``, ``placeholders``, ``highlights``, ``capital_words`` and ``commas``. Their expressions look
for the rest of a line, or of white space, from each place where one may begin; here each is read once, so that every
measure takes time linear in the text, whatever the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import regex

from trimtab.decode.rewards.options import OptionError, whole

__all__ = ["LONGEST", "LONGEST_FOR_LIBRARIES", "UNITS", "Bounds", "has_title", "measured", "paragraphs", "read_part"]

LONGEST = 1_000_000
"""Characters of a text that rules read; what comes after them counts for nothing."""

LONGEST_FOR_LIBRARIES = 50_000
"""The same for what other packages measure, which may take time quadratic in a word."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_QUOTED_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]”’]*\s+")
# `^\s*` would read a run of empty lines from each of them; white space before the sign's own line changes no count.
_STAR_BULLET = re.compile(r"^[^\S\n]*+\*[^*].*", re.MULTILINE)
_DASH_BULLET = re.compile(r"^[^\S\n]*+-", re.MULTILINE)
_LIST_ITEM = re.compile(r"^[^\S\n]*+(?:-|\*(?!\*)|•)[^\S\n]*+\S", re.MULTILINE)
# A bracket that nothing closes on its line takes the line with it: no later one of that line is closed either.
_BRACKET = re.compile(r"\[[^\]\n]*+(\]?)")
_STARRED = re.compile(r"\*[^\n*]*+\*")
_DOUBLE_STARRED = re.compile(r"\*\*[^\n*]*+\*\*")
_WORD = regex.compile(r"\w+")  # not re's: to that the marks of Hindi or Thai, say, end a word
_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")


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


def read_part(text: str) -> str:
    """What rules read of a text: its first ``LONGEST`` characters."""
    return text[:LONGEST]


def measured(measure: Callable[[str], float], text: str, worst: float) -> float:
    """What a package says of a text, of its first ``LONGEST_FOR_LIBRARIES`` characters.

    ``worst`` where it says nothing of a text of this kind: where it raises what a text may bring it to (a division by
    its sentences, an index into its words), or gives no finite number. A text fails no request, nor other texts.
    """
    try:
        value = float(measure(text[:LONGEST_FOR_LIBRARIES]))
    except (ArithmeticError, LookupError, RecursionError, ValueError):
        return worst
    return value if math.isfinite(value) else worst


def paragraphs(text: str, divider: str = "\n\n") -> list[str]:
    """Pieces between dividers, stripped; empty ones too."""
    return [part.strip() for part in text.strip().split(divider)]


def has_title(text: str) -> bool:
    """Whether a line has a title in double angular brackets, <<like this>>."""
    return any(map(_titled, text.split("\n")))


def _titled(line: str) -> bool:
    begin, end = line.find("<<"), line.rfind(">>")
    return 0 <= begin < end - 2 and bool(line[begin : end + 2].lstrip("<").rstrip(">").strip())


def _words(text: str) -> int:
    """Runs of letters with their marks, digits and underscores."""
    return len(_WORD.findall(text))


def _sentences(text: str) -> int:
    """Pieces that end in '.', '!' or '?' right before white space. A plain rule: abbreviations count as ends."""
    return sum(map(bool, _SENTENCE_END.split(text.strip())))


def _quoted_sentences(text: str) -> int:
    """As ``_sentences``; quotes and brackets may stand between the sign and the white space."""
    return sum(map(bool, _QUOTED_SENTENCE_END.split(text.strip())))


def _bullets(text: str) -> int:
    """Lines that begin with '-', or with '*' and another sign; of the latter, one may be the next line's break."""
    return len(_STAR_BULLET.findall(text)) + len(_DASH_BULLET.findall(text))


def _list_items(text: str) -> int:
    """Lines that begin with '-', one '*' or '•' and have something to say."""
    return len(_LIST_ITEM.findall(text))


def _placeholders(text: str) -> int:
    """[Square brackets] that close on their line, empty ones too."""
    return sum(map(bool, _BRACKET.findall(text)))


def _highlights(text: str) -> int:
    """*Texts* between single stars and **texts** between double ones, on one line; none is blank."""
    single = sum(bool(found.strip("*").strip()) for found in _STARRED.findall(text))
    return single + sum(bool(found[2:-2].strip()) for found in _DOUBLE_STARRED.findall(text))


UNITS: dict[str, Callable[[str], int]] = {
    "characters": len,
    "words": _words,
    "sentences": _sentences,
    "quoted_sentences": _quoted_sentences,
    "paragraphs": lambda text: sum(map(bool, paragraphs(text))),
    "lines": lambda text: sum(map(bool, map(str.strip, text.splitlines()))),
    "bullets": _bullets,
    "list_items": _list_items,
    "placeholders": _placeholders,
    "highlights": _highlights,
    "capital_words": lambda text: sum(map(str.isupper, _WORD_OR_SIGN.findall(text))),
    "commas": lambda text: text.count(","),
}
"""What ``length`` and the constraints count, by name."""
