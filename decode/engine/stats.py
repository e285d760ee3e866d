"""What an engine is doing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.decode.engine.loop import Loop
from trimtab.decode.frozen import FrozenDict, freeze_fields

__all__ = ["EngineStats", "check", "snapshot"]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine's work.

    Attributes:
        running, queued: requests.
        pages_used: pages held by running requests, by model; 0 when idle (law 5).
        pages_total: size of each pool.
        forward_passes: since the start, by model.
    """

    running: int
    queued: int
    pages_used: Mapping[str, int]
    pages_total: Mapping[str, int]
    forward_passes: Mapping[str, int]

    def __post_init__(self) -> None:
        freeze_fields(self, "pages_used", "pages_total", "forward_passes")


def snapshot(loop: Loop) -> EngineStats:
    """Of an engine's thread; from any other."""
    return EngineStats(
        running=len(loop.scheduler.running),
        queued=loop.queued,
        pages_used=FrozenDict({name: model.pages.held for name, model in loop.scheduler.models.items()}),
        pages_total=FrozenDict({name: model.pages.count for name, model in loop.scheduler.models.items()}),
        forward_passes=FrozenDict({name: model.forward_passes for name, model in loop.scheduler.models.items()}),
    )


def check(loop: Loop) -> None:
    """See ``Engine.check``."""
    for name, model in loop.scheduler.models.items():
        model.pages.check()
        if loop.idle:
            assert model.pages.held == 0, f"{model.pages.held} pages of {name!r} are held though nothing runs"
