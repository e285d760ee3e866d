"""What the operations over logits give back, all on the device of the logits."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["FLAG_EMPTY", "FLAG_UNCLEAN", "Picked", "Stats", "Verified"]

FLAG_EMPTY = 1  # no finite logit in the row
FLAG_UNCLEAN = 2  # the row held NaN or +inf, read as -inf


class Stats(NamedTuple):
    """What a step reports of each row's distribution softmax(logits), temperature 1, nothing filtered. All [R].

    Attributes:
        lse: float32, ln of the sum of exp(logits); -inf for an empty row.
        entropy: float32, nats; exp of it is the branching factor. 0 for an empty row.
        top_prob: float32, the largest probability; 0 for an empty row.
        argmax: int64, the lowest id of the largest logit; -1 for an empty row.
        logprob: float32, ln p of the given tokens (of ``argmax`` where none were given); -inf for token -1 and for
            banned tokens.
        flags: uint8, ``FLAG_EMPTY`` (no finite logit) and ``FLAG_UNCLEAN`` (NaN or +inf were read as -inf).
    """

    lse: torch.Tensor
    entropy: torch.Tensor
    top_prob: torch.Tensor
    argmax: torch.Tensor
    logprob: torch.Tensor
    flags: torch.Tensor


class Picked(NamedTuple):
    """Attributes:
    token: int64 [R]; -1 where nothing finite is left.
    stats: of the logits, or of the mixture with implausible tokens banned (temperature 1, nothing edited or
        filtered); ``logprob`` is that of ``token``.
    """

    token: torch.Tensor
    stats: Stats


class Verified(NamedTuple):
    """Attributes:
    accepted: int64 [R], how many drafted tokens stand, 0 to K.
    token: int64 [R], the one after them; -1 where nothing finite is left.
    stats: of all sum(K + 1) rows of raw logits (temperature 1, nothing edited or filtered); ``logprob`` is that of
        the drafted token at accepted positions, of ``token`` at the position after them, -inf beyond.
    """

    accepted: torch.Tensor
    token: torch.Tensor
    stats: Stats
