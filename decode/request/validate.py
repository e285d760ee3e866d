"""Whether a request can run: every field that is at fault, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.frozen import FrozenDict
from trimtab.decode.request.axes import AxesCheck
from trimtab.decode.request.check import MAX_UINT32, SHOWN_PER_LIST, is_number, token_ids_of
from trimtab.decode.request.info import Limits, ModelInfo, RewardInfo
from trimtab.decode.request.prompt import (
    PROMPT_ACCEPTED,
    PromptKind,
    is_text,
    message_violations,
    prompt_kind,
)
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Sampling, Stopping

if TYPE_CHECKING:
    pass


__all__ = ["check_length", "validate"]


_MAX_TEMPERATURE = 10.0


_MAX_PENALTY = 10.0


_MAX_SEED = 2**32 - 1


_MAX_REFERENCES = 64


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
