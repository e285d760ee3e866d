"""The decoding service: calls to requests, events to messages, errors to statuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from grpc.aio import ServicerContext

from trimtab.decode.errors import (
    EngineClosed,
    EngineFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    UnsupportedRequest,
    Violation,
)
from trimtab.decode.methods.table import method_infos
from trimtab.decode.request.info import ModelInfo
from trimtab.decode.request.request import Request
from trimtab.decode.request.validate import validate
from trimtab.decode.version import __version__
from trimtab.server.config import ServerConfig
from trimtab.server.rpc.backend import Backend
from trimtab.server.rpc.bridge import StreamMessages, answer, events_of
from trimtab.server.rpc.reporting import Generation, Reporting
from trimtab.server.rpc.unary import fitting, unary_response, unary_violations
from trimtab.server.wire.alike import filled
from trimtab.server.wire.listing import model_message, page_of, reward_message
from trimtab.server.wire.numbers import duration
from trimtab.server.wire.request import Reading, read_spec
from trimtab.server.wire.score import score
from trimtab.v1 import decoding_pb2 as pb
from trimtab.v1.decoding_pb2_grpc import DecodingServiceServicer

__all__ = ["DecodingService"]


class DecodingService(DecodingServiceServicer):
    """Serves one engine.

    Args:
        config: limits of the server itself.
        on_engine_closed: called on the loop's thread when the engine turns out to have closed or failed.
    """

    def __init__(self, config: ServerConfig, on_engine_closed: Callable[[], object] = lambda: None) -> None:
        self._config = config
        self._on_engine_closed = on_engine_closed
        self._generations: set[Generation] = set()
        self.engine: Backend | None = None  # None until it is ready
        self.draining = False

    @property
    def generating(self) -> int:
        """Generation calls in progress, running and queued."""
        return len(self._generations)

    # ------------------------------------------------------------------------------------------------- generation

    async def Generate(self, request: pb.GenerateRequest, context: ServicerContext[Any, Any]) -> pb.GenerateResponse:
        async with self._reporting(context, in_spec=True):
            with Generation(self._generations, "Generate", request.spec):
                engine = self._admitted()
                reading = read_spec(request.spec)
                more = unary_violations(reading.request, request.spec.response, engine.limits)
                wanted = self._accepted(engine, reading, more)
                async with events_of(engine, wanted) as events:
                    started, completed = await answer(events)
                return unary_response(started, completed, request.spec.response)

    # A coroutine that writes, instead of the generator that the base class describes: when a call is cancelled while
    # a write waits for a slow client, a coroutine gets CancelledError at once, and a generator nothing until it is
    # garbage collected.
    async def GenerateStream(  # type: ignore[override]
        self, request: pb.GenerateStreamRequest, context: ServicerContext[Any, Any]
    ) -> None:
        async with self._reporting(context, in_spec=True):
            with Generation(self._generations, "GenerateStream", request.spec):
                engine = self._admitted()
                options = request.spec.response
                reading = read_spec(request.spec)
                wanted = self._accepted(engine, reading, _mode_violations(request.mode))
                every = request.mode == pb.STREAM_MODE_ALL_CANDIDATES
                most = None if every else options.max_candidates
                messages = StreamMessages(tokens=options.tokens, max_candidates=most)
                async with events_of(engine, wanted) as events:
                    async for event in events:
                        for message in messages.of(event):
                            await context.write(message)
                if not messages.completed:
                    raise EngineFailed("the engine ended a stream without completing it")

    def _admitted(self) -> Backend:
        if len(self._generations) > self._config.max_calls:
            raise Overloaded(f"{self._config.max_calls} generation calls are in progress already")
        return self._ready()

    def _accepted(self, engine: Backend, reading: Reading, more: Sequence[Violation]) -> Request:
        """The request that was read, unless something is wrong with it; then all of it is reported at once.

        The engine checks the values; here only what it does not see, and, if that is at fault, the values too.
        """
        violations = [*more, *reading.violations]
        if violations:
            fields = {violation.field for violation in violations}
            try:
                validate(reading.request, engine.models, engine.limits, engine.rewards, engine.same_ids)
            except (InvalidRequest, NotFound, UnsupportedRequest) as error:
                violations += [v for v in error.violations if v.field not in fields]
            raise InvalidRequest(violations)
        return self._bounded(reading.request)

    def _bounded(self, request: Request) -> Request:
        """The request with the server's bound on time in place of a longer one; an invalid one stays as it is."""
        asked, most = request.stopping.time_budget, self._config.max_generation_time
        if asked is not None and asked <= most:
            return request
        return replace(request, stopping=replace(request.stopping, time_budget=most))

    # ----------------------------------------------------------------------------------------------- tokens, models

    async def Score(self, request: pb.ScoreRequest, context: ServicerContext[Any, Any]) -> pb.ScoreResponse:
        async with self._reporting(context):
            response = await score(self._ready(), request)
            return fitting(response, "send fewer items in one call")

    async def Tokenize(self, request: pb.TokenizeRequest, context: ServicerContext[Any, Any]) -> pb.TokenizeResponse:
        async with self._reporting(context):
            engine = self._ready()
            special = request.add_special_tokens if request.HasField("add_special_tokens") else True
            _known_model(engine, request.model)

            def work() -> pb.TokenizeResponse:
                response = pb.TokenizeResponse()
                for text in request.texts:
                    ids, starts = engine.tokenize(request.model, text, special)
                    response.items.add(ids=ids, byte_starts=starts if request.offsets else ())
                return response

            return fitting(await asyncio.to_thread(work), "send fewer texts in one call")

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: ServicerContext[Any, Any]
    ) -> pb.DetokenizeResponse:
        async with self._reporting(context):
            engine = self._ready()
            vocab_size = _known_model(engine, request.model).vocab_size
            bad = [(i, token) for i, token in enumerate(request.ids) if token >= vocab_size]
            if bad:
                accepted = f"token ids below {vocab_size}"
                raise InvalidRequest([Violation.of(f"ids[{i}]", token, accepted) for i, token in bad[:8]])
            text = await asyncio.to_thread(
                engine.detokenize, request.model, list(request.ids), request.skip_special_tokens
            )
            return fitting(pb.DetokenizeResponse(text=text), "send fewer ids in one call")

    async def ListModels(
        self, request: pb.ListModelsRequest, context: ServicerContext[Any, Any]
    ) -> pb.ListModelsResponse:
        async with self._reporting(context):
            engine = self._ready()
            page, token = page_of(engine.models, request.page_size, request.page_token)
            models = [model_message(info, engine.rewards) for info in page]
            return pb.ListModelsResponse(models=models, next_page_token=token)

    async def ListRewards(
        self, request: pb.ListRewardsRequest, context: ServicerContext[Any, Any]
    ) -> pb.ListRewardsResponse:
        async with self._reporting(context):
            page, token = page_of(self._ready().rewards, request.page_size, request.page_token)
            return pb.ListRewardsResponse(rewards=map(reward_message, page), next_page_token=token)

    async def ListMethods(
        self, request: pb.ListMethodsRequest, context: ServicerContext[Any, Any]
    ) -> pb.ListMethodsResponse:
        async with self._reporting(context):
            known = {info.name: info for info in method_infos()}
            page, token = page_of(known, request.page_size, request.page_token)
            return pb.ListMethodsResponse(methods=[filled(pb.Method(), info) for info in page], next_page_token=token)

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: ServicerContext[Any, Any]
    ) -> pb.GetServerInfoResponse:
        async with self._reporting(context):
            limits = self._ready().limits
            return pb.GetServerInfoResponse(
                version=__version__,
                limits=pb.Limits(
                    max_request_bytes=self._config.max_request_bytes,
                    max_new_tokens=limits.max_new_tokens,
                    max_n=limits.max_n,
                    max_top_logprobs=limits.max_top_logprobs,
                    max_queue=limits.max_queue,
                    max_generation_time=duration(self._config.max_generation_time),
                    max_stop=limits.max_stop,
                    max_stop_bytes=limits.max_stop_bytes,
                ),
                draining=self.draining,
            )

    # ------------------------------------------------------------------------------------------------------- shared

    def _ready(self) -> Backend:
        if self.engine is None:
            raise EngineClosed("the models are still being loaded")
        return self.engine

    def _reporting(self, context: ServicerContext[Any, Any], *, in_spec: bool = False) -> Reporting:
        return Reporting(context, in_spec=in_spec, on_error=self._noticed)

    def _noticed(self, error: Exception) -> Exception:
        """The error to report; an engine that ended or failed for good makes it EngineClosed."""
        if self.engine is None or not (isinstance(error, EngineClosed) or self.engine.failure is not None):
            return error
        self._on_engine_closed()
        return error if isinstance(error, EngineClosed) else EngineClosed("the engine has failed; the server stops")


def _known_model(engine: Backend, name: str) -> ModelInfo:
    """The model of that name.

    Raises:
        NotFound: there is none.
    """
    info = engine.models.get(name)
    if info is None:
        raise NotFound("model", name, sorted(engine.models))
    return info


def _mode_violations(mode: int) -> list[Violation]:
    if mode in pb.StreamMode.values():
        return []
    return [Violation.of("mode", mode, f"one of {', '.join(pb.StreamMode.keys())}")]
