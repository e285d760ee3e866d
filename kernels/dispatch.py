"""Which implementation of an operation runs, and a record of it.

``auto`` takes the fastest path that can run the call; any other name is an order, and one that cannot be followed is
an error, never another path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

import torch

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

Path = Literal["auto", "torch", "triton", "interpret"]

_AVAILABLE: dict[str, tuple[str, ...]] = {
    "stats": ("torch",),
    "pick": ("torch",),
    "top_logprobs": ("torch",),
    "filtered_logprobs": ("torch",),
}


class Call(NamedTuple):
    """One dispatched call: the operation and the path that ran it."""

    op: str
    path: str


class PathUnavailable(RuntimeError):
    """A path was asked for by name and cannot run this operation."""


# Holds only the list that the innermost ``record`` of this context fills; a thread starts without one.
_calls: ContextVar[list[Call] | None] = ContextVar("trimtab_kernel_calls", default=None)


@contextmanager
def record() -> Iterator[list[Call]]:
    """Collect the (operation, path) of every call made in this thread or task while the block runs."""
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def _resolve(op: str, path: Path) -> str:
    available = _AVAILABLE[op]
    if path != "auto" and path not in available:
        raise PathUnavailable(f"path = {path!r}: accepted for {op}: 'auto', {', '.join(map(repr, available))}")
    resolved = available[0] if path == "auto" else path
    calls = _calls.get()
    if calls is not None:
        calls.append(Call(op, resolved))
    return resolved


def stats(logits: torch.Tensor, tokens: torch.Tensor | None = None, *, path: Path = "auto") -> Stats:
    """Statistics of every row: see ``reference.entropy.stats``."""
    _resolve("stats", path)
    return entropy.stats(logits, tokens)


def top_logprobs(logits: torch.Tensor, n: int, *, path: Path = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """The n most likely tokens of every row: see ``reference.entropy.top_logprobs``."""
    _resolve("top_logprobs", path)
    return entropy.top_logprobs(logits, n)


def pick(logits: torch.Tensor, rows: Sequence[RowPick], *, path: Path = "auto") -> Picked:
    """One token from every row: see ``reference.pick.pick``."""
    _resolve("pick", path)
    return picking.pick(logits, rows)


def filtered_logprobs(logits: torch.Tensor, rows: Sequence[RowPick], *, path: Path = "auto") -> torch.Tensor:
    """The distribution ``pick`` draws from: see ``reference.pick.filtered_logprobs``."""
    _resolve("filtered_logprobs", path)
    return picking.filtered_logprobs(logits, rows)
