"""The three axes of a request: proto to library and back.

A variant's message has the fields of its class, under the same names. What differs is here by hand: alternatives that
the proto has as a oneof, and objectives, which the library also takes as a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trimtab.decode.request.methods import (
    Autoregressive,
    Base,
    Branching,
    Choose,
    Draw,
    Entropy,
    Length,
    Logprob,
    Mixture,
    Nudged,
    Policy,
    PromptLookup,
    Search,
    Speculative,
    TokenReward,
    TopProb,
    Trigger,
    Weighted,
)
from trimtab.decode.request.objective import Combine, Objective, RewardTerm
from trimtab.decode.request.spec_string import DRAWS, LENGTHS, POLICIES, SEARCHES
from trimtab.server.wire.fields import COUNT, FLAG, NAME, NUMBER, TEXT, Faults, Writer, optional
from trimtab.server.wire.numbers import shortest
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["read_draw", "read_policy", "read_search", "write_axes"]

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

_TRIGGERS: Mapping[str, type] = {"entropy_nats_above": Entropy, "top_prob_below": TopProb, "branching_above": Branching}
_ENUMS = {
    "choose": ("CHOOSE", Choose),
    "combine": ("COMBINE", Combine),
    "logprob": ("LOGPROB", Logprob),
}


# ---------------------------------------------------------------------------------------------------- proto to library


def read_policy(message: pb.Policy, faults: Faults) -> Policy:
    """The policy of a message; the default if its ``kind`` is not set.

    What cannot be read is refused, or has a value that is refused when it is checked.
    """
    kind = message.WhichOneof("kind") or "base"
    path = f"policy.{kind}"
    match kind:
        case "nudged":
            return Nudged(message.nudged.nudger, _trigger(message.nudged), optional(message.nudged, "max_span_tokens"))
        case "mixture":
            mixture = message.mixture
            experts = [_read(Weighted, e, f"{path}.experts[{i}]", faults) for i, e in enumerate(mixture.experts)]
            return Mixture(tuple(experts), optional(mixture, "plausibility"))
        case "token_reward":
            return _read(TokenReward, message.token_reward, path, faults)
    return Base()


def read_draw(message: pb.Draw, faults: Faults) -> Draw:
    """As ``read_policy``."""
    if message.WhichOneof("kind") != "speculative":
        return Autoregressive()
    spec, path = message.speculative, "draw.speculative"
    draft: str | PromptLookup = spec.draft_model
    match spec.WhichOneof("drafter"):
        case "lookup":
            draft = _read(PromptLookup, spec.lookup, f"{path}.lookup", faults)
        case None:
            faults.refuse(f"{path}.drafter", None, "one of draft_model, lookup")
    length: Length | None = None
    kind = spec.WhichOneof("length")
    if kind is not None:
        length = _read(LENGTHS[kind], getattr(spec, kind), f"{path}.{kind}", faults)
    copying = _read(PromptLookup, spec.copying, f"{path}.copying", faults) if spec.HasField("copying") else None
    return Speculative(draft, length, spec.coupled, copying)


def read_search(message: pb.Search, faults: Faults) -> Search:
    """As ``read_policy``."""
    kind = message.WhichOneof("kind") or "single"
    search: Search = _read(SEARCHES[kind], getattr(message, kind), f"search.{kind}", faults)
    return search


def _trigger(message: pb.Nudged) -> Trigger | None:
    kind = message.WhichOneof("trigger")
    return None if kind is None else _TRIGGERS[kind](shortest(getattr(message, kind)))


def _read(cls: type[T], message: Any, path: str, faults: Faults) -> T:
    """``cls`` from the fields of the same names; what is unset takes its default, or is refused where there is none."""
    values: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        name, where = field.name, f"{path}.{field.name}"
        if name == "objective":
            if message.HasField(name):
                values[name] = _objective(message.objective, where, faults)
            elif field.default is MISSING:
                values[name] = Objective(())  # refused, as one without terms
        elif name in _ENUMS:
            value = _enum(getattr(message, name), name, where, faults)
            values |= {} if value is None else {name: value}
        elif not message.DESCRIPTOR.fields_by_name[name].has_presence:
            values[name] = getattr(message, name)
        elif message.HasField(name):
            values[name] = optional(message, name)
        elif field.default is MISSING:
            faults.refuse(where, None, "a value")
            values[name] = 0
    return cls(**values)


def _objective(message: pb.Objective, path: str, faults: Faults) -> Objective:
    terms = tuple(_read(RewardTerm, term, f"{path}.terms[{i}]", faults) for i, term in enumerate(message.terms))
    combine = _enum(message.combine, "combine", f"{path}.combine", faults)
    spread = optional(message, "spread")
    default = Objective(terms)
    return Objective(terms, combine or default.combine, default.spread if spread is None else spread)


def _enum(number: int, name: str, path: str, faults: Faults) -> Any:
    """The library's value; None if it is unspecified."""
    prefix, values = _ENUMS[name]
    known = {pb_value: value for value in values if (pb_value := getattr(pb, f"{prefix}_{value.name}"))}
    if number and number not in known:
        faults.refuse(path, number, f"one of {', '.join(f'{prefix}_{value.name}' for value in values)}")
    return known.get(number)


# ---------------------------------------------------------------------------------------------------- library to proto


def write_axes(spec: pb.GenerationSpec, policy: object, draw: object, search: object, writer: Writer) -> None:
    """Fill the axes; one that has its default stays absent."""
    match policy:
        case Base():
            pass
        case Nudged(nudger, when, max_span_tokens):
            nudged, path = spec.policy.nudged, "policy.nudged"
            nudged.SetInParent()
            writer.set(nudged, "nudger", nudger, f"{path}.nudger", NAME)
            writer.set(nudged, "max_span_tokens", max_span_tokens, f"{path}.max_span_tokens", COUNT)
            trigger = _kind(when, _TRIGGERS)
            if trigger is not None:
                writer.set(nudged, trigger, _bound(when), f"{path}.{trigger}", NUMBER)
            elif when is not None:
                writer.refuse(f"{path}.when", when, "an Entropy, a TopProb or a Branching")
        case Mixture(experts, plausibility):
            mixture, path = spec.policy.mixture, "policy.mixture"
            mixture.SetInParent()
            writer.extend(
                experts,
                lambda e: mixture.experts.add(model=e.model, weight=_weight(e.weight)),
                f"{path}.experts",
                "a Weighted",
            )
            writer.set(mixture, "plausibility", plausibility, f"{path}.plausibility", NUMBER)
        case TokenReward():
            _write(spec.policy.token_reward, policy, "policy.token_reward", writer)
        case _:
            writer.refuse("policy", policy, f"one of {_names(POLICIES)}")
    match draw:
        case Autoregressive():
            pass
        case Speculative():
            _speculative(spec.draw.speculative, draw, writer)
        case _:
            writer.refuse("draw", draw, f"one of {_names(DRAWS)}")
    kind = _kind(search, SEARCHES)
    if kind is None:
        writer.refuse("search", search, f"one of {_names(SEARCHES)}")
    elif kind != "single":
        _write(getattr(spec.search, kind), search, f"search.{kind}", writer)


def _kind(value: object, classes: Mapping[str, type]) -> str | None:
    return next((name for name, cls in classes.items() if isinstance(value, cls)), None)


def _names(classes: Mapping[str, type]) -> str:
    return ", ".join(cls.__name__ for cls in classes.values())


def _bound(trigger: Any) -> Any:
    (field,) = fields(trigger)
    return getattr(trigger, field.name)


def _weight(value: object) -> Any:
    if isinstance(value, bool) or value is None:  # protobuf would take True for 1, and None for unset
        raise TypeError
    return value


def _speculative(message: pb.Speculative, draw: Speculative, writer: Writer) -> None:
    path = "draw.speculative"
    message.SetInParent()
    if isinstance(draw.draft, PromptLookup):
        _write(message.lookup, draw.draft, f"{path}.lookup", writer)
    else:
        writer.set(message, "draft_model", draw.draft, f"{path}.draft_model", f"{NAME}, or a PromptLookup")
    kind = _kind(draw.length, LENGTHS)
    if kind is not None:
        _write(getattr(message, kind), draw.length, f"{path}.{kind}", writer)
    elif draw.length is not None:
        writer.refuse(f"{path}.length", draw.length, f"one of {_names(LENGTHS)}")
    writer.set(message, "coupled", draw.coupled, f"{path}.coupled", FLAG)
    if isinstance(draw.copying, PromptLookup):
        _write(message.copying, draw.copying, f"{path}.copying", writer)
    elif draw.copying is not None:
        writer.refuse(f"{path}.copying", draw.copying, "a PromptLookup or None")


_ACCEPTED = {
    FieldDescriptor.CPPTYPE_UINT32: COUNT,
    FieldDescriptor.CPPTYPE_FLOAT: NUMBER,
    FieldDescriptor.CPPTYPE_BOOL: FLAG,
    FieldDescriptor.CPPTYPE_STRING: TEXT,
}


def _write(message: Message, value: Any, path: str, writer: Writer) -> None:
    """Fill the fields of the same names."""
    message.SetInParent()
    for field in fields(value):
        name, inner, where = field.name, getattr(value, field.name), f"{path}.{field.name}"
        if name == "objective":
            if inner is not None:
                _write_objective(message.objective, inner, where, writer)  # type: ignore[attr-defined]
        elif name in _ENUMS:
            _write_enum(message, name, inner, where, writer)
        else:
            accepted = _ACCEPTED[message.DESCRIPTOR.fields_by_name[name].cpp_type]
            writer.set(message, name, inner, where, accepted)


def _write_objective(message: pb.Objective, value: object, path: str, writer: Writer) -> None:
    if not isinstance(value, str | Mapping | Objective):
        writer.refuse(path, value, "the name of a reward, names and weights, or an Objective")
        return
    objective = Objective.of(value)
    message.SetInParent()
    writer.extend(
        objective.terms,
        lambda t: message.terms.add(reward=t.reward, weight=_weight(t.weight)),
        f"{path}.terms",
        "a RewardTerm",
    )
    _write_enum(message, "combine", objective.combine, f"{path}.combine", writer)
    writer.set(message, "spread", objective.spread, f"{path}.spread", NUMBER)


def _write_enum(message: Message, name: str, value: object, path: str, writer: Writer) -> None:
    prefix, values = _ENUMS[name]
    if isinstance(value, values):
        setattr(message, name, getattr(pb, f"{prefix}_{value.name}"))
    else:
        writer.refuse(path, value, f"one of {', '.join(values)}")
