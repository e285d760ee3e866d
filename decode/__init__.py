"""trimtab's decoding library: requests, answers and errors, and the engine that turns one into the other.

Importing it loads neither torch nor transformers: what is not plain data of requests and answers (``Engine``, the
configurations, the classes to make rewards of) is imported at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "trimtab.decode":  # `import decode` from the repository root would make a second copy of every class
    raise ImportError(f"this package is imported as 'trimtab.decode', not as {__name__!r}")

from trimtab.decode import errors
from trimtab.decode.errors import *  # noqa: F403
from trimtab.decode.request import events, info, methods, objective, request, result, sampling
from trimtab.decode.request.events import *  # noqa: F403
from trimtab.decode.request.info import *  # noqa: F403
from trimtab.decode.request.methods import *  # noqa: F403
from trimtab.decode.request.objective import *  # noqa: F403
from trimtab.decode.request.prompt import ChatMessage, Prompt
from trimtab.decode.request.request import *  # noqa: F403
from trimtab.decode.request.result import *  # noqa: F403
from trimtab.decode.request.sampling import *  # noqa: F403

if TYPE_CHECKING:
    from trimtab.decode.config import ConfigError, EngineConfig, EngineOptions, ModelConfig
    from trimtab.decode.engine.engine import Engine, EngineStats
    from trimtab.decode.rewards.base import EngineReward, LocalReward, PairwiseReward, Reward, Sample

__all__ = [
    "ChatMessage",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "EngineOptions",
    "EngineReward",
    "EngineStats",
    "LocalReward",
    "ModelConfig",
    "PairwiseReward",
    "Prompt",
    "Reward",
    "Sample",
]
__all__ += errors.__all__
for _module in (events, info, methods, objective, request, result, sampling):
    __all__ += _module.__all__

_MODULES = {
    "config": ("ConfigError", "EngineConfig", "EngineOptions", "ModelConfig"),
    "engine.engine": ("Engine", "EngineStats"),
    "rewards.base": ("EngineReward", "LocalReward", "PairwiseReward", "Reward", "Sample"),
}
_LAZY = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
