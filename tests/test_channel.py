"""Channels: all events in their order, to a thread or to a coroutine; nobody's request goes on unattended."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trimtab.decode.engine.channel import Channel, aevents, aresults, results
from trimtab.decode.engine.request_state import Job
from trimtab.decode.request.events import Progress

WAIT = 30.0


class Source:
    """Stands for the engine: says what it is told to, on a thread of its own."""

    def __init__(self, count: int, last: Any, seed: int = 0, hold: threading.Event | None = None) -> None:
        self.count, self.last, self.rng, self.hold = count, last, random.Random(seed), hold
        self.jobs: list[Job] = []

    def start(self, on_event: Callable[[Any], None]) -> Job:
        job = Job("x", lambda: None)
        self.jobs.append(job)
        threading.Thread(target=self.run, args=(on_event,), daemon=True).start()
        return job

    def run(self, on_event: Callable[[Any], None]) -> None:
        for i in range(self.count):
            on_event(Progress(i, 0, 0))
            if self.rng.random() < 0.2:
                time.sleep(self.rng.random() * 1e-3)
        if self.hold is not None:
            self.hold.wait(WAIT)
        if self.jobs:
            self.jobs[0].finished.set()
        on_event(self.last)


@pytest.fixture
def hold() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def read_by_thread(source: Source) -> list[Any]:
    channel = Channel(everything=True)
    channel.open(source.start)
    return list(channel)


def read_by_coroutine(source: Source) -> list[Any]:
    async def main() -> list[Any]:
        return [event async for event in aevents(source.start)]

    return asyncio.run(asyncio.wait_for(main(), WAIT))


@pytest.mark.parametrize("read", [read_by_thread, read_by_coroutine])
@pytest.mark.parametrize("seed", range(5))
def test_all_events_come_in_their_order(read: Callable[[Source], list[Any]], seed: int) -> None:
    assert read(Source(300, "end", seed)) == [*(Progress(i, 0, 0) for i in range(300)), "end"]


@pytest.mark.parametrize("read", [read_by_thread, read_by_coroutine])
def test_an_exception_is_the_end(read: Callable[[Source], list[Any]]) -> None:
    with pytest.raises(LookupError):
        read(Source(3, LookupError()))


def test_results_are_in_order_and_the_first_failure_cancels_the_others(hold: threading.Event) -> None:
    sources = [Source(5, i) for i in range(4)]
    starts = [source.start for source in sources]
    assert results(starts) == asyncio.run(aresults(starts)) == [0, 1, 2, 3]
    for wait in (results, lambda starts: asyncio.run(aresults(starts))):
        failing, others = Source(2, LookupError()), [Source(0, i, hold=hold) for i in range(3)]
        with pytest.raises(LookupError):
            wait([source.start for source in (failing, *others)])
        assert all(job.cancelled for other in others for job in other.jobs)


@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.parametrize("read", [0, 2])
def test_a_reader_that_goes_cancels(how: str, read: int, hold: threading.Event) -> None:
    source = Source(3, "end", hold=hold)
    channel = Channel(everything=True)
    channel.open(source.start)
    for _ in range(read):
        next(channel)
    assert not source.jobs[0].cancelled
    if how == "close":
        channel.close()
        assert list(channel) == []
    del channel
    gc.collect()
    assert source.jobs[0].cancelled


def test_a_request_that_starts_after_its_reader_has_gone_is_cancelled(hold: threading.Event) -> None:
    source, asked = Source(0, "end", hold=hold), threading.Event()

    def late(on_event: Callable[[Any], None]) -> Job:
        asked.wait(WAIT)
        return source.start(on_event)

    async def main() -> None:
        task = asyncio.create_task(aresults([late]))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        asked.set()

    asyncio.run(main())
    end = time.monotonic() + WAIT
    while not (source.jobs and source.jobs[0].cancelled) and time.monotonic() < end:
        time.sleep(0.001)
    assert source.jobs[0].cancelled


def test_a_loop_that_has_been_closed_cancels(hold: threading.Event) -> None:
    """Whatever became of the generator that read on it."""
    source, loop = Source(0, "end", hold=hold), asyncio.new_event_loop()
    channel = Channel(everything=True, loop=loop)
    channel.open(source.start)
    loop.close()
    channel._box.asleep = True  # as while ``anext`` waits
    channel._box.put(Progress(0, 0, 0))
    assert source.jobs[0].cancelled
