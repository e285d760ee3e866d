"""Batches of drafted windows, and what a window's draws follow: the plainest way to say it, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels import dispatch, rng
from trimtab.kernels.dispatch import Draft, Window
from trimtab.kernels.reference.tiles import GROUP, TILE
from trimtab.kernels.types import Filters, Key, RowPick, Stream

INF = float("inf")
Doubles = NDArray[np.float64]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def law(logits: torch.Tensor, row: RowPick) -> Doubles:
    """float64 [V]: what a row draws from, by sorting and in the plainest way."""
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
    p, order = z.softmax(-1).sort(descending=True)
    if f.top_p < 1:
        z[order[p.cumsum(0) - p >= f.top_p]] = -INF
    z[z.softmax(-1) < f.min_p * z.softmax(-1).max()] = -INF
    return np.asarray(z.softmax(-1).numpy())


KINDS = [
    Filters(),
    Filters(1.0),
    Filters(0.7),
    Filters(1.0, top_p=0.9),
    Filters(0.8, top_k=5),
    Filters(1.1, min_p=0.1),
    Filters(0.9, top_k=30, top_p=0.8, min_p=0.01),
    Filters(0.0, repetition_penalty=1.5),
    Filters(1.0, bias={0: 3.0}),
]


def rows_of(r: np.random.Generator, count: int, vocabulary: int, filters: Filters, key: Key) -> list[RowPick]:
    """Consecutive positions of one request; what is seen and banned changes along the way."""
    start = int(r.integers(1000))
    return [
        RowPick(
            filters,
            key,
            start + j,
            r.integers(0, vocabulary, 3) if r.random() < 0.5 else (),
            r.integers(0, vocabulary, 1).tolist() if vocabulary > 2 and r.random() < 0.3 else (),
        )
        for j in range(count)
    ]


def batch(seed: int, vocabulary: int, windows: int) -> tuple[torch.Tensor, list[Window]]:
    """Windows of every kind and length 0 to 4, drafted from something near the target or far from it."""
    r = np.random.default_rng(seed)
    logits: list[torch.Tensor] = []
    made: list[Window] = []
    for i in range(windows):
        k = int(r.integers(0, 5))
        target = torch.from_numpy(r.normal(0, 2, (k + 1, vocabulary))).float()
        filters, draft_filters = KINDS[int(r.integers(len(KINDS)))], KINDS[int(r.integers(len(KINDS)))]
        key = Key(int(r.integers(2**40)), i)
        rows = rows_of(r, k + 1, vocabulary, filters, key)
        kind = int(r.integers(4))
        draft: Draft | None = None
        if kind == 0:
            tokens = dispatch.pick(target, rows).token[:k].tolist()
            tokens = [int(r.integers(vocabulary)) if r.random() < 0.2 else max(t, 0) for t in tokens]
        elif kind == 1:
            tokens, draft = r.integers(0, vocabulary, k).tolist(), Draft(None, [])
        else:
            ids = torch.from_numpy(r.permutation(vocabulary)[: -(-2 * vocabulary // 3)]) if kind == 3 else None
            near = target[:k] if ids is None else target[:k, ids]
            source = near + torch.from_numpy(r.normal(0, float(r.choice([0.1, 1.0])), tuple(near.shape))).float()
            mine = rows_of(r, k, source.shape[1], draft_filters, key.drafting)
            columns = dispatch.pick(source, mine).token.clamp(min=0)
            tokens = (columns if ids is None else ids[columns]).tolist()
            draft = Draft(source, mine, ids)
        logits.append(target)
        made.append(Window(tokens, rows, draft))
    return torch.cat(logits), made


def split(logits: torch.Tensor, windows: Sequence[Window]) -> list[torch.Tensor]:
    return list(logits.split([len(window.rows) for window in windows]))


def speculative(
    target: torch.Tensor, draft: torch.Tensor, tokens: Sequence[int], filters: Filters, seed: int = 0, **extra: Any
) -> Window:
    rows = [RowPick(filters, Key(seed), j, **extra) for j in range(len(target))]
    return Window(tokens, rows, Draft(draft, [row._replace(key=row.key.drafting) for row in rows[:-1]]))


def documented(logits: torch.Tensor, window: Window) -> tuple[int, int, float]:
    """Accepted, token and the least margin of any decision, by the documented scheme in float64."""
    margin = INF
    assert window.draft is not None
    assert window.draft.logits is not None

    def uniform(key: Key, position: int, stream: Stream, index: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(
            rng.uniform(np.array([key.bits], np.uint64), np.array([position]), stream, index.numpy())[0]
        )

    def race(weights: torch.Tensor, row: RowPick, stream: Stream, index: torch.Tensor) -> int:
        nonlocal margin
        score = (
            weights.log()
            - torch.from_numpy(rng.exponential(uniform(row.key.residual, row.position, stream, index).numpy())).log()
        )
        best = score.topk(min(2, len(score))).values
        if len(best) > 1:
            margin = min(margin, float(best[0] - best[1]))
        return int(score.argmax())

    for j, y in enumerate(window.tokens):
        row = window.rows[j]
        p = torch.from_numpy(law(logits[j], row))
        q = torch.zeros_like(p)
        columns = torch.arange(window.draft.logits.shape[1]) if window.draft.ids is None else window.draft.ids
        q[columns] = torch.from_numpy(law(window.draft.logits[j], window.draft.rows[j]))
        u = float(uniform(row.key, row.position, Stream.ACCEPT, torch.tensor([0])))
        margin = min(margin, abs(math.log(u) - math.log(float(p[y])) + math.log(float(q[y]))) if p[y] > 0 else INF)
        if u < float(p[y] / q[y]):
            continue
        left = (p - q).clamp(min=0)
        vocabulary = len(p)
        if row.restricts(vocabulary):
            ids = (p > 0).nonzero()[:, 0]
            return j, int(ids[race(left[ids], row, Stream.TOKEN, ids)]), margin
        padded = torch.zeros(-(-vocabulary // TILE) * TILE, dtype=torch.float64)
        padded[:vocabulary] = left
        grid = padded.view(-1, TILE // GROUP, GROUP)
        tile = race(grid.sum((1, 2)), row, Stream.TILE, torch.arange(len(grid)))
        column = race(grid[tile].sum(0), row, Stream.COLUMN, torch.arange(GROUP))
        line = race(grid[tile, :, column], row, Stream.LINE, torch.arange(TILE // GROUP))
        return j, tile * TILE + line * GROUP + column, margin
    return len(window.tokens), int(dispatch.pick(logits[-1:], window.rows[-1:]).token[0]), margin
