"""One candidate, streamed as it is written."""

from __future__ import annotations

from trimtab.decode.methods.searches.setting import Outcome, Setting

__all__ = ["single"]


async def single(setting: Setting) -> Outcome:
    """Write one candidate."""
    writer = setting.root(setting.key, emit=setting.emit)
    await writer.advance()
    return Outcome((writer.answer.candidate(),), reproducible=writer.reproducible)
