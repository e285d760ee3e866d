"""Events of an engine as messages of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import cast

from trimtab.decode.errors import EngineFailed
from trimtab.decode.request.events import (
    Chunk,
    Completed,
    Event,
    Progress,
    Started,
)
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Candidate, Result
from trimtab.server.rpc.backend import Backend
from trimtab.server.wire.alike import filled
from trimtab.server.wire.answer import (
    candidate_message,
    candidate_parts,
    completed_message,
    token_message,
)
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["MESSAGE_BYTES", "StreamMessages", "answer", "events_of", "kept_candidates"]

MESSAGE_BYTES = 3 * 1024 * 1024  # clients accept 4 MiB unless told otherwise
_ROOM = MESSAGE_BYTES - 64  # for what wraps a candidate or a chunk


@asynccontextmanager
async def events_of(engine: Backend, request: Request) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of one answer; leaving the context, however it is left, cancels what is not finished."""
    events = cast("AsyncGenerator[Event, None]", engine.astream_request(request))
    async with aclosing(events):
        yield events


async def answer(events: AsyncIterator[Event]) -> tuple[Started, Completed]:
    """Wait for the whole answer.

    Raises:
        EngineFailed: the events end without Completed.
    """
    started: Started | None = None
    async for event in events:
        match event:
            case Started():
                started = event
            case Completed() if started is not None:
                return started, event
    raise EngineFailed("the engine ended an answer without completing it")


class StreamMessages:
    """Turns the events of one answer into messages.

    Args:
        tokens: whether the client asked for tokens.
        max_candidates: how many candidates it asked for; 0 is the selected one, None all.
    """

    def __init__(self, *, tokens: bool, max_candidates: int | None) -> None:
        self._tokens = tokens
        self._most = max_candidates
        self._authors: dict[str, int] = {}
        self._texts: dict[int, list[str]] = {}  # of chunks, by candidate
        self._sent: dict[int, int] = {}  # tokens of chunks, sent or not asked for, by candidate
        self._unreported: dict[int, int] = {}  # tokens of chunks that gave no text and so no message
        self.completed = False

    def of(self, event: Event) -> Iterator[pb.GenerateStreamResponse]:
        """The messages of one event: none, one, or more where one would be too large."""
        match event:
            case Started():
                self._authors = {name: index for index, name in enumerate(event.models)}
                yield pb.GenerateStreamResponse(started=filled(pb.Started(), event))
            case Chunk():
                yield from self._chunk(event)
            case Progress():
                yield pb.GenerateStreamResponse(progress=filled(pb.Progress(), event))
            case Completed():
                yield from self._completed(event)

    def _chunk(self, event: Chunk) -> Iterator[pb.GenerateStreamResponse]:
        self._texts.setdefault(event.candidate, []).append(event.text)
        self._sent[event.candidate] = self._sent.get(event.candidate, 0) + len(event.tokens)
        count = self._unreported.pop(event.candidate, 0) + len(event.tokens)
        if not event.text and not (self._tokens and event.tokens):
            self._unreported[event.candidate] = count
            return
        tokens = [token_message(token, self._authors) for token in event.tokens] if self._tokens else ()
        whole = pb.Candidate(index=event.candidate, text=event.text, tokens=tokens)
        for part in candidate_parts(whole, _ROOM):
            if part.text or part.tokens:
                chunk = pb.Chunk(candidate=part.index, text_delta=part.text, tokens=part.tokens, token_count=count)
                count = 0
                yield pb.GenerateStreamResponse(chunk=chunk)

    def _completed(self, event: Completed) -> Iterator[pb.GenerateStreamResponse]:
        result = event.result
        for candidate in kept_candidates(result, self._most):
            streamed = "".join(self._texts.get(candidate.index, ()))
            if not candidate.text.startswith(streamed):
                raise EngineFailed(
                    f"candidate {candidate.index} does not begin with the text that was committed for it"
                )
            message = candidate_message(
                candidate,
                self._authors,
                tokens=self._tokens,
                sent_text=len(streamed),
                sent_tokens=self._sent.get(candidate.index, 0),
            )
            for part in candidate_parts(message, _ROOM):
                yield pb.GenerateStreamResponse(candidate=part)
        self.completed = True
        yield pb.GenerateStreamResponse(completed=completed_message(result))


def kept_candidates(result: Result, most: int | None) -> list[Candidate]:
    """The selected candidate and as many of the others, in order, as make ``most`` together; None takes all."""
    others = [candidate for candidate in result.candidates if candidate is not result.chosen]
    return [result.chosen, *(others if most is None else others[: max(0, most - 1)])]
