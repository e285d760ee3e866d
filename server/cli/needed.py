"""What one request needs of a configuration: its models and rewards, and no others, are loaded for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from trimtab.decode.config import EngineConfig
from trimtab.decode.errors import NotFound
from trimtab.decode.request.method import Method
from trimtab.decode.rewards.registry import reward_types

__all__ = ["needed"]


def needed(config: EngineConfig, model: str, methods: Sequence[Method]) -> EngineConfig:
    """The configuration with the models that a request needs: the one that is asked, those of its methods, and those of
    its rewards. Rewards that need none stay, as errors name them.

    Nothing is left out where it can't be told, or where a method names what isn't there: its error lists all there is.

    Args:
        config: what there is.
        model: that is asked.
        methods: the policy, the draw and the search, where they aren't the default.

    Raises:
        NotFound: there is no model of that name.
    """
    if model not in config.models:
        raise NotFound("model", model, sorted(config.models))
    models = {model, *(name for method in methods for name in method.models())}
    rewards = {name for method in methods for name in method.rewards()}
    if not (models <= config.models.keys() and rewards <= config.rewards.keys()):
        return config
    waiting = list(rewards)
    while waiting:
        table = config.rewards[waiting.pop()]
        if not _tells(table):
            return config
        said = set(_texts(table))
        models |= said & config.models.keys()
        waiting += said & config.rewards.keys() - rewards
        rewards |= said & config.rewards.keys()
    names = config.models.keys() | config.rewards.keys() | {"source"}
    rewards |= {name for name, table in config.rewards.items() if _tells(table) and not names & set(_texts(table))}
    return replace(
        config,
        models={name: found for name, found in config.models.items() if name in models},
        rewards={name: table for name, table in config.rewards.items() if name in rewards},
    )


def _tells(table: Mapping[str, object]) -> bool:
    """Whether a reward's table has the names of all that it asks: no file has them, nor code of another package."""
    entry = reward_types().get(str(table.get("type")))
    return entry is not None and entry.value.startswith("trimtab.") and "path" not in table


def _texts(value: object) -> Iterator[str]:
    """All texts in a table, and its keys: what could be the name of a model or a reward."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for inner in value:
            yield from _texts(inner)
