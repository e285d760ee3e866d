"""Python functions as rewards."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.decode.rewards.base import LocalReward, Reward, Sample
from trimtab.decode.rewards.options import OptionError, choice

__all__ = ["Function", "python"]


class Function(LocalReward):
    """A function of the user's.

    Args:
        function: ``f(prompt, text) -> number``, with the prompt's text; or, with one parameter,
            ``f(samples) -> numbers``, with the whole batch of ``Sample``.
        kind: what it can rate. ``sequence`` unless said otherwise: only its author knows whether it makes sense of the
            beginning of an answer.
        runs_on: ``thread``, or ``process`` where it computes for long or may crash; then it must be importable.
    """

    def __init__(self, function: Callable[..., Any], kind: str = "sequence", runs_on: str = "thread") -> None:
        self.function = function
        self.kind = choice("kind", kind, ("sequence", "prefix", "token"))  # type: ignore[assignment]
        self.runs_on = choice("runs_on", runs_on, ("thread", "process"))  # type: ignore[assignment]
        self.batched = _takes_batch(function)
        self.reads_prompt = not self.batched
        self.description = (inspect.getdoc(function) or "").partition("\n")[0]

    def rate(self, samples: Sequence[Sample]) -> Sequence[float]:
        if self.batched:
            found: Sequence[float] = self.function(list(samples))
            return found
        return [self.function(sample.instruction, sample.text) for sample in samples]


class _Located(Function):
    """A function that is sent to other processes as where it is found: they need not search its folder."""

    def __init__(self, path: str, kind: str, runs_on: str) -> None:
        self._path = path
        super().__init__(_imported(path), kind, runs_on)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "function": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.function = _imported(self._path)


def python(function: str | Callable[..., Any], kind: str = "sequence", runs_on: str = "thread") -> Reward:
    """The type ``python``: a function by its import path, ``package.module:name``, or itself where it is at hand.

    A module in a folder that Python does not search is ``FOLDER/module:name``: its folder is searched last from then
    on. One that lies beside a ``trimtab.toml`` is found there without.
    """
    return _Located(function, kind, runs_on) if isinstance(function, str) else Function(function, kind, runs_on)


def _imported(path: str) -> Callable[..., Any]:
    place, _, name = path.rpartition(":")
    folder, _, module = place.rpartition("/")
    accepted = "the import path of a function, 'package.module:name'"
    if not module or not name:
        raise OptionError("function", path, accepted)
    folder = str(Path(folder).resolve()) if folder else ""
    if folder and folder not in sys.path:
        sys.path.append(folder)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise OptionError("function", path, f"{accepted} ({error})") from error
    if not callable(found):
        raise OptionError("function", path, accepted)
    function: Callable[..., Any] = found
    return function


def _takes_batch(function: Callable[..., Any]) -> bool:
    """Whether a function wants samples (one parameter) and not prompt and text (two).

    Raises:
        OptionError: it can't be called either way, or is a coroutine function.
    """
    accepted = "a plain function f(prompt, text) -> number or f(samples) -> numbers"
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise OptionError("function", function, accepted)
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a builtin without one
        return False
    calls: tuple[tuple[object, ...], ...] = (("", ""), ([],))
    for arguments in calls:
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 1
    raise OptionError("function", function, accepted)
