"""Answers: library to proto and back.

A stream is read back by ``Assembler`` into the same events that an embedded engine gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from trimtab import decode as lib
from trimtab.decode.errors import TrimtabError
from trimtab.server.wire.numbers import duration, seconds
from trimtab.v1 import decoding_pb2 as pb

__all__ = [
    "Assembler",
    "MalformedAnswer",
    "candidate_message",
    "candidate_parts",
    "completed_message",
    "progress_message",
    "result_of",
    "started_message",
    "token_message",
    "token_of",
]

T = TypeVar("T")

_DRAWS = {draw: pb.TokenDraw.Value(f"TOKEN_DRAW_{draw.name}") for draw in lib.TokenDraw}
_DRAW_OF: Mapping[int, lib.TokenDraw] = {number: draw for draw, number in _DRAWS.items()}
_FINISH = {reason: pb.FinishReason.Value(f"FINISH_REASON_{reason.name}") for reason in lib.FinishReason}
_FINISH_OF: Mapping[int, lib.FinishReason] = {number: reason for reason, number in _FINISH.items()}


class MalformedAnswer(TrimtabError):
    """The messages of an answer do not add up to one."""


# ---------------------------------------------------------------------------------------------------- library to proto


def started_message(event: lib.Started) -> pb.Started:
    return pb.Started(
        generation_id=event.generation_id,
        models=event.models,
        prompt_tokens=event.prompt_tokens,
        seed=event.seed,
        max_new_tokens=event.max_new_tokens,
    )


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
    )


def progress_message(event: lib.Progress) -> pb.Progress:
    return pb.Progress(
        candidates_running=event.candidates_running,
        candidates_done=event.candidates_done,
        generated_tokens=event.generated_tokens,
        best_reward=event.best_reward,
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
    return pb.Candidate(
        index=candidate.index,
        text=candidate.text[sent_text:],
        tokens=[token_message(token, authors) for token in kept],
        finish_reason=_FINISH[candidate.finish_reason],
        stop_match=candidate.stop_match,
        rewards=dict(candidate.rewards),
        sum_logprob=candidate.sum_logprob,
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
    usage = result.usage
    return pb.Completed(
        selected=result.chosen.index,
        reproducible=result.reproducible,
        abstained=result.abstained,
        usage=pb.Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
            returned_tokens=usage.returned_tokens,
            generated_tokens=usage.generated_tokens,
            drafted_tokens=usage.drafted_tokens,
            accepted_tokens=usage.accepted_tokens,
            discarded_tokens=usage.discarded_tokens,
            nudged_tokens=usage.nudged_tokens,
            reward_calls=usage.reward_calls,
            models=[
                pb.ModelUsage(
                    model=m.model,
                    forward_passes=m.forward_passes,
                    tokens_read=m.tokens_read,
                    tokens_written=m.tokens_written,
                )
                for m in usage.models
            ],
            queue_time=duration(usage.queue_time),
            time_to_first_token=duration(usage.time_to_first_token),
            total_time=duration(usage.total_time),
            mean_entropy_nats=result.mean_entropy,
            exp_mean_entropy=result.exp_mean_entropy,
        ),
    )


# ---------------------------------------------------------------------------------------------------- proto to library


def _known(table: Mapping[int, T], number: int) -> T:
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
        MalformedAnswer: an author or a draw that is not known.
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
    )


def _usage_of(message: pb.Usage) -> lib.Usage:
    return lib.Usage(
        prompt_tokens=message.prompt_tokens,
        cached_prompt_tokens=message.cached_prompt_tokens,
        returned_tokens=message.returned_tokens,
        generated_tokens=message.generated_tokens,
        drafted_tokens=message.drafted_tokens,
        accepted_tokens=message.accepted_tokens,
        discarded_tokens=message.discarded_tokens,
        nudged_tokens=message.nudged_tokens,
        reward_calls=message.reward_calls,
        models=tuple(
            lib.ModelUsage(m.model, m.forward_passes, m.tokens_read, m.tokens_written) for m in message.models
        ),
        queue_time=seconds(message.queue_time),
        time_to_first_token=seconds(message.time_to_first_token),
        total_time=seconds(message.total_time),
    )


def _started_of(message: pb.Started) -> lib.Started:
    return lib.Started(
        generation_id=message.generation_id,
        models=tuple(message.models),
        prompt_tokens=message.prompt_tokens,
        seed=message.seed,
        max_new_tokens=message.max_new_tokens,
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
                progress = message.progress
                best = progress.best_reward if progress.HasField("best_reward") else None
                return lib.Progress(
                    progress.candidates_running, progress.candidates_done, progress.generated_tokens, best
                )
            case "completed":
                return lib.Completed(self.completed(message.completed))
        return None  # also an event of a newer version

    def started(self, message: pb.Started) -> lib.Started:
        self._started = _started_of(message)
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
            usage=_usage_of(message.usage),
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
