"""A mapping for frozen data: it cannot be changed, and can be hashed, pickled and copied.

``types.MappingProxyType`` can do none of the last three, and a plain ``dict`` is not frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

__all__ = ["FrozenDict", "freeze_fields"]

K = TypeVar("K")
V = TypeVar("V")


class FrozenDict(dict[K, V]):
    """A dictionary without ways to change it; ``json.dumps`` and ``dataclasses.asdict`` take it for one.

    What ``copy()`` and ``|`` give is an ordinary dictionary of the caller's own.
    """

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this mapping is frozen; dict(mapping) is a copy that can be changed")

    __setitem__ = __delitem__ = __ior__ = update = pop = popitem = clear = setdefault = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()


def freeze_fields(value: object, *names: str) -> None:
    """Replace mappings in fields of a frozen dataclass, and those inside them, by frozen copies; for ``__post_init__``.

    What is no mapping stays: callers may hand in anything, and validation names it.
    """
    for name in names:
        given = getattr(value, name)
        if isinstance(given, Mapping):
            object.__setattr__(value, name, _frozen(given))


def _frozen(value: Any) -> Any:
    if isinstance(value, FrozenDict) or not isinstance(value, Mapping):
        return value
    return FrozenDict({key: _frozen(inner) for key, inner in value.items()})
