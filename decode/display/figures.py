"""Figures of one answer that the commands print."""

from __future__ import annotations

from trimtab.decode.request.result import Result

__all__ = ["forward_passes", "nudged_share", "summary", "tokens_per_second"]


def nudged_share(result: Result) -> float:
    """Share of the written tokens that another model than the requested one wrote, in [0, 1]."""
    written = result.tokens
    return sum(token.author != result.model for token in written) / len(written) if written else 0.0


def tokens_per_second(result: Result) -> float:
    """Tokens of the answer per second of work, the prompt's included, waiting in the queue excluded."""
    seconds = result.usage.total_time - result.usage.queue_time
    return len(result.tokens) / seconds if seconds > 0 else 0.0


def forward_passes(result: Result) -> int:
    """Forward passes of the requested model."""
    return sum(used.forward_passes for used in result.usage.models if used.model == result.model)


def summary(result: Result) -> str:
    """One line, e.g. ``96 tokens, 31% nudged, exp(mean entropy) 3.24, 41.0 tokens/s``.

    A search adds its candidates, and speculation what became of the drafted tokens.
    """
    usage = result.usage
    parts = [f"{len(result.tokens)} tokens"]
    if len(result.candidates) > 1:
        parts.append(f"best of {len(result.candidates)} candidates with {usage.generated_tokens} tokens together")
    reward = result.chosen.rewards.get("objective")
    if reward is not None:
        parts.append(f"reward {reward:.3g}")
    if share := nudged_share(result):
        parts.append(f"{share:.0%} nudged")
    if usage.drafted_tokens:
        parts.append(f"{usage.drafted_tokens} drafted")
        parts.append(f"{usage.accepted_tokens} accepted")
        parts.append(f"{usage.discarded_tokens} discarded")
    passes = forward_passes(result)
    if passes:
        parts.append(f"{passes} forward passes")
    parts.append(f"exp(mean entropy) {result.exp_mean_entropy:.2f}")
    parts.append(f"{tokens_per_second(result):.1f} tokens/s")
    return ", ".join(parts)
