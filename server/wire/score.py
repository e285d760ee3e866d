"""Scores of given answers: the messages of Score, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from trimtab.decode.errors import InvalidRequest, NotFound, Violation
from trimtab.decode.request.prompt import ChatMessage, Prompt
from trimtab.decode.request.result import Scored
from trimtab.server.rpc.backend import Backend
from trimtab.server.wire.answer import token_message, token_of
from trimtab.server.wire.fields import NAME, TEXT, Writer, message_adder
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["MAX_ITEMS", "score", "score_request", "scores_of"]

MAX_ITEMS = 256

Item = tuple[Prompt, str]


async def score(engine: Backend, request: pb.ScoreRequest) -> pb.ScoreResponse:
    """Have the items of a request scored; cancelling the task cancels that.

    Raises:
        InvalidRequest: naming every field at fault, by its path in the message.
        NotFound: no such reward or model.
    """
    found: list[Violation] = []
    scorer = request.WhichOneof("scorer")
    if scorer is None:
        found.append(Violation.of("scorer", None, "one of reward, model"))
    if request.tokens and scorer == "reward":
        found.append(Violation.of("tokens", True, "false with a reward, which scores text"))
    if not 1 <= len(request.items) <= MAX_ITEMS:
        found.append(Violation.of("items", f"{len(request.items)} items", f"1 to {MAX_ITEMS} items"))
    for i, item in enumerate(request.items[:MAX_ITEMS]):
        kind = item.WhichOneof("prompt")
        if not (item.text if kind == "text" else item.chat.messages):
            found.append(Violation.of(f"items[{i}].prompt", kind, "one of text, chat, not empty"))
    if found:
        raise InvalidRequest(found)
    known = engine.rewards if scorer == "reward" else engine.models
    name = request.reward or request.model
    if scorer is not None and name not in known:
        raise NotFound(scorer, name, sorted(known))
    items = [(_prompt(item), item.completion) for item in request.items]
    scores = await (engine.ascore(items, reward=name) if scorer == "reward" else engine.ascore(items, model=name))
    return await asyncio.to_thread(_response, scores, request.tokens)  # of many tokens, which take their time


def _response(scores: Sequence[Scored], tokens: bool) -> pb.ScoreResponse:
    return pb.ScoreResponse(scores=[_message(one, tokens) for one in scores])


def _prompt(item: pb.ScoreItem) -> Prompt:
    if item.WhichOneof("prompt") == "text":
        return item.text
    return tuple(ChatMessage(message.role, message.content) for message in item.chat.messages)


def _message(one: Scored, tokens: bool) -> pb.ItemScore:
    message = pb.ItemScore(value=one.value, token_count=one.token_count)
    if tokens:
        message.tokens.extend(token_message(token, {token.author: 0}) for token in one.tokens)
    return message


def score_request(items: Sequence[Item], *, reward: str | None, model: str | None, tokens: bool) -> pb.ScoreRequest:
    """What a client sends.

    Raises:
        InvalidRequest: not exactly one of ``reward`` and ``model``, or what the proto cannot carry.
    """
    writer = Writer()
    message = pb.ScoreRequest(tokens=tokens)
    if (reward is None) == (model is None):
        writer.refuse("scorer", (reward, model), "exactly one of reward=, model=")
    writer.set(message, "reward", reward, "reward", NAME)
    writer.set(message, "model", model, "model", NAME)
    for i, (prompt, completion) in enumerate(items):
        item, where = message.items.add(), f"items[{i}]"
        writer.set(item, "completion", completion, f"{where}.completion", TEXT)
        if isinstance(prompt, str):
            writer.set(item, "text", prompt, f"{where}.prompt", TEXT)
        else:
            writer.extend(prompt, message_adder(item.chat), f"{where}.prompt", "a ChatMessage")
    if writer.violations:
        raise InvalidRequest(writer.violations)
    return message


def scores_of(response: pb.ScoreResponse, model: str | None) -> list[Scored]:
    """The inverse of what ``score`` gives."""
    models = () if model is None else (model,)
    return [
        Scored(one.value, one.token_count, tuple(token_of(token, models) for token in one.tokens))
        for one in response.scores
    ]
