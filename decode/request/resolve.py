"""Sampling with every value known."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab.decode.frozen import FrozenDict, freeze_fields
from trimtab.decode.request.check import is_number
from trimtab.decode.request.sampling import Sampling

if TYPE_CHECKING:
    from transformers import GenerationConfig


__all__ = ["ResolvedSampling", "resolve_sampling"]

from trimtab.decode.request.validate import _MAX_PENALTY, _MAX_TEMPERATURE


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSampling:
    """``Sampling`` with every value known. Filters that are off have the value that keeps everything.

    Attributes:
        temperature: >= 0; 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        min_p: 0 is off.
        repetition_penalty: 1 is off.
        logit_bias: token id -> number added, -inf bans.
        seed: unsigned 32 bits.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=FrozenDict)
    seed: int = 0

    def __post_init__(self) -> None:
        freeze_fields(self, "logit_bias")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def resolve_sampling(
    sampling: Sampling,
    generation_config: GenerationConfig | None = None,
    rng: Callable[[int], bytes] = os.urandom,
) -> ResolvedSampling:
    """Make every value of a checked ``Sampling`` concrete.

    Unset values are those of the model's generation config if it says ``do_sample`` (only values it names: not
    transformers' own default of top-k 50), otherwise temperature 1 without filters. Its repetition penalty holds
    either way, as in transformers. Out-of-range values of a model's file count as unset.

    Args:
        sampling: the request's.
        generation_config: the model's own, if it has one.
        rng: n -> n random bytes, for the seed if none is given.
    """
    samples = bool(getattr(generation_config, "do_sample", False))

    def default(name: str, neutral: float, holds: Callable[[float], bool], always: bool = False) -> float:
        value = getattr(generation_config, name, None) if samples or always else None
        return value if value is not None and is_number(value) and holds(value) else neutral

    def chosen(value: float | None, otherwise: float) -> float:
        return float(otherwise if value is None else value)

    top_k = sampling.top_k if sampling.top_k is not None else int(default("top_k", 0, lambda x: x >= 1))
    penalty = default("repetition_penalty", 1.0, lambda x: 0 < x <= _MAX_PENALTY, always=True)
    return ResolvedSampling(
        temperature=chosen(sampling.temperature, default("temperature", 1.0, lambda x: 0 < x <= _MAX_TEMPERATURE)),
        top_k=top_k,
        top_p=chosen(sampling.top_p, default("top_p", 1.0, lambda x: 0 < x <= 1)),
        min_p=chosen(sampling.min_p, default("min_p", 0.0, lambda x: 0 <= x < 1)),
        repetition_penalty=chosen(sampling.repetition_penalty, penalty),
        logit_bias=FrozenDict(sampling.logit_bias),
        seed=int.from_bytes(rng(4), "little") if sampling.seed is None else sampling.seed,
    )
