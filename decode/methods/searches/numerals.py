r"""Numbers as they stand in texts: 1,200.50, 3/4, 1 1/2, \frac{3}{4}, 75%, 2.5e-3, ½.

Equal numbers have one form, exactly: 0.75, 3/4, \frac34 and 75% are all "3/4". Dates, times and versions are no
numbers. Every pattern takes time in proportion to the text.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Numeral", "numerals", "plain"]

_MOST_DIGITS = 60  # a longer one is compared by its digits

_INTEGER = r"(?:\d{1,3}(?:,\d{3}){1,19}+(?!\d)|\d++)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d++)?+|\.\d++)(?:[eE][-+]?\d{{1,3}}(?!\d))?+"
_ARGUMENT = r"\s*+(?:\{{\s*+(?P<{0}>-?\d++)\s*+\}}|(?P<{0}1>\d))"
_NUMERAL = re.compile(
    rf"""
      (?<![^\W_]) (?<!\.)                                     # not within a word or another number
      (?:
        (?P<other>\d++ (?:[-/.:]\d++){{2,}}+ | \d{{1,2}}:\d\d(?!\d))
      |
        (?: (?<![\w)\]}}%]) (?P<sign>[-+]) )?+ (?:[$€£¥]\s?+)?+ (?P<inner>[-+])?+
        (?:
          (?: (?P<whole>\d++)\s*+ )?+ \\[dt]?frac {_ARGUMENT.format("a")} {_ARGUMENT.format("b")}
        | (?P<units>\d++)\s++(?P<part>\d++)/(?P<of>\d++)(?![\d/])
        | (?P<over>{_DECIMAL})\s?/\s?(?P<under>{_DECIMAL})
        | (?P<decimal>{_DECIMAL})
        )
        (?P<percent>\s?+% | \s?+per\s?cent\b)?
      )
    """,
    re.VERBOSE,
)
_BETWEEN_DIGITS = re.compile(r"(?<=\d)(?:\{,\}|\\[,;:! ])(?=\d)")
_VULGAR = re.compile(r"\d?[¼-¾⅐-⅞↉]")


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number in a plain text."""

    match: re.Match[str]

    @property
    def start(self) -> int:
        return self.match.start()

    @property
    def end(self) -> int:
        return self.match.end()

    @property
    def value(self) -> str:
        """Its one form: a whole number or a fraction in lowest terms; as it stands where it has too many digits."""
        return _value(self.match)


def plain(text: str) -> str:
    """The text with one way to write a minus, a percent sign, a vulgar fraction, and no emphasis."""
    text = text.replace("\u2212", "-").replace("\\%", "%").replace("\\$", "$").replace("**", " ")
    return _VULGAR.sub(_spelled, _BETWEEN_DIGITS.sub(",", text))


def _spelled(match: re.Match[str]) -> str:
    found = match.group()
    fraction = unicodedata.normalize("NFKC", found[-1]).replace("\u2044", "/")
    return f"{found[0]} {fraction}" if len(found) > 1 else fraction


def numerals(text: str) -> list[Numeral]:
    """The numbers of a plain text, in order."""
    return [Numeral(match) for match in _NUMERAL.finditer(text) if match["other"] is None]


def _value(match: re.Match[str]) -> str:
    negative = (match["sign"] == "-") != (match["inner"] == "-")
    digits = sum(character.isdigit() for character in match.group())
    if digits > _MOST_DIGITS or _denominator(match) == 0:
        return match.group().replace(",", "")
    value = _magnitude(match) / (100 if match["percent"] else 1)
    return str(-value if negative else value)


def _magnitude(match: re.Match[str]) -> Fraction:
    if match["decimal"]:
        return _fraction(match["decimal"])
    if match["under"]:
        return _fraction(match["over"]) / _fraction(match["under"])
    if match["of"]:
        return _fraction(match["units"]) + Fraction(int(match["part"]), int(match["of"]))
    top, bottom = match["a"] or match["a1"], match["b"] or match["b1"]
    return _fraction(match["whole"] or "0") + Fraction(int(top), int(bottom))


def _denominator(match: re.Match[str]) -> Fraction:
    return _fraction(match["under"] or match["of"] or match["b"] or match["b1"] or "1")


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
