"""Prompts that a search makes from the request's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from trimtab.decode.request.prompt import ChatMessage, Prompt, PromptKind, beginning, parse_messages, prompt_kind
from trimtab.decode.text.view import VocabularyView

__all__ = ["instruction_of", "said_so_far", "turns_of", "with_instruction"]


def turns_of(prompt: Prompt, vocabulary: VocabularyView) -> tuple[ChatMessage, ...]:
    """The prompt as a chat. Text is one message of the user; token ids, of ``vocabulary``, are the text they spell."""
    if prompt_kind(prompt) is PromptKind.CHAT:
        return parse_messages(cast("Sequence[ChatMessage]", prompt))
    if isinstance(prompt, str):
        return (ChatMessage("user", prompt),)
    ids = [token for token in cast("Sequence[int]", prompt) if token not in vocabulary.special_ids]
    return (ChatMessage("user", b"".join(map(vocabulary.piece, ids)).decode(errors="replace")),)


def said_so_far(turns: Sequence[ChatMessage], answer: str) -> tuple[ChatMessage, ...]:
    """The turns and an answer to them, which goes on with the last one if that is the assistant's."""
    begun = beginning(turns)
    before = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    return (*before, ChatMessage("assistant", begun + answer))


def instruction_of(turns: Sequence[ChatMessage]) -> str:
    """What the user asked last."""
    return next((turn.content for turn in reversed(turns) if turn.role == "user"), "")


def with_instruction(prompt: Prompt, turns: Sequence[ChatMessage], instruction: str) -> Prompt:
    """The prompt with another last instruction: a chat stays a chat; text and token ids become text."""
    if prompt_kind(prompt) is not PromptKind.CHAT:
        return instruction
    last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is None:
        last = len(turns) - bool(turns and turns[-1].role == "assistant")
        return (*turns[:last], ChatMessage("user", instruction), *turns[last:])
    return (*turns[:last], ChatMessage("user", instruction), *turns[last + 1 :])
