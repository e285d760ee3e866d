"""Typed errors. Every one says which field, which value, what would be accepted, and whether a retry can help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "EngineClosed",
    "EngineFailed",
    "InvalidRequest",
    "MissingExtra",
    "ModelCacheError",
    "NotFound",
    "Overloaded",
    "RequestCancelled",
    "RewardFailed",
    "TrimtabError",
    "UnsupportedModel",
    "UnsupportedRequest",
    "Violation",
]

_SHOWN = 120  # characters of a bad value that a message repeats


class TrimtabError(Exception):
    """Base of every error this project raises on purpose.

    Attributes:
        retryable: whether the same call may succeed later without being changed.
    """

    retryable = False

    def __reduce__(self) -> tuple[Any, ...]:
        # As it is, not by its constructor, whose arguments are not those of the message. The cause and the traceback
        # are left out, as Python leaves them out of any exception.
        return _restored, (type(self), self.args, dict(vars(self)))


def _restored(kind: type[TrimtabError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> TrimtabError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    vars(error).update(attributes)
    return error


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field of a request.

    Attributes:
        field: path of the field, e.g. ``sampling.temperature``; the same path as in the proto, without ``spec.``.
        value: the offending value as text, shortened.
        accepted: what the field accepts.
    """

    field: str
    value: str
    accepted: str

    @classmethod
    def of(cls, field: str, value: object, accepted: str) -> Violation:
        text = repr(value)
        if len(text) > _SHOWN:
            text = f"{text[:_SHOWN]}… ({len(text)} characters)"
        return cls(field, text, accepted)

    def __str__(self) -> str:
        return f"{self.field} = {self.value}: accepted: {self.accepted}"


class InvalidRequest(TrimtabError, ValueError):
    """The request can never run as it is; lists *all* the fields at fault."""

    def __init__(self, violations: Violation | Iterable[Violation]) -> None:
        self.violations: tuple[Violation, ...] = (
            (violations,) if isinstance(violations, Violation) else tuple(violations)
        )
        super().__init__("invalid request: " + "; ".join(map(str, self.violations)))

    @classmethod
    def of(cls, field: str, value: object, accepted: str) -> InvalidRequest:
        return cls(Violation.of(field, value, accepted))


class NotFound(TrimtabError, LookupError):
    """A model or reward of that name is not served here."""

    def __init__(self, field: str, name: str, available: Sequence[str]) -> None:
        self.violations = (Violation.of(field, name, f"one of {', '.join(map(repr, available)) or '(none)'}"),)
        super().__init__(f"not found: {self.violations[0]}")


class UnsupportedRequest(TrimtabError):
    """A combination or method that this engine does not offer; refused before it starts, naming the pair."""

    def __init__(self, field: str, value: object, accepted: str) -> None:
        self.violations = (Violation.of(field, value, accepted),)
        super().__init__(f"unsupported: {self.violations[0]}")


class UnsupportedModel(TrimtabError):
    """A model that cannot be served exactly (architecture, RoPE kind, …); says why."""

    def __init__(self, model: str, reason: str) -> None:
        self.model, self.reason = model, reason
        super().__init__(f"model {model!r} cannot be served: {reason}")


class ModelCacheError(TrimtabError):
    """A bundled model could not be fetched or verified."""


class MissingExtra(TrimtabError, ImportError):
    """A part of trimtab is used whose packages aren't installed.

    Attributes:
        extra: that brings them.
    """

    def __init__(self, extra: str, module: str) -> None:
        self.extra = extra
        super().__init__(f"{module} is not installed, which this part needs: pip install 'trimtab[{extra}]'")


class Overloaded(TrimtabError):
    """The queue is full; the same request may be sent again after ``retry_after`` seconds."""

    retryable = True

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class RequestCancelled(TrimtabError):
    """The request was cancelled by its owner before it finished."""


class RewardFailed(TrimtabError):
    """A reward raised, took too long or gave no finite numbers; the request that asked for it ends, and no other.

    Attributes:
        reward: its name.
        reason: what it did.
        timed_out: whether its time limit passed; then a retry may help.
    """

    def __init__(self, reward: str, reason: str, *, timed_out: bool = False) -> None:
        self.reward, self.reason, self.timed_out = reward, reason, timed_out
        self.retryable = timed_out
        super().__init__(f"reward {reward!r} failed: {reason}")


class EngineClosed(TrimtabError):
    """The engine is closing or closed; another engine may take the request."""

    retryable = True


class EngineFailed(TrimtabError):
    """The engine met a fault of its own while it ran this request."""
