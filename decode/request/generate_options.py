"""What ``generate`` and its kin take as keywords, for type checkers.

At run time ``request.keywords`` reads them, and names what is misspelt; here they have types, those of the fields of
``Sampling`` and ``Stopping`` that they stand for. None leaves any of them as if it were not given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from trimtab.decode.request.method import Draw, Policy, Search
from trimtab.decode.request.objective import AnyObjective
from trimtab.decode.request.sampling import Sampling, Stopping

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["GenerateOptions", "RequestOptions"]


class _SamplingOptions(TypedDict, total=False):
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None


class _StoppingOptions(TypedDict, total=False):
    max_new_tokens: int | None
    min_new_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: int | Sequence[int] | None
    eos_token_ids: int | Sequence[int] | None
    ignore_eos: bool | None
    include_stop: bool | None
    time_budget: float | None


class RequestOptions(_SamplingOptions, _StoppingOptions, total=False):
    """All that a request may say beside its prompt and its model; see ``Engine.generate``."""

    policy: Policy | str | None
    draw: Draw | str | None
    search: Search | str | None
    objective: AnyObjective | None
    references: str | Sequence[str] | None
    top_logprobs: int
    prompt_cache: bool
    sampling: Sampling | None
    stopping: Stopping | None
    generation_config: GenerationConfig | None


class GenerateOptions(RequestOptions, total=False):
    """The keywords of ``Engine.generate``: the type of a variable that holds some of them.

    Such a variable, ``options: GenerateOptions = {"model": "base", "temperature": 0}``, is checked when it is written,
    and passed on as ``**options``. Beside it mypy takes no keyword that it could hold as well.
    """

    model: str | None
