"""What the fields of requests accept, written next to them as annotations, and read from there by everything else.

Validation, spec strings, JSON, the proto and the documentation all read ``described``: a field's types, its default
and the mark that bounds it.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from trimtab.decode.request.info import Limits

__all__ = [
    "MAX_UINT32",
    "Accepts",
    "Field",
    "Many",
    "Mark",
    "Model",
    "OneOf",
    "Range",
    "Rated",
    "Text",
    "call_of",
    "described",
    "name_of",
    "well_typed",
]

T = TypeVar("T")

MAX_UINT32 = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers of an interval, written as in mathematics: ``Range("[0, 1)")``. Whole numbers end at 2^32 - 1.

    Attributes:
        interval: its ends are numbers, ``inf``, ``-inf``, or the names of fields of ``Limits``.
        unit: what the number counts, in words that go before the interval: ``"of nats"``.
    """

    interval: str
    unit: str = ""

    def bounds(self, limits: Limits) -> tuple[float, float]:
        """Lowest and highest number."""
        low, high = (end.strip() for end in self.interval[1:-1].split(","))
        return _end(low, limits), _end(high, limits)

    def holds(self, value: float, limits: Limits) -> bool:
        """Whether ``value`` is one of them."""
        low, high = self.bounds(limits)
        above = value > low if self.interval[0] == "(" else value >= low
        return above and (value < high if self.interval[-1] == ")" else value <= high)

    def words(self, limits: Limits) -> str:
        """The interval in an error."""
        low, high = self.bounds(limits)
        if low == -math.inf and high == math.inf:
            return self.unit or "of any sign"
        if high == math.inf:
            said = f"{'>' if self.interval[0] == '(' else '>='} {low:g}"
        else:
            said = f"in {self.interval[0]}{low:.10g}, {high:.10g}{self.interval[-1]}"
        return f"{self.unit} {said}".strip()


def _end(text: str, limits: Limits) -> float:
    return float(getattr(limits, text, text))


@dataclass(frozen=True, slots=True)
class Model:
    """The name of a model that writes."""


@dataclass(frozen=True, slots=True)
class Rated:
    """The name of a reward, or an objective.

    Attributes:
        beginnings: whether its rewards must be able to rate beginnings of answers; None: the method itself checks what
            they must be able to (``Check.rates``).
    """

    beginnings: bool | None = False


@dataclass(frozen=True, slots=True)
class Text:
    """Text that is looked for in answers, not empty.

    Attributes:
        most: the field of ``Limits`` that bounds its UTF-8 bytes.
    """

    most: str


@dataclass(frozen=True, slots=True)
class Accepts:
    """Whatever a function does not refuse.

    Attributes:
        refusal: what would be accepted in place of a value; None where it is accepted itself.
    """

    refusal: Callable[[object], str | None]


@dataclass(frozen=True, slots=True)
class Many:
    """A tuple of at least ``least`` and at most ``most`` elements."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class OneOf:
    """Alternatives that the proto has as a oneof.

    Attributes:
        name: of the oneof.
        fields: its fields, and the type that each stands for.
        scalar: the proto's fields are no messages, but the only field of these types.
    """

    name: str
    fields: Mapping[str, type]
    scalar: bool = False

    @property
    def named(self) -> str | None:
        """The field that carries a name, if there is one."""
        return next((name for name, kind in self.fields.items() if kind is str), None)

    def field_of(self, value: object) -> str | None:
        """The field that carries ``value``."""
        return next((name for name, kind in self.fields.items() if isinstance(value, kind)), None)


Mark = Range | Model | Rated | Text | Accepts | Many | OneOf


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a class.

    Attributes:
        name: its name.
        kinds: the types that it takes, None left out; of a tuple the type of its elements.
        optional: whether it takes None.
        repeated: whether it is a tuple.
        default: ``MISSING`` where there is none.
        marks: what bounds it.
    """

    name: str
    kinds: tuple[Any, ...]
    optional: bool
    repeated: bool
    default: object
    marks: tuple[Mark, ...]

    @property
    def required(self) -> bool:
        return self.default is MISSING

    def mark(self, kind: type[T]) -> T | None:
        """Its mark of a kind."""
        return next((mark for mark in self.marks if isinstance(mark, kind)), None)


def described(cls: type[Any]) -> tuple[Field, ...]:
    """The fields of a dataclass, in order."""
    return _described(cast("Hashable", cls))


@cache
def _described(cls: Hashable) -> tuple[Field, ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in fields(cast("Any", cls)):
        hint, marks = hints[field.name], list[Any]()
        if get_origin(hint) is Annotated:
            hint, *marks = get_args(hint)
        arms = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        kinds = tuple(arm for arm in arms if arm is not type(None))
        repeated = len(kinds) == 1 and get_origin(kinds[0]) is tuple
        if repeated:
            kinds = get_args(kinds[0])[:1]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found.append(Field(field.name, kinds, len(kinds) < len(arms), repeated, default, tuple(marks)))
    return tuple(found)


def well_typed(value: object) -> bool:
    """Whether the fields of a dataclass, and of those in them, hold values of their types, in range or not."""
    for field in described(type(value)):
        inner = getattr(value, field.name)
        if inner is None and field.optional:
            continue
        if field.repeated and not isinstance(inner, tuple | list):
            return False
        kinds = tuple(get_origin(kind) or kind for kind in field.kinds)
        kinds += (int,) if float in kinds else ()
        for item in inner if field.repeated else (inner,):
            if not isinstance(item, kinds) or (isinstance(item, bool) and bool not in kinds):
                return False
            if is_dataclass(item) and not well_typed(item):
                return False
    return True


def name_of(cls: type) -> str:
    """The name of a class in spec strings: its own ``name``, or ``TopProb`` as ``top_prob``."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    return str(vars(cls).get("name", words))


def call_of(cls: type) -> str:
    """How a class is called, for an error: ``Weighted(model, weight)``."""
    return f"{cls.__name__}({', '.join(field.name for field in fields(cls))})" if is_dataclass(cls) else cls.__name__
