"""Whether a request can run: every field that is at fault, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.frozen import FrozenDict
from trimtab.decode.request.check import SHOWN_PER_LIST, Check, is_number, token_ids_of
from trimtab.decode.request.fields import well_typed
from trimtab.decode.request.info import Limits, ModelInfo, RewardInfo
from trimtab.decode.request.method import AXES, Draw, Policy, methods
from trimtab.decode.request.prompt import PROMPT_ACCEPTED, PromptKind, is_text, message_violations, prompt_kind
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Sampling, Stopping

__all__ = ["check_length", "validate"]

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
    check = _RequestCheck(request, models, rewards, limits, same_ids)
    check.prompt(request.prompt)
    if check.kind("sampling", request.sampling, Sampling):
        check.sampling(request.sampling)
    if check.kind("stopping", request.stopping, Stopping):
        check.stopping(request.stopping)
    check.integer("top_logprobs", request.top_logprobs, 0, limits.max_top_logprobs)
    check.references(request.references)
    check.flag("prompt_cache", request.prompt_cache)
    check.axes()
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


class _RequestCheck(Check):
    """Checks what fields by themselves can't say."""

    def axes(self) -> None:
        """The policy, the draw and the search."""
        for axis, kind in AXES.items():
            method: object = getattr(self.request, axis)
            if not isinstance(method, kind):
                accepted = ", ".join(cls.__name__ for cls in methods(axis).values())
                self.unsupport(axis, repr(method), accepted)
                continue
            self.fields(method, method.path)
            if well_typed(method):
                method.check(self)
        policy, draw = cast("object", self.request.policy), cast("object", self.request.draw)
        if isinstance(policy, Policy) and isinstance(draw, Draw) and draw.speculates and not policy.speculates:
            value = f"{draw.path} with {policy.path}"
            self.unsupport("draw", value, f"draw.autoregressive with {policy.path}")

    def prompt(self, prompt: object) -> None:
        match prompt_kind(prompt):
            case PromptKind.TEXT if not is_text(prompt):
                self.refuse("prompt", prompt, "text that UTF-8 can encode (no lone surrogates)")
            case PromptKind.TEXT:
                pass
            case PromptKind.TOKEN_IDS:
                self.token_ids("prompt.token_ids", prompt)
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

    def sampling(self, sampling: Sampling) -> None:
        self.fields(sampling, "sampling", but=("logit_bias",))
        self.logit_bias(sampling.logit_bias)

    def logit_bias(self, logit_bias: object) -> None:
        path = "sampling.logit_bias"
        if not isinstance(logit_bias, Mapping):
            self.refuse(path, logit_bias, "a mapping from token id to number")
            return
        accepted, is_token = token_ids_of(self.info)
        wrong: list[tuple[str, object, str]] = []
        for token, bias in logit_bias.items():
            if not is_token(token):
                wrong.append((f"[{token!r}]", token, f"as a key {accepted}"))
            elif not (is_number(bias) or (isinstance(bias, float) and bias == -math.inf)):
                wrong.append((f"[{token}]", bias, "a finite number, or -inf to ban the token"))
        self.some(path, wrong)

    def stopping(self, stopping: Stopping) -> None:
        self.fields(stopping, "stopping", but=("stop", "stop_token_ids", "eos_token_ids"))
        fine = self.fine("stopping", "max_new_tokens", "min_new_tokens")
        if fine and stopping.min_new_tokens > stopping.max_new_tokens:
            accepted = f"a whole number in [0, {stopping.max_new_tokens}], the maximum"
            self.refuse("stopping.min_new_tokens", stopping.min_new_tokens, accepted)
        if isinstance(stopping.stop, Sequence) and len(stopping.stop) > self.limits.max_stop:
            accepted = f"at most {self.limits.max_stop} stop strings"
            self.refuse("stopping.stop", f"{len(stopping.stop)} stop strings", accepted)
        self.each("stopping.stop", stopping.stop, "strings", self._stop_problem)
        self.token_ids("stopping.stop_token_ids", stopping.stop_token_ids)
        self.token_ids("stopping.eos_token_ids", stopping.eos_token_ids)

    def _stop_problem(self, stop: object) -> str | None:
        most = self.limits.max_stop_bytes
        fine = is_text(stop) and 1 <= len(cast("str", stop).encode()) <= most
        return None if fine else f"a string of 1 to {most} UTF-8 bytes"
