"""The three axes and what they need, written on one line: for command lines and tables of results.

A part is its name, what it is mainly about, and further fields by name::

    policy     nudged:chat   nudged:chat,when=entropy:1.5,max_span_tokens=8   mixture:chat=1,base2=-1,plausibility=0.1
               guided:2,system="Answer rudely."   token_reward:helpful,weight=0.5   base
    draw       speculative:draft   speculative:lookup,length=fixed:4,coupled   speculative:lookup:5   autoregressive
               speculative:draft,length=(confidence:0.3,max_tokens=8)
    search     best_of_n:16   best_of_n:16,choose=soft,temperature=0.5   segments:helpful,beams=4,samples_per_beam=4
               reject_segments:helpful,target=0.8   evolution:helpful   refine:helpful,rounds=3   single
    objective  helpful   helpful=1,short=0.2   helpful,short=-0.5,combine=min
    reward     short=length,at_most=50   json=json_schema,schema={"type": "object"}

Names and fields are those of ``trimtab.decode.request``. Parentheses hold a part with commas of its own; double quotes
hold any text, as in JSON, and all of it: ``segments:helpful,delimiter="\\n\\n"``. So can names that are not the
notation's own: ``"we,ird"=2``, and in quotes even ``combine`` is the name of a reward. A field that is true or false is
set by its name alone. What is named twice is refused.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar, cast

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.request.fields import Field, OneOf, Rated, described, name_of
from trimtab.decode.request.method import Draw, Policy, Search, methods
from trimtab.decode.request.objective import AnyObjective, Objective

__all__ = ["parse_draw", "parse_objective", "parse_policy", "parse_reward", "parse_search", "with_objective"]

T = TypeVar("T")

_OBJECTIVE = "objective=NAME in it, or an objective beside it"
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def parse_policy(text: str, option: str = "policy") -> Policy:
    """A policy, e.g. ``nudged:chat``.

    Args:
        text: as in the module's description.
        option: how errors call it, e.g. the option of a command.

    Raises:
        InvalidRequest: naming the part at fault and what would be accepted. Values are checked by ``validate``.
    """
    return cast("Policy", _choice(text, methods("policy"), option))


def parse_draw(text: str, option: str = "draw") -> Draw:
    """A draw, e.g. ``speculative:draft``; arguments and errors as ``parse_policy``."""
    return cast("Draw", _choice(text, methods("draw"), option))


def parse_search(text: str, objective: AnyObjective | None = None, option: str = "search") -> Search:
    """A search, e.g. ``best_of_n:16``; ``objective`` is taken where the text names none. Errors as ``parse_policy``."""
    search = cast("Search", _choice(text, methods("search"), option, objective))
    return search if objective is None else with_objective(search, objective, option, text)


def with_objective(search: Search, objective: AnyObjective, option: str = "search", text: object = None) -> Search:
    """A search with an objective that was given apart from it.

    Args:
        search: one that has none yet, or ``objective`` itself.
        objective: what it is to maximise.
        option: how errors call the search.
        text: how errors show it; by default as it is.

    Raises:
        InvalidRequest: it can't have one, or has another.
    """
    shown = search if text is None else text
    if not any(field.name == "objective" for field in described(type(search))):
        raise InvalidRequest.of(f"{option} objective", shown, "a search that has one, e.g. best_of_n:16")
    own = cast("Any", search).objective
    if own is None:
        return cast("Search", replace(cast("Any", search), objective=objective))
    if own is not objective:
        raise InvalidRequest.of(f"{option} objective", shown, "one objective, in the search or apart from it")
    return search


def parse_objective(text: str, option: str = "objective") -> Objective:
    """An objective, e.g. ``helpful=1,short=0.2``; arguments and errors as ``parse_policy``."""
    return _made(Objective, _parts(text, option), option, separator=" ")


def parse_reward(text: str, option: str = "reward") -> tuple[str, dict[str, object]]:
    """A reward's name and its table, as ``[rewards.NAME]`` of a configuration has it.

    Values are JSON where they can be read as such, and text otherwise.

    Raises:
        InvalidRequest: as ``parse_policy``.
    """
    first, *others = _parts(text, option)
    if not first.key or not first.value:
        raise InvalidRequest.of(option, text, "NAME=TYPE, and KEY=VALUE after commas")
    table: dict[str, object] = {"type": _text(first.value, f"{option} {first.key}")}
    for part in others:
        if not part.key:
            raise InvalidRequest.of(f"{option} {first.key}", part.value, "KEY=VALUE after its type")
        where = f"{option} {first.key}.{part.key}"
        _once(part.key, table, where, part.value)
        table[part.key] = _json(part.value, where)
    return first.key, table


# ------------------------------------------------------------------------------------------------------------- grammar


@dataclass(frozen=True, slots=True)
class _Part:
    """``KEY=VALUE``, or a value without a key (which is then empty).

    Attributes:
        key: without its quotes.
        value: as it is written.
        quoted: whether the key was in quotes: then it names no field.
    """

    key: str
    value: str
    quoted: bool = False

    @property
    def field(self) -> str:
        """The key, if it may name a field."""
        return "" if self.quoted else self.key


def _split(text: str, separator: str, option: str, most: int = 0) -> list[str]:
    """Split outside of brackets and quotes, at most ``most`` times (0: everywhere)."""
    pieces, start, closing, quoted, escaped = list[str](), 0, list[str](), False, False
    for i, character in enumerate(text):
        if quoted:
            quoted, escaped = escaped or character != '"', not escaped and character == "\\"
        elif character == '"':
            quoted = True
        elif character in _BRACKETS:
            closing.append(_BRACKETS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == separator and not closing and (not most or len(pieces) < most):
            pieces.append(text[start:i])
            start = i + 1
    if quoted or closing:
        raise InvalidRequest.of(option, text, f"a closing {closing[-1] if closing else chr(34)}")
    return [*pieces, text[start:]]


def _parts(text: str, option: str) -> list[_Part]:
    found = []
    for piece in _split(text, ",", option):
        if not piece.strip():
            raise InvalidRequest.of(option, text, "no empty part between commas")
        key, *value = (side.strip() for side in _split(piece, "=", option, most=1))
        if not value:
            found.append(_Part("", key))
            continue
        name = _text(key, option)
        if not name:
            raise InvalidRequest.of(option, piece, "a name before =")
        found.append(_Part(name, value[0], quoted=key.startswith('"')))
    return found


def _once(key: str, before: Container[str], where: str, value: str) -> None:
    """Refuse a key that was there before: which of the two values is meant?"""
    if key in before:
        raise InvalidRequest.of(where, value, "one value: it is named twice")


def _inside(text: str) -> str:
    """What is in parentheses that surround all of ``text``; ``text`` itself without them."""
    text = text.strip()
    return text[1:-1] if text.startswith("(") and text.endswith(")") else text


def _choice(text: str, classes: Mapping[str, type], option: str, objective: AnyObjective | None = None) -> Any:
    """One of several classes: ``NAME`` or ``NAME:PARTS``."""
    text = _inside(text)
    name, *rest = _split(text, ":", option, most=1)
    name = name.strip()
    if name not in classes:
        close = difflib.get_close_matches(name, classes, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InvalidRequest.of(option, name, f"one of {', '.join(classes)}{hint}")
    where = f"{option} {name}" if " " not in option else f"{option}.{name}"
    return _made(classes[name], _parts(rest[0], where) if rest else [], where, objective)


def _made(
    cls: type[T], parts: list[_Part], where: str, objective: AnyObjective | None = None, separator: str = "."
) -> T:
    """An object of ``cls`` from its parts.

    The part without a key is its first field. Where that is a tuple of names and their weights, every key that is no
    other field is one of them.
    """
    fields = {field.name: field for field in described(cls)}
    first = next(iter(fields.values()), None)
    many = first.kinds[0] if first is not None and first.repeated else None
    if many is not None and first is not None:
        del fields[first.name]
    read: dict[str, Any] = {}
    weighted: dict[str, object] = {}
    for i, part in enumerate(parts):
        key, value = part.key, part.value
        if many is not None and part.field not in fields:
            name, weight = _weighted(part, where)
            _once(name, weighted, f"{where} {name}", value)
            weighted[name] = many(name, weight)
            continue
        if part.quoted:
            raise InvalidRequest.of(where, key, f"one of {', '.join(fields)}, without quotes")
        if not key and value in fields and fields[value].kinds == (bool,):
            key, value = value, "true"
        elif not key and i == 0 and first is not None:
            key = first.name
        if key not in fields:
            what = f"one of {', '.join(fields)}" if fields else "nothing after the name"
            raise InvalidRequest.of(f"{where}.{key}" if key else where, value, what)
        _once(key, read, f"{where}{separator}{key}", value)
        read[key] = _value(fields[key], value, f"{where}{separator}{key}")
    if many is not None and first is not None:
        if not weighted:
            raise InvalidRequest.of(where, None, "names and their weights, e.g. helpful=1,short=0.2")
        read[first.name] = tuple(weighted.values())
    for field in fields.values():
        if field.name not in read and field.required:
            if not field.mark(Rated) or objective is None or field.kinds == (str,):
                accepted = _OBJECTIVE if field.name == "objective" else f"a value: {field.name}=..."
                raise InvalidRequest.of(f"{where}.{field.name}", None, accepted)
            read[field.name] = objective
    return cls(**read)


def _weighted(part: _Part, where: str) -> tuple[str, float]:
    """``NAME=WEIGHT``, or a name of weight 1."""
    if not part.key:
        name = _text(part.value, where)
        if not name:
            raise InvalidRequest.of(where, name, "a name, and =WEIGHT after it")
        return name, 1.0
    return part.key, _number(float, part.value, f"{where} {part.key}")


# -------------------------------------------------------------------------------------------------------------- values


def _value(field: Field, text: str, where: str) -> Any:
    """``text`` as a value of a field."""
    oneof = field.mark(OneOf)
    if field.optional and text == "none":
        return None
    if field.mark(Rated) and field.kinds != (str,):
        return parse_objective(_inside(text), where)
    classes = {name_of(kind): kind for kind in field.kinds if isinstance(kind, type) and is_dataclass(kind)}
    if classes:
        named = oneof is not None and oneof.named is not None
        if named and _inside(text).partition(":")[0].strip() not in classes:
            return _text(text, where)
        return _choice(text, cast("Mapping[str, type]", classes), where)
    (kind,) = field.kinds
    if kind is str:
        return _text(text, where)
    if kind is bool:
        if text not in ("true", "false"):
            raise InvalidRequest.of(where, text, "true or false")
        return text == "true"
    if issubclass(kind, Enum):
        try:
            return kind(text)
        except ValueError:
            raise InvalidRequest.of(where, text, f"one of {', '.join(str(m.value) for m in kind)}") from None
    return _number(kind, text, where)


def _number(kind: type[T], text: str, where: str) -> T:
    try:
        return cast("Any", kind)(text)  # type: ignore[no-any-return]
    except ValueError:
        raise InvalidRequest.of(where, text, "a whole number" if kind is int else "a number") from None


def _text(text: str, where: str) -> str:
    """Text as it stands, or in quotes as in JSON."""
    if '"' not in text:
        return text
    try:
        found = json.loads(text) if text.startswith('"') else None
    except ValueError:
        found = None
    if not isinstance(found, str):
        raise InvalidRequest.of(where, text, "text without quotes, or all of it in double quotes, as in JSON")
    return found


def _json(text: str, where: str) -> object:
    """A value as JSON where it can be read as such, and text otherwise."""

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in items]
        if len(set(keys)) < len(keys):
            raise InvalidRequest.of(where, text, "one value for each key")
        return dict(items)

    try:
        return cast("object", json.loads(text, object_pairs_hook=pairs))
    except InvalidRequest:
        raise
    except (ValueError, RecursionError):
        return _text(text, where) if text.startswith('"') else text
