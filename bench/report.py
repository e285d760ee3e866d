"""Keeps the tables of documents equal to the recorded results.

A document names a table by a pair of markers, and this module writes what is between them::

    <!-- bench:decode -->
    <!-- /bench -->
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from trimtab.bench.record import latest, load, newest
from trimtab.bench.tables import TABLES, table
from trimtab.decode.errors import InvalidRequest

__all__ = ["default_documents", "rendered", "stale", "update"]

_OPEN = re.compile(r"<!-- bench:(?P<bench>[^ ]*) -->")
_CLOSE = "<!-- /bench -->"
_CUMULATIVE = {"speculation_lengths"}  # whose tables also have what earlier runs measured and the last one didn't


def rendered(text: str, results: Path, name: str = "document") -> str:
    """A document with its tables made anew from the last recorded runs.

    Args:
        text: of the document.
        results: folder of ``BENCH.jsonl`` files.
        name: of the document, for errors.

    Raises:
        InvalidRequest: a marker names no benchmark, or isn't closed; or a results file is broken.
    """
    parts = []
    at = 0
    while found := _OPEN.search(text, at):
        bench = found["bench"]
        if bench not in TABLES:
            raise InvalidRequest.of(name, found[0], f"a marker of one of {', '.join(TABLES)}")
        close = text.find(_CLOSE, found.end())
        following = _OPEN.search(text, found.end())
        if close < 0 or (following and following.start() < close):
            raise InvalidRequest.of(name, found[0], f"a marker with {_CLOSE} after it")
        recorded = load(results / f"{bench}.jsonl")
        rows = newest(recorded) if bench in _CUMULATIVE else latest(recorded)
        parts += [text[at : found.end()], "\n", table(bench, rows), "\n", _CLOSE]
        at = close + len(_CLOSE)
    return "".join([*parts, text[at:]])


def default_documents(root: Path) -> list[Path]:
    """The README and the pages under docs/ that have markers."""
    candidates = [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]
    return [path for path in candidates if path.is_file() and _OPEN.search(path.read_text(encoding="utf-8"))]


def stale(documents: Iterable[Path], results: Path) -> list[Path]:
    """Documents whose tables are not those of the last recorded runs.

    Raises:
        InvalidRequest: as ``rendered``, or a document can't be read.
    """
    return [path for path in documents if (text := _read(path)) != rendered(text, results, path.name)]


def update(documents: Iterable[Path], results: Path) -> list[Path]:
    """Rewrite the tables of documents; returns those that changed. Raises InvalidRequest as ``stale``."""
    changed = stale(documents, results)
    for path in changed:
        path.write_text(rendered(_read(path), results, path.name), encoding="utf-8")
    return changed


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest.of("document", path.name, f"a readable text file ({error})") from error
