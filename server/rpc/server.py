"""A running server: it listens, loads its engine, serves, drains and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager

import grpc
from grpc_reflection.v1alpha import reflection

from trimtab.decode.errors import TrimtabError
from trimtab.server.config import ServerConfig
from trimtab.server.rpc.backend import Backend
from trimtab.server.rpc.health import SERVICE, Health
from trimtab.server.rpc.interceptor import CallInterceptor
from trimtab.server.rpc.service import DecodingService
from trimtab.v1.decoding_pb2_grpc import add_DecodingServiceServicer_to_server

__all__ = ["OpenEngine", "Server", "ServerError"]

_log = logging.getLogger("trimtab.server")

# Makes the engine; leaving the context closes it. ``lambda: Engine.from_config(config)``, or, for an engine that is
# used elsewhere too, ``lambda: contextlib.nullcontext(engine)``.
OpenEngine = Callable[[], AbstractContextManager[Backend]]


class ServerError(TrimtabError):
    """The server cannot listen."""


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # otherwise a second server on the port would silently share its calls
        ("grpc.max_receive_message_length", config.max_request_bytes),
        # A peer that is gone is noticed within 30 s, and clients may ping as often as every 5 s.
        ("grpc.keepalive_time_ms", 15_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ]


class Server:
    """One server on one event loop; the engine has its own thread.

    It listens as soon as it is started and says NOT_SERVING until the engine is ready.

    Args:
        open_engine: makes the engine, off the event loop; the server closes what it opened.
        config: where to listen and what to bound.
    """

    def __init__(self, open_engine: OpenEngine, config: ServerConfig | None = None) -> None:
        self._open_engine = open_engine
        self._config = config or ServerConfig()
        self._opened: AbstractContextManager[Backend] | None = None
        self._calls = CallInterceptor()
        self._health = Health()
        self._ended = asyncio.Event()
        self._engine_closed = False
        self._service = DecodingService(self._config, self._on_engine_closed)
        self._server: grpc.aio.Server | None = None
        self.port = self._config.port

    @property
    def address(self) -> str:
        """``host:port`` as clients write it."""
        host = self._config.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            ServerError: the address is taken or does not exist.
        """
        server = grpc.aio.server(interceptors=(self._calls,), options=_options(self._config))
        add_DecodingServiceServicer_to_server(self._service, server)
        await self._health.add_to(server)
        if self._config.reflection:
            names = (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise ServerError(f"cannot listen on {self.address}: is another server there, or no such address here?")
        self.port = port
        await server.start()
        self._server = server

    async def load(self) -> None:
        """Open the engine and begin to serve; raises what opening raises."""

        def work() -> tuple[AbstractContextManager[Backend], Backend]:
            opened = self._open_engine()
            return opened, opened.__enter__()

        self._opened, self._service.engine = await asyncio.to_thread(work)
        await self._health.set_serving(True)

    def _on_engine_closed(self) -> None:
        """The engine closed or failed while it was served: nothing can be answered any more."""
        if not self._engine_closed and not self._service.draining:
            self._engine_closed = True
            _log.error("the engine has closed or failed; the server stops")
            self._ended.set()

    async def drain(self, *, lame_duck: float | None = None, grace: float | None = None) -> None:
        """Stop in an orderly way: say NOT_SERVING, accept calls for a while longer, then let them finish.

        Args:
            lame_duck: seconds for which calls are still accepted; None takes the configured ones.
            grace: seconds that calls in progress then have; None takes the configured ones.
        """
        self._service.draining = True
        await self._health.drain()
        await asyncio.sleep(self._config.lame_duck if lame_duck is None else lame_duck)
        await self.stop(self._config.grace if grace is None else grace)

    async def stop(self, grace: float = 0.0) -> None:
        """Take no more calls, give those in progress ``grace`` seconds, then close the engine."""
        self._service.draining = True
        await self._health.drain()
        if self._server is not None:
            stopping = asyncio.ensure_future(self._server.stop(grace))
            await self._generations(grace)
            # What is left now: calls out of time, and watchers of the health service, which never end by themselves.
            self._calls.cancel_all()
            await stopping
            self._server = None
        while self._calls.tasks:  # grpc.aio does not wait for the clean-up of the calls that it aborts
            await asyncio.wait(self._calls.tasks)
        if self._opened is not None:
            opened, self._opened, self._service.engine = self._opened, None, None
            await asyncio.to_thread(opened.__exit__, None, None, None)

    async def _generations(self, grace: float) -> None:
        """Wait for generation calls to end, at most ``grace`` seconds."""
        deadline = asyncio.get_running_loop().time() + grace
        while self._service.generating and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)

    async def run(self, announce: Callable[[str], object] = lambda line: None) -> int:
        """Serve until SIGTERM or SIGINT; a second signal stops at once. For the main thread.

        Returns:
            Exit status: 0 after a drain, 1 if the engine failed.
        """
        loop = asyncio.get_running_loop()
        signals: list[signal.Signals] = []
        forced = asyncio.Event()

        def on_signal(number: signal.Signals) -> None:
            signals.append(number)
            (forced if len(signals) > 1 else self._ended).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        try:
            await self.start()
            announce(f"listening on {self.address}, loading models")
            loading = asyncio.ensure_future(self.load())
            ended = asyncio.ensure_future(self._ended.wait())
            await asyncio.wait((loading, ended), return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():  # a load cannot be interrupted, except by the default action of a second signal
                announce("stopping as soon as the models are loaded")
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)
                    signal.signal(number, signal.SIG_DFL)
            await loading
            if not ended.done():
                announce(f"serving on {self.address}")
            await ended
            announce("draining" if signals else "stopping: the engine has closed or failed")
            draining = asyncio.ensure_future(self.drain() if signals else self.stop())
            force = asyncio.ensure_future(forced.wait())
            await asyncio.wait((draining, force), return_when=asyncio.FIRST_COMPLETED)
            if force.done() and not draining.done():
                draining.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await draining
            else:
                force.cancel()
                await draining
        finally:
            await self.stop()
        return 1 if self._engine_closed else 0
