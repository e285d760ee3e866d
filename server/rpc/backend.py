"""What the server needs of an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from trimtab.decode.request.events import Event
from trimtab.decode.request.info import Limits, ModelInfo, RewardInfo
from trimtab.decode.request.prompt import Prompt
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Scored

__all__ = ["Backend"]


class Backend(Protocol):
    """The part of ``trimtab.decode.Engine`` that is served; every method may be called from any thread."""

    @property
    def models(self) -> Mapping[str, ModelInfo]: ...

    @property
    def rewards(self) -> Mapping[str, RewardInfo]: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def failure(self) -> Exception | None:
        """What stopped the engine, if it failed; it then answers nothing any more."""
        ...

    def same_ids(self, a: str, b: str) -> bool:
        """Whether two models share their token ids."""
        ...

    def astream_request(self, request: Request) -> AsyncIterator[Event]:
        """Events of one answer. Tokenises off the event loop; closing the iterator cancels the request."""
        ...

    def tokenize(self, model: str, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[int]]:
        """Token ids, and the byte of the UTF-8 text at which each begins."""
        ...

    def detokenize(self, model: str, ids: list[int], skip_special_tokens: bool = False) -> bytes: ...

    async def ascore(
        self, items: Sequence[tuple[Prompt, str]], *, reward: str | None = None, model: str | None = None
    ) -> Sequence[Scored]:
        """Scores of (prompt, answer) pairs by a reward, or by a model: the sum of ln p of the answer's tokens.

        Tokenises off the event loop; cancelling the task cancels the work.
        """
        ...
