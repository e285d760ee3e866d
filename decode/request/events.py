"""What a stream consists of."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.decode.request.result import Result, Token

__all__ = ["Chunk", "Completed", "Event", "Progress", "Started"]


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a stream: the values the request resolved to."""

    generation_id: str
    models: tuple[str, ...]
    prompt_tokens: int
    seed: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Committed output of one candidate: text that will not be retracted, and the tokens behind it.

    ``text`` may lag behind ``tokens`` while a character or a possible stop string is incomplete; over a whole stream
    the texts concatenate to the answer's text and the tokens to its tokens.
    """

    candidate: int
    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Sent by searches that cannot commit text yet."""

    candidates_running: int
    candidates_done: int
    generated_tokens: int
    best_reward: float | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    """Last event of a stream: the whole answer."""

    result: Result


Event = Started | Chunk | Progress | Completed
