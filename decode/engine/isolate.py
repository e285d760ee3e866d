"""One row's fault is its own: a call over many that fails is repeated over halves until the guilty are alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

__all__ = ["isolated"]

T = TypeVar("T")
R = TypeVar("R")


def isolated(call: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T]) -> list[R | Exception]:
    """``call(items)``, or per item the exception that it raises by itself.

    Args:
        call: gives one result per item, each a function of its own item alone; it must leave nothing behind where it
            raises. Where it doesn't raise it runs once.
        items: at least one.
    """
    try:
        return list(call(items))
    except Exception as error:
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    return [*isolated(call, items[:half]), *isolated(call, items[half:])]
