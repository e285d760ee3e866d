"""Messages and dataclasses whose fields have the same names, copied field by field in both directions."""

from __future__ import annotations

import typing
from collections.abc import Hashable, Mapping
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from trimtab.server.wire.numbers import duration, seconds

__all__ = ["filled", "made", "members"]

M = TypeVar("M", bound=Message)
T = TypeVar("T")


def filled(message: M, value: object, **others: Any) -> M:
    """Fill every field of a message from the attribute of the same name, or from ``others``.

    None and fields that ``value`` lacks stay unset; an enumeration's member has the name of the proto's, without its
    prefix; a number of seconds becomes a Duration.
    """
    field: Any
    for field in message.DESCRIPTOR.fields:
        inner = others[field.name] if field.name in others else getattr(value, field.name, None)
        if inner is None:
            continue
        if isinstance(inner, Enum):
            inner = members(type(inner), field.enum_type)[inner]
        if isinstance(inner, Mapping):
            getattr(message, field.name).update(inner)
        elif isinstance(inner, tuple | list):
            target = getattr(message, field.name)
            if field.message_type is None:
                target.extend(inner)
            else:
                for item in inner:
                    filled(target.add(), item)
        elif field.message_type is None:
            setattr(message, field.name, inner)
        else:
            nested = duration(inner) if field.message_type is Duration.DESCRIPTOR else inner
            getattr(message, field.name).CopyFrom(nested)
    return message


def made(cls: type[T], message: Message, **others: Any) -> T:
    """The inverse of ``filled``; fields that the message lacks take ``others`` or their defaults."""
    known = message.DESCRIPTOR.fields_by_name
    read = dict(others)
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in known and field.name not in read:
            read[field.name] = _read(known[field.name], message, _hints(typing.cast("Hashable", cls))[field.name])
    return cls(**read)


def _read(field: Any, message: Message, hint: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        if field.message_type is None:
            return tuple(value)
        return tuple(made(typing.get_args(hint)[0], item) for item in value)
    if field.message_type is Duration.DESCRIPTOR:
        return seconds(value)
    return value if not field.has_presence or message.HasField(field.name) else None


@cache
def _hints(cls: Hashable) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


@cache
def members(kind: Hashable, enum: Any) -> Mapping[Enum, int]:
    """The proto's number of each member of an enumeration; its values' names begin with the enumeration's own."""
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return {member: enum.values_by_name[prefix + member.name].number for member in typing.cast("type[Enum]", kind)}
