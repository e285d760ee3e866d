"""One candidate, streamed as it is written."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.decode.methods.searches.setting import Outcome, Setting
from trimtab.decode.request.method import Search

__all__ = ["Single"]


@dataclass(frozen=True, slots=True)
class Single(Search):
    """One candidate, which is the answer."""

    async def run(self, setting: Setting) -> Outcome:
        writer = setting.root(setting.key, emit=setting.emit)
        await writer.advance()
        return Outcome((writer.answer.candidate(),), reproducible=writer.reproducible)
