"""Everything that determines an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from trimtab.decode.request.method import Draw, Policy, Search, default
from trimtab.decode.request.prompt import Prompt
from trimtab.decode.request.sampling import Sampling, Stopping

__all__ = ["Request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that determines an answer: the prompt and the three axes (policy, draw, search).

    Attributes:
        model: that is asked, by name.
        prompt: see ``Prompt``.
        sampling, stopping, policy, draw, search: as they say.
        references: answers that rewards may compare with.
        top_logprobs: in [0, 20], how many of the most likely tokens are reported beside each token.
        prompt_cache: whether what the engine still holds of earlier requests may be used. Numbers that were computed in
            other batches differ by rounding, and a seeded answer in bfloat16 can differ with them; without the cache a
            prompt is always computed anew. Candidates of one request share their prompt in any case.
    """

    model: str
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    stopping: Stopping = field(default_factory=Stopping)
    policy: Policy = field(default_factory=partial(default, "policy"))
    draw: Draw = field(default_factory=partial(default, "draw"))
    search: Search = field(default_factory=partial(default, "search"))
    references: tuple[str, ...] = ()
    top_logprobs: int = 0
    prompt_cache: bool = True
