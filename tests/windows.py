"""Batches of drafted windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels import dispatch
from trimtab.kernels.types import Draft, Filters, Key, Pick, Window

INF = float("inf")
Doubles = NDArray[np.float64]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


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


def rows_of(r: np.random.Generator, count: int, vocabulary: int, filters: Filters, key: Key) -> list[Pick]:
    """Consecutive positions of one request; what is seen and banned changes along the way."""
    start = int(r.integers(1000))
    return [
        Pick(
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
    rows = [Pick(filters, Key(seed), j, **extra) for j in range(len(target))]
    return Window(tokens, rows, Draft(draft, [row._replace(key=row.key.drafting) for row in rows[:-1]]))
