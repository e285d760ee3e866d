"""How much of a text is JSON: where a beginning stops being one, and whether it is complete."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Progress", "json_progress", "unfenced"]

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_NUMBER_BEGUN = re.compile(r"-?(?:(?:0|[1-9]\d*)(?:\.\d*)?(?:(?<=\d)[eE][+-]?)?)?\Z")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_ESCAPE_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_FENCE = re.compile(r"\A\s*```[ \t]*(?:json)?[ \t]*\n?", re.IGNORECASE)
_WORDS = ("true", "false", "null")


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
    """The text without a Markdown code fence around it, closed or not yet."""
    inner = _FENCE.sub("", text)
    if inner != text:
        inner = inner.rstrip()
        inner = inner.removesuffix("```")
    return inner


def json_progress(text: str) -> Progress:
    """Read one JSON document (RFC 8259) with nothing but white space around it."""
    try:
        end = _value(text, _skip(text, 0), 0)
    except _End:
        return Progress(len(text), False)
    except _Bad as bad:
        return Progress(bad.at, False)
    end = _skip(text, end)
    return Progress(end, end == len(text))


_MAX_DEPTH = 200


def _value(text: str, at: int, depth: int) -> int:
    """The index after the value that begins at ``at``."""
    if at == len(text):
        raise _End
    if depth > _MAX_DEPTH:
        raise _Bad(at)
    match text[at]:
        case "{":
            return _members(text, at + 1, "}", depth)
        case "[":
            return _members(text, at + 1, "]", depth)
        case '"':
            return _string(text, at)
    for word in _WORDS:
        if text.startswith(word, at):
            return at + len(word)
        if word.startswith(text[at:]):
            raise _End
    found = _NUMBER.match(text, at)
    if _NUMBER_BEGUN.match(text, at) and (found is None or found.end() < len(text)):
        raise _End
    if found is None:
        raise _Bad(at)
    return found.end()


def _members(text: str, at: int, close: str, depth: int) -> int:
    at = _skip(text, at)
    if text.startswith(close, at):
        return at + 1
    while True:
        if close == "}":
            if at == len(text):
                raise _End
            if text[at] != '"':
                raise _Bad(at)
            at = _expect(text, _string(text, at), ":")
        at = _skip(text, _value(text, at, depth + 1))
        if text.startswith(close, at):
            return at + 1
        at = _expect(text, at, ",")


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
