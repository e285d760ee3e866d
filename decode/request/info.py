"""What an engine says of itself: its limits, models and rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FieldInfo", "Limits", "MethodInfo", "ModelInfo", "RewardInfo", "same_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on one request and on the engine's queue.

    Attributes:
        max_new_tokens: the most that a request may ask for.
        max_n: candidates that a search may have.
        max_top_logprobs: most likely tokens that a request may have listed for each place.
        max_queue: requests waiting and running, above which new ones are refused.
        max_stop: stop strings of a request.
        max_stop_bytes: of one stop string, in UTF-8.
    """

    max_new_tokens: int = 4096
    max_n: int = 64
    max_top_logprobs: int = 20
    max_queue: int = 256
    max_stop: int = 8
    max_stop_bytes: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInfo:
    """What an engine says of a reward it serves.

    Attributes:
        kind: ``sequence`` rates whole answers only, ``prefix`` also beginnings of answers, ``token`` is a prefix reward
            that is cheap enough to rate every candidate token.
        models: models of the engine that it runs on.
        pairwise: whether it compares two answers instead of rating one.
        needs_reference: whether it wants a reference answer with each prompt.
    """

    name: str
    kind: Literal["sequence", "prefix", "token"]
    description: str = ""
    models: tuple[str, ...] = ()
    pairwise: bool = False
    needs_reference: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What an engine says of a model it serves.

    Attributes:
        name: under which requests ask for it.
        role: what it was configured for.
        source: as configured: a bundled name, a hub id or a folder.
        architecture, dtype, device: as it was loaded.
        max_context_tokens: of prompt and answer together.
        vocab_size: width of its logits.
        eos_token_ids: that end its answers.
        acceptance_head: as a draft it says how likely its tokens are accepted, which the length ``Acceptance`` needs.
        nudge_models, draft_models: models that ``Nudged`` and ``Speculative`` may name for it.
    """

    name: str
    role: Literal["base", "aligned", "draft", "reward"]
    source: str
    architecture: str
    dtype: str
    device: str
    max_context_tokens: int
    vocab_size: int  # token ids in use; of models that share a vocabulary, the narrowest one's
    eos_token_ids: tuple[int, ...]
    acceptance_head: bool = False
    nudge_models: tuple[str, ...] = ()
    draft_models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """One field of a method, in words.

    Attributes:
        name: in spec strings, JSON and the proto.
        accepts: what it takes.
        default: what an unset one is; ``required`` where there is none.
        meaning: what it does.
    """

    name: str
    accepts: str
    default: str
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What a policy, a draw or a search says of itself.

    Attributes:
        name: with its axis: ``search.best_of_n``.
        summary: a sentence or two.
        fields: in order.
    """

    name: str
    summary: str
    fields: tuple[FieldInfo, ...] = ()


def same_model(one: ModelInfo, other: ModelInfo) -> bool:
    """Whether two names stand for one model, or for two copies of it."""
    return one.name == other.name or (bool(one.source) and one.source == other.source)
