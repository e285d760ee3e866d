"""One rule for what is longer than a reward model reads: the answer is read whole, the prompt loses its beginning."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["fitted"]


def fitted(prompt: Sequence[int], answer: int, limit: int, keep: int = 0) -> list[int]:
    """Token ids of a prompt, without so many of its first ones that an answer of ``answer`` tokens fits behind them.

    Args:
        prompt: its ids.
        answer: number of tokens that follow, among them those that end the answer.
        limit: of prompt and answer together.
        keep: first tokens of the prompt that stay, as a token that begins every text.

    Raises:
        ValueError: not even the answer fits.
    """
    room = limit - answer
    if room < keep:
        raise ValueError(f"the answer takes {answer} tokens; accepted: at most {limit - keep}")
    if room >= len(prompt):
        return list(prompt)
    return [*prompt[:keep], *prompt[len(prompt) - (room - keep) :]]
