"""How much of a text is JSON: where a beginning stops being one, and whether it is complete."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["MAX_DEPTH", "MAX_DIGITS", "Progress", "json_progress", "may_open", "unfenced", "unopened"]

MAX_DEPTH = 900
"""Arrays and objects that may be open at once; Python's own reader gives up a little later."""

MAX_DIGITS = 4300
"""Digits of a whole number: more of them Python refuses to read, as the time it takes is quadratic."""

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(0|[1-9]\d*+)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_NUMBER_BEGUN = re.compile(r"-?(?:(?:0|[1-9]\d*+)(?:\.\d*+)?(?:(?<=\d)[eE][+-]?)?)?\Z", re.ASCII)
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_FENCES = ("```json", "```Json", "```JSON", "```")
_CLOSE = {"{": "}", "[": "]"}
_WORDS = ("true", "false", "null")
_NAN_WORDS = (*_WORDS, "NaN", "Infinity", "-Infinity")


class Progress(NamedTuple):
    """``valid``: characters up to which the text can begin a JSON document. ``complete``: it is a whole one."""

    valid: int
    complete: bool


class _Bad(Exception):
    def __init__(self, at: int) -> None:
        self.at = at


class _End(Exception):
    """The text ends inside a document."""


def unfenced(text: str) -> str:
    """A whole text without the Markdown code fence around it, and stripped, as IFEval's checker has it."""
    return unopened(text).removesuffix("```").strip()


def unopened(text: str) -> str:
    """A text, stripped, without what opens a Markdown code fence."""
    said = text.strip()
    for fence in _FENCES:
        said = said.removeprefix(fence)
    return said


def may_open(text: str) -> bool:
    """Whether a text, perhaps empty, is the beginning of what opens a fence."""
    return any(fence.startswith(text) for fence in _FENCES)


def json_progress(text: str, nan: bool = False) -> Progress:
    """Read one JSON document (RFC 8259) with nothing but white space around it; time linear in the text.

    A whole number of more than ``MAX_DIGITS`` digits is at fault from its first, and so is what is nested deeper than
    ``MAX_DEPTH``. With ``nan``, NaN, Infinity and -Infinity are numbers, as Python's own reader has it.
    """
    try:
        end = _document(text, _NAN_WORDS if nan else _WORDS)
    except _End:
        return Progress(len(text), False)
    except _Bad as bad:
        return Progress(bad.at, False)
    end = _skip(text, end)
    return Progress(end, end == len(text))


def _document(text: str, words: tuple[str, ...]) -> int:
    """The index after the document. A stack of its own: what is nested deep must not end Python's."""
    at = _skip(text, 0)
    closers: list[str] = []
    while True:
        close = _CLOSE.get(text[at : at + 1])
        if close is None:
            at = _scalar(text, at, words)
        elif len(closers) == MAX_DEPTH:
            raise _Bad(at)
        else:
            closers.append(close)
            at = _skip(text, at + 1)
            if not text.startswith(close, at):
                at = _key(text, at) if close == "}" else at
                continue
        at = _closed(text, at, closers)
        if not closers:
            return at
        at = _expect(text, at, ",")
        at = _key(text, at) if closers[-1] == "}" else at


def _closed(text: str, at: int, closers: list[str]) -> int:
    """After a value, or where one was opened and nothing is in it: what closes here, closes."""
    while closers:
        end = _skip(text, at)
        if not text.startswith(closers[-1], end):
            return end
        closers.pop()
        at = end + 1
    return at


def _key(text: str, at: int) -> int:
    if at == len(text):
        raise _End
    if text[at] != '"':
        raise _Bad(at)
    return _expect(text, _string(text, at), ":")


def _scalar(text: str, at: int, words: tuple[str, ...]) -> int:
    """The index after the string, word or number that begins at ``at``."""
    if at == len(text):
        raise _End
    if text[at] == '"':
        return _string(text, at)
    rest = text[at : at + len(_NAN_WORDS[-1])]
    for word in words:
        if rest.startswith(word):
            return at + len(word)
        if word.startswith(rest) and at + len(rest) == len(text):
            raise _End
    found = _NUMBER.match(text, at)
    if _NUMBER_BEGUN.match(text, at) and (found is None or found.end() < len(text)):
        raise _End
    if found is None or (len(found[1]) > MAX_DIGITS and found.end() == found.end(1)):
        raise _Bad(at)
    return found.end()


def _expect(text: str, at: int, sign: str) -> int:
    at = _skip(text, at)
    if at == len(text):
        raise _End
    if text[at] != sign:
        raise _Bad(at)
    return _skip(text, at + 1)


def _string(text: str, at: int) -> int:
    at += 1
    while True:
        found = _PLAIN.match(text, at)
        assert found is not None
        at = found.end()
        if at == len(text):
            raise _End
        if text[at] == '"':
            return at + 1
        escape = _ESCAPE.match(text, at)
        if escape is None:
            if _ESCAPE_BEGUN.match(text, at):
                raise _End
            raise _Bad(at)
        at = escape.end()


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()
