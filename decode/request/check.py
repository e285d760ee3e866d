"""Collects what is wrong with a request, so that one error names everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, cast

from trimtab.decode.errors import NotFound, UnsupportedRequest, Violation
from trimtab.decode.request.fields import (
    MAX_UINT32,
    Accepts,
    Field,
    Many,
    Model,
    OneOf,
    Range,
    Rated,
    Text,
    call_of,
    described,
)
from trimtab.decode.request.info import Limits, ModelInfo, RewardInfo
from trimtab.decode.request.objective import FUNCTION_ACCEPTED, AnyObjective, Combine, Objective, RewardTerm
from trimtab.decode.request.prompt import is_text

if TYPE_CHECKING:
    from trimtab.decode.request.request import Request

__all__ = ["SHOWN_PER_LIST", "Check", "is_number", "token_ids_of"]

T = TypeVar("T")

SHOWN_PER_LIST = 8  # a list of a thousand bad ids is one mistake


class Check:
    """Collects violations; each method checks one part and accepts exactly what the types document.

    Args:
        request: what is checked.
        models, rewards: what the engine serves, by name.
        limits: bounds on one request.
        same_ids: whether two models, given by name, share their token ids.

    Attributes:
        info: of the requested model; None if it is unknown.
        found: what no engine could accept.
        unknown: names that this one does not serve, and ``unknown_error``, the first of them.
        unsupported: the first combination that cannot work.
    """

    def __init__(
        self,
        request: Request,
        models: Mapping[str, ModelInfo],
        rewards: Mapping[str, RewardInfo],
        limits: Limits,
        same_ids: Callable[[str, str], bool],
    ) -> None:
        self.request = request
        self.same_ids = same_ids
        self.models = models
        self.rewards = rewards
        self.limits = limits
        self.found: list[Violation] = []
        self.unknown: list[Violation] = []
        self.unknown_error: NotFound | None = None
        self.unsupported: UnsupportedRequest | None = None
        self.info = self.model("model", request.model)

    def refuse(self, path: str, value: object, accepted: str) -> None:
        self.found.append(Violation.of(path, value, accepted))

    def kind(self, path: str, value: object, kind: type) -> bool:
        if isinstance(value, kind):
            return True
        self.refuse(path, value, f"a {kind.__name__}")
        return False

    def integer(self, path: str, value: object, low: int, high: int) -> None:
        if not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
            self.refuse(path, value, f"a whole number in [{low}, {high}]")

    def flag(self, path: str, value: object) -> None:
        if not isinstance(value, bool):
            self.refuse(path, value, "True or False")

    def fine(self, path: str, *names: str) -> bool:
        """Whether nothing was found wrong with these fields of ``path``: they can be compared."""
        return not {violation.field for violation in self.found} & {f"{path}.{name}" for name in names}

    # -------------------------------------------------------------------------------------------- fields by their marks

    def fields(self, value: object, path: str, but: Sequence[str] = ()) -> None:
        """Check the fields of a dataclass by their types and marks, ``but`` those of these names."""
        for field in described(type(value)):
            if field.name not in but:
                self._field(field, getattr(value, field.name), f"{path}.{field.name}", path)

    def _field(self, field: Field, value: object, path: str, parent: str) -> None:
        oneof = field.mark(OneOf)
        if value is None and field.optional:
            return
        if field.repeated:
            self._many(field, value, path)
        elif (rated := field.mark(Rated)) is not None:
            self._rated(field, rated, value, path, parent)
        elif oneof is not None:
            self._one_of(oneof, field, value, parent)
        elif field.mark(Model) is not None:
            self.model(path, value)
        else:
            self._value(field, value, path)

    def _value(self, field: Field, value: object, path: str) -> None:
        (kind,), interval = field.kinds, field.mark(Range) or Range("(-inf, inf)")
        if (accepts := field.mark(Accepts)) is not None:
            if (accepted := accepts.refusal(value)) is not None:
                self.refuse(path, value, accepted)
        elif (text := field.mark(Text)) is not None:
            most = getattr(self.limits, text.most)
            if not (is_text(value) and 1 <= len(cast("str", value).encode()) <= most):
                self.refuse(path, value, f"a string of 1 to {most} UTF-8 bytes")
        elif kind is bool:
            self.flag(path, value)
        elif kind is int:
            low, high = interval.bounds(self.limits)
            self.integer(path, value, int(low), int(min(high, MAX_UINT32)))
        elif kind is float:
            if not (is_number(value) and interval.holds(cast("float", value), self.limits)):
                self.refuse(path, value, f"a finite number {interval.words(self.limits)}")
        elif isinstance(kind, type) and issubclass(kind, Enum):
            if not isinstance(value, kind):
                self.refuse(path, value, f"one of {', '.join(str(member.value) for member in kind)}")
        elif is_dataclass(kind):
            if isinstance(value, cast("type", kind)):
                self.fields(value, path)
            else:
                self.refuse(path, value, call_of(cast("type", kind)) + (" or None" if field.optional else ""))
        elif kind is str and not is_text(value):
            self.refuse(path, value, "text that UTF-8 can encode")

    def _many(self, field: Field, values: object, path: str) -> None:
        many, (kind,) = field.mark(Many) or Many(0, MAX_UINT32), field.kinds
        if not isinstance(values, Sequence) or isinstance(values, str) or not many.least <= len(values) <= many.most:
            self.refuse(path, values, f"a tuple of {many.least} to {many.most} {call_of(kind)}")
            return
        for i, value in enumerate(values):
            if isinstance(value, kind):
                self.fields(value, f"{path}[{i}]")
            else:
                self.refuse(f"{path}[{i}]", value, f"a {call_of(kind)}")

    def _one_of(self, oneof: OneOf, field: Field, value: object, parent: str) -> None:
        name = oneof.field_of(value)
        if oneof.named is not None and name in (None, oneof.named):
            self.model(f"{parent}.{oneof.named}", value)
        elif name is None:
            accepted = ", ".join(map(call_of, oneof.fields.values())) + (" or None" if field.optional else "")
            self.refuse(f"{parent}.{oneof.name}", value, accepted)
        elif oneof.scalar:
            (only,) = described(type(value))
            self._field(only, getattr(value, only.name), f"{parent}.{name}", parent)
        else:
            self.fields(value, f"{parent}.{name}")

    def _rated(self, field: Field, rated: Rated, value: object, path: str, parent: str) -> None:
        if field.kinds == (str,):
            if rated.beginnings is not None:
                self.rated_by(path, value, parent, beginnings=rated.beginnings)
        elif isinstance(value, str | Objective | Mapping):
            self.fields(Objective.of(cast("Any", value)), path)
            if rated.beginnings is not None:
                self.rates(parent, cast("Any", value), beginnings=rated.beginnings)
        else:
            accepted = "the name of a reward, names and weights, or an Objective"
            self.refuse(path, value, FUNCTION_ACCEPTED if callable(value) else accepted)

    # --------------------------------------------------------------------------------------------- rewards by their use

    def rates(self, user: str, value: AnyObjective, *, beginnings: bool = False, single: bool = True) -> None:
        """Whether the rewards of an objective can do what is asked of them.

        Args:
            user: path of the method that asks.
            value: a name, names and weights, or an objective, whose fields have been checked.
            beginnings: they must rate beginnings of answers.
            single: they must rate one answer, rather than compare two.
        """
        objective, pairwise = Objective.of(value), None
        terms = objective.terms if isinstance(objective.terms, Sequence) else ()
        for i, term in enumerate(terms):
            if isinstance(term, RewardTerm):
                where = f"{user}.objective.terms[{i}].reward"
                found = self.rated_by(where, term.reward, user, beginnings=beginnings, single=single)
                pairwise = found if found is not None and found.pairwise else pairwise
        if pairwise is not None and isinstance(objective.combine, Combine) and objective.combine is not Combine.SUM:
            pair = f"combine={objective.combine} with {pairwise.name!r}, which compares two answers"
            self.unsupport(f"{user}.objective.combine", pair, "sum with a pairwise reward")

    def rated_by(
        self, path: str, name: object, user: str, *, beginnings: bool, single: bool = True
    ) -> RewardInfo | None:
        """The reward that ``user`` names at ``path``, if it can do what is asked of it; see ``rates``."""
        found = self.reward(path, name)
        if found is None:
            return None
        if single and found.pairwise:
            pair = f"{user} with {found.name!r}, which compares two answers"
            accepted = "best_of_n with choose=tournament and without reject_fraction, or a reward that rates one answer"
            self.unsupport(path, pair, f"{accepted} ({self._fitting(lambda r: not r.pairwise)})")
        elif beginnings and found.kind == "sequence":
            what = f"{user} with reject_fraction" if user == "search.best_of_n" else user
            pair = f"{what} with {found.name!r}, which rates whole answers only"
            fits = self._fitting(lambda r: r.kind != "sequence" and not r.pairwise)
            self.unsupport(path, pair, f"a reward of kind prefix or token, which rates beginnings too ({fits})")
        if found.needs_reference and isinstance(self.request.references, Sequence) and not self.request.references:
            self.refuse("references", self.request.references, f"at least one answer for the reward {found.name!r}")
        return found

    def _fitting(self, fits: Callable[[RewardInfo], bool]) -> str:
        """The rewards that would fit, for an error."""
        return "here " + (", ".join(repr(name) for name in sorted(self.rewards) if fits(self.rewards[name])) or "none")

    # ------------------------------------------------------------------------------------------------------------ lists

    def each(self, path: str, values: object, what: str, problem: Callable[[object], str | None]) -> None:
        """A list of values, of which ``problem`` says what would be accepted instead."""
        if isinstance(values, str | bytes) or not isinstance(values, Sequence):
            self.refuse(path, values, f"a tuple of {what}")
            return
        self.some(path, [(f"[{i}]", v, said) for i, v in enumerate(values) if (said := problem(v)) is not None])

    def some(self, path: str, wrong: list[tuple[str, object, str]]) -> None:
        """Refuse elements of a collection, given as (subscript, value, accepted), naming at most a few of them."""
        for subscript, value, accepted in wrong[:SHOWN_PER_LIST]:
            self.refuse(f"{path}{subscript}", value, accepted)
        if len(wrong) > SHOWN_PER_LIST:
            self.refuse(path, f"{len(wrong)} elements at fault", wrong[-1][2])

    def unsupport(self, path: str, value: str, accepted: str) -> None:
        """Refuse a combination; ``value`` names the pair."""
        self.unsupported = self.unsupported or UnsupportedRequest(path, value, accepted)

    def model(self, path: str, name: object) -> ModelInfo | None:
        """A model that writes; None if it has been refused."""
        info = self._named(path, name, "model", self.models)
        if info is not None and info.role == "reward":
            accepted = "a model that writes text: this one has the role 'reward'"
            self.refuse(path, name, accepted)
            return None
        return info

    def reward(self, path: str, name: object) -> RewardInfo | None:
        """A reward; None if it has been refused."""
        return self._named(path, name, "reward", self.rewards)

    def _named(self, path: str, name: object, what: str, known: Mapping[str, T]) -> T | None:
        if not isinstance(name, str) or not name:
            self.refuse(path, name, f"the name of a {what}")
        elif name not in known:
            error = NotFound(path, name, sorted(known))
            self.unknown += error.violations
            self.unknown_error = self.unknown_error or error
        else:
            return known[name]
        return None

    def token_ids(self, path: str, ids: object) -> None:
        accepted, is_token = token_ids_of(self.info)
        self.each(path, ids, f"token ids, each {accepted}", lambda value: None if is_token(value) else accepted)


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def token_ids_of(info: ModelInfo | None) -> tuple[str, Callable[[object], bool]]:
    """What token ids a model takes, in words and as a predicate; all 32-bit ids while the model is unknown."""
    size = info.vocab_size if info is not None else MAX_UINT32 + 1

    def is_token(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size

    return f"a whole number in [0, {size - 1}]", is_token
