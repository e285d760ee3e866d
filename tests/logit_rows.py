"""Rows of logits and ways to draw from them, what transformers says of such, and how well counts fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trimtab.kernels.types import Filters, Key, Pick

INF = float("inf")


def families(rows: int, vocabulary: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Logit families of the FlashInfer tests, whose shapes differ in how many tokens matter."""
    g = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, vocabulary, generator=g)
    gumbel = -torch.log(-torch.log(torch.rand(rows, vocabulary, generator=g).clamp(1e-9, 1 - 1e-7)))
    return {"normal": normal, "wide": 5 * normal, "gumbel0.1": gumbel / 0.1, "gumbel1": gumbel}


def transformers_scores(logits: torch.Tensor, row: Pick) -> torch.Tensor:
    """float64 [V]: what transformers would hand to its softmax."""
    f = row.filters
    scores = logits.double()[None].clone()
    ids = torch.as_tensor([list(row.seen)], dtype=torch.int64)
    if f.repetition_penalty != 1 and len(row.seen):
        scores = RepetitionPenaltyLogitsProcessor(f.repetition_penalty)(ids, scores)
    for token, value in f.bias.items():
        scores[0, token] += value
    for token in row.banned:
        scores[0, token] = -INF
    chain: list[LogitsProcessor] = [TemperatureLogitsWarper(float(f.temperature))]
    if f.top_k:
        chain.append(TopKLogitsWarper(f.top_k))
    if f.top_p < 1:
        chain.append(TopPLogitsWarper(f.top_p))
    if f.min_p > 0:
        chain.append(MinPLogitsWarper(f.min_p))
    for processor in chain:
        scores = processor(ids, scores)
    return scores[0]


def chi_square(counts: NDArray[np.int64], p: NDArray[np.float64], bins: int | None = None) -> float:
    """p-value, bins pooled in order of probability until each is expected 10 times, or until so many are left."""
    draws = counts.sum()
    least = 10 if bins is None else draws / bins
    order = np.argsort(p)
    observed: list[float] = []
    expected: list[float] = []
    have = want = 0.0
    for i in order:
        have, want = have + counts[i], want + p[i] * draws
        if want >= least:
            observed.append(have)
            expected.append(want)
            have = want = 0.0
    if expected:
        observed[-1] += have
        expected[-1] += want
    o, e = np.array(observed), np.array(expected)
    if len(e) < 2:
        return 1.0
    statistic = torch.tensor(((o - e) ** 2 / e).sum(), dtype=torch.float64)
    return float(torch.special.gammaincc(torch.tensor((len(e) - 1) / 2, dtype=torch.float64), statistic / 2))


def expected(logits: torch.Tensor, filters: Filters, **extra: Any) -> NDArray[np.float64]:
    """float64 [V]: transformers' distribution, independent of ours."""
    scores = transformers_scores(logits[0], Pick(filters, **extra))
    return np.asarray(scores.softmax(-1).numpy())


def mixed(rows: int, vocabulary: int, seed: int) -> list[Pick]:
    """Rows of all kinds: greedy, plain, scaled, filtered, edited."""
    kinds = [
        Filters(),
        Filters(1.0),
        Filters(0.7),
        Filters(1.0, top_p=0.9),
        Filters(0.8, top_k=5),
        Filters(1.1, min_p=0.1),
        Filters(0.9, top_k=30, top_p=0.8, min_p=0.01),
        Filters(0.0, repetition_penalty=1.5),
        Filters(1.0, bias={0: 3.0, vocabulary - 1: -INF}),
        Filters(1.0, top_k=vocabulary + 5),
    ]
    r = np.random.default_rng(seed)
    result = []
    for i in range(rows):
        seen = r.integers(0, vocabulary, 5) if r.random() < 0.5 else ()
        banned = r.integers(0, max(1, vocabulary // 2), 2).tolist() if vocabulary > 2 and r.random() < 0.3 else ()
        result.append(
            Pick(kinds[int(r.integers(len(kinds)))], Key(int(r.integers(9)), i), int(r.integers(99)), seen, banned)
        )
    return result
