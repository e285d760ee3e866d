"""A server on a thread of its own: for demonstrations, notebooks and tests."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

from trimtab.server.config import ServerConfig
from trimtab.server.rpc.server import OpenEngine, Server

__all__ = ["BackgroundServer"]


class BackgroundServer:
    """Context manager: entering starts a server and waits until it serves, leaving drains it.

    Args:
        open_engine: as for ``Server``.
        config: as for ``Server``; the default takes a free port and does not wait before it stops.

    Attributes:
        address: ``host:port`` while it serves.
    """

    def __init__(self, open_engine: OpenEngine, config: ServerConfig | None = None) -> None:
        self._open_engine = open_engine
        self._config = config or ServerConfig(port=0, lame_duck=0.0)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="trimtab-server", daemon=True)
        self.address = ""

    def __enter__(self) -> BackgroundServer:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loop is not None and self._end is not None:
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # handed to the thread that entered
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = Server(self._open_engine, self._config)
        try:
            await server.start()
            await server.load()
            self.address = server.address
            self._ready.set()
            await self._end.wait()
            await server.drain()
        finally:
            await server.stop()
