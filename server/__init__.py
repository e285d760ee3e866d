"""gRPC server of trimtab, its Python client and its commands.

Importing it loads neither grpc nor torch: ``Client``, ``AsyncClient``, ``Server`` and ``ServerConfig`` are imported at
their first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.server.client import AsyncClient, Client
    from trimtab.server.config import ServerConfig
    from trimtab.server.rpc.server import Server

__all__ = ["AsyncClient", "Client", "Server", "ServerConfig"]

_LAZY = {
    "AsyncClient": "trimtab.server.client",
    "Client": "trimtab.server.client",
    "Server": "trimtab.server.rpc.server",
    "ServerConfig": "trimtab.server.config",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
