"""Chat messages of a prompt: which kind a prompt is, and its turns in one checked form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from trimtab.decode.errors import InvalidRequest, Violation

__all__ = [
    "ROLES",
    "ChatMessage",
    "Prompt",
    "PromptKind",
    "beginning",
    "canonical_prompt",
    "chat",
    "message_violations",
    "parse_messages",
    "prompt_kind",
]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a chat; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


# Text and token ids are given to every model that works on the answer as they are; chat messages go through the
# template of each. Of a chat that ends with a message of the assistant's, the answer is how that goes on.
Prompt = str | Sequence[int] | Sequence[ChatMessage] | Sequence[Mapping[str, str]]


ROLES = ("system", "user", "assistant")
PROMPT_ACCEPTED = "a non-empty text, a non-empty list of token ids, or a non-empty list of chat messages"
_MESSAGE_ACCEPTED = "a ChatMessage or a mapping with the keys 'role' and 'content'"


def chat(question: str, *, system: str | None = None, begin: str | None = None) -> list[ChatMessage]:
    """A question as the chat messages that ask it: a prompt for ``generate``, which takes a plain text as it is.

    Args:
        question: what the user says.
        system: a message before it that says how to answer.
        begin: how the answer begins; the result's text is what follows.
    """
    turns = [("system", system), ("user", question), ("assistant", begin)]
    return [ChatMessage(role, content) for role, content in turns if content is not None]


class PromptKind(StrEnum):
    """What a prompt is; the names are those of the proto's oneof."""

    TEXT = "text"
    TOKEN_IDS = "token_ids"
    CHAT = "chat"


def prompt_kind(prompt: object) -> PromptKind | None:
    """The kind of a prompt by its type and its first element; None if it is no prompt at all, or empty."""
    if isinstance(prompt, str):
        return PromptKind.TEXT if prompt else None
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray) or not prompt:
        return None
    return PromptKind.CHAT if isinstance(prompt[0], ChatMessage | Mapping) else PromptKind.TOKEN_IDS


def is_text(value: object) -> bool:
    """Whether ``value`` is a string that UTF-8 can carry (no lone surrogates)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def message_violations(messages: Sequence[object]) -> list[Violation]:
    """What is wrong with chat messages, as paths ``prompt.messages[i].role`` and the like."""
    found: list[Violation] = []
    for i, message in enumerate(messages):
        path = f"prompt.messages[{i}]"
        role: object
        content: object
        if isinstance(message, ChatMessage):
            role, content = message.role, message.content
        elif isinstance(message, Mapping):
            found += [
                Violation.of(f"{path}.{key}", message[key], "only the keys 'role' and 'content'")
                for key in message
                if key not in ("role", "content")
            ]
            role, content = message.get("role"), message.get("content")
        else:
            found.append(Violation.of(path, message, _MESSAGE_ACCEPTED))
            continue
        if role not in ROLES:
            found.append(Violation.of(f"{path}.role", role, f"one of {', '.join(map(repr, ROLES))}"))
        if not is_text(content):
            found.append(Violation.of(f"{path}.content", content, "text that UTF-8 can encode"))
        elif role == "assistant" and len(messages) == 1 and not str(content).strip():
            accepted = "text that the answer goes on with, or a message to answer before it"
            found.append(Violation.of(f"{path}.content", content, accepted))
    return found


def beginning(prompt: object) -> str:
    """What a chat's last message already says of the answer, if it is the assistant's: the answer goes on with it.

    White space alone begins nothing.
    """
    last = prompt[-1] if isinstance(prompt, Sequence) and not isinstance(prompt, str) and prompt else None
    if isinstance(last, Mapping):
        last = _canonical_message(last)
    said = last.content if isinstance(last, ChatMessage) and last.role == "assistant" else ""
    return said if said.strip() else ""


def parse_messages(messages: Sequence[ChatMessage | Mapping[str, str]]) -> tuple[ChatMessage, ...]:
    """The turns of a chat prompt.

    Raises:
        InvalidRequest: empty, an unknown role, content that is not text, an unknown key, or nothing but the white space
            of an assistant.
    """
    if not messages:
        raise InvalidRequest.of("prompt.messages", messages, "at least one message")
    if found := message_violations(messages):
        raise InvalidRequest(found)
    return tuple(m if isinstance(m, ChatMessage) else ChatMessage(m["role"], m["content"]) for m in messages)


def canonical_prompt(prompt: Prompt) -> Prompt:
    """The prompt with sequences as tuples and mappings as ChatMessage where they are well formed; else unchanged."""
    kind = prompt_kind(prompt)
    if kind is PromptKind.TEXT or kind is None:
        return prompt
    turns = (_canonical_message(item) for item in prompt)
    return tuple(turns)  # type: ignore[return-value]  # elements keep their kind


def _canonical_message(item: object) -> object:
    if isinstance(item, Mapping) and set(item) == {"role", "content"}:
        return ChatMessage(item["role"], item["content"])
    return item
