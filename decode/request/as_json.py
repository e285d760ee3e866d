"""Requests and answers as JSON, and back without loss.

The JSON follows the dataclasses field by field. What JSON lacks is written so:

- bytes are a string if they are UTF-8, else ``{"base64": "..."}``;
- infinities and NaN are the strings ``"inf"``, ``"-inf"``, ``"nan"`` (a number where a number is expected otherwise);
- a policy, draw or search, and any other value of a request that is one of several classes, carries its class in
  ``"kind"``;
- an objective is as it was given: a name, names and weights, or a whole one with its ``"kind"``;
- a prompt is ``{"text": ...}``, ``{"token_ids": [...]}`` or ``{"messages": [...]}``;
- integer keys are strings.

Sequences come back as tuples and messages as ``ChatMessage``; otherwise ``from_json(to_json(x)) == x``. A field that
is missing takes its default, so that older files can be read; a key that is not known is refused.
"""

from __future__ import annotations

import base64
import binascii
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, overload

from trimtab.decode.errors import TrimtabError, Violation
from trimtab.decode.frozen import FrozenDict
from trimtab.decode.request.method import AXES, Method, methods
from trimtab.decode.request.objective import FUNCTION_ACCEPTED
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Result

__all__ = ["FORMAT", "FormatError", "fields_from_json", "fields_to_json", "from_json", "to_json"]

T = TypeVar("T")

FORMAT = 1
_KINDS: Mapping[str, type[Request] | type[Result]] = {"request": Request, "result": Result}
_NON_FINITE = ("inf", "-inf", "nan")


class FormatError(TrimtabError, ValueError):
    """A document is not what ``to_json`` writes; names the place, the value and what would be accepted."""

    def __init__(self, path: str, value: object, accepted: str) -> None:
        self.violations = (Violation.of(path or "document", value, accepted),)
        super().__init__(f"cannot read: {self.violations[0]}")


def to_json(value: Request | Result) -> dict[str, Any]:
    """The value as what ``json.dumps`` takes, also with ``allow_nan=False``.

    Raises:
        FormatError: a field holds something that the types do not allow.
    """
    for kind, cls in _KINDS.items():
        if isinstance(value, cls):
            return {"format": FORMAT, "kind": kind, **_write(value, "")}
    raise FormatError("", value, "a Request or a Result")


@overload
def from_json(document: Mapping[str, Any]) -> Request | Result: ...
@overload
def from_json(document: Mapping[str, Any], expect: type[Request]) -> Request: ...
@overload
def from_json(document: Mapping[str, Any], expect: type[Result]) -> Result: ...
def from_json(document: Mapping[str, Any], expect: type[Request] | type[Result] | None = None) -> Request | Result:
    """The request or the answer that ``to_json`` wrote; ``expect`` refuses the other.

    Raises:
        FormatError: another format version, an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(document, Mapping):
        raise FormatError("", document, "a JSON object")
    body = dict(document)
    version, kind = body.pop("format", None), body.pop("kind", None)
    if version != FORMAT or isinstance(version, bool):
        raise FormatError("format", version, f"{FORMAT}")
    kinds = [name for name, cls in _KINDS.items() if expect is None or cls is expect]
    if not isinstance(kind, str) or kind not in kinds:
        raise FormatError("kind", kind, f"one of {', '.join(kinds)}")
    read: Request | Result = _read_class(_KINDS[kind], body, "")
    return read


def fields_to_json(value: object, path: str) -> dict[str, Any]:
    """The fields of one method, without its kind.

    Raises:
        FormatError: a field holds something that the types do not allow.
    """
    return {key: inner for key, inner in _write_class(value, path).items() if key != "kind"}


def fields_from_json(cls: type[T], fields: Mapping[str, Any], path: str) -> T:
    """The inverse of ``fields_to_json``; whole numbers may be written as floats.

    Raises:
        FormatError: an unknown or missing key, or a value of the wrong type; ``path`` is that of the method.
    """
    read: T = _read_class(cls, _whole(fields), path)
    return read


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case Mapping():
            return {key: _whole(inner) for key, inner in value.items()}
        case list():
            return [_whole(inner) for inner in value]
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _variants() -> frozenset[type]:
    return _variants_of(tuple(cls for axis in AXES for cls in methods(axis).values()))


@cache
def _variants_of(known: tuple[type, ...]) -> frozenset[type]:
    """The classes that carry their name: those of the axes, and of every union of alternatives within a request."""
    found: set[type] = set(known)
    seen: set[type] = set()
    waiting: list[type] = [Request, *known]
    while waiting:
        cls = waiting.pop()
        if cls in seen:
            continue
        seen.add(cls)
        for hint in _hints(cls).values():
            inner = _classes(hint)
            waiting += inner
            found.update(inner if len(_choices(hint)) > 1 else ())
    return frozenset(found - {ChatMessage})


def _choices(hint: Any) -> list[Any]:
    """The alternatives of a union beside None and functions, which JSON hasn't; of any other type, itself."""
    return [arm for arm in _alternatives(hint) if arm is not type(None) and get_origin(arm) is not Callable]


def _classes(hint: Any) -> list[type]:
    """The dataclasses that a value of type ``hint`` may be, or that its elements may be."""
    if isinstance(hint, type) and is_dataclass(hint):
        return [hint]
    return [cls for inner in get_args(hint) for cls in _classes(inner)]


# ---------------------------------------------------------------------------------------------------------- writing


def _write(value: Any, path: str) -> Any:
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else repr(value)
        case bytes():
            return _write_bytes(value)
        case Mapping():
            written = {str(key): _write(inner, _join(path, str(key))) for key, inner in value.items()}
            if len(written) < len(value):
                raise FormatError(path, value, "keys that differ as text")
            return written
        case list() | tuple():
            return [_write(inner, f"{path}[{i}]") for i, inner in enumerate(value)]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return _write_class(value, path)
        case _ if callable(value):
            raise FormatError(path, value, FUNCTION_ACCEPTED)
        case _:
            raise FormatError(path, value, "a value of the documented types")


def _write_class(value: Any, path: str) -> dict[str, Any]:
    written: dict[str, Any] = {"kind": type(value).__name__} if type(value) in _variants() else {}
    for f in fields(value):
        inner, where = getattr(value, f.name), _join(path, f.name)
        is_prompt = isinstance(value, Request) and f.name == "prompt"
        written[f.name] = _write_prompt(inner, where) if is_prompt else _write(inner, where)
    return written


def _write_bytes(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _write_prompt(prompt: Any, path: str) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"text": prompt}
    if prompt and isinstance(prompt[0], ChatMessage | Mapping):
        return {"messages": _write(prompt, path)}
    return {"token_ids": _write(prompt, path)}


# ---------------------------------------------------------------------------------------------------------- reading


def _read_class(cls: type, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise FormatError(path, value, f"an object with the fields of {cls.__name__}")
    known = {f.name: f for f in fields(cls)}
    for key in value:
        if key not in known:
            raise FormatError(_join(path, key), value[key], f"one of the keys {', '.join(known)}")
    read = {}
    for name, spec in known.items():
        if name in value:
            where = _join(path, name)
            is_prompt = cls is Request and name == "prompt"
            read[name] = _read_prompt(value[name], where) if is_prompt else _read(_hints(cls)[name], value[name], where)
        elif spec.default is MISSING and spec.default_factory is MISSING:
            raise FormatError(_join(path, name), None, f"a value: {cls.__name__} needs it")
    return cls(**read)


def _read_variant(classes: Sequence[type], value: Any, path: str) -> Any:
    named = {cls.__name__: cls for cls in classes}
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in named:
        raise FormatError(_join(path, "kind"), kind, f"one of {', '.join(named)}")
    return _read_class(named[kind], {key: inner for key, inner in value.items() if key != "kind"}, path)


def _read_prompt(value: Any, path: str) -> Any:
    match value:
        case {"text": str(text), **rest} if not rest:
            return text
        case {"token_ids": ids, **rest} if not rest:
            return _read(tuple[int, ...], ids, _join(path, "token_ids"))
        case {"messages": messages, **rest} if not rest:
            return _read(tuple[ChatMessage, ...], messages, _join(path, "messages"))
        case _:
            raise FormatError(path, value, "exactly one of text, token_ids, messages")


def _read(hint: Any, value: Any, path: str) -> Any:
    """``value`` as the annotated type ``hint``."""
    choices = _choices(hint)
    if value is None and type(None) in _alternatives(hint):
        return None
    if len(choices) > 1:
        return _read_union(choices, value, path)
    (hint,) = choices
    if isinstance(hint, type) and issubclass(hint, Method) and hint in AXES.values():
        return _read_variant(list(methods(hint.axis).values()), value, path)
    if isinstance(hint, type) and hint in _variants():
        return _read_variant([hint], value, path)
    origin = get_origin(hint)
    if origin is tuple:
        (element, _) = get_args(hint)  # every tuple of the types is tuple[X, ...]
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise FormatError(path, value, "a list")
        return tuple(_read(element, inner, f"{path}[{i}]") for i, inner in enumerate(value))
    if origin is Mapping:
        return _read_mapping(hint, value, path)
    if hint is bytes:
        return _read_bytes(value, path)
    if hint is float:
        return _read_float(value, path)
    if is_dataclass(hint) and isinstance(hint, type):
        return _read_class(hint, value, path)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise FormatError(path, value, f"one of {', '.join(repr(m.value) for m in hint)}") from None
    if type(value) is not hint:  # exact: True is no integer
        raise FormatError(path, value, f"a value of type {getattr(hint, '__name__', hint)}")
    return value


def _read_union(choices: Sequence[Any], value: Any, path: str) -> Any:
    """One of several alternatives: classes by their kind, and what has none by its type."""
    classes = {arm.__name__: arm for arm in choices if isinstance(arm, type) and arm in _variants()}
    others = [arm for arm in choices if arm not in classes.values()]
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not others or (isinstance(kind, str) and kind in classes):
        return _read_variant(list(classes.values()), value, path)
    for arm in others:
        if arm is str and isinstance(value, str):
            return value
        if get_origin(arm) is Mapping and isinstance(value, Mapping):
            return _read_mapping(arm, value, path)
    accepted = ", ".join("a string" if arm is str else "names and numbers" for arm in others)
    raise FormatError(path, value, f"{accepted}, or an object of kind {', '.join(classes)}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _read_mapping(hint: Any, value: Any, path: str) -> Mapping[Any, Any]:
    key_type, element = get_args(hint)
    if not isinstance(value, Mapping):
        raise FormatError(path, value, "an object")
    read: dict[Any, Any] = {}
    for key, inner in value.items():
        where = _join(path, str(key))
        try:
            made = key_type(key)
        except ValueError:
            made = None
        if made is None or str(made) != key:  # one spelling each: "03" would be another value of 3
            raise FormatError(where, key, f"a key of type {key_type.__name__}, written as {key_type.__name__} is")
        read[made] = _read(element, inner, where)
    return FrozenDict(read)


def _read_bytes(value: Any, path: str) -> bytes:
    match value:
        case str(text):
            return text.encode()
        case {"base64": str(encoded), **rest} if not rest:
            try:
                return base64.b64decode(encoded, validate=True)
            except binascii.Error:
                pass
        case _:
            pass
    raise FormatError(path, value, 'a string, or {"base64": ...} with valid base64')


def _read_float(value: Any, path: str) -> float:
    if isinstance(value, str) and value in _NON_FINITE:
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise FormatError(path, value, "a number, 'inf', '-inf' or 'nan'")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
