"""All methods and their fields as text, made from what they say of themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from enum import Enum
from typing import Any

from trimtab.decode.request.fields import Accepts, Field, Many, Model, OneOf, Range, Rated, described, name_of
from trimtab.decode.request.info import FieldInfo, MethodInfo
from trimtab.decode.request.method import AXES, methods

__all__ = ["as_markdown", "as_text", "attributes", "line", "method_infos"]

_HEADINGS = {"policy": "Policies", "draw": "Draws", "search": "Searches"}
_ABOUT = """\
# Methods

<!-- written by: trimtab methods --markdown > docs/methods.md -->

A request has a policy, a draw and a search; the first of each list is the default. Fields are named as in spec strings
(`--search best_of_n:n=16,choose=soft`), in JSON and in errors; classes are those of `trimtab.decode`. Where an interval
ends at a name, that is a field of `Limits`; whole numbers end at 2^32 - 1.
"""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A method, or a value that a field takes."""

    cls: type

    @property
    def summary(self) -> str:
        """The first paragraph of its docstring, and the module of one that another package adds."""
        module = self.cls.__module__
        said = " ".join((inspect.getdoc(self.cls) or "").partition("\n\n")[0].split())
        return said if module.startswith("trimtab.decode.") else f"{said} (of {module})"

    @property
    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Name, what is accepted, default and meaning of each field."""
        meanings = attributes(self.cls)
        for field in described(self.cls):
            yield field.name, _accepted(field), _default(field), meanings.get(field.name, "")


def method_infos() -> list[MethodInfo]:
    """All methods, those of other packages among them, by axis."""
    entries = [(axis, _Entry(cls)) for axis in AXES for cls in methods(axis).values()]
    return [
        MethodInfo(f"{axis}.{name_of(entry.cls)}", entry.summary, tuple(FieldInfo(*row) for row in entry.rows))
        for axis, entry in entries
    ]


def as_text(plugins: bool = True) -> str:
    """For a terminal; ``plugins``: also methods of other packages."""
    lines: list[str] = []
    for heading, entries in _sections(plugins):
        lines.append(heading)
        for entry in entries:
            lines.append(f"  {name_of(entry.cls):<18}{entry.summary}")
            lines += [f"    {name:<20}{accepted:<48}  {default}" for name, accepted, default, _ in entry.rows]
        lines.append("")
    return "\n".join(lines)


def as_markdown(plugins: bool = True) -> str:
    """For the documentation; ``plugins``: also methods of other packages."""
    lines = [_ABOUT]
    for heading, entries in _sections(plugins):
        lines += [f"## {heading}", ""]
        for entry in entries:
            lines += [f"### `{name_of(entry.cls)}`: `{entry.cls.__name__}`", "", entry.summary.replace("``", "`"), ""]
            rows = [(f"`{name}`", accepted, f"`{default}`", said) for name, accepted, default, said in entry.rows]
            if rows:
                lines += [line(row) for row in (("field", "accepts", "default", "meaning"), ("---",) * 4, *rows)]
                lines.append("")
    return "\n".join(lines)


def line(cells: tuple[str, ...]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("``", "`").replace("|", r"\|") for cell in cells) + " |"


def _sections(plugins: bool) -> Iterator[tuple[str, list[_Entry]]]:
    found = {axis: list(methods(axis, plugins).values()) for axis in AXES}
    for axis, classes in found.items():
        yield _HEADINGS[axis], [_Entry(cls) for cls in classes]
    values = {inner for classes in found.values() for cls in classes for inner in _within(cls)}
    yield "Values of fields", [_Entry(cls) for cls in sorted(values, key=name_of)]


def _within(cls: type) -> Iterator[type]:
    """Dataclasses that the fields of ``cls`` take, but for objectives."""
    for field in described(cls):
        for kind in field.kinds if field.mark(Rated) is None else ():
            if isinstance(kind, type) and is_dataclass(kind):
                yield kind
                yield from _within(kind)


def _accepted(field: Field) -> str:
    """What a field takes, in words."""
    many, interval = field.mark(Many), field.mark(Range)
    if (rated := field.mark(Rated)) is not None:
        what = "a reward" if field.kinds == (str,) else "an objective"
        return f"{what} that rates beginnings" if rated.beginnings else what
    if (accepts := field.mark(Accepts)) is not None:
        return accepts.refusal(None) or "anything"
    if (oneof := field.mark(OneOf)) is not None:
        return " or ".join(_kind(kind, "a model") for kind in oneof.fields.values())
    if many is not None:
        return f"{many.least} to {many.most} {_kind(field.kinds[0])}"
    text = "a model" if field.mark(Model) is not None else "text"
    words = [_kind(kind, text) for kind in field.kinds]
    if interval is not None and interval.interval != "(-inf, inf)":
        words.append(f"in {interval.interval}")
    if interval is not None and interval.unit:
        words.append(interval.unit)
    return " ".join(words)


def _kind(kind: Any, text: str = "text") -> str:
    if kind is str:
        return text
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        return "a whole number" if kind is int else "a number"
    if issubclass(kind, Enum):
        return f"one of {', '.join(str(member.value) for member in kind)}"
    return name_of(kind)


def _default(field: Field) -> str:
    value: Any = "required" if field.required else field.default
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


def attributes(cls: type) -> dict[str, str]:
    """What the docstring of a class says of its attributes, by name."""
    found: dict[str, str] = {}
    _, _, block = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
    for item in re.split(r"\n(?=    \w)", "\n" + block.partition("\n\n")[0]):
        names, _, said = item.strip().partition(": ")
        found |= {name.strip(): " ".join(said.split()) for name in names.split(",")}
    return found
