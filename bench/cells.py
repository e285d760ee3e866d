"""How a measured value is written in a table."""

from __future__ import annotations

from trimtab.bench.record import Row

__all__ = ["interval", "run_of", "share", "spread"]


def spread(row: Row) -> str:
    """The median, with the 20th and 80th percentile if they were recorded."""
    if row.p20 is None or row.p80 is None:
        return f"{row.value:.0f}"
    return f"{row.value:.0f} ({row.p20:.0f} to {row.p80:.0f})"


def interval(row: Row, form: str, scale: float = 1) -> str:
    """The 95 % interval, e.g. with ``form`` ``{:.2f}``; empty if none was recorded."""
    if row.low is None or row.high is None:
        return ""
    return f"[{form.format(scale * row.low)}, {form.format(scale * row.high)}]"


def share(row: Row, form: str = "{:.0f}") -> str:
    """A share in percent, with its interval."""
    return f"{100 * row.value:.1f} % {interval(row, form, 100)}".rstrip()


def run_of(row: Row) -> str:
    """Where, with what and by which command a row was measured."""
    device = row.device
    threads = f"{device.threads} thread{'s' * (device.threads != 1)}"
    versions = f"torch {device.torch}, transformers {device.transformers}"
    at = f" at {row.commit}" if row.commit else ""
    return f"{device.name}, {threads}, {versions}; trimtab {device.trimtab}{at}, {row.time[:10]}: `{row.command}`."
