"""Which implementation of an operation runs, and a record of it.

``auto`` takes the fastest path that can run the call: Triton on a GPU, torch elsewhere. Any other name is an order, and
one that cannot be followed is an error, never another path. ``interpret`` runs the Triton kernels on CPU tensors
through Triton's interpreter: for tests, since it takes a fifth of a second for a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch

__all__ = ["Call", "Path", "PathUnavailable", "available", "record", "resolve"]

Path = Literal["auto", "torch", "triton", "interpret"]


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


@cache
def _triton() -> str | None:
    """How Triton kernels run in this process: compiled, through the interpreter, or (None) not at all.

    Triton reads TRITON_INTERPRET when it is imported, so it is one or the other for the life of a process.
    """
    if find_spec("triton") is None:
        return None
    return "interpret" if os.environ.get("TRITON_INTERPRET") == "1" else "triton"


def available(device: torch.device, kernels: bool = True) -> tuple[str, ...]:
    """Paths for tensors on ``device``, the one that ``auto`` takes first.

    Args:
        device: of the tensors.
        kernels: whether the operation has Triton kernels.
    """
    how = _triton() if kernels else None
    if how == "triton" and device.type == "cuda":
        return ("triton", "torch")
    if how == "interpret" and device.type == "cpu":
        return ("torch", "interpret")
    return ("torch",)


def resolve(op: str, path: Path, device: torch.device, kernels: bool = True) -> str:
    """The path that runs this call, which is recorded.

    Raises:
        PathUnavailable: ``path`` names one that can't.
    """
    paths = available(device, kernels)
    if path != "auto" and path not in paths:
        accepted = ", ".join(map(repr, ("auto", *paths)))
        raise PathUnavailable(f"path = {path!r}: accepted for {op} on {device.type}: {accepted}")
    resolved = paths[0] if path == "auto" else path
    calls = None if torch.compiler.is_compiling() else _calls.get()  # a compiled call is not recorded
    if calls is not None:
        calls.append(Call(op, resolved))
    return resolved
