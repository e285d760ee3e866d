"""Plain functions of a request (rewards, mostly) on threads and processes, while the engine's thread goes on."""

from __future__ import annotations

import contextlib
import logging
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

from trimtab.decode.engine.run import Run
from trimtab.decode.engine.tasks import Task
from trimtab.decode.engine.worker import one_thread
from trimtab.decode.ops import Call

__all__ = ["Calls"]

log = logging.getLogger(__name__)

_THREADS, _MOST_THREADS = 4, 16
_PROCESSES, _MOST_PROCESSES = 2, 8
_START = 60.0  # seconds that a process may take until it is there
_STUCK = 0.5  # seconds: where calls wait, and all workers have been at theirs for so long, there is one worker more


@dataclass(eq=False, slots=True)
class _Open:
    run: Run | None  # None: nobody waits for it any more
    task: Task
    op: Call
    place: _Place

    @property
    def deadline(self) -> float | None:
        """None before it has begun: a call that waits for those of other requests loses none of its time."""
        return None if self.place.begun is None else self.place.begun + self.op.timeout


@dataclass(eq=False, slots=True)
class _Place:
    """Where a call runs.

    Attributes:
        taken: when a worker took it.
        begun: when its function began: in a process, once that was there.
        child: the process, of a call that wants one.
        abandoned: it was given up.
    """

    taken: float = 0.0
    begun: float | None = None
    child: _Child | None = None
    abandoned: bool = False

    def kill(self) -> None:
        self.abandoned = True
        if self.child is not None:
            self.child.kill()


class Calls:
    """Calls under way. All methods belong to the engine's thread.

    Args:
        wake: called on any thread when a call has ended.

    A thread can't be stopped: one that runs past its time is left behind, and another takes its place. A process is
    killed, and another takes its place. Until then others needn't wait for it: where all workers are busy for long,
    there are more of them for a while.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._open: dict[Future[Any], _Open] = {}
        self._ended: deque[Future[Any]] = deque()
        self._threads = _Threads(_THREADS, _MOST_THREADS)
        # Threads that each wait for a process of their own.
        self._processes = _Threads(_PROCESSES, _MOST_PROCESSES)

    def submit(self, run: Run, task: Task, op: Call) -> None:
        """Begin a call."""
        place = _Place()
        if op.where == "thread":
            future = self._threads.submit(place, _in_thread, op.function, op.args)
        else:
            future = self._processes.submit(place, _in_process, op.function, op.args)
        self._open[future] = _Open(run, task, op, place)
        future.add_done_callback(self._done)

    def forget(self, run: Run) -> None:
        """Nobody waits for the calls of ``run`` any more; those that haven't begun never will."""
        for future, call in list(self._open.items()):
            if call.run is not run:
                continue
            if future.cancel() or future.done():
                del self._open[future]
            else:  # it runs, in a thread perhaps for ever
                call.run = None
                if call.op.where == "process":
                    call.place.kill()

    def timeout(self) -> float | None:
        """Seconds until the next look is due, 0 if a call has ended already; None without open calls."""
        waited_for = [call for call in self._open.values() if call.run is not None]
        if not waited_for:
            return None
        if self._ended:
            return 0.0
        now = time.monotonic()
        return max(0.0, min(now + _STUCK if c.deadline is None else c.deadline for c in waited_for) - now)

    def poll(self) -> list[tuple[Run, Task, Any, Exception | None]]:
        """Calls that have ended or run out of time since the last look: (request, task, result, error)."""
        found: list[tuple[Run, Task, Any, Exception | None]] = []
        while self._ended:
            future = self._ended.popleft()
            call = self._open.pop(future, None)
            if call is None or call.run is None:
                continue
            error = future.exception()
            if error is not None and not isinstance(error, Exception):  # SystemExit and the like
                error = RuntimeError(f"{type(error).__name__}: {error}")
            found.append((call.run, call.task, None if error else future.result(), error))
        now = time.monotonic()
        for future, call in list(self._open.items()):
            if call.deadline is None or call.deadline > now or future.done():
                continue
            del self._open[future]
            self._abandon(call)
            if call.run is not None:
                found.append((call.run, call.task, None, TimeoutError(f"no result after {call.op.timeout:g} s")))
        for workers in (self._threads, self._processes):
            workers.help(now - _STUCK)
        return found

    def close(self) -> None:
        """Stop workers; nobody is waited for."""
        for call in self._open.values():
            call.place.kill()
        self._open.clear()
        self._threads.close()
        self._processes.close()

    def _done(self, future: Future[Any]) -> None:
        self._ended.append(future)
        self._wake()

    def _abandon(self, call: _Open) -> None:
        if call.op.where == "process":
            call.place.kill()
        else:
            log.warning("a function on a thread ran past its %g s and is left behind", call.op.timeout)
            self._threads.leave(call.place)


_There = Callable[[_Place, Callable[..., Any], tuple[Any, ...]], Any]
_Work = tuple[Future[Any], _Place, _There, Callable[..., Any], tuple[Any, ...]]


class _Threads:
    """Daemon threads that run functions: unlike those of the standard pool, one that hangs keeps no program alive.

    Args:
        usual: so many work at a time.
        most: so many where the usual ones don't come to an end.
    """

    def __init__(self, usual: int, most: int) -> None:
        self._usual, self._most, self._count, self._idle = usual, most, 0, 0  # the count without those left behind
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._running: set[_Place] = set()
        self._lock = threading.Lock()

    def submit(self, place: _Place, there: _There, function: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            if self._idle <= self._work.qsize() and self._count < self._usual:
                self._start()
        self._work.put((future, place, there, function, args))
        return future

    def help(self, since: float) -> None:
        """One worker more, if work waits and every worker has been at its own since then."""
        with self._lock:
            busy = len(self._running) == self._count and all(p.taken <= since for p in self._running)
            if busy and self._count < self._most and not self._work.empty():
                self._start()

    def leave(self, place: _Place) -> None:
        """The thread at ``place`` may never come back: start another."""
        with self._lock:
            if place in self._running:
                self._running.discard(place)
                self._count -= 1
                self._start()

    def close(self) -> None:
        """Let idle threads end, and with them their processes."""
        for _ in range(self._count):
            self._work.put(None)

    def _start(self) -> None:
        self._count += 1
        threading.Thread(target=self._run, name="trimtab-call", daemon=True).start()

    def _run(self) -> None:
        one_thread()
        while True:
            with self._lock:
                self._idle += 1
            work = self._work.get()
            with self._lock:
                self._idle -= 1
            if work is None or not self._one(*work):
                return

    def _one(
        self,
        future: Future[Any],
        place: _Place,
        there: _There,
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> bool:
        """Run one function; whether this thread is to go on."""
        if not future.set_running_or_notify_cancel():
            return True
        with self._lock:
            self._running.add(place)
            place.taken = time.monotonic()
        try:
            future.set_result(there(place, function, args))
        except BaseException as error:
            future.set_exception(error)
        with self._lock:
            if place not in self._running:  # left behind
                return False
            self._running.discard(place)
            surplus = self._count > self._usual and self._work.empty()
            self._count -= surplus
        return not surplus


class _Child:
    """A process that answers one call at a time; see ``worker``."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-m", "trimtab.decode.engine.worker", str(theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))
        self.alive = True
        if not self._pipe.poll(_START):
            self.kill()
        self._answer()  # that it is there

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        with contextlib.suppress(OSError):  # a process that has ended: there is no answer either
            self._pipe.send((function, args))
        result, error = self._answer()
        if error is not None:
            raise error
        return result

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            self.kill()
            raise RuntimeError(f"its process ended with status {self._process.wait()}") from None

    def kill(self) -> None:
        self.alive = False
        with contextlib.suppress(OSError):
            self._process.kill()

    def __del__(self) -> None:
        self.kill()
        self._process.wait()
        self._pipe.close()


def _in_thread(place: _Place, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    place.begun = time.monotonic()
    return function(*args)


_own = threading.local()


def _in_process(place: _Place, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call in this thread's process, which is started first where there is none."""
    child: _Child | None = getattr(_own, "child", None)
    if child is None or not child.alive:
        child = _own.child = _Child()
    place.child = child
    if place.abandoned:  # while the process started
        return None
    place.begun = time.monotonic()
    return child.call(function, args)
