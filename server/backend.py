"""What the server needs of an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from trimtab.decode.types import Event, Limits, ModelInfo, Request

__all__ = ["Backend"]


class Backend(Protocol):
    """The part of ``trimtab.decode.Engine`` that is served; every method may be called from any thread."""

    @property
    def models(self) -> Mapping[str, ModelInfo]: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def failure(self) -> Exception | None:
        """What stopped the engine, if it failed; it then answers nothing any more."""
        ...

    def astream_request(self, request: Request) -> AsyncIterator[Event]:
        """Events of one answer. Tokenises off the event loop; closing the iterator cancels the request."""
        ...

    def tokenize(self, model: str, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[int]]:
        """Token ids, and the byte of the UTF-8 text at which each begins."""
        ...

    def detokenize(self, model: str, ids: list[int], skip_special_tokens: bool = False) -> bytes: ...
