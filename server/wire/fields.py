"""Reading and filling the fields of messages; what cannot be carried is collected by the path of its field."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.message import Message

from trimtab.decode.errors import Violation
from trimtab.decode.request.prompt import ChatMessage
from trimtab.server.wire.numbers import shortest
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["COUNT", "FLAG", "NAME", "NUMBER", "TEXT", "Faults", "Writer", "message_adder", "optional"]

COUNT = "a whole number in [0, 2**32)"
FLAG = "True or False"
NAME = "a name"
NUMBER = "a number"
TEXT = "text that UTF-8 can carry"


class Faults:
    """Collects what is wrong."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def refuse(self, field: str, value: object, accepted: str) -> None:
        self.violations.append(Violation.of(field, value, accepted))


class Writer(Faults):
    """Fills messages and collects what they cannot carry."""

    def set(self, message: Message, name: str, value: Any, field: str, accepted: str) -> None:
        """Set one field; None leaves it unset."""
        if value is None:
            return
        if isinstance(value, bool) != (accepted == FLAG):  # protobuf would take True for 1, and 1 for True
            self.refuse(field, value, accepted)
            return
        try:
            setattr(message, name, value)
        except (TypeError, ValueError):
            self.refuse(field, value, accepted)

    def extend(self, values: object, add: Callable[[Any], object], field: str, accepted: str) -> None:
        """Add each of ``values`` to a repeated field."""
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            self.refuse(field, values, f"a list, each of it {accepted}")
            return
        for i, value in enumerate(values):
            try:
                add(value)
            except (AttributeError, KeyError, TypeError, ValueError):
                self.refuse(f"{field}[{i}]", value, accepted)


def optional(message: Message, field: str) -> Any:
    """The value of a field with presence, floats in their shortest form; None if it is unset."""
    if not message.HasField(field):
        return None
    value = getattr(message, field)
    return shortest(value) if isinstance(value, float) else value


def message_adder(chat: pb.Chat) -> Callable[[Any], object]:
    """Adds a ``ChatMessage``, or a mapping of its fields, to a chat."""

    def add(item: Any) -> None:
        if isinstance(item, ChatMessage):
            chat.messages.add(role=item.role, content=item.content)
        elif set(item) == {"role", "content"}:
            chat.messages.add(role=item["role"], content=item["content"])
        else:
            raise ValueError

    return add
