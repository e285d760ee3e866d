"""Collects what is wrong with a request, so that one error names everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from trimtab.decode.errors import NotFound, UnsupportedRequest, Violation
from trimtab.decode.request.info import Limits, ModelInfo, RewardInfo

__all__ = ["MAX_UINT32", "SHOWN_PER_LIST", "Check", "is_number", "token_ids_of"]

T = TypeVar("T")

MAX_UINT32 = 2**32 - 1
SHOWN_PER_LIST = 8  # a list of a thousand bad ids is one mistake


class Check:
    """Collects violations; each method checks one part and accepts exactly what the types document.

    Args:
        models, rewards: what the engine serves, by name.
        limits: bounds on one request.

    Attributes:
        found: what no engine could accept.
        unknown: names that this one does not serve, and ``unknown_error``, the first of them.
        unsupported: the first combination that cannot work.
    """

    def __init__(self, models: Mapping[str, ModelInfo], rewards: Mapping[str, RewardInfo], limits: Limits) -> None:
        self.models = models
        self.rewards = rewards
        self.limits = limits
        self.found: list[Violation] = []
        self.unknown: list[Violation] = []
        self.unknown_error: NotFound | None = None
        self.unsupported: UnsupportedRequest | None = None

    def refuse(self, path: str, value: object, accepted: str) -> None:
        self.found.append(Violation.of(path, value, accepted))

    def kind(self, path: str, value: object, kind: type) -> bool:
        if isinstance(value, kind):
            return True
        self.refuse(path, value, f"a {kind.__name__}")
        return False

    def integer(self, path: str, value: object, low: int, high: int) -> bool:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return True
        self.refuse(path, value, f"a whole number in [{low}, {high}]")
        return False

    def number(
        self, path: str, value: object, accepted: str, holds: Callable[[float], bool] = lambda value: True
    ) -> None:
        """A finite number for which ``holds``; ``accepted`` says so in words."""
        if not (is_number(value) and holds(cast("float", value))):
            self.refuse(path, value, f"a finite number {accepted}")

    def flag(self, path: str, value: object) -> None:
        if not isinstance(value, bool):
            self.refuse(path, value, "True or False")

    def each(self, path: str, values: object, what: str, problem: Callable[[object], str | None]) -> None:
        """A list of values, of which ``problem`` says what would be accepted instead."""
        if isinstance(values, str | bytes) or not isinstance(values, Sequence):
            self.refuse(path, values, f"a tuple of {what}")
            return
        self.some(path, [(f"[{i}]", v, said) for i, v in enumerate(values) if (said := problem(v)) is not None])

    def some(self, path: str, wrong: list[tuple[str, object, str]]) -> None:
        """Refuse elements of a collection, given as (subscript, value, accepted), naming at most a few of them."""
        for subscript, value, accepted in wrong[:SHOWN_PER_LIST]:
            self.refuse(f"{path}{subscript}", value, accepted)
        if len(wrong) > SHOWN_PER_LIST:
            self.refuse(path, f"{len(wrong)} elements at fault", wrong[-1][2])

    def unsupport(self, path: str, value: str, accepted: str) -> None:
        """Refuse a combination; ``value`` names the pair."""
        self.unsupported = self.unsupported or UnsupportedRequest(path, value, accepted)

    def model(self, path: str, name: object) -> ModelInfo | None:
        """A model that writes; None if it has been refused."""
        info = self._named(path, name, "model", self.models)
        if info is not None and info.role == "reward":
            accepted = "a model that writes text: this one has the role 'reward'"
            self.refuse(path, name, accepted)
            return None
        return info

    def reward(self, path: str, name: object) -> RewardInfo | None:
        """A reward; None if it has been refused."""
        return self._named(path, name, "reward", self.rewards)

    def _named(self, path: str, name: object, what: str, known: Mapping[str, T]) -> T | None:
        if not isinstance(name, str) or not name:
            self.refuse(path, name, f"the name of a {what}")
        elif name not in known:
            error = NotFound(path, name, sorted(known))
            self.unknown += error.violations
            self.unknown_error = self.unknown_error or error
        else:
            return known[name]
        return None

    def token_ids(self, path: str, ids: object, info: ModelInfo | None) -> None:
        accepted, is_token = token_ids_of(info)
        self.each(path, ids, f"token ids, each {accepted}", lambda value: None if is_token(value) else accepted)


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def token_ids_of(info: ModelInfo | None) -> tuple[str, Callable[[object], bool]]:
    """What token ids a model takes, in words and as a predicate; all 32-bit ids while the model is unknown."""
    size = info.vocab_size if info is not None else MAX_UINT32 + 1

    def is_token(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size

    return f"a whole number in [0, {size - 1}]", is_token
