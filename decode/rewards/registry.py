"""From configuration to rewards: types by entry point, options checked, every fault named at once.

A *type* is a factory under the entry-point group ``trimtab.rewards``: called with a table's options it returns a
``Reward``. Packages of others register theirs in the same way as this project does in ``setup.py``. A factory with a
parameter ``site`` is given a ``Site``: the models and the other rewards of the engine, which are made before it when it
asks for them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

from trimtab.decode.config import ConfigError
from trimtab.decode.errors import TrimtabError, Violation
from trimtab.decode.plugins import installed
from trimtab.decode.rewards.base import LocalReward, PairwiseReward, Reward
from trimtab.decode.rewards.calibration import reference
from trimtab.decode.rewards.functions import Function
from trimtab.decode.rewards.options import OptionError, choice, hint, number, table, text

if TYPE_CHECKING:
    from trimtab.decode.config import ModelConfig

__all__ = ["GROUP", "AnyReward", "Site", "make_rewards", "reward_types"]

GROUP = "trimtab.rewards"

AnyReward = Reward | Callable[..., Any] | Mapping[str, object]

_COMMON = ("type", "description", "reference", "timeout")  # what every table may say, beside the type's own options
_SPEC_ACCEPTED = "a reward, a function f(prompt, text) -> number, or a table with a type"


class Site:
    """What a reward that builds on others finds.

    Attributes:
        name: the reward that is being made.
        models: of the engine, by name.
    """

    def __init__(self, name: str, models: Mapping[str, ModelConfig], make: Callable[[str], Reward | None]) -> None:
        self.name, self.models, self._make = name, models, make

    def model(self, key: str, name: object) -> str:
        """The name of a model of the engine.

        Raises:
            OptionError: there is none of that name.
        """
        if isinstance(name, str) and name in self.models:
            return name
        raise OptionError(key, name, f"one of the models {', '.join(map(repr, self.models)) or '(none)'}")

    def reward(self, key: str, name: object) -> Reward:
        """Another reward of the engine.

        Raises:
            OptionError: there is none of that name, or it builds on this one itself.
        """
        made = self._make(name) if isinstance(name, str) else None
        if made is None:
            raise OptionError(key, name, f"another reward of this engine, which doesn't build on {self.name!r} itself")
        return made


def reward_types() -> dict[str, metadata.EntryPoint]:
    """The types of rewards that are installed, by name."""
    return installed(GROUP)


def make_rewards(specs: Mapping[str, AnyReward], models: Mapping[str, ModelConfig] | None = None) -> dict[str, Reward]:
    """The rewards of an engine.

    Args:
        specs: per name a reward, a function, or a table: ``type`` and its options, and with any type ``description``,
            ``timeout`` (seconds per call) and ``reference`` (where zero lies for ``log_sigmoid``: ``{center, scale}``,
            or ``{model, samples, quantile, max_new_tokens, seed}`` to draw it from a model, prompt by prompt).
        models: of the engine.

    Returns:
        By name, in the order of ``specs``. Models that a reward ``brings`` are for the engine to load.

    Raises:
        ConfigError: naming every option at fault as ``rewards.NAME.OPTION``.
    """
    maker = _Maker(specs, models or {})
    rewards = {name: maker.make(name) for name in specs}
    if maker.found:
        raise ConfigError(maker.found)
    return cast("dict[str, Reward]", rewards)


class _Maker:
    """Makes rewards in the order in which they ask for one another."""

    def __init__(self, specs: Mapping[str, AnyReward], models: Mapping[str, ModelConfig]) -> None:
        self.specs, self.models = specs, models
        self.found: list[Violation] = []
        self._made: dict[str, Reward | None] = {}
        self._making: set[str] = set()
        self._types = reward_types()

    def make(self, name: str) -> Reward | None:
        """The reward of that name; None if there is none, it is at fault, or it is being made already."""
        if name in self._made:
            return self._made[name]
        if name not in self.specs or name in self._making:
            return None
        self._making.add(name)
        try:
            self._made[name] = self._checked(name, self._built(name, self.specs[name]))
        except OptionError as error:
            self._refuse(name, error.key, error.value, error.accepted)
            self._made[name] = None
        except TrimtabError as error:  # e.g. a model that can't be read
            self._refuse(name, "type", self._type_of(name), f"a reward that can be made ({error})")
            self._made[name] = None
        return self._made[name]

    def _refuse(self, name: str, key: str, value: object, accepted: str) -> None:
        path = f"rewards.{name}.{key}" if key else f"rewards.{name}"
        self.found.append(Violation.of(path, value, accepted))

    def _type_of(self, name: str) -> object:
        spec = self.specs[name]
        return spec.get("type") if isinstance(spec, Mapping) else type(spec).__name__

    def _built(self, name: str, spec: object) -> Reward:
        if isinstance(spec, Reward):
            made = copy.copy(spec)  # one object may be served under several names
        elif isinstance(spec, Mapping):
            made = self._from_table(name, spec)
        elif callable(spec):
            try:
                made = Function(spec)
            except OptionError as error:
                raise OptionError("", error.value, error.accepted) from None
        else:
            raise OptionError("", spec, _SPEC_ACCEPTED)
        made.name = name
        return made

    def _from_table(self, name: str, spec: Mapping[str, object]) -> Reward:
        kind = spec.get("type")
        if not isinstance(kind, str) or kind not in self._types:
            raise OptionError("type", kind, f"one of {', '.join(self._types)}{hint(kind, self._types)}")
        try:
            factory = self._types[kind].load()
        except ImportError as error:
            raise OptionError("type", kind, f"a type whose packages are installed ({error})") from error
        options = {key: value for key, value in spec.items() if key not in _COMMON}
        parameters = inspect.signature(factory).parameters
        known = [key for key, p in parameters.items() if p.kind is not p.VAR_KEYWORD and key != "site"]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for key, value in options.items():
                if key not in known:
                    accepted = ", ".join((*known, *_COMMON))
                    raise OptionError(key, value, f"one of {accepted}{hint(key, (*known, *_COMMON))}")
        for key in known:
            p = parameters[key]
            if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and key not in options:
                raise OptionError(key, None, f"a value: the type {kind!r} needs it")
        site = {"site": Site(name, self.models, self.make)} if "site" in parameters else {}
        made = factory(**options, **site)
        if not isinstance(made, Reward):
            raise OptionError("type", kind, f"a type that makes a Reward; this one made a {type(made).__name__}")
        if "timeout" in spec:
            made.timeout = number("timeout", spec["timeout"], above=0)
        if "description" in spec:
            made.description = text("description", spec["description"])
        if "reference" in spec:
            made.reference = self._reference(name, spec["reference"])
            if isinstance(model := getattr(made.reference, "model", None), str):
                made.models = tuple(dict.fromkeys((*made.models, model)))
        return made

    def _reference(self, name: str, value: object) -> Any:
        options = table("reference", value, "a table with center and scale, or with model and quantile")
        try:
            if "model" in options:
                Site(name, self.models, self.make).model("model", options["model"])
            return reference(options)
        except OptionError as error:
            raise OptionError(f"reference.{error.key}", error.value, error.accepted) from None

    def _checked(self, name: str, made: Reward) -> Reward:
        """Whether a reward, whoever wrote it, keeps to the protocol."""
        choice("kind", made.kind, ("sequence", "prefix", "token"))
        places = ("thread", "process") if isinstance(made, LocalReward) else ("engine",)
        choice("runs_on", made.runs_on, places)
        number("timeout", made.timeout, above=0)
        for model in made.models:
            if model not in self.models and model not in made.brings:
                raise OptionError("model", model, f"one of the models {', '.join(map(repr, self.models)) or '(none)'}")
        if isinstance(made, PairwiseReward) and made.reference is not None:
            raise OptionError("reference", made.reference, "no reference: this reward compares answers")
        return made
