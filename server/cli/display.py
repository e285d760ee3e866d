"""Answers on a terminal: the text as it comes, marked by who wrote it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TextIO

from trimtab.decode.display.attribution import Attribution, Span
from trimtab.decode.request.events import (
    Chunk,
    Completed,
    Event,
    Progress,
    Started,
)
from trimtab.decode.request.result import Candidate, Result, Token

__all__ = ["Marker", "candidates", "colours", "progress", "show"]

_OPEN, _CLOSE = "⟦", "⟧"
_RESET = "\x1b[0m"
_CLEAR_LINE = "\r\x1b[K"
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


class _Status:
    """One line that is overwritten as a search goes on; nothing where there is no terminal to overwrite it on."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = out if out is not None and out.isatty() and os.environ.get("TERM") != "dumb" else None
        self._shown = False

    def show(self, line: str) -> None:
        if self._out is not None:
            self._write(f"{_CLEAR_LINE}{line}")
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            self._write(_CLEAR_LINE)
            self._shown = False

    def _write(self, text: str) -> None:
        assert self._out is not None
        self._out.write(text)
        self._out.flush()


def progress(event: Progress) -> str:
    """One line, e.g. ``candidates: 12 running, 4 done, 1630 tokens, best reward 0.71``."""
    parts = [f"candidates: {event.candidates_running} running", f"{event.candidates_done} done"]
    parts.append(f"{event.generated_tokens} tokens")
    if event.best_reward is not None:
        parts.append(f"best reward {event.best_reward:.3g}")
    return ", ".join(parts)


def candidates(result: Result) -> str:
    """Every candidate, the best reward first, with its rewards."""
    chosen = result.chosen
    order = sorted(result.candidates, key=lambda c: -c.rewards.get("objective", float("-inf")))
    return "".join(f"\n--- {_heading(c, selected=c is chosen)}\n{c.text.strip()}\n" for c in order)


def _heading(candidate: Candidate, *, selected: bool) -> str:
    parts = [f"candidate {candidate.index}{' (selected)' if selected else ''}: {len(candidate.tokens)} tokens"]
    parts.append(str(candidate.finish_reason))
    parts += [f"{name} {value:.4g}" for name, value in candidate.rewards.items()]
    return ", ".join(parts)


def show(
    events: Iterable[Event], out: TextIO, *, marked: bool, legend: bool = True, status: TextIO | None = None
) -> Result:
    """Write an answer as it comes, and what was not committed before its end then.

    Args:
        events: of one answer.
        out: where to write; flushed after every event.
        marked: whether to mark who wrote what.
        legend: whether to explain the marks first.
        status: a terminal on which to show how far a search is, in one line that is removed in the end.

    Returns:
        The result in the last event.

    Raises:
        ValueError: the events end without Completed.
    """
    marker = Marker((), colour=False)
    attribution = Attribution()
    line = _Status(status)
    shown, seen = 0, 0  # characters that were committed, and the tokens that came with them

    def write(text: str, tokens: Iterable[Token]) -> None:
        line.clear()
        out.write(marker.mark(attribution.feed(text, tokens)) if marked else text)

    try:
        for event in events:
            match event:
                case Started(models=models) if marked:
                    marker = Marker(models, colour=colours(out))
                    if legend and marker.legend():
                        out.write(marker.legend() + "\n")
                case Chunk(text=text, tokens=tokens):
                    write(text, tokens)
                    shown, seen = shown + len(text), seen + len(tokens)
                case Progress() if not (shown and out.isatty()):  # the line would overwrite the text
                    line.show(progress(event))
                case Completed(result=result):
                    write(result.text[shown:], result.tokens[seen:])
                    return result
            out.flush()
    finally:
        line.clear()
        out.write(marker.close() + "\n")
        out.flush()
    raise ValueError("the events ended without Completed")
