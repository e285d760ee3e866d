"""Errors: the library's to rich gRPC statuses (``google.rpc``) and back.

==================  ====================  =============  ==========================================
error               code                  reason         further details
==================  ====================  =============  ==========================================
InvalidRequest      INVALID_ARGUMENT      INVALID        BadRequest, one violation per field
NotFound            NOT_FOUND             NOT_FOUND      BadRequest
UnsupportedRequest  FAILED_PRECONDITION   UNSUPPORTED    BadRequest
AnswerTooLarge      RESOURCE_EXHAUSTED    TOO_LARGE      none: a retry cannot help
Overloaded          RESOURCE_EXHAUSTED    QUEUE_FULL     RetryInfo
EngineClosed        UNAVAILABLE           NOT_SERVING    RetryInfo
RequestCancelled    CANCELLED             CANCELLED
RewardFailed        INTERNAL              REWARD_FAILED  its name and reason; RetryInfo if it took too long
anything else       INTERNAL              INTERNAL       an id, under which the log has the error itself
==================  ====================  =============  ==========================================

ErrorInfo carries the reason, with domain ``trimtab.v1``. What an exception of a reward says goes to the log, as an
unexpected error does. A status stays below 4 KB, because it travels in the trailers, which clients bound (to 8 KB by
default).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from typing import NamedTuple

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from grpc import StatusCode

from trimtab.decode.errors import (
    EngineClosed,
    EngineFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestCancelled,
    RewardFailed,
    TrimtabError,
    UnsupportedRequest,
    Violation,
)
from trimtab.server.wire.numbers import duration, seconds
from trimtab.server.wire.paths import library_path, proto_path

__all__ = ["DOMAIN", "AnswerTooLarge", "DeadlineExceeded", "RpcFailed", "Unreachable", "error_of", "status_of"]

DOMAIN = "trimtab.v1"
_log = logging.getLogger("trimtab.server")

_MESSAGE_BYTES = 600
_DETAIL_BYTES = 3000  # of all violations together
_ACCEPTED = ": accepted: "
_RETRY_DELAY = 1.0  # seconds


class AnswerTooLarge(TrimtabError):
    """The answer does not fit in one message; ask for less, or for a stream."""


class Unreachable(TrimtabError):
    """No server answers at the address, or the connection broke."""

    retryable = True


class DeadlineExceeded(TrimtabError, TimeoutError):
    """The deadline of the call passed before its answer was complete."""


class RpcFailed(TrimtabError):
    """The call failed with a status that is none of the above."""


class _Kind(NamedTuple):
    code: StatusCode
    reason: str


_KINDS: tuple[tuple[type[TrimtabError], _Kind], ...] = (  # a subclass before its base
    (InvalidRequest, _Kind(StatusCode.INVALID_ARGUMENT, "INVALID")),
    (NotFound, _Kind(StatusCode.NOT_FOUND, "NOT_FOUND")),
    (UnsupportedRequest, _Kind(StatusCode.FAILED_PRECONDITION, "UNSUPPORTED")),
    (AnswerTooLarge, _Kind(StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE")),
    (Overloaded, _Kind(StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")),
    (EngineClosed, _Kind(StatusCode.UNAVAILABLE, "NOT_SERVING")),
    (RequestCancelled, _Kind(StatusCode.CANCELLED, "CANCELLED")),
    (RewardFailed, _Kind(StatusCode.INTERNAL, "REWARD_FAILED")),
)
_INTERNAL = _Kind(StatusCode.INTERNAL, "INTERNAL")


# ---------------------------------------------------------------------------------------------------- error to status


def status_of(error: Exception, *, in_spec: bool = False) -> Status:
    """The status that reports ``error``; ``in_spec`` says that its field paths are those of a generation request.

    The text of an unexpected error stays here: it goes to the log under an id, and the client gets the id.
    """
    kind = next((kind for family, kind in _KINDS if isinstance(error, family)), None)
    if kind is None:
        incident = _logged(error)
        info = ErrorInfo(reason=_INTERNAL.reason, domain=DOMAIN, metadata={"incident": incident})
        return _status(_INTERNAL.code, f"internal error; the server's log has it as {incident}", [info])

    info = ErrorInfo(reason=kind.reason, domain=DOMAIN)
    if isinstance(error, RewardFailed):
        error = _shown(error)
        info.metadata.update(reward=error.reward, reason=_shortened(error.reason, _MESSAGE_BYTES))
    violations: tuple[Violation, ...] = getattr(error, "violations", ())
    if in_spec:
        violations = tuple(Violation(proto_path(v.field), v.value, v.accepted) for v in violations)
    message = "; ".join(map(str, violations)) if violations else str(error)
    details: list[Message] = [info]
    if violations:
        details.append(BadRequest(field_violations=_field_violations(violations)))
    if isinstance(error, Overloaded):
        details.append(RetryInfo(retry_delay=duration(error.retry_after)))
    elif isinstance(error, EngineClosed) or (isinstance(error, RewardFailed) and error.timed_out):
        details.append(RetryInfo(retry_delay=duration(_RETRY_DELAY)))
    return _status(kind.code, message, details)


def _logged(error: Exception) -> str:
    """Log an error with its traceback; the id under which the log has it."""
    incident = secrets.token_hex(6)
    _log.error("internal error %s", incident, exc_info=error)
    return incident


def _shown(error: RewardFailed) -> RewardFailed:
    """A failure as clients may see it: without the text of the exception behind it."""
    cause = error.__cause__
    if cause is None or error.timed_out:
        return error
    return RewardFailed(error.reward, f"it raised {type(cause).__name__}; the server's log has it as {_logged(error)}")


def _status(code: StatusCode, message: str, details: Iterable[Message]) -> Status:
    status = Status(code=code.value[0], message=_shortened(message, _MESSAGE_BYTES))
    for detail in details:
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _shortened(text: str, limit: int) -> str:
    data = text.encode(errors="replace")
    return text if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "…"


def _field_violations(violations: Iterable[Violation]) -> list[BadRequest.FieldViolation]:
    """As many violations as the size of a status allows; the last says how many were left out."""
    kept: list[BadRequest.FieldViolation] = []
    size, left_out = 0, 0
    for violation in violations:
        message = BadRequest.FieldViolation(
            field=_shortened(violation.field, 300),
            description=_shortened(violation.value, 600) + _ACCEPTED + _shortened(violation.accepted, 900),
        )
        size += message.ByteSize() + 4
        if size > _DETAIL_BYTES:
            left_out += 1
        else:
            kept.append(message)
    if left_out:
        kept.append(BadRequest.FieldViolation(description=f"and {left_out} more"))
    return kept


# ---------------------------------------------------------------------------------------------------- status to error


class _Verbatim(str):
    """Text whose repr is itself: values of violations are reprs already."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def error_of(code: StatusCode, message: str, status: Status | None) -> TrimtabError:
    """The library's error for the status of a call that failed.

    Args:
        code: the call's status code.
        message: its text.
        status: its ``grpc-status-details-bin``, if there was one.
    """
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    for detail in status.details if status else ():
        for target in (info, bad, retry):
            if detail.Is(target.DESCRIPTOR):
                detail.Unpack(target)
    violations = [_violation_of(v) for v in bad.field_violations]
    delay = seconds(retry.retry_delay) if retry.HasField("retry_delay") else None
    if info.domain == DOMAIN:
        if info.reason == "REWARD_FAILED":
            return RewardFailed(info.metadata["reward"], info.metadata["reason"], timed_out=delay is not None)
        known = _known_error(info.reason, code, message, violations, delay)
        if known is not None:
            return known
    match code:
        case StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(message)
        case StatusCode.CANCELLED:
            return RequestCancelled(message)
        case StatusCode.UNAVAILABLE:
            return Unreachable(message)
    return RpcFailed(f"{code.name}: {message}")


def _known_error(
    reason: str, code: StatusCode, message: str, violations: list[Violation], delay: float | None
) -> TrimtabError | None:
    match reason:
        case "INVALID" if violations:
            return InvalidRequest(violations)
        case "NOT_FOUND" if violations:
            not_found = NotFound(violations[0].field, "", ())
            not_found.violations = (violations[0],)
            not_found.args = (f"not found: {violations[0]}",)
            return not_found
        case "UNSUPPORTED" if violations:
            return UnsupportedRequest(violations[0].field, _Verbatim(violations[0].value), violations[0].accepted)
        case "TOO_LARGE":
            return AnswerTooLarge(message)
        case "QUEUE_FULL":
            return Overloaded(message) if delay is None else Overloaded(message, delay)
        case "NOT_SERVING":
            return EngineClosed(message)
        case "CANCELLED":
            return RequestCancelled(message)
        case "INTERNAL":
            return EngineFailed(message)
    return None


def _violation_of(message: BadRequest.FieldViolation) -> Violation:
    value, _, accepted = message.description.rpartition(_ACCEPTED)
    return Violation(library_path(message.field), value, accepted)
