"""How the tokens of an answer are drawn: the request's sampling and the model's defaults as one record."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trimtab.decode.request.check import is_number
from trimtab.decode.request.fields import Range, described
from trimtab.decode.request.info import Limits
from trimtab.decode.request.sampling import Sampling
from trimtab.kernels.types import Filters, Key

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["Drawing", "resolve_sampling"]

_NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class Drawing:
    """How one candidate's tokens are drawn.

    Attributes:
        filters: the request's sampling, for models of the requested model's vocabulary.
        foreign: the same without token ids, for models of another vocabulary.
        key: of the candidate's random numbers (law 3).
    """

    filters: Filters
    foreign: Filters
    key: Key

    @property
    def greedy(self) -> bool:
        """Whether every token is the most likely one."""
        return self.filters.temperature == 0


def resolve_sampling(
    sampling: Sampling,
    generation_config: GenerationConfig | None = None,
    rng: Callable[[int], bytes] = os.urandom,
) -> Drawing:
    """Make every value of a checked ``Sampling`` concrete.

    Unset values are those of the model's generation config if it says ``do_sample`` (only values it names: not
    transformers' own default of top-k 50), otherwise temperature 1 without filters. Its repetition penalty holds
    either way, as in transformers. Out-of-range values of a model's file count as unset.

    Args:
        sampling: the request's.
        generation_config: the model's own, if it has one.
        rng: n -> n random bytes, for the seed (32 bits) if none is given.
    """
    samples = bool(getattr(generation_config, "do_sample", False))
    ranges = {field.name: field.mark(Range) for field in described(Sampling)}

    def value(name: str) -> float:
        given: float | None = getattr(sampling, name)
        if given is None and (samples or name == "repetition_penalty"):
            own, interval = getattr(generation_config, name, None), ranges[name]
            if own is not None and is_number(own) and interval is not None and interval.holds(own, Limits()):
                given = own if own > 0 or name != "temperature" else None
        return float(_NEUTRAL[name] if given is None else given)

    foreign = Filters(
        value("temperature"), int(value("top_k")), value("top_p"), value("min_p"), value("repetition_penalty")
    )
    seed = int.from_bytes(rng(4), "little") if sampling.seed is None else sampling.seed
    return Drawing(replace(foreign, bias=sampling.logit_bias), foreign, Key(seed))
