"""How far a long measurement is: a bar on a terminal, elsewhere a line a minute and one at the end."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

__all__ = ["Progress"]

_LINE_EVERY = 60.0  # seconds between lines where there is no terminal


class Progress:
    """Use it as a context manager, so that what was done last is said and a bar is closed.

    Args:
        name: of the work.
        total: pieces of work.
        done: of these, before.
        unit: what a piece is.
    """

    def __init__(self, name: str, total: int, done: int = 0, unit: str = "measurement") -> None:
        from tqdm import tqdm  # not needed by those who only read tables

        self._lines = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit=unit, disable=self._lines)
        self._name, self._total, self._unit = name, total, unit
        self._before = self._done = self._written = done
        self._tokens, self._note = 0, ""
        self._began = self._said = time.monotonic()

    def add(self, tokens: int = 0, pieces: int = 1, note: str = "") -> None:
        """Pieces are done, in which so many tokens were written; ``note`` is shown until there is another."""
        self._done += pieces
        self._tokens += tokens
        self._note = note or self._note
        self._bar.set_postfix_str(", ".join(self._figures()), refresh=False)
        self._bar.update(pieces)
        if time.monotonic() - self._said >= _LINE_EVERY:
            self._say()

    def line(self, text: str) -> None:
        """Say something else, above the bar."""
        if self._lines:
            sys.stderr.write(f"{text}\n")
        else:
            self._bar.write(text, file=sys.stderr)

    def _figures(self) -> list[str]:
        spent = max(time.monotonic() - self._began, 1e-9)
        rate = f"{self._tokens / spent:.0f} tokens/s" if self._tokens else ""
        return [figure for figure in (rate, self._note) if figure]

    def _say(self) -> None:
        self._said, self._written = time.monotonic(), self._done
        if not self._lines:
            return
        spent = self._said - self._began
        left = spent / (self._done - self._before) * (self._total - self._done) / 60
        when = f"about {left:.0f} min left" if self._done < self._total else f"{spent / 60:.1f} min"
        units = f"{self._unit}{'s' * (self._total != 1)}"
        figures = ", ".join([f"{self._done} of {self._total} {units}", *self._figures(), when])
        sys.stderr.write(f"trimtab: {self._name}: {figures}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._done > self._written:
            self._say()
