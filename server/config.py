"""The ``[server]`` table of ``trimtab.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from trimtab.decode.config import ConfigError
from trimtab.decode.errors import Violation

__all__ = ["ServerConfig"]

_LONGEST = 366 * 86400.0  # seconds; no wait is longer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How the server listens and what it bounds.

    Attributes:
        host: address to listen on; the default is reachable from this machine only.
        port: TCP port; 0 takes a free one.
        max_request_bytes: larger requests are refused before they are read.
        max_generation_time: seconds after which any answer ends with TIME_BUDGET. It bounds calls whose client is gone
            behind a proxy that hides it.
        max_calls: generation calls in progress, running and queued, above which new ones are refused.
        reflection: whether the services can be listed (grpcurl, Postman).
        lame_duck: seconds for which a draining server, already NOT_SERVING, still accepts calls, so that load
            balancers see the change first.
        grace: seconds that calls in progress then have to finish.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    max_request_bytes: int = 4 * 1024 * 1024
    max_generation_time: float = 600.0
    max_calls: int = 1024
    reflection: bool = True
    lame_duck: float = 1.0
    grace: float = 30.0

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> ServerConfig:
        """Read a ``[server]`` table.

        Raises:
            ConfigError: listing every unknown key and every value outside of what its key accepts.
        """
        known = [field.name for field in fields(cls)]
        unknown = [
            Violation.of(f"server.{key}", value, f"one of the keys {', '.join(known)}")
            for key, value in table.items()
            if key not in known
        ]
        values: dict[str, Any] = {key: value for key, value in table.items() if key in known}
        try:
            config = cls(**values)
        except ConfigError as error:
            raise ConfigError([*unknown, *error.violations]) from None
        if unknown:
            raise ConfigError(unknown)
        return config

    def __post_init__(self) -> None:
        found: list[Violation] = []

        def check(key: str, accepted: str, holds: bool) -> None:
            if not holds:
                found.append(Violation.of(f"server.{key}", getattr(self, key), accepted))

        check("host", "a host name or address", isinstance(self.host, str) and bool(self.host))
        for key, low, high in (
            ("port", 0, 65535),
            ("max_request_bytes", 1024, 2**31 - 1),
            ("max_calls", 1, 2**31 - 1),
        ):
            check(key, f"a whole number in [{low}, {high}]", _is_whole(getattr(self, key), low, high))
        check("max_generation_time", "seconds above 0", _is_seconds(self.max_generation_time, positive=True))
        for key in ("lame_duck", "grace"):
            check(key, "seconds, at least 0", _is_seconds(getattr(self, key)))
        check("reflection", "true or false", isinstance(self.reflection, bool))
        if found:
            raise ConfigError(found)


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_seconds(value: object, *, positive: bool = False) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _LONGEST:
        return False
    return value > 0 or not positive
