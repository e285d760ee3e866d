"""Python clients: the calls of ``Engine`` made over the network, with its types and its errors.

with Client("localhost:50051") as client:
    result = client.generate("Why is the sky blue?", model="base", policy=Nudged("chat"))
    for event in client.stream("Why is the sky blue?", model="base"):
        ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Unpack

from trimtab.decode.errors import MissingExtra, TrimtabError

try:
    import grpc
    from grpc_status import rpc_status
except ImportError as error:
    raise MissingExtra("server", error.name or "grpc") from error

from trimtab.decode.request.events import Event
from trimtab.decode.request.generate_options import RequestOptions
from trimtab.decode.request.info import Limits, MethodInfo, ModelInfo, RewardInfo
from trimtab.decode.request.keywords import request_from_kwargs
from trimtab.decode.request.prompt import Prompt
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Result, Scored
from trimtab.server.wire.alike import made
from trimtab.server.wire.answer import Assembler, result_of
from trimtab.server.wire.listing import info_of, reward_info_of
from trimtab.server.wire.numbers import seconds
from trimtab.server.wire.request import spec_of
from trimtab.server.wire.score import score_request, scores_of
from trimtab.server.wire.status import error_of
from trimtab.v1 import decoding_pb2 as pb
from trimtab.v1.decoding_pb2_grpc import DecodingServiceStub

__all__ = ["AsyncClient", "Client", "ServerInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server says of itself; ``max_generation_time`` in seconds."""

    version: str
    limits: Limits
    max_request_bytes: int
    max_generation_time: float
    draining: bool


class Client:
    """Blocking client, safe to share between threads.

    Every method raises what an engine raises (``InvalidRequest``, ``NotFound``, ``UnsupportedRequest``, ``Overloaded``,
    ``RewardFailed``, ``EngineClosed``, ``EngineFailed``), and for what can only happen on the way ``Unreachable``,
    ``DeadlineExceeded``, ``RpcFailed`` or ``MalformedAnswer``.

    Args:
        address: ``host:port``.
        timeout: seconds that a call may take; None waits as long as it takes. Where a method has a ``timeout`` of its
            own, that one holds.
    """

    def __init__(self, address: str, *, timeout: float | None = None) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = DecodingServiceStub(self._channel)
        self._timeout = timeout

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel calls in progress and disconnect."""
        self._channel.close()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the server can be reached.

        Raises:
            DeadlineExceeded: it could not within ``timeout`` seconds.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout)
        except grpc.FutureTimeoutError:
            raise error_of(grpc.StatusCode.DEADLINE_EXCEEDED, f"no server within {timeout} s", None) from None

    def generate(
        self,
        prompt: Prompt,
        *,
        model: str,
        timeout: float | None = None,
        client_request_id: str = "",
        **options: Unpack[RequestOptions],
    ) -> Result:
        """The answer to one prompt.

        Args:
            prompt: see ``Engine.generate``.
            model: name of the one that is asked.
            timeout: seconds.
            client_request_id: what the server's log calls the request.
            **options: as for ``Engine.generate``: ``policy``, ``draw``, ``search``, ``objective`` (no function: the
                rewards are the server's), ``temperature``, ``max_new_tokens``, ``stop``, ``seed`` and so on.
        """
        request = request_from_kwargs(prompt, model=model, **options)
        return self.generate_request(request, timeout=timeout, client_request_id=client_request_id)

    def generate_request(
        self, request: Request, *, timeout: float | None = None, client_request_id: str = ""
    ) -> Result:
        """The answer to a request."""
        message = pb.GenerateRequest(spec=spec_of(request, client_request_id=client_request_id))
        with _errors():
            return result_of(self._stub.Generate(message, timeout=self._seconds(timeout)))

    def stream(
        self,
        prompt: Prompt,
        *,
        model: str,
        timeout: float | None = None,
        client_request_id: str = "",
        **options: Unpack[RequestOptions],
    ) -> Iterator[Event]:
        """The events of one answer as they come; closing the iterator cancels the request."""
        request = request_from_kwargs(prompt, model=model, **options)
        return self.stream_request(request, timeout=timeout, client_request_id=client_request_id)

    def stream_request(
        self, request: Request, *, timeout: float | None = None, client_request_id: str = ""
    ) -> Iterator[Event]:
        """The events of a request."""
        spec = spec_of(request, client_request_id=client_request_id)
        call = self._stub.GenerateStream(pb.GenerateStreamRequest(spec=spec), timeout=self._seconds(timeout))
        return _read(call)

    def tokenize(self, model: str, text: str, *, add_special_tokens: bool = True) -> tuple[list[int], list[int]]:
        """Token ids, and the byte of the UTF-8 text at which each begins."""
        message = pb.TokenizeRequest(model=model, texts=[text], add_special_tokens=add_special_tokens, offsets=True)
        with _errors():
            item = self._stub.Tokenize(message, timeout=self._timeout).items[0]
        return list(item.ids), list(item.byte_starts)

    def detokenize(self, model: str, ids: Iterable[int], *, skip_special_tokens: bool = False) -> bytes:
        """The bytes of token ids."""
        message = pb.DetokenizeRequest(model=model, ids=ids, skip_special_tokens=skip_special_tokens)
        with _errors():
            return self._stub.Detokenize(message, timeout=self._timeout).text

    def models(self) -> Mapping[str, ModelInfo]:
        """The models served, by name."""
        pages = self._pages(self._stub.ListModels, pb.ListModelsRequest)
        return {model.id: info_of(model) for page in pages for model in page.models}

    def rewards(self) -> Mapping[str, RewardInfo]:
        """The rewards served, by name."""
        pages = self._pages(self._stub.ListRewards, pb.ListRewardsRequest)
        return {reward.id: reward_info_of(reward) for page in pages for reward in page.rewards}

    def methods(self) -> Mapping[str, MethodInfo]:
        """The policies, draws and searches that the server knows, by name with axis: ``search.best_of_n``."""
        pages = self._pages(self._stub.ListMethods, pb.ListMethodsRequest)
        return {method.name: made(MethodInfo, method) for page in pages for method in page.methods}

    def _pages(self, call: Callable[..., Any], request: Callable[..., Any]) -> Iterator[Any]:
        """All pages of a list."""
        token = ""
        while True:
            with _errors():
                page = call(request(page_token=token), timeout=self._timeout)
            yield page
            token = page.next_page_token
            if not token:
                return

    def score(
        self,
        items: Sequence[tuple[Prompt, str]],
        *,
        reward: str | None = None,
        model: str | None = None,
        tokens: bool = True,
        timeout: float | None = None,
    ) -> list[Scored]:
        """Scores of 1 to 256 pairs (prompt, answer).

        Args:
            items: prompts are text or chat messages.
            reward, model: the scorer, exactly one of them; a model gives the sum of ln p of the answer's tokens.
            tokens: whether a model's scores come with the tokens.
            timeout: seconds.
        """
        message = score_request(items, reward=reward, model=model, tokens=tokens and model is not None)
        with _errors():
            return scores_of(self._stub.Score(message, timeout=self._seconds(timeout)), model)

    def info(self) -> ServerInfo:
        """Version and limits of the server."""
        with _errors():
            return _info(self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=self._timeout))

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout


class AsyncClient:
    """``Client`` for asyncio, in its two calls that take long."""

    def __init__(self, address: str, *, timeout: float | None = None) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        # The generated stub is annotated for blocking channels.
        self._stub: Any = DecodingServiceStub(self._channel)
        self._timeout = timeout

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel calls in progress and disconnect."""
        await self._channel.close()

    async def generate(self, prompt: Prompt, *, model: str, **options: Unpack[RequestOptions]) -> Result:
        """As ``Client.generate``; cancelling the awaiting task cancels the request."""
        spec = spec_of(request_from_kwargs(prompt, model=model, **options))
        with _errors():
            return result_of(await self._stub.Generate(pb.GenerateRequest(spec=spec), timeout=self._timeout))

    async def stream(self, prompt: Prompt, *, model: str, **options: Unpack[RequestOptions]) -> AsyncIterator[Event]:
        """As ``Client.stream``."""
        spec = spec_of(request_from_kwargs(prompt, model=model, **options))
        assembler = Assembler()
        with _errors():
            call = self._stub.GenerateStream(pb.GenerateStreamRequest(spec=spec), timeout=self._timeout)
            try:
                async for message in call:
                    event = assembler.feed(message)
                    if event is not None:
                        yield event
            finally:
                call.cancel()


def _read(call: Any) -> Iterator[Event]:
    assembler = Assembler()
    with _errors():
        try:
            for message in call:
                event = assembler.feed(message)
                if event is not None:
                    yield event
        finally:
            call.cancel()  # no effect on a call that is complete


@contextmanager
def _errors() -> Iterator[None]:
    """Raises the library's errors in place of grpc's."""
    try:
        yield
    except grpc.RpcError as error:
        raise _error_of_call(error) from None


def _error_of_call(call: Any) -> TrimtabError:
    return error_of(call.code(), call.details() or "", rpc_status.from_call(call))


def _info(message: pb.GetServerInfoResponse) -> ServerInfo:
    limits = message.limits
    return ServerInfo(
        version=message.version,
        limits=Limits(
            max_new_tokens=limits.max_new_tokens,
            max_n=limits.max_n,
            max_top_logprobs=limits.max_top_logprobs,
            max_queue=limits.max_queue,
            max_stop=limits.max_stop,
            max_stop_bytes=limits.max_stop_bytes,
        ),
        max_request_bytes=limits.max_request_bytes,
        max_generation_time=seconds(limits.max_generation_time),
        draining=message.draining,
    )
