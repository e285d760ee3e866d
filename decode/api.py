"""What a caller may ask for: keyword arguments to a request, its validation, and its values made concrete."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

from trimtab.decode.axes import AxesCheck
from trimtab.decode.checking import MAX_UINT32, SHOWN_PER_LIST, is_number, token_ids_of
from trimtab.decode.errors import InvalidRequest, Violation
from trimtab.decode.frozen import FrozenDict, freeze_fields
from trimtab.decode.generation_config import from_generation_config
from trimtab.decode.prepare.messages import (
    PROMPT_ACCEPTED,
    PromptKind,
    canonical_prompt,
    is_text,
    message_violations,
    prompt_kind,
)
from trimtab.decode.types import (
    Autoregressive,
    Base,
    Draw,
    Limits,
    Mixture,
    ModelInfo,
    Objective,
    Policy,
    Prompt,
    Request,
    RewardInfo,
    Sampling,
    Search,
    Single,
    Stopping,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = [
    "ResolvedSampling",
    "check_length",
    "request_from_kwargs",
    "resolve_sampling",
    "validate",
]

_MAX_TEMPERATURE = 10.0
_MAX_PENALTY = 10.0
_MAX_SEED = 2**32 - 1
_MAX_REFERENCES = 64

# --------------------------------------------------------------------------------------------------------- keywords

_SAMPLING_KEYS = tuple(f.name for f in fields(Sampling))
_STOPPING_KEYS = tuple(f.name for f in fields(Stopping))
_OTHER_KEYS = ("top_logprobs", "references", "prompt_cache", "sampling", "stopping")
_NAMED_KEYS = ("model", "policy", "draw", "search", "generation_config")


def request_from_kwargs(
    prompt: Prompt,
    *,
    model: str,
    policy: Policy | None = None,
    draw: Draw | None = None,
    search: Search | None = None,
    generation_config: GenerationConfig | None = None,
    model_generation_config: GenerationConfig | None = None,
    **flat: Any,
) -> Request:
    """A request from the flat keyword arguments of ``Engine.generate``; ``validate`` checks its values.

    Args:
        prompt: text, token ids or chat messages.
        model: name of the requested model.
        policy, draw, search: the three axes; None takes ``Base()``, ``Autoregressive()``, ``Single()``. A search's
            objective may be the name of a reward, or names and weights.
        generation_config: a transformers configuration; flat keywords override its fields, as in ``generate``.
        model_generation_config: the model's own, which ``generate`` would fill unset fields of it from.
        **flat: the fields of ``Sampling`` and ``Stopping`` (``stop`` also as one string), ``references`` (also one
            string), ``top_logprobs``, ``prompt_cache``, and ``sampling=``/``stopping=`` as whole objects in their
            place.

    Raises:
        InvalidRequest: an unknown keyword, fields given twice (flat and as an object), or an unsupported field of
            ``generation_config``; all of them at once.
    """
    found = _unknown_keywords(flat)
    sampling_fields: dict[str, Any] = {}
    stopping_fields: dict[str, Any] = {}
    if generation_config is not None:
        try:
            sampling_fields, stopping_fields = from_generation_config(generation_config, model_generation_config)
        except InvalidRequest as error:
            found += error.violations
    found += _given_twice("sampling", Sampling, _SAMPLING_KEYS, flat, generation_config is not None)
    found += _given_twice("stopping", Stopping, _STOPPING_KEYS, flat, generation_config is not None)
    if found:
        raise InvalidRequest(found)
    sampling_fields |= {key: flat[key] for key in _SAMPLING_KEYS if key in flat}
    stopping_fields |= {key: flat[key] for key in _STOPPING_KEYS if key in flat}
    return Request(
        model=model,
        prompt=canonical_prompt(prompt),
        sampling=flat.get("sampling") or Sampling(**_canonical_sampling(sampling_fields)),
        stopping=flat.get("stopping") or Stopping(**_canonical_stopping(stopping_fields)),
        policy=Base() if policy is None else _canonical_policy(policy),
        draw=Autoregressive() if draw is None else draw,
        search=Single() if search is None else _canonical_search(search),
        references=_canonical_references(flat.get("references")),
        top_logprobs=flat.get("top_logprobs", 0),
        prompt_cache=flat.get("prompt_cache", True),
    )


def _unknown_keywords(flat: Mapping[str, Any]) -> list[Violation]:
    accepted = (*_SAMPLING_KEYS, *_STOPPING_KEYS, *_OTHER_KEYS, *_NAMED_KEYS)
    found = []
    for key in flat:
        if key not in accepted:
            close = difflib.get_close_matches(key, accepted, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            found.append(Violation.of(key, flat[key], f"one of the keywords {', '.join(accepted)}{hint}"))
    return found


def _given_twice(
    name: str, kind: type, keys: Sequence[str], flat: Mapping[str, Any], generation_config: bool
) -> list[Violation]:
    whole = flat.get(name)
    if whole is None:
        return []
    if not isinstance(whole, kind):
        return [Violation.of(name, whole, f"a {kind.__name__}")]
    found = [Violation.of(key, flat[key], f"{key}= or {name}=, not both") for key in keys if key in flat]
    if generation_config:
        found.append(Violation.of(name, whole, f"generation_config= or {name}=, not both"))
    return found


def _canonical_sampling(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("logit_bias") is None:
        values.pop("logit_bias", None)
    elif isinstance(values["logit_bias"], Mapping):
        values["logit_bias"] = FrozenDict(values["logit_bias"])
    return values


def _canonical_stopping(values: dict[str, Any]) -> dict[str, Any]:
    """None stands for the default, one stop for a tuple of it, and a list for a tuple."""
    values = {key: value for key, value in values.items() if value is not None}
    for key, single in (("stop", str), ("stop_token_ids", int), ("eos_token_ids", int)):
        value = values.get(key)
        if isinstance(value, single):
            values[key] = (value,)
        elif isinstance(value, list):
            values[key] = tuple(value)
    return values


def _canonical_policy(policy: Policy) -> Policy:
    if isinstance(policy, Mixture) and isinstance(cast("object", policy.experts), list):
        return replace(policy, experts=tuple(policy.experts))
    return policy


def _canonical_search(search: Search) -> Search:
    """The search with its objective written out, as it comes over the wire; what is no objective is left alone."""
    if not isinstance(search, Single) and isinstance(getattr(search, "objective", None), str | Mapping):
        return replace(search, objective=Objective.of(search.objective))  # type: ignore[arg-type]
    return search


def _canonical_references(references: Any) -> Any:
    match references:
        case None:
            return ()
        case str():
            return (references,)
        case list():
            return tuple(references)
    return references


# ------------------------------------------------------------------------------------------------------- validation


def validate(
    request: Request,
    models: Mapping[str, ModelInfo],
    limits: Limits,
    rewards: Mapping[str, RewardInfo] = FrozenDict(),
    same_ids: Callable[[str, str], bool] = lambda one, other: True,
) -> None:
    """Refuse a request that can never run, before any work is done for it.

    ``check_length`` completes it once the prompt has been tokenised.

    Args:
        request: to be checked.
        models, rewards: what the engine serves, by name.
        limits: bounds on one request.
        same_ids: whether two models, given by name, share their token ids.

    Raises:
        InvalidRequest: listing every field at fault, by its path in the proto (unknown names among them).
        NotFound: unknown models or rewards are all that is wrong.
        UnsupportedRequest: a policy, draw or search that this engine does not know, or two things that cannot be
            combined.
    """
    check = _RequestCheck(models, rewards, limits)
    info = check.model("model", request.model)
    check.prompt(request.prompt, info)
    if check.kind("sampling", request.sampling, Sampling):
        check.sampling(request.sampling, info)
    if check.kind("stopping", request.stopping, Stopping):
        check.stopping(request.stopping, info)
    check.integer("top_logprobs", request.top_logprobs, 0, limits.max_top_logprobs)
    check.references(request.references)
    check.flag("prompt_cache", request.prompt_cache)
    check.axes(request, info, same_ids)
    if check.found:
        raise InvalidRequest(check.found + check.unknown)
    if check.unknown_error is not None:
        raise check.unknown_error
    if check.unsupported is not None:
        raise check.unsupported


def check_length(prompt_tokens: int, max_new_tokens: int, max_context: int) -> int:
    """How many new tokens fit beside the prompt: ``min(max_new_tokens, max_context - prompt_tokens)``.

    Fewer than ``max_new_tokens`` is no error: such an answer ends with ``CONTEXT_FULL`` if it gets that far.

    Raises:
        InvalidRequest: no token fits.
    """
    if prompt_tokens < 1:
        raise InvalidRequest.of("prompt", f"{prompt_tokens} tokens", "a prompt of at least one token")
    if prompt_tokens >= max_context:
        accepted = f"at most {max_context - 1} tokens, as the context has {max_context} and one must be new"
        raise InvalidRequest.of("prompt", f"{prompt_tokens} tokens", accepted)
    return min(max_new_tokens, max_context - prompt_tokens)


class _RequestCheck(AxesCheck):
    """Checks a request: its axes, and here what is beside them."""

    def prompt(self, prompt: object, info: ModelInfo | None) -> None:
        match prompt_kind(prompt):
            case PromptKind.TEXT if not is_text(prompt):
                self.refuse("prompt", prompt, "text that UTF-8 can encode (no lone surrogates)")
            case PromptKind.TEXT:
                pass
            case PromptKind.TOKEN_IDS:
                self.token_ids("prompt.token_ids", prompt, info)
            case PromptKind.CHAT:
                wrong = message_violations(cast("Sequence[object]", prompt))
                self.found += wrong[:SHOWN_PER_LIST]
                if len(wrong) > SHOWN_PER_LIST:
                    self.refuse("prompt.messages", f"{len(wrong)} faults", wrong[-1].accepted)
            case None:
                self.refuse("prompt", prompt, PROMPT_ACCEPTED)

    def references(self, references: object) -> None:
        what = "text that UTF-8 can encode"
        if isinstance(references, Sequence) and len(references) > _MAX_REFERENCES:
            self.refuse("references", f"{len(references)} references", f"at most {_MAX_REFERENCES} references")
        else:
            self.each("references", references, "answers", lambda value: None if is_text(value) else what)

    def sampling(self, sampling: Sampling, info: ModelInfo | None) -> None:
        if (t := sampling.temperature) is not None:
            accepted = f"in [0, {_MAX_TEMPERATURE:g}]"
            self.number("sampling.temperature", t, accepted, lambda x: 0 <= x <= _MAX_TEMPERATURE)
        if sampling.top_k is not None:
            self.integer("sampling.top_k", sampling.top_k, 1, MAX_UINT32)
        if sampling.top_p is not None:
            self.number("sampling.top_p", sampling.top_p, "in (0, 1]", lambda x: 0 < x <= 1)
        if sampling.min_p is not None:
            self.number("sampling.min_p", sampling.min_p, "in [0, 1)", lambda x: 0 <= x < 1)
        if (r := sampling.repetition_penalty) is not None:
            accepted = f"in (0, {_MAX_PENALTY:g}]"
            self.number("sampling.repetition_penalty", r, accepted, lambda x: 0 < x <= _MAX_PENALTY)
        if sampling.seed is not None:
            self.integer("sampling.seed", sampling.seed, 0, _MAX_SEED)
        self.logit_bias(sampling.logit_bias, info)

    def logit_bias(self, logit_bias: object, info: ModelInfo | None) -> None:
        path = "sampling.logit_bias"
        if not isinstance(logit_bias, Mapping):
            self.refuse(path, logit_bias, "a mapping from token id to number")
            return
        accepted, is_token = token_ids_of(info)
        wrong: list[tuple[str, object, str]] = []
        for token, bias in logit_bias.items():
            if not is_token(token):
                wrong.append((f"[{token!r}]", token, f"as a key {accepted}"))
            elif not (is_number(bias) or (isinstance(bias, float) and bias == -math.inf)):
                wrong.append((f"[{token}]", bias, "a finite number, or -inf to ban the token"))
        self.some(path, wrong)

    def stopping(self, stopping: Stopping, info: ModelInfo | None) -> None:
        most = self.limits.max_new_tokens
        known = self.integer("stopping.max_new_tokens", stopping.max_new_tokens, 1, most)
        self.integer("stopping.min_new_tokens", stopping.min_new_tokens, 0, stopping.max_new_tokens if known else most)
        if isinstance(stopping.stop, Sequence) and len(stopping.stop) > self.limits.max_stop:
            accepted = f"at most {self.limits.max_stop} stop strings"
            self.refuse("stopping.stop", f"{len(stopping.stop)} stop strings", accepted)
        self.each("stopping.stop", stopping.stop, "strings", self._stop_problem)
        self.token_ids("stopping.stop_token_ids", stopping.stop_token_ids, info)
        self.token_ids("stopping.eos_token_ids", stopping.eos_token_ids, info)
        self.flag("stopping.ignore_eos", stopping.ignore_eos)
        self.flag("stopping.include_stop", stopping.include_stop)
        if stopping.time_budget is not None:
            self.number("stopping.time_budget", stopping.time_budget, "of seconds > 0", lambda x: x > 0)

    def _stop_problem(self, stop: object) -> str | None:
        most = self.limits.max_stop_bytes
        fine = is_text(stop) and 1 <= len(cast("str", stop).encode()) <= most
        return None if fine else f"a string of 1 to {most} UTF-8 bytes"


# ------------------------------------------------------------------------------------------------------- resolution


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
