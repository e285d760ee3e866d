"""Models that are tables of logits, and how a token is drawn from one: plain numpy, written from the definitions.

A table's logits depend on the last tokens read, through a seeded hash, so a wrong token anywhere changes what comes
next. Draws are by inverse transform from one number of (key, position, purpose): two draws with one key and one law
give one token, which is what coupled mode asks of a sampler.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.decode.ops import Read
from trimtab.decode.request.result import TokenDraw, TopLogprob
from trimtab.kernels.types import Pick

Row = NDArray[np.float64]


class Letters:
    """A vocabulary of single letters; the last id is EOS."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.eos_token_ids: tuple[int, ...] = (size - 1,)
        self.special_ids = frozenset(self.eos_token_ids)

    def piece(self, token_id: int) -> bytes:
        return b"<eos>" if token_id == self.size - 1 else bytes([97 + token_id])

    def encode(self, text: str, add_special_tokens: bool = True, *, continues: bool = False) -> list[int]:
        return [byte - 97 for byte in text.encode()]


@dataclass(frozen=True)
class Model:
    """A vocabulary and the logits after any sequence of tokens.

    Attributes:
        logits: tokens -> float64 [V].
        limit: longest sequence.
    """

    vocabulary: Any
    logits: Callable[[Sequence[int]], Row]
    limit: int = 4096


def table(
    size: int, seed: int, *, order: int = 2, like: Model | None = None, noise: float = 1.0, **limits: int
) -> Model:
    """Random logits after the last ``order`` tokens; with ``like``, those of another model and noise."""
    found: dict[tuple[int, ...], Row] = {}

    def logits(tokens: Sequence[int]) -> Row:
        context = tuple(tokens[-order:])
        if context not in found:
            row = np.random.default_rng((seed, len(context), *context)).standard_normal(size)
            if like is not None:
                row = like.logits(tokens) + noise * row
            else:
                row *= 1.5
                row[-1] -= 2.0  # EOS is rarer
            found[context] = row
        return found[context]

    return Model(Letters(size), logits, **limits)


# --------------------------------------------------------------------------------------------------------------- draws


def softmax(z: Row) -> Row:
    weights = np.exp(z - z.max())
    p: Row = weights / weights.sum()
    return p


def law(logits: Row, pick: Pick, seen: Sequence[int]) -> Row:
    """The distribution that a token is drawn from."""
    z, filters = logits.copy(), pick.filters
    if filters.repetition_penalty != 1.0:
        for i in set(seen):
            z[i] = z[i] / filters.repetition_penalty if z[i] > 0 else z[i] * filters.repetition_penalty
    for i, bias in filters.bias.items():
        z[i] += bias
    z[list(pick.banned)] = -np.inf
    if filters.temperature == 0:
        certain: Row = np.eye(len(z))[z.argmax()]
        return certain
    p = softmax(z / filters.temperature)
    order = np.argsort(-p, kind="stable") if filters.top_k or filters.top_p < 1 else np.arange(0)
    if filters.top_k:
        p[order[filters.top_k :]] = 0
        p /= p.sum()
    if filters.top_p < 1:
        p[order[np.cumsum(p[order]) - p[order] >= filters.top_p]] = 0
    p[p < filters.min_p * p.max()] = 0
    result: Row = p / p.sum()
    return result


def number(pick: Pick, purpose: str) -> float:
    return random.Random(f"{pick.key.bits}/{pick.position}/{purpose}").random()


def inverse(p: Row, u: float) -> int:
    return min(int(np.searchsorted(np.cumsum(p), u, side="right")), int(np.flatnonzero(p)[-1]))


def drawn(logits: Row, pick: Pick, seen: Sequence[int]) -> int:
    """A token of the law, by the pick's own random number."""
    return inverse(law(logits, pick, seen), number(pick, "token"))


# --------------------------------------------------------------------------------------------------------------- reads


def statistics(logits: Row) -> tuple[Row, float, float, int]:
    """ln p of every token, entropy, top probability, argmax."""
    top = logits.max()
    logp: Row = logits - (top + np.log(np.exp(logits - top).sum()))
    p = np.exp(logp)
    return logp, float(-(p * np.where(p > 0, logp, 0)).sum()), float(p.max()), int(logits.argmax())


def reading(
    logits: Row, token: int, piece: Callable[[int], bytes], top: int = 0, draw: TokenDraw = TokenDraw.PLAIN
) -> Read:
    """What a model of these logits says, and a token."""
    logp, entropy, top_prob, argmax = statistics(logits)
    ranked = np.argsort(-logp, kind="stable")[:top] if top else ()
    best = tuple(TopLogprob(int(i), piece(int(i)), float(logp[i])) for i in ranked)
    return Read(token, float(logp[token]), entropy, top_prob, argmax, best, draw)


def read(model: Model, tokens: Sequence[int], pick: Pick) -> Read:
    """A token that the model draws after these, and what it says there."""
    logits = model.logits(tokens)
    return reading(logits, drawn(logits, pick, tokens), model.vocabulary.piece)
