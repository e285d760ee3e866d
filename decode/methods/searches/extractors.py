"""What votes are counted by: extractors of conclusions, built in and of other packages.

An *extractor* is called with the finished texts of all candidates and returns one conclusion for each: equal strings
are one vote, an empty one has none. Packages add theirs under the entry-point group ``trimtab.extractors``; one runs in
a thread, or in a process of its own where the function has ``runs_on = "process"`` (then it must be picklable).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Literal, cast

from trimtab.decode.errors import RewardFailed
from trimtab.decode.methods.searches import conclusions
from trimtab.decode.methods.searches.mathematics import available, mathematics
from trimtab.decode.ops import Call
from trimtab.decode.plugins import installed

__all__ = ["GROUP", "conclude", "extractors", "refusal"]

GROUP = "trimtab.extractors"

Extract = Callable[[Sequence[str]], Sequence[str]]

_LIMIT = 30.0  # seconds for all candidates
_MATH = "math"
_RULES: Mapping[str, Callable[[str], str]] = {
    "auto": conclusions.auto,
    "letter": conclusions.letter,
    "number": conclusions.number,
    "text": conclusions.words,
}


def extractors() -> list[str]:
    """Their names."""
    return [*_RULES, _MATH, *(name for name in _plugins() if name not in _RULES and name != _MATH)]


def refusal(name: object) -> str | None:
    """What would be accepted in place of ``name``; None where it names an extractor that can run."""
    if isinstance(name, str) and name in _RULES:
        return None
    if name == _MATH:
        others = ", ".join(other for other in extractors() if other != _MATH)
        return None if available() else f"one of {others}, or math with pip install 'trimtab[math]'"
    return None if isinstance(name, str) and name in _plugins() else f"one of {', '.join(extractors())}"


async def conclude(name: str, texts: Sequence[str]) -> list[str]:
    """What each text comes to, by the extractor of that name.

    Raises:
        RewardFailed: an extractor of another package raised, took too long, or gave no string for each text.
    """
    if name in _RULES:
        return cast("list[str]", await Call(_ruled, (name, tuple(texts))))
    if name == _MATH:
        try:
            return cast("list[str]", await Call(mathematics, (tuple(texts),), "process", _LIMIT))
        except (TimeoutError, RuntimeError):  # one step that no signal stops, or a process that died of it
            return cast("list[str]", await Call(_ruled, ("auto", tuple(texts))))
    return await _plugged(name, texts)


def _ruled(name: str, texts: Sequence[str]) -> list[str]:
    said = {text: _RULES[name](text) for text in dict.fromkeys(texts)}
    return [said[text] for text in texts]


async def _plugged(name: str, texts: Sequence[str]) -> list[str]:
    try:
        extract = _plugins()[name].load()
        where = cast('Literal["thread", "process"]', getattr(extract, "runs_on", "thread"))
        found = list(await Call(extract, (tuple(texts),), where, _LIMIT))
    except TimeoutError:
        raise RewardFailed(name, f"this extractor took longer than {_LIMIT:g} s", timed_out=True) from None
    except Exception as error:
        raise RewardFailed(name, f"this extractor raised {type(error).__name__}: {str(error)[:500]}") from error
    if len(found) != len(texts) or not all(isinstance(said, str) for said in found):
        raise RewardFailed(name, f"this extractor gave no string for each of {len(texts)} texts")
    return found


@cache
def _plugins() -> Mapping[str, metadata.EntryPoint]:
    return installed(GROUP)
