"""What a method says of itself, and the register of all methods.

A method is a policy, a draw or a search: a frozen dataclass whose fields carry their bounds (``fields``), with what
it needs, and its working, as methods. All that has to know methods asks the register: validation, spec strings,
JSON, the proto in both directions, the server's lists. To add one, write a file in ``trimtab.decode.methods``, or in a
package of your own (see ``trimtab.decode.extending``) that names the class under one of the entry-point groups
``trimtab.policies``, ``trimtab.draws`` and ``trimtab.searches``.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self

from trimtab.decode.plugins import installed
from trimtab.decode.request.fields import Mark, Model, Rated, described, name_of
from trimtab.decode.request.info import Limits, ModelInfo
from trimtab.decode.request.objective import Objective
from trimtab.decode.request.prompt import Prompt

if TYPE_CHECKING:
    from trimtab.decode.methods.answer import Answer
    from trimtab.decode.methods.desk import Desk
    from trimtab.decode.methods.draws.base import TokenDraws
    from trimtab.decode.methods.searches.setting import Outcome, Setting
    from trimtab.decode.methods.writer import Writer
    from trimtab.decode.ops import Seq
    from trimtab.decode.request.check import Check

__all__ = ["AXES", "Draw", "Facts", "Method", "Policy", "Search", "default", "methods"]

log = logging.getLogger(__name__)

_GROUPS = {"policy": "trimtab.policies", "draw": "trimtab.draws", "search": "trimtab.searches"}
_DEFAULTS = {"policy": "base", "draw": "autoregressive", "search": "single"}
_known: dict[str, dict[str, type[Method]]] = {axis: {} for axis in _GROUPS}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a method may go by when it fills what the request leaves open.

    Attributes:
        limits: bounds on one request.
        greedy: every token is the most likely one, by the request or by the model's own default.
        models: what the engine serves, by name.
    """

    limits: Limits
    greedy: bool
    models: Mapping[str, ModelInfo]


class Method(ABC):
    """A policy, a draw or a search.

    Attributes:
        axis: ``policy``, ``draw`` or ``search``.
        name: in spec strings, and of the proto's field; by default the class's name in lower case with underscores.
    """

    __slots__ = ()
    axis: ClassVar[str]
    name: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "axis" in vars(cls):  # a kind of methods, and none itself
            return
        cls.name = name_of(cls)
        other = _known[cls.axis].setdefault(cls.name, cls)
        # A dataclass with slots is made twice; the second one is the one that is used.
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{cls.axis} {cls.name!r} of {cls.__module__} is already a method of {other.__module__}")
        _known[cls.axis][cls.name] = cls

    @property
    def path(self) -> str:
        """Where it is in a request, as errors name it: ``search.best_of_n``."""
        return f"{self.axis}.{self.name}"

    def check(self, check: Check) -> None:  # noqa: B027 - most have nothing more to refuse
        """Refuse what the bounds of single fields don't: ``check.refuse(f"{self.path}.field", value, accepted)``."""

    def resolved(self, facts: Facts) -> Self:
        """The method as it will run, with every value known.

        Raises:
            InvalidRequest: it would do one thing several times.
        """
        return self

    def models(self) -> tuple[str, ...]:
        """Models that it names, in order, each once."""
        return tuple(dict.fromkeys(_named(self, Model)))

    def rewards(self) -> tuple[str, ...]:
        """Rewards that it names, in order, each once."""
        return tuple(dict.fromkeys(_named(self, Rated)))


class Policy(Method):
    """Which distribution each token comes from, and who writes it.

    The models that it names read the prompt, each by its own template, beside the requested one.

    Attributes:
        speculates: whether a draft's tokens can be verified under it.
        helpers_write: whether tokens of the answer can be the own ones of the models that it names.
    """

    __slots__ = ()
    axis = "policy"
    speculates: ClassVar[bool] = True
    helpers_write: ClassVar[bool] = False

    def passes_text(self, same_ids: Container[str]) -> bool:
        """Whether models that write pass on what they wrote as text, having other token ids than the requested one.

        Args:
            same_ids: models that share the requested model's token ids.
        """
        return self.helpers_write and any(name not in same_ids for name in self.models())

    def other_prompts(self, prompt: Prompt, ids: Sequence[int]) -> tuple[Prompt, ...]:
        """Prompts that the requested model reads besides its own; the desk has them as ``others``.

        Args:
            prompt: what it is asked.
            ids: the same as it reads it.
        """
        return ()

    @abstractmethod
    def writer(self, desk: Desk) -> Writer:
        """A writer at the beginning of an answer, made of what lies on the desk."""


class Draw(Method):
    """How tokens are drawn from the policy's distribution, which it leaves as it is.

    The models that it names draft: they read the prompt too, and write none of the answer's tokens.

    Attributes:
        speculates: whether it verifies tokens that something else has drafted.
    """

    __slots__ = ()
    axis = "draw"
    speculates: ClassVar[bool] = False

    @abstractmethod
    def draws(self, desk: Desk, answer: Answer, seq: Seq) -> TokenDraws:
        """Tokens that continue ``seq``, for ``answer``."""


class Search(Method):
    """Which result is the answer."""

    __slots__ = ()
    axis = "search"

    @property
    def candidates(self) -> int:
        """Answers that are written at a time."""
        return 1

    @property
    def results(self) -> int:
        """Candidates that the answer to a request has."""
        return self.candidates

    @abstractmethod
    async def run(self, setting: Setting) -> Outcome:
        """Write candidates and take one."""


AXES: Mapping[str, type[Method]] = {"policy": Policy, "draw": Draw, "search": Search}


def methods(axis: str, plugins: bool = True) -> Mapping[str, type[Any]]:
    """The methods of an axis by name, the default first.

    Args:
        axis: one of ``AXES``.
        plugins: also load those that other packages add.
    """
    _load_own()
    if plugins:
        _load_plugins()
    return dict(sorted(_known[axis].items(), key=lambda item: (item[0] != _DEFAULTS[axis], item[0])))


def default(axis: str) -> Any:
    """The method of an axis that a request has if it names none."""
    _load_own()
    return _known[axis][_DEFAULTS[axis]]()


@cache
def _load_own() -> None:
    # By name: methods import this module, and not the other way round.
    import_module("trimtab.decode.methods")


@cache
def _load_plugins() -> None:
    for axis, group in _GROUPS.items():
        for name, entry in installed(group).items():
            try:
                cls = entry.load()
                kind = AXES[axis]
                if not (isinstance(cls, type) and issubclass(cls, kind) and is_dataclass(cls) and cls.name == name):
                    raise TypeError(f"not a dataclass of {kind.__name__} with the name {name!r}")
                if missing := sorted(cls.__abstractmethods__):
                    raise TypeError(f"{cls.__name__} does not define {', '.join(missing)}")
            except Exception:  # one broken package must not take the others with it
                log.exception("the %s %r of another package can't be used", axis, name)
                _known[axis].pop(name, None)


def _named(value: object, mark: type[Mark]) -> Iterator[str]:
    """Names in the fields of ``value`` that have a mark, and in the fields of these. A function has none."""
    for field in described(type(value)):
        inner = getattr(value, field.name)
        if mark is Rated and field.mark(mark) is not None and isinstance(inner, Mapping | Objective):
            yield from (term.reward for term in Objective.of(inner).terms)
        elif field.mark(mark) is not None and isinstance(inner, str):
            yield inner
        elif field.repeated:
            for item in inner:
                yield from _named(item, mark)
