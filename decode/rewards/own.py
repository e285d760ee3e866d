"""Functions that a request brings as its objective: rewards of that request alone."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any, cast

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.frozen import FrozenDict
from trimtab.decode.request.fields import Rated, described
from trimtab.decode.request.method import AXES, Method
from trimtab.decode.request.objective import Objective
from trimtab.decode.request.request import Request
from trimtab.decode.rewards.base import Reward
from trimtab.decode.rewards.functions import Function
from trimtab.decode.rewards.options import OptionError

__all__ = ["bound"]


def bound(request: Request, taken: Container[str]) -> tuple[Request, Mapping[str, Reward]]:
    """A request that names its rewards, and those of its own by name.

    A function is named as it is defined, with a number behind it where a reward of the engine has that name.

    Args:
        request: as it was asked for; it is left as it is.
        taken: names of the engine's rewards.

    Raises:
        InvalidRequest: a function that can't be called with a prompt and an answer.
    """
    own: dict[str, Reward] = {}
    methods: dict[str, Any] = {}
    for axis in AXES:
        method: object = getattr(request, axis)
        for field in described(type(method)) if isinstance(method, Method) else ():
            function = getattr(method, field.name)
            if field.mark(Rated) is None or field.kinds == (str,) or not callable(function):
                continue
            path = f"{cast('Method', method).path}.{field.name}"
            reward = _reward(function, path)
            reward.name = _name(function, taken, own)
            own[reward.name] = reward
            method = methods[axis] = replace(cast("Any", method), **{field.name: Objective.of(reward.name)})
    return (replace(request, **methods), FrozenDict(own)) if own else (request, FrozenDict())


def _reward(function: Any, path: str) -> Reward:
    try:
        return Function(function)
    except OptionError as error:
        raise InvalidRequest.of(path, function, error.accepted) from None


def _name(function: Any, *taken: Container[str]) -> str:
    name = str(getattr(function, "__name__", "function")).strip("<>")
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if not any(one in names for names in taken))
