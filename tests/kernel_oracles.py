"""What the operations over logits should answer, each in the plainest way and in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels import rng
from trimtab.kernels.cpu.distribution import RowBuffer, distribution_of
from trimtab.kernels.cpu.tiles import GROUP, TILE
from trimtab.kernels.types import Blend, Key, Pick, Stream, Window

INF = float("inf")
Doubles = NDArray[np.float64]


def statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """lse [R], entropy [R] and ln p [R, V]."""
    logp = logits.double().log_softmax(-1)
    terms = torch.where(logp == -INF, 0.0, logp.exp() * logp)
    return logits.double().logsumexp(-1), -terms.sum(-1), logp


def mixture(logits: Sequence[torch.Tensor], blend: Blend) -> torch.Tensor:
    """[R, V]: ln p of the mixture by its definition, from normalised distributions."""
    p = [model.double().log_softmax(-1) for model in logits]
    z = blend.weights[0] * p[0]
    for weight, other in zip(blend.weights[1:], p[1:], strict=True):
        z = z + weight * other
    if blend.plausibility:
        z = torch.where(p[0] < p[0].amax(-1, keepdim=True) + np.log(blend.plausibility), -INF, z)
    return z.log_softmax(-1)


def distribution(logits: torch.Tensor, row: Pick) -> Doubles:
    """[V]: what a row's token is drawn from, by sorting."""
    f = row.filters
    z = logits.double().clone()
    z[z.isnan() | (z == INF)] = -INF
    for token in set(map(int, row.seen)):
        z[token] *= f.repetition_penalty if z[token] < 0 else 1 / f.repetition_penalty
    for token, value in f.bias.items():
        z[token] += value
    z[list(row.banned)] = -INF
    if f.temperature == 0:
        return np.asarray(torch.nn.functional.one_hot(z.argmax(), len(z)).double().numpy())
    z = z / f.temperature
    if 0 < f.top_k < len(z):
        z[z < z.topk(f.top_k).values[-1]] = -INF
    if f.top_p < 1:
        p, order = z.softmax(-1).sort(descending=True, stable=True)
        kept = max(int((p.cumsum(0) - p < f.top_p).sum()), 1)
        z[z < z[order[kept - 1]]] = -INF  # ties stay
    z[z.softmax(-1) < f.min_p * z.softmax(-1).max()] = -INF
    return np.asarray(z.softmax(-1).numpy())


def _race(weights: torch.Tensor, key: Key, position: int, stream: Stream, index: torch.Tensor) -> tuple[int, float]:
    """Whose w / E is the largest, and by how much (in the logarithm)."""
    u = rng.uniform(np.array([key.bits], np.uint64), np.array([position]), stream, index.numpy())
    score = weights.log() - torch.from_numpy(rng.exponential(u))[0].double().log()
    best = score.topk(min(2, len(score))).values
    return int(score.argmax()), float(best[0] - best[-1]) if len(score) > 1 else INF


def _races(p: torch.Tensor, row: Pick, key: Key) -> tuple[int, float]:
    """A token by the documented scheme from weights [V], and the least margin of its races."""
    vocabulary = len(p)
    if row.restricts(vocabulary):
        ids = torch.from_numpy(np.flatnonzero(p))
        winner, margin = _race(p[ids], key, row.position, Stream.TOKEN, ids)
        return int(ids[winner]), margin
    padded = torch.zeros(-(-vocabulary // TILE) * TILE, dtype=torch.float64)
    padded[:vocabulary] = p
    grid = padded.view(-1, TILE // GROUP, GROUP)  # tile, line, column
    tile, first = _race(grid.sum((1, 2)), key, row.position, Stream.TILE, torch.arange(len(grid)))
    column, second = _race(grid[tile].sum(0), key, row.position, Stream.COLUMN, torch.arange(GROUP))
    line, third = _race(grid[tile, :, column], key, row.position, Stream.LINE, torch.arange(TILE // GROUP))
    return tile * TILE + line * GROUP + column, min(first, second, third)


def token(logits: torch.Tensor, row: Pick) -> tuple[int, float]:
    """The token of a row with something finite, and by how much its closest race was won."""
    p = torch.from_numpy(distribution(logits, row))
    return (int(p.argmax()), INF) if row.filters.temperature == 0 else _races(p, row, row.key)


def window(logits: torch.Tensor, window: Window) -> tuple[int, int, float]:
    """Accepted tokens of a sampled window, the token after them, and the least margin of any decision."""
    margin = INF
    draft = window.draft
    assert draft is not None
    assert draft.logits is not None
    for j, y in enumerate(window.tokens):
        row = window.rows[j]
        p = torch.from_numpy(distribution(logits[j], row))
        q = torch.zeros_like(p)
        columns = torch.arange(draft.logits.shape[1]) if draft.ids is None else draft.ids
        q[columns] = torch.from_numpy(distribution(draft.logits[j], draft.rows[j]))
        u = row.key.uniform(row.position, Stream.ACCEPT)
        margin = min(margin, abs(math.log(u) - math.log(float(p[y])) + math.log(float(q[y]))) if p[y] > 0 else INF)
        if u < float(p[y] / q[y]):
            continue
        left = (p - q).clamp(min=0)
        found, closest = _races(left, row, row.key.residual)
        return j, found, min(margin, closest)
    found, closest = token(logits[-1], window.rows[-1])
    return len(window.tokens), found, min(margin, closest)


def cpu_logprobs(logits: torch.Tensor, rows: Sequence[Pick]) -> torch.Tensor:
    """No oracle: ln p [R, V] of what the CPU's path draws each row from, float32, -inf outside the support."""
    result = torch.full(logits.shape, -INF)
    buffer = RowBuffer(logits.shape[1])
    for i, row in enumerate(rows):
        found = distribution_of(buffer, logits[i], row)
        if found is not None:
            result[i] = torch.from_numpy(found.prob(buffer.z)).log()
    return result
