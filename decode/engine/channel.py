"""What a request says, carried from the engine's thread to one reader: a thread, or a coroutine on an event loop."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from trimtab.decode.engine.request_state import Job, OnEvent
from trimtab.decode.request.events import (
    Chunk,
    Completed,
    Event,
    Progress,
    Started,
)

__all__ = ["Channel", "aevents", "aresults", "results"]

Start = Callable[[OnEvent], Job]


class _Mailbox:
    """The engine's end. It doesn't refer to the reader's, which can so be dropped."""

    def __init__(self, everything: bool, loop: asyncio.AbstractEventLoop | None) -> None:
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.ready = asyncio.Event()
        self.asleep = False  # the reader waits for ``ready``
        self.abandoned = False
        self.job: Job | None = None
        self._everything, self._loop = everything, loop

    def put(self, event: Any) -> None:
        if not (self._everything or _is_last(event)):
            return
        self.events.put(event)
        if self._loop is None or not self.asleep:
            return
        self.asleep = False  # one call wakes it for all that comes meanwhile
        try:
            self._loop.call_soon_threadsafe(self.ready.set)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self.abandon()

    def abandon(self) -> None:
        self.abandoned = True
        if self.job is not None:
            self.job.cancel()


class Channel(Iterator[Any]):
    """The reader's end: events until the last one, or the exception that ends them. Dropping or closing it cancels the
    request, read or not.

    Args:
        everything: whether all events are read, or nobody is to be woken but for the last.
        loop: on which ``anext`` is awaited; None: threads read.
    """

    def __init__(self, everything: bool, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._box = _Mailbox(everything, loop)
        self._ended = False

    def open(self, start: Start) -> None:
        """Start the request, on any thread. The reader may be gone by the time its prompt is tokenised: then nothing
        goes on unattended.
        """
        self._box.job = start(self._box.put)
        if self._box.abandoned:
            self._box.job.cancel()

    def close(self) -> None:
        """Read no further."""
        self._ended = True
        self._box.abandon()

    def __del__(self) -> None:
        self._box.abandon()

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        return self._taken(self._box.events.get())

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        box = self._box
        while True:
            box.ready.clear()
            box.asleep = True
            try:
                event = box.events.get_nowait()
            except queue.Empty:
                await box.ready.wait()
            else:
                box.asleep = False
                return self._taken(event)

    def __aiter__(self) -> Channel:
        return self

    def _taken(self, event: Any) -> Any:
        self._ended = _is_last(event)
        if isinstance(event, Exception):
            raise event
        return event


def _result(last: Any) -> Any:
    return last.result if isinstance(last, Completed) else last


def _is_last(event: Any) -> bool:
    return not isinstance(event, (Started, Chunk, Progress))


def results(starts: Sequence[Start]) -> list[Any]:
    """What requests end with, side by side; the first that fails cancels the others."""
    channels = [Channel(everything=False) for _ in starts]
    try:
        for start, channel in zip(starts, channels, strict=True):
            channel.open(start)
        return [_result(next(channel)) for channel in channels]
    finally:
        for channel in channels:
            channel.close()


async def aevents(start: Start, everything: bool = True) -> AsyncGenerator[Event, None]:
    """The events of a request that is started on another thread. Closing the iterator, or cancelling the task that
    reads it, cancels the request.
    """
    channel = Channel(everything, asyncio.get_running_loop())
    try:
        await asyncio.to_thread(channel.open, start)
        async for event in channel:
            yield event
    finally:
        channel.close()


async def aresults(starts: Iterable[Start]) -> list[Any]:
    """As ``results``, for a coroutine."""
    first: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_aresult(start)) for start in starts]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]  # the rest were cancelled because of it
    if first is not None:
        raise first
    return [task.result() for task in tasks]


async def _aresult(start: Start) -> Any:
    async with aclosing(aevents(start, everything=False)) as events:
        return _result(await anext(events))
