"""Contexts of a call: errors end it with a status, and a generation is counted and logged.

Classes rather than generators, so that the type checker knows that neither swallows an exception.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from grpc.aio import AbortError, ServicerContext
from grpc_status import rpc_status

from trimtab.server.wire.status import status_of
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["Generation", "Reporting"]

_log = logging.getLogger("trimtab.server")


class Reporting:
    """Ends the call with the status of whatever error comes up inside.

    Args:
        context: the call.
        in_spec: whether field paths of errors are those of a generation request.
        on_error: told of every error first; returns the one to report.
    """

    def __init__(
        self,
        context: ServicerContext[Any, Any],
        *,
        in_spec: bool = False,
        on_error: Callable[[Exception], Exception] = lambda error: error,
    ) -> None:
        self._context = context
        self._in_spec = in_spec
        self._on_error = on_error

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A cancelled call has nobody to tell, and AbortError is a status already.
        if isinstance(error, Exception) and not isinstance(error, AbortError):
            status = status_of(self._on_error(error), in_spec=self._in_spec)
            await self._context.abort_with_status(rpc_status.to_status(status))


class Generation:
    """Counts one generation call in ``running`` while it is in progress, and logs how it went."""

    def __init__(self, running: set[Generation], method: str, spec: pb.GenerationSpec) -> None:
        self._running = running
        self._method = method
        self._model = spec.model
        self._client_request_id = spec.client_request_id
        self._began = time.monotonic()

    def __enter__(self) -> None:
        self._running.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.discard(self)
        # repr, shortened: these names are the client's and may hold anything
        _log.info(
            "%s model=%.80r client_request_id=%.140r seconds=%.3f outcome=%s",
            self._method,
            self._model,
            self._client_request_id,
            time.monotonic() - self._began,
            "ok" if kind is None else kind.__name__,
        )
