"""Hypothesis strategies for the axes, made from the types: a new field of a variant is tested without a change here."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, Union, get_args, get_origin

from hypothesis import strategies as st

from trimtab.decode.request.method import AXES, methods

Scalars = Mapping[Any, st.SearchStrategy[Any]]
Named = Mapping[str, st.SearchStrategy[Any]]
NONE: Named = types.MappingProxyType({})


def values(hint: Any, scalars: Scalars, named: Named = NONE) -> st.SearchStrategy[Any]:
    """Values of an annotated type, but for functions.

    Args:
        hint: the type.
        scalars: gives the values of int, float and str, and of any type as a whole.
        named: gives those of fields by their name, whatever their type.
    """
    if hint in scalars:
        return scalars[hint]
    if hint in AXES.values():
        return st.one_of([values(cls, scalars, named) for cls in methods(hint.axis).values()])
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is type(None):
        return st.none()
    if hint is bool:
        return st.booleans()
    if origin in (Union, types.UnionType):
        return st.one_of([values(arm, scalars, named) for arm in arguments if get_origin(arm) is not Callable])
    if origin is tuple:
        return st.lists(values(arguments[0], scalars, named), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(values(arguments[0], scalars, named), values(arguments[1], scalars, named), max_size=3)
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    hints = typing.get_type_hints(hint)
    return st.builds(
        hint,
        **{f.name: named[f.name] if f.name in named else values(hints[f.name], scalars, named) for f in fields(hint)},
    )
