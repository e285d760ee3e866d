"""What every call passes: a refusal of malformed messages, and a record of the calls in progress."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServerInterceptor, ServicerContext

__all__ = ["CallInterceptor"]


class _Malformed:
    """Stands for a message that could not be parsed."""


class CallInterceptor(ServerInterceptor):
    """Answers INTERNAL to bytes that are no message (grpc.aio alone answers UNKNOWN), and tracks the calls' tasks.

    The tasks are needed when the server stops: ``Watch`` calls of the health service never end by themselves, and
    grpc.aio does not wait for the clean-up of calls that it aborts.
    """

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def cancel_all(self) -> None:
        """End the calls in progress with UNAVAILABLE."""
        self._stopping = True
        for task in self.tasks:
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:  # unknown method; or reflection, whose calls are streams
            return handler
        deserialize = _guarded(handler.request_deserializer)
        if handler.response_streaming:
            if inspect.isasyncgenfunction(handler.unary_stream):
                raise TypeError(f"{handler_call_details.method}: write to the context instead of yielding")
            return grpc.unary_stream_rpc_method_handler(
                self._tracked(handler.unary_stream), deserialize, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._tracked(handler.unary_unary), deserialize, handler.response_serializer
        )

    def _tracked(self, behaviour: Any) -> Any:
        async def call(request: Any, context: ServicerContext[Any, Any]) -> Any:
            if isinstance(request, _Malformed):
                await context.abort(grpc.StatusCode.INTERNAL, "the request is not a message of the expected type")
            task = asyncio.current_task()
            assert task is not None
            self.tasks.add(task)
            try:
                return await behaviour(request, context)
            except asyncio.CancelledError:
                if self._stopping:  # a task that is only cancelled leaves its call open
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
                raise
            finally:
                self.tasks.discard(task)

        return call


def _guarded(deserialize: Any) -> Any:
    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return _Malformed()

    return parse
