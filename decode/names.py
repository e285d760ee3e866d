"""The names of ``trimtab.decode`` that are plain data: what requests and answers are made of, and all errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.decode.errors import (
    EngineClosed,
    EngineFailed,
    InvalidRequest,
    MissingExtra,
    ModelCacheError,
    NotFound,
    Overloaded,
    RequestCancelled,
    RewardFailed,
    TrimtabError,
    UnsupportedModel,
    UnsupportedRequest,
    Violation,
)
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
from trimtab.decode.methods.policies.guided import Guided
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
from trimtab.decode.request.events import Chunk, Completed, Event, Progress, Started
from trimtab.decode.request.generate_options import GenerateOptions, RequestOptions
from trimtab.decode.request.info import FieldInfo, Limits, MethodInfo, ModelInfo, RewardInfo
from trimtab.decode.request.method import AXES, Draw, Policy, Search
from trimtab.decode.request.method import methods as _methods  # trimtab.decode.methods is a package
from trimtab.decode.request.objective import AnyObjective, Combine, Objective, RewardFunction, RewardTerm
from trimtab.decode.request.prompt import ChatMessage, Prompt, chat
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import (
    Candidate,
    FinishReason,
    ModelUsage,
    Result,
    Scored,
    Token,
    TokenDraw,
    TokenReason,
    TopLogprob,
    Usage,
)
from trimtab.decode.request.sampling import Sampling, Stopping

if TYPE_CHECKING:
    from trimtab.decode.config import ConfigError, EngineConfig, EngineOptions, ModelConfig
    from trimtab.decode.engine.engine import Engine, EngineStats
    from trimtab.decode.rewards.base import EngineReward, LocalReward, PairwiseReward, Reward, Sample

__all__ = [
    "MIN_HELD_TOKENS",
    "Acceptance",
    "AnyObjective",
    "Autoregressive",
    "Base",
    "BestOfN",
    "Branching",
    "Candidate",
    "ChatMessage",
    "Choose",
    "Chunk",
    "Combine",
    "Completed",
    "Confidence",
    "ConfigError",
    "Draw",
    "Engine",
    "EngineClosed",
    "EngineConfig",
    "EngineFailed",
    "EngineOptions",
    "EngineReward",
    "EngineStats",
    "Entropy",
    "Event",
    "Evolution",
    "FieldInfo",
    "FinishReason",
    "Fixed",
    "GenerateOptions",
    "Guided",
    "InvalidRequest",
    "Length",
    "Limits",
    "LocalReward",
    "Logprob",
    "MethodInfo",
    "MissingExtra",
    "Mixture",
    "ModelCacheError",
    "ModelConfig",
    "ModelInfo",
    "ModelUsage",
    "NotFound",
    "Nudged",
    "Objective",
    "Overloaded",
    "PairwiseReward",
    "Policy",
    "Progress",
    "Prompt",
    "PromptLookup",
    "Refine",
    "RejectSegments",
    "Request",
    "RequestCancelled",
    "RequestOptions",
    "Result",
    "Reward",
    "RewardFailed",
    "RewardFunction",
    "RewardInfo",
    "RewardTerm",
    "Sample",
    "Sampling",
    "Scored",
    "Search",
    "Segments",
    "Single",
    "Speculative",
    "Started",
    "Stopping",
    "Token",
    "TokenDraw",
    "TokenReason",
    "TokenReward",
    "TopLogprob",
    "TopProb",
    "Trigger",
    "TrimtabError",
    "UnsupportedModel",
    "UnsupportedRequest",
    "Usage",
    "Violation",
    "Weighted",
    "chat",
]

# A method that is not named above is exported all the same.
for _axis in AXES:
    for _method in _methods(_axis, plugins=False).values():
        globals()[_method.__name__] = _method
        if _method.__name__ not in __all__:
            __all__ += [_method.__name__]
