"""How a measured value is written in a table."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from trimtab.bench.public.sets import FOLDER, SETS
from trimtab.bench.record import Row
from trimtab.bench.timing import LEAST

__all__ = ["command_of", "count", "interval", "medians", "run_of", "share", "spread"]

_PUBLIC = re.compile(rf"(?:\S*/)?((?:{'|'.join(SETS)})\.jsonl\S*)")


def spread(row: Row) -> str:
    """The median, with the 20th and 80th percentile if they were recorded, of enough repeats."""
    if row.p20 is None or row.p80 is None or row.repeats < LEAST:
        return f"{row.value:.0f}"
    return f"{row.value:.0f} ({row.p20:.0f} to {row.p80:.0f})"


def interval(row: Row, form: str, scale: float = 1) -> str:
    """The 95 % interval, e.g. with ``form`` ``{:.2f}``; empty if none was recorded, or of too few samples."""
    if row.low is None or row.high is None or row.repeats < LEAST:
        return ""
    return f"[{form.format(scale * row.low)}, {form.format(scale * row.high)}]"


def share(row: Row, form: str = "{:.0f}") -> str:
    """A share in percent, with its interval."""
    return f"{100 * row.value:.1f} % {interval(row, form, 100)}".rstrip()


def count(rows: Iterable[Row]) -> str:
    """How many repeats or samples are behind rows, e.g. ``3`` or ``3 to 9``."""
    found = sorted({row.repeats for row in rows}) or [0]
    return " to ".join(str(n) for n in dict.fromkeys((found[0], found[-1])))


def medians(rows: Iterable[Row], of: str = "repeat") -> str:
    """How repeated measurements are written: the median with its percentiles, which few repeats don't have."""
    rows = list(rows)
    n = count(rows)
    if n in ("0", "1"):
        return f"one {of}" if n == "1" else f"no {of}s"
    spreads = any(row.p20 is not None and row.repeats >= LEAST for row in rows)
    return f"median{' (20th to 80th percentile)' * spreads} of {n} interleaved {of}s"


def command_of(row: Row) -> str:
    """The command of a row as it runs in a checkout: public data where ``trimtab bench data`` keeps it, and no folders
    outside.
    """
    words = []
    for word in shlex.split(row.command):
        public = _PUBLIC.fullmatch(word)
        outside = not public and word.startswith("../")
        words.append(f"{FOLDER}/{public[1]}" if public else Path(word).name if outside else word)
    return shlex.join(words)


def run_of(row: Row) -> str:
    """Where, with what and by which command a row was measured."""
    device = row.device
    threads = f"{device.threads} thread{'s' * (device.threads != 1)}"
    versions = f"torch {device.torch}, transformers {device.transformers}"
    at = f" at {row.commit}" if row.commit else ""
    return f"{device.name}, {threads}, {versions}; trimtab {device.trimtab}{at}, {row.time[:10]}: `{command_of(row)}`."
