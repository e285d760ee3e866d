"""Answers that must fit in one message."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import Message

from trimtab.decode.errors import Violation
from trimtab.decode.request.events import Completed, Started
from trimtab.decode.request.info import Limits
from trimtab.decode.request.request import Request
from trimtab.server.rpc.bridge import MESSAGE_BYTES, kept_candidates
from trimtab.server.wire.alike import filled
from trimtab.server.wire.answer import candidate_message, completed_message
from trimtab.server.wire.status import AnswerTooLarge
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["fitting", "unary_response", "unary_violations"]

M = TypeVar("M", bound=Message)

# Bytes of one reported token, and of one of its alternatives: ids, floats, tags and a piece of ordinary length.
_TOKEN_BYTES = 48
_TOP_BYTES = 28


def unary_violations(request: Request, options: pb.ResponseOptions, limits: Limits) -> list[Violation]:
    """What keeps the answer of a request from fitting in one message, so that it is refused before it starts."""
    if not options.tokens:
        return []
    per_token = _TOKEN_BYTES + _TOP_BYTES * min(request.top_logprobs, limits.max_top_logprobs)
    count = min(options.max_candidates, request.search.results)
    most = MESSAGE_BYTES // (per_token * max(1, count))
    tokens = request.stopping.max_new_tokens
    if most < tokens <= limits.max_new_tokens:  # beyond the limit it is refused in any case
        accepted = f"at most {most} for a unary answer with these response options; GenerateStream has no such bound"
        return [Violation.of("stopping.max_new_tokens", tokens, accepted)]
    return []


def unary_response(started: Started, completed: Completed, options: pb.ResponseOptions) -> pb.GenerateResponse:
    """The whole answer.

    Raises:
        AnswerTooLarge: it does not fit in one message after all.
    """
    result = completed.result
    authors = {name: index for index, name in enumerate(started.models)}
    kept = kept_candidates(result, options.max_candidates)
    response = pb.GenerateResponse(
        started=filled(pb.Started(), started),
        candidates=[candidate_message(c, authors, tokens=options.tokens) for c in kept],
        completed=completed_message(result),
    )
    return fitting(response, "use GenerateStream, or ask for fewer tokens or details")


def fitting(response: M, remedy: str) -> M:
    """``response`` itself.

    Raises:
        AnswerTooLarge: it is larger than a message may be; ``remedy`` says what to do.
    """
    size = response.ByteSize()
    if size > MESSAGE_BYTES:
        raise AnswerTooLarge(f"the answer has {size} bytes, one message at most {MESSAGE_BYTES}: {remedy}")
    return response
