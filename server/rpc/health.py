"""The standard health service, for the whole server ("") and for the decoding service."""

from __future__ import annotations

from grpc.aio import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio

from trimtab.v1 import decoding_pb2 as pb

__all__ = ["SERVICE", "Health"]

SERVICE = pb.DESCRIPTOR.services_by_name["DecodingService"].full_name


class Health:
    """NOT_SERVING until the engine is ready, SERVING while it takes requests, NOT_SERVING on drain or failure.

    The asyncio servicer, not the threaded one: that one holds a worker thread for each ``Watch``, and a few watchers
    starve ``Check``.
    """

    def __init__(self) -> None:
        self._servicer = aio.HealthServicer()

    async def add_to(self, server: Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        await self.set_serving(False)  # the servicer itself begins with "" SERVING

    async def set_serving(self, serving: bool) -> None:
        """Tell checkers and watchers; has no effect after ``drain``."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE):
            await self._servicer.set(name, status)

    async def drain(self) -> None:
        """NOT_SERVING for good."""
        await self._servicer.enter_graceful_shutdown()
