"""Answers on a terminal: the text as it comes, marked by who wrote it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TextIO

from trimtab.decode.types import Chunk, Completed, Event, Result, Started
from trimtab.server.attribution import Attribution, Span

__all__ = ["Marker", "colours", "show"]

_OPEN, _CLOSE = "⟦", "⟧"
_RESET = "\x1b[0m"
_STYLES = ("\x1b[1;33m", "\x1b[1;36m", "\x1b[1;35m", "\x1b[1;32m")  # bold: readable on light and dark


def colours(out: TextIO) -> bool:
    """Whether to write colours: on a terminal, unless NO_COLOR is set."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Marker:
    """Marks the text of every model but the first, with a colour or with brackets.

    Args:
        models: the authors, the requested model first.
        colour: colours rather than brackets.
    """

    def __init__(self, models: tuple[str, ...], *, colour: bool) -> None:
        self._others = {name: _STYLES[i % len(_STYLES)] for i, name in enumerate(models[1:])}
        self._first = models[0] if models else ""
        self._colour = colour
        self._author = ""  # of an open mark
        self._begun = False

    def legend(self) -> str:
        """One line that explains the marks; empty if a single model writes."""
        if not self._others:
            return ""
        marked = [self._wrapped(name, style) for name, style in self._others.items()]
        return f"[{self._first} writes plain text, {', '.join(marked)} the marked]"

    def _wrapped(self, name: str, style: str) -> str:
        return f"{style}{name}{_RESET}" if self._colour else f"{_OPEN}{name}{_CLOSE}"

    def mark(self, spans: Iterable[Span]) -> str:
        """The marked text of further spans, without white space before the first word.

        A mark stays open while its author goes on.
        """
        return "".join(part for span in spans for part in self._span(span))

    def _span(self, span: Span) -> Iterator[str]:
        author = span.token.author if span.token is not None and span.token.author in self._others else ""
        text = span.text if self._begun else span.text.lstrip()
        if not text:
            return
        self._begun = True
        if author != self._author:
            yield self.close()
            if author:  # white space stays outside of the brackets
                stripped = text.lstrip()
                yield text[: len(text) - len(stripped)]
                text = stripped
                if not text:
                    return
                self._author = author
                yield self._others[author] if self._colour else _OPEN
        yield text

    def close(self) -> str:
        """What ends an open mark."""
        if not self._author:
            return ""
        self._author = ""
        return _RESET if self._colour else _CLOSE


def show(events: Iterable[Event], out: TextIO, *, marked: bool, legend: bool = True) -> Result:
    """Write an answer as it comes.

    Args:
        events: of one answer.
        out: where to write; flushed after every event.
        marked: whether to mark who wrote what.
        legend: whether to explain the marks first.

    Returns:
        The result in the last event.

    Raises:
        ValueError: the events end without Completed.
    """
    marker = Marker((), colour=False)
    attribution = Attribution()
    try:
        for event in events:
            match event:
                case Started(models=models) if marked:
                    marker = Marker(models, colour=colours(out))
                    if legend and marker.legend():
                        out.write(marker.legend() + "\n")
                case Chunk(text=text, tokens=tokens):
                    out.write(marker.mark(attribution.feed(text, tokens)) if marked else text)
                case Completed(result=result):
                    return result
            out.flush()
    finally:
        out.write(marker.close() + "\n")
        out.flush()
    raise ValueError("the events ended without Completed")
