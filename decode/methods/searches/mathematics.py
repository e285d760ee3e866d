"""Conclusions of mathematical answers, by Hugging Face's math-verify (Kydlíček, 2024): equal values are one vote.

The library finds the answer in a text and compares with sympy, which can take for ever over one hostile line. So each
step has a limit of its own where signals can set one, as they can in the process that this is meant to run in, and all
of them together have another. What isn't read in time counts by the built-in rule.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

from trimtab.decode.methods.searches.conclusions import auto

__all__ = ["available", "mathematics"]

T = TypeVar("T")

_STEP = 2.0  # seconds for one text, or for one comparison
_ALL = 15.0  # for all of them


def available() -> bool:
    """Whether the library is installed."""
    return all(find_spec(name) is not None for name in ("math_verify", "antlr4"))


def mathematics(texts: Sequence[str]) -> list[str]:
    """A name for the conclusion of each text, the same where the library says that two are equal; empty for none.

    "Equal" is not transitive (0.333333 is 1/3 to six places, and 0.3333334 is 0.333333): a text joins the first
    conclusion that it equals. A percentage is its value: 75 % is 3/4, and not 75.
    """
    _library()
    deadline = time.monotonic() + _ALL
    classes: list[tuple[str, list[Any]]] = []
    named: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        said = _limited(deadline, _read, text)
        if said is None:
            named[text] = auto(text)
        elif not said:
            named[text] = ""
        else:
            named[text] = next((name for name, first in classes if _limited(deadline, _equal, first, said)), "")
            if not named[text]:
                named[text] = f"#{len(classes)}"
                classes.append((named[text], said))
    return [named[text] for text in texts]


@cache
def _library() -> Any:
    """The library, with everything loaded that it loads when it is first used: an import must not be cut short."""
    import math_verify

    # Its own limits are signals, which refuse to run in threads; it warns that they are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    half = [math_verify.parse(text, parsing_timeout=None) for text in ("1/2", r"$\frac{x}{2} = 0.5$")]
    math_verify.verify(*half, timeout_seconds=None)
    return math_verify


def _read(text: str) -> list[Any]:
    found: list[Any] = _library().parse(text, parsing_timeout=None)
    values = [_percentage(value) for value in found if not isinstance(value, str)]
    return values or found  # beside a value, its spelling would make "75" of "75%"


def _percentage(value: Any) -> Any:
    """A percentage as its value: as such the library lets 75 % pass for 75 and for 3/4, which are not equal."""
    from sympy import UnevaluatedExpr

    return value.doit() if value.has(UnevaluatedExpr) else value


def _equal(one: list[Any], other: list[Any]) -> bool:
    verify = _library().verify  # not symmetric
    return all(verify(gold, said, timeout_seconds=None) for gold, said in ((one, other), (other, one)))


class _OutOfTime(BaseException):
    """Not an ``Exception``: the library catches those and goes on."""


def _limited(deadline: float, step: Callable[..., T], *arguments: Any) -> T | None:
    """What a step gives; None where it took too long or failed."""
    left = deadline - time.monotonic()
    if left <= 0:
        return None
    try:
        with _alarm(min(_STEP, left)):
            return step(*arguments)
    except (_OutOfTime, Exception):
        return None


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises ``_OutOfTime`` after so many seconds, and again if that is caught; not away from the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
