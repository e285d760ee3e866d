"""Reports of long-running work: a bar on a terminal, a line now and then elsewhere, or silence."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

__all__ = ["Progress", "Silent", "TextProgress"]

_SECONDS_BETWEEN_LINES = 5.0


class Progress(Protocol):
    """Where long work tells how far it is."""

    def line(self, text: str) -> None:
        """Says what happens next, or what has happened."""

    def advance(self, label: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes of the piece of work ``label``; called often."""


class Silent:
    """Says nothing."""

    def line(self, text: str) -> None:
        pass

    def advance(self, label: str, done: int, total: int | None) -> None:
        pass


class TextProgress:
    """Writes to a text stream, standard error by default. Use it as a context manager, so that a bar is closed."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._label: str | None = None
        self._next_line = 0.0
        if self._terminal:
            from tqdm import tqdm

            self._tqdm = tqdm
            self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def line(self, text: str) -> None:
        self._close()
        self._stream.write(text + "\n")
        self._stream.flush()

    def advance(self, label: str, done: int, total: int | None) -> None:
        if label != self._label:
            self._close()
            self._label = label
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        if self._terminal:
            if self._bar is None:
                self._bar = self._tqdm(
                    total=total, desc=label, unit="B", unit_scale=True, file=self._stream, leave=False
                )
            self._bar.update(done - self._bar.n)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            of = f" of {total / 1e6:.0f}" if total else ""
            self._stream.write(f"{label}: {done / 1e6:.0f}{of} MB\n")
            self._stream.flush()

    def _close(self) -> None:
        self._label = None
        if self._terminal and self._bar is not None:
            self._bar.close()
            self._bar = None
