"""The three axes and what they need, written on one line: for command lines and tables of results.

A part is its name, what it is mainly about, and further fields by name::

    policy     nudged:chat   nudged:chat,when=entropy:1.5,max_span_tokens=8   mixture:chat=1,base2=-1,plausibility=0.1
               token_reward:helpful,weight=0.5   base
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
import types
import typing
from collections.abc import Container, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from enum import Enum
from typing import Any, TypeVar, Union, cast, get_args, get_origin

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.request.methods import (
    Acceptance,
    Autoregressive,
    Base,
    BestOfN,
    Branching,
    Choose,
    Confidence,
    Draw,
    Entropy,
    Evolution,
    Fixed,
    Length,
    Mixture,
    Nudged,
    Policy,
    PromptLookup,
    Refine,
    RejectSegments,
    Search,
    Segments,
    Single,
    Speculative,
    TokenReward,
    TopProb,
    Trigger,
    Weighted,
)
from trimtab.decode.request.objective import AnyObjective, Objective, RewardTerm

__all__ = [
    "DRAWS",
    "LENGTHS",
    "POLICIES",
    "SEARCHES",
    "parse_draw",
    "parse_objective",
    "parse_policy",
    "parse_reward",
    "parse_search",
]

T = TypeVar("T")

# Names of the variants, which are those of the proto's fields too.
POLICIES: Mapping[str, type] = {"base": Base, "nudged": Nudged, "mixture": Mixture, "token_reward": TokenReward}
DRAWS: Mapping[str, type] = {"autoregressive": Autoregressive, "speculative": Speculative}
SEARCHES: Mapping[str, type] = {
    "single": Single,
    "best_of_n": BestOfN,
    "segments": Segments,
    "reject_segments": RejectSegments,
    "evolution": Evolution,
    "refine": Refine,
}
LENGTHS: Mapping[str, type] = {"fixed": Fixed, "confidence": Confidence, "acceptance": Acceptance}
_NESTED: Mapping[Any, Mapping[str, type]] = {
    Trigger: {"entropy": Entropy, "top_prob": TopProb, "branching": Branching},
    Length: LENGTHS,
}
_LOOKUP = "lookup"
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
    return cast("Policy", _choice(text, POLICIES, option))


def parse_draw(text: str, option: str = "draw") -> Draw:
    """A draw, e.g. ``speculative:draft``; arguments and errors as ``parse_policy``."""
    return cast("Draw", _choice(text, DRAWS, option))


def parse_search(text: str, objective: Objective | None = None, option: str = "search") -> Search:
    """A search, e.g. ``best_of_n:16``; ``objective`` is taken where the text names none. Errors as ``parse_policy``."""
    search = cast("Search", _choice(text, SEARCHES, option, objective))
    if objective is not None:
        own = getattr(search, "objective", None)
        if isinstance(search, Single):
            raise InvalidRequest.of(f"{option} objective", text, "a search that has one, e.g. best_of_n:16")
        if own is None:
            return replace(search, objective=objective)
        if own is not objective:
            raise InvalidRequest.of(f"{option} objective", text, "one objective, in the search or apart from it")
    elif (
        isinstance(search, BestOfN)
        and search.objective is None
        and search.choose not in (Choose.MAJORITY, Choose.CONSENSUS)
    ):
        accepted = f"{_OBJECTIVE}, or choose=majority or choose=consensus, which need none"
        raise InvalidRequest.of(f"{option} best_of_n.objective", None, accepted)
    return search


def parse_objective(text: str, option: str = "objective") -> Objective:
    """An objective, e.g. ``helpful=1,short=0.2``; arguments and errors as ``parse_policy``."""
    terms: list[RewardTerm] = []
    read: dict[str, Any] = {}
    for part in _parts(text, option):
        if part.field in ("combine", "spread"):
            where = f"{option} {part.key}"
            _once(part.key, read, where, part.value)
            read[part.key] = _value(_hints(Objective)[part.key], part.value, where)
        else:
            name, weight = _weighted(part, option)
            _once(name, [term.reward for term in terms], f"{option} {name}", part.value)
            terms.append(RewardTerm(name, weight))
    if not terms:
        raise InvalidRequest.of(option, text, "rewards and their weights, e.g. helpful=1,short=0.2")
    return Objective(tuple(terms), **read)


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


def _choice(text: str, classes: Mapping[str, type], option: str, objective: Objective | None = None) -> object:
    """One of several classes: ``NAME`` or ``NAME:PARTS``."""
    text = _inside(text)
    name, *rest = _split(text, ":", option, most=1)
    name = name.strip()
    if name not in classes:
        close = difflib.get_close_matches(name, classes, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InvalidRequest.of(option, name, f"one of {', '.join(classes)}{hint}")
    where = f"{option} {name}" if " " not in option else f"{option}.{name}"
    parts = _parts(rest[0], where) if rest else []
    cls = classes[name]
    return _mixture(parts, where) if cls is Mixture else _made(cls, parts, where, objective)


def _made(cls: type[T], parts: list[_Part], where: str, objective: Objective | None = None) -> T:
    """An object of ``cls`` from its parts; the one without a key is its first field."""
    hints = _hints(cls)
    names = [field.name for field in fields(cast("Any", cls))]
    read: dict[str, Any] = {}
    for i, part in enumerate(parts):
        key, value = part.key, part.value
        if part.quoted:
            raise InvalidRequest.of(where, key, f"one of {', '.join(names)}, without quotes")
        if not key and hints.get(value) is bool:
            key, value = value, "true"
        elif not key and i == 0 and names:
            key = names[0]
        if key not in names:
            what = f"one of {', '.join(names)}" if names else "nothing after the name"
            raise InvalidRequest.of(f"{where}.{key}" if key else where, value, what)
        _once(key, read, f"{where}.{key}", value)
        read[key] = _value(hints[key], value, f"{where}.{key}")
    for field in fields(cast("Any", cls)):
        if field.name not in read and field.default is MISSING:
            if field.name == "objective" and objective is not None:
                read[field.name] = objective
            else:
                accepted = _OBJECTIVE if field.name == "objective" else f"a value: {field.name}=..."
                raise InvalidRequest.of(f"{where}.{field.name}", None, accepted)
    return cls(**read)


def _mixture(parts: list[_Part], where: str) -> Mixture:
    experts: list[Weighted] = []
    plausibility: float | None = None
    for part in parts:
        if part.field == "plausibility":
            _once(part.key, () if plausibility is None else (part.key,), f"{where}.{part.key}", part.value)
            plausibility = _value(float, part.value, f"{where}.plausibility")
        else:
            name, weight = _weighted(part, where)
            _once(name, [expert.model for expert in experts], f"{where} {name}", part.value)
            experts.append(Weighted(name, weight))
    if not experts:
        raise InvalidRequest.of(where, None, "models and their weights, e.g. mixture:chat=1,base2=-1")
    return Mixture(tuple(experts), plausibility)


def _weighted(part: _Part, where: str) -> tuple[str, float]:
    """``NAME=WEIGHT``, or a name of weight 1."""
    if not part.key:
        name = _text(part.value, where)
        if not name:
            raise InvalidRequest.of(where, name, "a name, and =WEIGHT after it")
        return name, 1.0
    return part.key, cast("float", _value(float, part.value, f"{where} {part.key}"))


# -------------------------------------------------------------------------------------------------------------- values


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _value(hint: Any, text: str, where: str) -> Any:
    """``text`` as the annotated type ``hint``."""
    if hint == AnyObjective:
        return parse_objective(_inside(text), where)
    arms = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    arms = tuple(arm for arm in arms if arm is not type(None))
    if len(arms) < len(get_args(hint)) and text == "none":
        return None
    if set(arms) >= set(get_args(AnyObjective)):
        return parse_objective(_inside(text), where)
    for union, classes in _NESTED.items():
        if set(arms) == set(get_args(union)):
            return _choice(text, classes, where)
    if PromptLookup in arms:
        name = _inside(text).partition(":")[0].strip()
        return _choice(text, {_LOOKUP: PromptLookup}, where) if name == _LOOKUP else _text(text, where)
    (arm,) = arms
    if arm is str:
        return _text(text, where)
    if arm is bool:
        if text not in ("true", "false"):
            raise InvalidRequest.of(where, text, "true or false")
        return text == "true"
    if issubclass(arm, Enum):
        try:
            return arm(text)
        except ValueError:
            raise InvalidRequest.of(where, text, f"one of {', '.join(str(m.value) for m in arm)}") from None
    try:
        return arm(text)
    except ValueError:
        raise InvalidRequest.of(where, text, "a whole number" if arm is int else "a number") from None


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
