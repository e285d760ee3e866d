"""Prompts that a search makes from the request's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from trimtab.decode.ops import VocabularyView
from trimtab.decode.prepare.messages import PromptKind, parse_messages, prompt_kind
from trimtab.decode.types import ChatMessage, Prompt

__all__ = ["instruction_of", "turns_of", "with_instruction"]


def turns_of(prompt: Prompt, vocabulary: VocabularyView) -> tuple[ChatMessage, ...]:
    """The prompt as a chat. Text is one message of the user; token ids, of ``vocabulary``, are the text they spell."""
    if prompt_kind(prompt) is PromptKind.CHAT:
        return parse_messages(cast("Sequence[ChatMessage]", prompt))
    if isinstance(prompt, str):
        return (ChatMessage("user", prompt),)
    ids = [token for token in cast("Sequence[int]", prompt) if token not in vocabulary.special_ids]
    return (ChatMessage("user", b"".join(map(vocabulary.piece, ids)).decode(errors="replace")),)


def instruction_of(turns: Sequence[ChatMessage]) -> str:
    """What the user asked last."""
    return next((turn.content for turn in reversed(turns) if turn.role == "user"), "")


def with_instruction(prompt: Prompt, turns: Sequence[ChatMessage], instruction: str) -> Prompt:
    """The prompt with another last instruction: a chat stays a chat; text and token ids become text."""
    if prompt_kind(prompt) is not PromptKind.CHAT:
        return instruction
    last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=len(turns))
    return (*turns[:last], ChatMessage("user", instruction), *turns[last + 1 :])
