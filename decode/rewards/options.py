"""Checks of a reward's options, each of which names the option, the value and what would be accepted."""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from trimtab.decode.errors import TrimtabError

__all__ = ["OptionError", "choice", "flag", "hint", "needed", "number", "pattern", "table", "text", "texts", "whole"]


class OptionError(TrimtabError, ValueError):
    """An option of a reward can't be used; the registry says of which reward.

    Attributes:
        key: the option, e.g. ``terms.helpful``.
        value: what it was.
        accepted: what it takes.
    """

    def __init__(self, key: str, value: object, accepted: str) -> None:
        self.key, self.value, self.accepted = key, value, accepted
        super().__init__(f"{key} = {value!r}: accepted: {accepted}")


def number(
    key: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """A finite number in [low, high] and in (above, below)."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if fine and low <= cast("float", value) <= high and above < cast("float", value) < below:
        return float(cast("float", value))
    bounds = [f">= {low:g}"] * (low > -math.inf) + [f"> {above:g}"] * (above > -math.inf)
    bounds += [f"<= {high:g}"] * (high < math.inf) + [f"< {below:g}"] * (below < math.inf)
    raise OptionError(key, value, " ".join(["a finite number", " and ".join(bounds)]).strip())


def whole(key: str, value: object, low: int = 0, high: int = 2**53) -> int:
    """A whole number in [low, high]."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise OptionError(key, value, f"a whole number >= {low}" + (f" and <= {high}" if high < 2**53 else ""))


def flag(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise OptionError(key, value, "true or false")


def text(key: str, value: object, what: str = "a non-empty text") -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise OptionError(key, value, what)


def texts(key: str, value: object, what: str = "a non-empty list of non-empty texts") -> tuple[str, ...]:
    """A list of texts; one text counts as a list of one."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Sequence) and value and all(isinstance(v, str) and v.strip() for v in value):
        return tuple(cast("Sequence[str]", value))
    raise OptionError(key, value, what)


def choice(key: str, value: object, choices: Sequence[str]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise OptionError(key, value, f"one of {', '.join(choices)}")


def pattern(key: str, value: object, flags: int = 0) -> re.Pattern[str]:
    """A regular expression."""
    try:
        return re.compile(text(key, value, "a regular expression"), flags)
    except re.error as error:
        raise OptionError(key, value, f"a regular expression of Python's re ({error})") from error


def table(key: str, value: object, what: str) -> Mapping[str, object]:
    """A non-empty table."""
    if isinstance(value, Mapping) and value and all(isinstance(k, str) for k in value):
        return cast("Mapping[str, object]", value)
    raise OptionError(key, value, what)


def hint(key: object, known: Iterable[str]) -> str:
    """ " (did you mean ...?)" where something known is spelled alike."""
    close = difflib.get_close_matches(str(key), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def needed(module: str, extra: str) -> Any:
    """An optional dependency.

    Raises:
        OptionError: it is not installed; says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        accepted = f"only where {module.partition('.')[0]} is installed: pip install 'trimtab[{extra}]' ({error})"
        raise OptionError("type", module, accepted) from error
