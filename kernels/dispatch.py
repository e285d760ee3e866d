"""The operations of this package, each on the path that ``paths`` chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trimtab.kernels.paths import Call, Path, PathUnavailable, record, resolve
from trimtab.kernels.reference import entropy
from trimtab.kernels.reference import pick as picking
from trimtab.kernels.reference.entropy import Stats
from trimtab.kernels.reference.filters import Filters, RowPick
from trimtab.kernels.reference.pick import Picked

__all__ = [
    "Call",
    "Filters",
    "Path",
    "PathUnavailable",
    "Picked",
    "RowPick",
    "Stats",
    "filtered_logprobs",
    "pick",
    "record",
    "stats",
    "top_logprobs",
]


def stats(logits: torch.Tensor, tokens: torch.Tensor | None = None, *, path: Path = "auto") -> Stats:
    """Statistics of every row: see ``reference.entropy.stats``."""
    resolve("stats", path, logits.device, kernels=False)
    return entropy.stats(logits, tokens)


def top_logprobs(logits: torch.Tensor, n: int, *, path: Path = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """The n most likely tokens of every row: see ``reference.entropy.top_logprobs``."""
    resolve("top_logprobs", path, logits.device, kernels=False)
    return entropy.top_logprobs(logits, n)


def pick(logits: torch.Tensor, rows: Sequence[RowPick], *, path: Path = "auto") -> Picked:
    """One token from every row: see ``reference.pick.pick``."""
    resolve("pick", path, logits.device, kernels=False)
    return picking.pick(logits, rows)


def filtered_logprobs(logits: torch.Tensor, rows: Sequence[RowPick], *, path: Path = "auto") -> torch.Tensor:
    """The distribution ``pick`` draws from: see ``reference.pick.filtered_logprobs``."""
    resolve("filtered_logprobs", path, logits.device, kernels=False)
    return picking.filtered_logprobs(logits, rows)
