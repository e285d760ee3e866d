"""Many answers to each prompt, kept in files: what searches are compared on.

The random numbers of a candidate depend on the request's seed and its own number alone, so the first k candidates of a
pool of n are the candidates of a best-of-k: one pool answers for all smaller ones. Rows are written as prompts are
done, and a run that was cut short goes on where it was.
"""

from __future__ import annotations

import queue
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.bench.data import append_rows, going_on
from trimtab.bench.progress import Progress
from trimtab.decode.request.events import Completed, Event
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Result

if TYPE_CHECKING:
    from trimtab.decode.engine.engine import Engine
    from trimtab.decode.engine.request_state import Job

__all__ = ["Asked", "Deadline", "best", "candidates", "collect", "kept_rows", "messages", "seed_of"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and the row of the data set that it is for; ``row["prompt"]`` names it in the file."""

    row: Mapping[str, Any]
    request: Request


class Deadline:
    """A moment after which nothing new is begun; ``seconds`` None is never."""

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        return self._at is not None and time.monotonic() >= self._at


def seed_of(prompt: str, seed: int) -> int:
    """The seed of a prompt's request: the same whichever other prompts are asked."""
    return zlib.crc32(f"{seed}/{prompt}".encode())


def messages(prompt: str) -> tuple[dict[str, str], ...]:
    """A prompt as one message of the user's."""
    return ({"role": "user", "content": prompt},)


def candidates(result: Result) -> list[dict[str, Any]]:
    """The candidates of a result as rows: text, tokens, how it ended, and its reward (None where none was asked)."""
    return [
        {
            "response": candidate.text,
            "tokens": len(candidate.tokens),
            "finish_reason": str(candidate.finish_reason),
            "reward": candidate.rewards.get("objective"),
        }
        for candidate in result.candidates
    ]


def best(rewards: Sequence[float]) -> int:
    """What ``BestOfN`` takes: the largest reward, the first of several."""
    return max(range(len(rewards)), key=lambda i: (rewards[i], -i))


def kept_rows(path: Path, made: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of a work file by prompt. A last line that was cut short is removed.

    Args:
        path: of the file; there may be none yet.
        made: what every row must say of how it was made.

    Raises:
        InvalidRequest: a row was made otherwise.
    """
    return {row["prompt"]: row for row in going_on(path, made)}


def collect(
    engine: Engine,
    work: Sequence[Asked],
    out: Path,
    made: Mapping[str, Any],
    keep: Callable[[Asked, Result], Mapping[str, Any]],
    *,
    concurrency: int,
    deadline: Deadline,
) -> bool:
    """Answer what ``out`` has no row of yet; returns whether it then has all.

    Args:
        engine: serves what is asked.
        work: in the order in which it is begun.
        out: JSONL; a row is the data's own, ``made``, and what ``keep`` says.
        made: how answers are made; a file with others is refused.
        keep: what is kept of a result; called on this thread.
        concurrency: requests in the engine at a time.
        deadline: after it no request is begun; those that run are finished.

    Raises:
        InvalidRequest: as ``kept_rows``. Whatever a request raises.
    """
    known = kept_rows(out, made)
    open_work = [asked for asked in work if asked.row["prompt"] not in known]
    ended: queue.SimpleQueue[tuple[Asked, Event | Exception]] = queue.SimpleQueue()
    jobs: list[Job] = []
    done = 0
    progress = Progress(out.stem, len(work), len(work) - len(open_work), "prompt")

    def submit() -> None:
        if len(jobs) < len(open_work) and not deadline.passed:
            asked = open_work[len(jobs)]
            jobs.append(engine.submit(asked.request, lambda event: _pass_on(ended, asked, event)))

    try:
        with progress:
            for _ in range(concurrency):
                submit()
            while done < len(jobs):
                asked, event = ended.get()
                if isinstance(event, Exception):
                    raise event
                assert isinstance(event, Completed)
                submit()  # first, so that the engine has work while this one is looked at
                kept = keep(asked, event.result)
                append_rows(out, [{**asked.row, **made, **kept, "dtype": engine.models[asked.request.model].dtype}])
                done += 1
                progress.add(event.result.usage.generated_tokens)
    finally:
        for job in jobs:
            job.cancel()
    return done == len(open_work)


def _pass_on(ended: queue.SimpleQueue[tuple[Asked, Event | Exception]], asked: Asked, event: Event | Exception) -> None:
    if isinstance(event, Completed | Exception):
        ended.put((asked, event))
