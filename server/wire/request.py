"""Requests: proto to library and back.

Reading a spec keeps every presence: what is unset stays None or takes the library's default, an explicit zero stays
zero. Values are checked by ``trimtab.decode.api``, the same code for the library and for the server; here only what the
library's types cannot express is refused: fields and variants that are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from trimtab.decode.errors import InvalidRequest, Violation
from trimtab.decode.request.fields import MAX_UINT32
from trimtab.decode.request.method import AXES, methods
from trimtab.decode.request.prompt import ChatMessage, Prompt
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.server.wire.fields import COUNT, FLAG, NAME, NUMBER, TEXT, Faults, Writer, message_adder, optional
from trimtab.server.wire.methods import read_method, write_method
from trimtab.server.wire.numbers import duration, seconds, shortest
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["MAX_CLIENT_REQUEST_ID", "Reading", "read_spec", "spec_of"]

MAX_CLIENT_REQUEST_ID = 128  # bytes of UTF-8


@dataclass(frozen=True, slots=True)
class Reading:
    """What a spec says.

    Attributes:
        request: the request; wherever something is refused it has the default.
        violations: what no server could accept.
    """

    request: Request
    violations: tuple[Violation, ...]


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
        policy=read_method(reader.axis(spec, "policy"), "policy", reader),
        draw=read_method(reader.axis(spec, "draw"), "draw", reader),
        search=read_method(reader.axis(spec, "search"), "search", reader),
        references=tuple(spec.references),
        top_logprobs=reader.top_logprobs(spec.response),
        prompt_cache=spec.prompt_cache if spec.HasField("prompt_cache") else True,
    )
    return Reading(request, tuple(reader.violations))


class _Reader(Faults):
    """Reads the parts of a spec that can be at fault, and collects the faults."""

    def refuse_unknown_fields(self, message: Message, path: str) -> None:
        """Refuse fields from a newer version of the proto: ignoring them would answer another request."""
        # In an axis with no known variant it is an unknown variant, which is refused under the axis's own name.
        unnamed = path in AXES and message.WhichOneof("kind") is None
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
        return options.top_logprobs

    def axis(self, spec: pb.GenerationSpec, axis: str) -> Any:
        """The message of an axis; an empty one, which reads as the default, if it is absent or has been refused."""
        message = getattr(spec, axis)
        if spec.HasField(axis) and message.WhichOneof("kind") is None:  # type: ignore[arg-type]
            known = ", ".join(methods(axis))
            self.refuse(axis, "a value with no known variant set", f"one of {known}, or no {axis} at all")
        return message


def _sampling(message: pb.Sampling) -> Sampling:
    return Sampling(
        temperature=optional(message, "temperature"),
        top_k=optional(message, "top_k"),
        top_p=optional(message, "top_p"),
        min_p=optional(message, "min_p"),
        repetition_penalty=optional(message, "repetition_penalty"),
        logit_bias={token: shortest(bias) for token, bias in sorted(message.logit_bias.items())},
        seed=optional(message, "seed"),
    )


def _stopping(message: pb.Stopping) -> Stopping:
    default = Stopping()
    return Stopping(
        max_new_tokens=message.max_new_tokens if message.HasField("max_new_tokens") else default.max_new_tokens,
        min_new_tokens=message.min_new_tokens if message.HasField("min_new_tokens") else default.min_new_tokens,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        eos_token_ids=tuple(message.eos_token_ids),
        ignore_eos=message.ignore_eos,
        include_stop=message.include_stop,
        time_budget=seconds(message.time_budget) if message.HasField("time_budget") else None,
    )


# ---------------------------------------------------------------------------------------------------- library to proto


def spec_of(request: Request, *, client_request_id: str = "") -> pb.GenerationSpec:
    """The spec of a request, which asks for every candidate and token: what a client sends.

    Raises:
        InvalidRequest: values that the proto cannot carry (a negative count, text that is not UTF-8).
    """
    writer = _SpecWriter()
    spec = pb.GenerationSpec()
    writer.set(spec, "model", request.model, "model", NAME)
    writer.set(spec, "client_request_id", client_request_id, "client_request_id", TEXT)
    writer.prompt(spec, request.prompt)
    writer.sampling(spec.sampling, request.sampling)
    writer.stopping(spec.stopping, request.stopping)
    spec.response.tokens = True
    writer.set(spec.response, "top_logprobs", request.top_logprobs, "top_logprobs", COUNT)
    writer.extend(request.references, spec.references.append, "references", TEXT)
    if request.prompt_cache is not True:  # the default stays unset
        writer.set(spec, "prompt_cache", request.prompt_cache, "prompt_cache", FLAG)
    for axis in AXES:
        write_method(getattr(spec, axis), axis, getattr(request, axis), writer)
    if not writer.violations:  # 0, all that there are, if no answer has so many
        results = request.search.results
        spec.response.max_candidates = results if 0 <= results <= MAX_UINT32 else 0
    if writer.violations:
        raise InvalidRequest(writer.violations)
    return spec


class _SpecWriter(Writer):
    """Fills the parts of a spec beside its axes."""

    def prompt(self, spec: pb.GenerationSpec, prompt: Prompt) -> None:
        if isinstance(prompt, str):
            self.set(spec, "text", prompt, "prompt", TEXT)
        elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
            self.refuse("prompt", prompt, "text, token ids or chat messages")
        elif prompt and all(isinstance(item, int) for item in prompt):
            spec.token_ids.SetInParent()
            self.extend(prompt, spec.token_ids.ids.append, "prompt.token_ids", COUNT)
        elif prompt:
            spec.chat.SetInParent()
            self.extend(prompt, message_adder(spec.chat), "prompt.messages", "a ChatMessage")
        else:
            self.refuse("prompt", prompt, "a prompt that is not empty")

    def sampling(self, message: pb.Sampling, sampling: Sampling) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            self.set(message, name, getattr(sampling, name), f"sampling.{name}", NUMBER)
        for name in ("top_k", "seed"):
            self.set(message, name, getattr(sampling, name), f"sampling.{name}", COUNT)
        for token, bias in sampling.logit_bias.items():
            try:
                message.logit_bias[token] = bias
            except (TypeError, ValueError):
                self.refuse(f"sampling.logit_bias[{token!r}]", bias, f"a token id, {COUNT}, and {NUMBER}")

    def stopping(self, message: pb.Stopping, stopping: Stopping) -> None:
        for name in ("max_new_tokens", "min_new_tokens"):
            self.set(message, name, getattr(stopping, name), f"stopping.{name}", COUNT)
        self.extend(stopping.stop, message.stop.append, "stopping.stop", TEXT)
        self.extend(stopping.stop_token_ids, message.stop_token_ids.append, "stopping.stop_token_ids", COUNT)
        self.extend(stopping.eos_token_ids, message.eos_token_ids.append, "stopping.eos_token_ids", COUNT)
        for name in ("ignore_eos", "include_stop"):
            self.set(message, name, getattr(stopping, name), f"stopping.{name}", FLAG)
        if stopping.time_budget is not None:
            try:
                message.time_budget.CopyFrom(duration(stopping.time_budget))
            except (TypeError, ValueError):
                self.refuse("stopping.time_budget", stopping.time_budget, "seconds")
