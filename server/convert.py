"""Requests: proto to library and back.

Reading a spec keeps every presence: what is unset stays None, an explicit zero stays zero. Values are checked by
``trimtab.decode.api``, the same code for the library and for the server; here only what the library's types cannot
express is refused: fields and variants that are unknown, or known and not offered yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from trimtab.decode.errors import InvalidRequest, UnsupportedRequest, Violation
from trimtab.decode.types import (
    Autoregressive,
    Base,
    Branching,
    ChatMessage,
    Entropy,
    Nudged,
    Policy,
    Prompt,
    Request,
    Sampling,
    Single,
    Stopping,
    TopProb,
    Trigger,
)
from trimtab.server.numbers import duration, seconds, shortest
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["MAX_CLIENT_REQUEST_ID", "METHODS", "Reading", "Unimplemented", "read_spec", "spec_of"]

MAX_CLIENT_REQUEST_ID = 128  # bytes of UTF-8
# The variants of the axes that can be asked for, as ListModels names them.
METHODS = ("policy.base", "policy.nudged", "draw.autoregressive", "search.single")
_OFFERED = {
    axis: tuple(method.partition(".")[2] for method in METHODS if method.startswith(f"{axis}."))
    for axis in ("policy", "draw", "search")
}


class Unimplemented(UnsupportedRequest):
    """The proto describes it, this server does not offer it yet."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a spec says.

    Attributes:
        request: the request; wherever something is refused it has the default.
        violations: what no server could accept.
        unimplemented: what this one does not offer.
    """

    request: Request
    violations: tuple[Violation, ...]
    unimplemented: Unimplemented | None


def read_spec(spec: pb.GenerationSpec) -> Reading:
    """Read a spec; raises nothing, so that the values can be checked too before anything is refused."""
    reader = _Reader()
    reader.refuse_unknown_fields(spec, "")
    if len(spec.client_request_id.encode()) > MAX_CLIENT_REQUEST_ID:
        reader.refuse("client_request_id", spec.client_request_id, f"at most {MAX_CLIENT_REQUEST_ID} bytes")
    request = Request(
        model=reader.model(spec),
        prompt=reader.prompt(spec),
        sampling=_sampling(spec.sampling),
        stopping=_stopping(spec.stopping),
        policy=reader.policy(spec),
        draw=reader.draw(spec),
        search=reader.search(spec),
        top_logprobs=reader.top_logprobs(spec.response),
    )
    return Reading(request, tuple(reader.violations), reader.unimplemented)


class _Reader:
    """Reads the parts of a spec that can be at fault, and collects the faults."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.unimplemented: Unimplemented | None = None

    def refuse(self, field: str, value: object, accepted: str) -> None:
        self.violations.append(Violation.of(field, value, accepted))

    def not_offered(self, field: str, value: object, accepted: str) -> None:
        if self.unimplemented is None:
            self.unimplemented = Unimplemented(field, value, accepted)

    def refuse_unknown_fields(self, message: Message, path: str) -> None:
        """Refuse fields from a newer version of the proto: ignoring them would answer another request."""
        # In an axis with no known variant it is an unknown variant, which is refused under the axis's own name.
        unnamed = path in _OFFERED and message.WhichOneof("kind") is None
        unknown_fields: Any = () if unnamed else UnknownFieldSet(message)
        for unknown in unknown_fields:
            known = ", ".join(field.name for field in message.DESCRIPTOR.fields)
            self.refuse(path or "spec", f"unknown field number {unknown.field_number}", f"the fields {known}")
        for field, value in message.ListFields():
            if field.message_type is None or field.message_type.GetOptions().map_entry:
                continue
            below = f"{path}.{field.name}" if path else field.name
            if isinstance(value, Message):
                self.refuse_unknown_fields(value, below)
            else:
                for i, item in enumerate(value):
                    self.refuse_unknown_fields(item, f"{below}[{i}]")

    def model(self, spec: pb.GenerationSpec) -> str:
        if not spec.model:
            self.refuse("model", spec.model, "the name of a model that ListModels returns")
        return spec.model

    def prompt(self, spec: pb.GenerationSpec) -> Prompt:
        match spec.WhichOneof("prompt"):
            case "text":
                return spec.text
            case "token_ids":
                return tuple(spec.token_ids.ids)
            case "chat":
                return tuple(ChatMessage(m.role, m.content) for m in spec.chat.messages)
        self.refuse("prompt", None, "one of text, token_ids, chat")
        return ""

    def top_logprobs(self, options: pb.ResponseOptions) -> int:
        if options.top_logprobs and not options.tokens:
            self.refuse("top_logprobs", options.top_logprobs, "0 unless response.tokens is set")
        if options.prompt_tokens:
            self.not_offered("response.prompt_tokens", True, "false")
        return options.top_logprobs

    def policy(self, spec: pb.GenerationSpec) -> Policy:
        if self._variant(spec, "policy") == "nudged":
            nudged = spec.policy.nudged
            return Nudged(nudged.nudger, _trigger(nudged), _optional(nudged, "max_span_tokens"))
        return Base()

    def draw(self, spec: pb.GenerationSpec) -> Autoregressive:
        self._variant(spec, "draw")
        return Autoregressive()

    def search(self, spec: pb.GenerationSpec) -> Single:
        self._variant(spec, "search")
        return Single()

    def _variant(self, spec: pb.GenerationSpec, axis: str) -> str | None:
        """The variant that is set and offered; None takes the axis's default, or has been refused."""
        if not spec.HasField(axis):  # type: ignore[arg-type]
            return None
        kind = getattr(spec, axis).WhichOneof("kind")
        offered = ", ".join(_OFFERED[axis])
        if kind is None:
            self.refuse(axis, "a value with no known variant set", f"one of {offered}, or no {axis} at all")
        elif kind not in _OFFERED[axis]:
            self.not_offered(f"{axis}.{kind}", kind, f"one of {offered}")
        else:
            return str(kind)
        return None


def _optional(message: Message, field: str) -> Any:
    if not message.HasField(field):
        return None
    value = getattr(message, field)
    return shortest(value) if isinstance(value, float) else value


def _sampling(message: pb.Sampling) -> Sampling:
    return Sampling(
        temperature=_optional(message, "temperature"),
        top_k=_optional(message, "top_k"),
        top_p=_optional(message, "top_p"),
        min_p=_optional(message, "min_p"),
        repetition_penalty=_optional(message, "repetition_penalty"),
        logit_bias={token: shortest(bias) for token, bias in sorted(message.logit_bias.items())},
        seed=_optional(message, "seed"),
    )


def _stopping(message: pb.Stopping) -> Stopping:
    default = Stopping()
    return Stopping(
        max_new_tokens=message.max_new_tokens if message.HasField("max_new_tokens") else default.max_new_tokens,
        min_new_tokens=message.min_new_tokens if message.HasField("min_new_tokens") else default.min_new_tokens,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        include_stop=message.include_stop,
        time_budget=seconds(message.time_budget) if message.HasField("time_budget") else None,
    )


def _trigger(message: pb.Nudged) -> Trigger | None:
    match message.WhichOneof("trigger"):
        case "entropy_nats_above":
            return Entropy(shortest(message.entropy_nats_above))
        case "top_prob_below":
            return TopProb(shortest(message.top_prob_below))
        case "branching_above":
            return Branching(shortest(message.branching_above))
    return None


# ---------------------------------------------------------------------------------------------------- library to proto


def spec_of(request: Request, *, client_request_id: str = "") -> pb.GenerationSpec:
    """The spec of a request, which asks for every token: what a client sends.

    Raises:
        InvalidRequest: values that the proto cannot carry (a negative count, text that is not UTF-8).
    """
    writer = _Writer()
    spec = pb.GenerationSpec()
    writer.set(spec, "model", request.model, "model", "text")
    writer.set(spec, "client_request_id", client_request_id, "client_request_id", "text")
    writer.prompt(spec, request.prompt)
    writer.sampling(spec.sampling, request.sampling)
    writer.stopping(spec.stopping, request.stopping)
    spec.response.tokens = True
    writer.set(spec.response, "top_logprobs", request.top_logprobs, "top_logprobs", _COUNT)
    writer.policy(spec, request.policy)
    if not isinstance(cast("object", request.draw), Autoregressive):
        writer.refuse("draw", request.draw, "an Autoregressive")
    if not isinstance(cast("object", request.search), Single):
        writer.refuse("search", request.search, "a Single")
    if writer.violations:
        raise InvalidRequest(writer.violations)
    return spec


_COUNT = "a whole number in [0, 2**32)"
_NUMBER = "a number"


class _Writer:
    """Fills messages and collects what they cannot carry."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def refuse(self, field: str, value: object, accepted: str) -> None:
        self.violations.append(Violation.of(field, value, accepted))

    def set(self, message: Message, name: str, value: Any, field: str, accepted: str) -> None:
        """Set one field; None leaves it unset."""
        if value is None:
            return
        if isinstance(value, bool) and accepted in (_COUNT, _NUMBER):  # protobuf would take True for 1
            self.refuse(field, value, accepted)
            return
        try:
            setattr(message, name, value)
        except (TypeError, ValueError):
            self.refuse(field, value, accepted)

    def extend(self, values: Sequence[Any], add: Callable[[Any], object], field: str, accepted: str) -> None:
        for i, value in enumerate(values):
            try:
                add(value)
            except (AttributeError, KeyError, TypeError, ValueError):
                self.refuse(f"{field}[{i}]", value, accepted)

    def prompt(self, spec: pb.GenerationSpec, prompt: Prompt) -> None:
        if isinstance(prompt, str):
            self.set(spec, "text", prompt, "prompt", "text that UTF-8 can carry")
        elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
            self.refuse("prompt", prompt, "text, token ids or chat messages")
        elif prompt and all(isinstance(item, int) for item in prompt):
            spec.token_ids.SetInParent()
            self.extend(prompt, spec.token_ids.ids.append, "prompt.token_ids", _COUNT)
        elif prompt:
            spec.chat.SetInParent()
            self.extend(prompt, _message_adder(spec.chat), "prompt.messages", "a ChatMessage")
        else:
            self.refuse("prompt", prompt, "a prompt that is not empty")

    def sampling(self, message: pb.Sampling, sampling: Sampling) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            self.set(message, name, getattr(sampling, name), f"sampling.{name}", _NUMBER)
        for name in ("top_k", "seed"):
            self.set(message, name, getattr(sampling, name), f"sampling.{name}", _COUNT)
        for token, bias in sampling.logit_bias.items():
            try:
                message.logit_bias[token] = bias
            except (TypeError, ValueError):
                self.refuse(f"sampling.logit_bias[{token!r}]", bias, f"a token id, {_COUNT}, and {_NUMBER}")

    def stopping(self, message: pb.Stopping, stopping: Stopping) -> None:
        for name in ("max_new_tokens", "min_new_tokens"):
            self.set(message, name, getattr(stopping, name), f"stopping.{name}", _COUNT)
        self.extend(stopping.stop, message.stop.append, "stopping.stop", "text that UTF-8 can carry")
        self.extend(stopping.stop_token_ids, message.stop_token_ids.append, "stopping.stop_token_ids", _COUNT)
        for name in ("ignore_eos", "include_stop"):
            self.set(message, name, getattr(stopping, name), f"stopping.{name}", "True or False")
        if stopping.time_budget is not None:
            try:
                message.time_budget.CopyFrom(duration(stopping.time_budget))
            except (TypeError, ValueError):
                self.refuse("stopping.time_budget", stopping.time_budget, "seconds")

    def policy(self, spec: pb.GenerationSpec, policy: object) -> None:
        match policy:
            case Base():
                pass  # the default of an absent axis
            case Nudged(nudger, when, max_span_tokens):
                nudged = spec.policy.nudged
                nudged.SetInParent()
                self.set(nudged, "nudger", nudger, "policy.nudged.nudger", "the name of a model")
                self.set(nudged, "max_span_tokens", max_span_tokens, "policy.nudged.max_span_tokens", _COUNT)
                self.trigger(nudged, when)
            case _:
                self.refuse("policy", policy, "a Base or a Nudged")

    def trigger(self, nudged: pb.Nudged, when: object) -> None:
        match when:
            case None:
                pass
            case Entropy(bound):
                self.set(nudged, "entropy_nats_above", bound, "policy.nudged.entropy_nats_above", _NUMBER)
            case TopProb(bound):
                self.set(nudged, "top_prob_below", bound, "policy.nudged.top_prob_below", _NUMBER)
            case Branching(bound):
                self.set(nudged, "branching_above", bound, "policy.nudged.branching_above", _NUMBER)
            case _:
                self.refuse("policy.nudged.when", when, "an Entropy, a TopProb or a Branching")


def _message_adder(chat: pb.Chat) -> Callable[[Any], object]:
    def add(item: Any) -> None:
        if isinstance(item, ChatMessage):
            chat.messages.add(role=item.role, content=item.content)
        elif set(item) == {"role", "content"}:
            chat.messages.add(role=item["role"], content=item["content"])
        else:
            raise ValueError

    return add
