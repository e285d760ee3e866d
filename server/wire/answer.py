"""Answers: library to proto and back.

A stream is read back by ``Assembler`` into the same events that an embedded engine gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimtab import decode as lib
from trimtab.decode.errors import TrimtabError
from trimtab.server.wire.alike import filled, made, members
from trimtab.v1 import decoding_pb2 as pb

__all__ = [
    "Assembler",
    "MalformedAnswer",
    "candidate_message",
    "candidate_parts",
    "completed_message",
    "result_of",
    "token_message",
    "token_of",
]

_DRAWS: Mapping[Any, Any] = members(lib.TokenDraw, pb.TokenDraw.DESCRIPTOR)
_DRAW_OF = {number: draw for draw, number in _DRAWS.items()}
_REASONS: Mapping[Any, Any] = {None: 0, **members(lib.TokenReason, pb.TokenReason.DESCRIPTOR)}
_REASON_OF = {number: reason for reason, number in _REASONS.items()}
_FINISH_OF = {number: reason for reason, number in members(lib.FinishReason, pb.FinishReason.DESCRIPTOR).items()}


class MalformedAnswer(TrimtabError):
    """The messages of an answer do not add up to one."""


# ---------------------------------------------------------------------------------------------------- library to proto


def token_message(token: lib.Token, authors: Mapping[str, int]) -> pb.TokenInfo:
    """``authors`` maps the names of Started.models to their indices."""
    return pb.TokenInfo(
        id=token.id,
        piece=token.piece,
        draw=_DRAWS[token.draw],
        author=authors[token.author],
        logprob=token.logprob,
        entropy_nats=token.entropy,
        reward=token.reward,
        top_prob=token.top_prob,
        top=[pb.TopLogprob(id=t.id, piece=t.piece, logprob=t.logprob) for t in token.top],
        reason=_REASONS[token.reason],
        base_entropy_nats=token.base_entropy,
        base_top_prob=token.base_top_prob,
    )


def candidate_message(
    candidate: lib.Candidate,
    authors: Mapping[str, int],
    *,
    tokens: bool,
    sent_text: int = 0,
    sent_tokens: int = 0,
) -> pb.Candidate:
    """A candidate.

    Args:
        candidate: what to send.
        authors: as for ``token_message``.
        tokens: whether its tokens were asked for.
        sent_text, sent_tokens: characters and tokens at its beginning that were sent in chunks already.
    """
    kept = candidate.tokens[sent_tokens:] if tokens else ()
    return filled(
        pb.Candidate(tokens=[token_message(token, authors) for token in kept]),
        candidate,
        text=candidate.text[sent_text:],
        tokens=None,
        token_count=len(candidate.tokens),
    )


def candidate_parts(message: pb.Candidate, limit: int) -> Iterator[pb.Candidate]:
    """Split a candidate into messages of at most ``limit`` bytes, whose texts and tokens concatenate to its own.

    All but the last have an index, text and tokens only. One token, and what a candidate has beside text and tokens,
    must fit in half of ``limit``.
    """
    if message.ByteSize() <= limit:
        yield message
        return
    room = limit // 2  # half for text, half for tokens
    texts = list(_text_parts(message.text, room))
    tokens = list(_token_parts(message.tokens, room))
    for i in range(max(len(texts), len(tokens))):
        yield pb.Candidate(
            index=message.index,
            text=texts[i] if i < len(texts) else "",
            tokens=tokens[i] if i < len(tokens) else (),
        )
    last = pb.Candidate()
    last.CopyFrom(message)
    last.ClearField("text")
    last.ClearField("tokens")
    yield last


def _text_parts(text: str, room: int) -> Iterator[str]:
    step = max(1, room // 4)  # a character is at most 4 bytes of UTF-8
    for start in range(0, len(text), step):
        yield text[start : start + step]


def _token_parts(tokens: Sequence[pb.TokenInfo], room: int) -> Iterator[list[pb.TokenInfo]]:
    part: list[pb.TokenInfo] = []
    size = 0
    for token in tokens:
        cost = token.ByteSize() + 6  # its tag and its length
        if part and size + cost > room:
            yield part
            part, size = [], 0
        part.append(token)
        size += cost
    if part:
        yield part


def completed_message(result: lib.Result) -> pb.Completed:
    figures = {"mean_entropy_nats": result.mean_entropy, "exp_mean_entropy": result.exp_mean_entropy}
    usage = filled(pb.Usage(), result.usage, **figures)
    return filled(pb.Completed(), result, selected=result.chosen.index, usage=usage)


# ---------------------------------------------------------------------------------------------------- proto to library


def _known(table: Mapping[int, Any], number: int) -> Any:
    if number not in table:
        raise MalformedAnswer(f"value {number} of an enum is unknown here; known: {sorted(table)}")
    return table[number]


def _author(models: Sequence[str], index: int) -> str:
    if index >= len(models):
        raise MalformedAnswer(f"author {index} of a token; the answer has {len(models)} models")
    return models[index]


def token_of(message: pb.TokenInfo, models: Sequence[str]) -> lib.Token:
    """The inverse of ``token_message``; ``models`` are those of Started.

    Raises:
        MalformedAnswer: an author, a draw or a reason that is not known.
    """
    return lib.Token(
        id=message.id,
        piece=message.piece,
        author=_author(models, message.author),
        draw=_known(_DRAW_OF, message.draw),
        logprob=message.logprob if message.HasField("logprob") else None,
        entropy=message.entropy_nats if message.HasField("entropy_nats") else None,
        reward=message.reward if message.HasField("reward") else None,
        top_prob=message.top_prob if message.HasField("top_prob") else None,
        top=tuple(lib.TopLogprob(t.id, t.piece, t.logprob) for t in message.top),
        reason=_known(_REASON_OF, message.reason),
        base_entropy=message.base_entropy_nats if message.HasField("base_entropy_nats") else None,
        base_top_prob=message.base_top_prob if message.HasField("base_top_prob") else None,
    )


class Assembler:
    """Turns the messages of one answer into events, and at its end into the result.

    Raises:
        MalformedAnswer: messages in an order that the proto forbids.
    """

    def __init__(self) -> None:
        self._started: lib.Started | None = None
        self._texts: dict[int, list[str]] = {}
        self._tokens: dict[int, list[lib.Token]] = {}
        self._ended: dict[int, lib.Candidate] = {}

    def feed(self, message: pb.GenerateStreamResponse) -> lib.Event | None:
        """The event that ``message`` completes, if it does."""
        kind = message.WhichOneof("event")
        if kind == "started":
            if self._started is not None:
                raise MalformedAnswer("a second started")
            return self.started(message.started)
        if self._started is None:
            raise MalformedAnswer(f"{kind} before started")
        match kind:
            case "chunk":
                return self._chunk(message.chunk, self._started.models)
            case "candidate":
                self.candidate(message.candidate)
            case "progress":
                return made(lib.Progress, message.progress)
            case "completed":
                return lib.Completed(self.completed(message.completed))
        return None  # also an event of a newer version

    def started(self, message: pb.Started) -> lib.Started:
        self._started = made(lib.Started, message)
        return self._started

    def _chunk(self, message: pb.Chunk, models: Sequence[str]) -> lib.Chunk:
        tokens = tuple(token_of(token, models) for token in message.tokens)
        self._texts.setdefault(message.candidate, []).append(message.text_delta)
        self._tokens.setdefault(message.candidate, []).extend(tokens)
        return lib.Chunk(message.candidate, message.text_delta, tokens)

    def candidate(self, message: pb.Candidate) -> None:
        if self._started is None:
            raise MalformedAnswer("candidate before started")
        texts = self._texts.setdefault(message.index, [])
        tokens = self._tokens.setdefault(message.index, [])
        texts.append(message.text)
        tokens.extend(token_of(token, self._started.models) for token in message.tokens)
        if message.finish_reason != pb.FINISH_REASON_UNSPECIFIED:
            self._ended[message.index] = lib.Candidate(
                index=message.index,
                text="".join(texts),
                tokens=tuple(tokens),
                finish_reason=_known(_FINISH_OF, message.finish_reason),
                stop_match=message.stop_match if message.HasField("stop_match") else None,
                rewards=dict(message.rewards),
            )

    def completed(self, message: pb.Completed) -> lib.Result:
        started = self._started
        if started is None or not started.models or message.selected not in self._ended:
            raise MalformedAnswer("completed before the selected candidate")
        candidates = tuple(self._ended[index] for index in sorted(self._ended))
        return lib.Result(
            model=started.models[0],
            models=started.models,
            candidates=candidates,
            usage=made(lib.Usage, message.usage),
            seed=started.seed,
            selected=[candidate.index for candidate in candidates].index(message.selected),
            reproducible=message.reproducible,
            abstained=message.abstained,
        )


def result_of(response: pb.GenerateResponse) -> lib.Result:
    """The result in a unary answer.

    Raises:
        MalformedAnswer: it lacks the selected candidate.
    """
    assembler = Assembler()
    assembler.started(response.started)
    for candidate in response.candidates:
        assembler.candidate(candidate)
    return assembler.completed(response.completed)
