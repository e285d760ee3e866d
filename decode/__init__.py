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
from trimtab.decode.methods.draws.autoregressive import Autoregressive
from trimtab.decode.methods.draws.length import (
    Acceptance,
    Confidence,
    Fixed,
    Length,
)
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.base import Base
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.policies.trigger import Branching, Entropy, TopProb, Trigger
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.rejection import MIN_HELD_TOKENS
from trimtab.decode.methods.searches.segments import Logprob, Segments
from trimtab.decode.methods.searches.single import Single
from trimtab.decode.request import events, generate_options, objective, request, result, sampling
from trimtab.decode.request.events import *  # noqa: F403
from trimtab.decode.request.generate_options import *  # noqa: F403
from trimtab.decode.request.info import FieldInfo, Limits, MethodInfo, ModelInfo, RewardInfo
from trimtab.decode.request.method import AXES, Draw, Policy, Search
from trimtab.decode.request.method import methods as _methods  # trimtab.decode.methods is a package
from trimtab.decode.request.objective import *  # noqa: F403
from trimtab.decode.request.prompt import ChatMessage, Prompt, chat
from trimtab.decode.request.request import *  # noqa: F403
from trimtab.decode.request.result import *  # noqa: F403
from trimtab.decode.request.sampling import *  # noqa: F403

if TYPE_CHECKING:
    from trimtab.decode.config import ConfigError, EngineConfig, EngineOptions, ModelConfig
    from trimtab.decode.engine.engine import Engine, EngineStats
    from trimtab.decode.rewards.base import EngineReward, LocalReward, PairwiseReward, Reward, Sample

__all__ = [
    "MIN_HELD_TOKENS",
    "Acceptance",
    "Autoregressive",
    "Base",
    "BestOfN",
    "Branching",
    "ChatMessage",
    "Choose",
    "Confidence",
    "ConfigError",
    "Draw",
    "Engine",
    "EngineConfig",
    "EngineOptions",
    "EngineReward",
    "EngineStats",
    "Entropy",
    "Evolution",
    "FieldInfo",
    "Fixed",
    "Length",
    "Limits",
    "LocalReward",
    "Logprob",
    "MethodInfo",
    "Mixture",
    "ModelConfig",
    "ModelInfo",
    "Nudged",
    "PairwiseReward",
    "Policy",
    "Prompt",
    "PromptLookup",
    "Refine",
    "RejectSegments",
    "Reward",
    "RewardInfo",
    "Sample",
    "Search",
    "Segments",
    "Single",
    "Speculative",
    "TokenReward",
    "TopProb",
    "Trigger",
    "Weighted",
    "chat",
]
__all__ += errors.__all__
for _module in (events, generate_options, objective, request, result, sampling):
    __all__ += _module.__all__

# A method that is not named above is exported all the same.
for _axis in AXES:
    for _method in _methods(_axis, plugins=False).values():
        globals()[_method.__name__] = _method
        if _method.__name__ not in __all__:
            __all__ += [_method.__name__]

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
