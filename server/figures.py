"""Figures of one answer that the commands print."""

from __future__ import annotations

from trimtab.decode.types import Result

__all__ = ["nudged_share", "summary", "tokens_per_second"]


def nudged_share(result: Result) -> float:
    """Share of the written tokens that another model than the requested one wrote, in [0, 1]."""
    written = result.tokens
    return sum(token.author != result.model for token in written) / len(written) if written else 0.0


def tokens_per_second(result: Result) -> float:
    """Tokens of the answer per second of work, the prompt's included, waiting in the queue excluded."""
    seconds = result.usage.total_time - result.usage.queue_time
    return len(result.tokens) / seconds if seconds > 0 else 0.0


def summary(result: Result) -> str:
    """One line, e.g. ``96 tokens, 31% nudged, branching factor 3.24, 41.0 tokens/s``."""
    parts = [f"{len(result.tokens)} tokens"]
    if len(result.models) > 1:
        parts.append(f"{nudged_share(result):.0%} nudged")
    parts.append(f"branching factor {result.branching_factor:.2f}")
    parts.append(f"{tokens_per_second(result):.1f} tokens/s")
    return ", ".join(parts)
