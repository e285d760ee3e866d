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

_THREADS = 4
_PROCESSES = 2


@dataclass(eq=False, slots=True)
class _Open:
    run: Run
    task: Task
    op: Call
    deadline: float
    place: _Place


@dataclass(eq=False, slots=True)
class _Place:
    """Where a call runs that wants a process."""

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
    killed, and another takes its place.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._open: dict[Future[Any], _Open] = {}
        self._ended: deque[Future[Any]] = deque()
        self._threads = _Threads(_THREADS)
        self._processes = _Threads(_PROCESSES)  # threads that each wait for a process of their own

    def submit(self, run: Run, task: Task, op: Call) -> None:
        """Begin a call."""
        call = _Open(run, task, op, time.monotonic() + op.timeout, _Place())
        if op.where == "thread":
            future = self._threads.submit(op.function, *op.args)
        else:
            future = self._processes.submit(_in_process, call.place, op.function, op.args)
        self._open[future] = call
        future.add_done_callback(self._done)

    def forget(self, run: Run) -> None:
        """Nobody waits for the calls of ``run`` any more; those that haven't begun never will."""
        for future, call in list(self._open.items()):
            if call.run is run:
                del self._open[future]
                future.cancel()

    def timeout(self) -> float | None:
        """Seconds until the next deadline, 0 if a call has ended already; None without open calls."""
        if not self._open:
            return None
        if self._ended:
            return 0.0
        return max(0.0, min(call.deadline for call in self._open.values()) - time.monotonic())

    def poll(self) -> list[tuple[Run, Task, Any, Exception | None]]:
        """Calls that have ended or run out of time since the last look: (request, task, result, error)."""
        found: list[tuple[Run, Task, Any, Exception | None]] = []
        while self._ended:
            future = self._ended.popleft()
            call = self._open.pop(future, None)
            if call is None:
                continue
            error = future.exception()
            if error is not None and not isinstance(error, Exception):  # SystemExit and the like
                error = RuntimeError(f"{type(error).__name__}: {error}")
            found.append((call.run, call.task, None if error else future.result(), error))
        now = time.monotonic()
        for future, call in [(f, c) for f, c in self._open.items() if c.deadline <= now and not f.done()]:
            del self._open[future]
            if not future.cancel():
                self._abandon(call)
            found.append((call.run, call.task, None, TimeoutError(f"no result after {call.op.timeout:g} s")))
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
            self._threads.replace()


class _Threads:
    """Daemon threads that run functions: unlike those of the standard pool, one that hangs keeps no program alive."""

    def __init__(self, most: int) -> None:
        self._most, self._count, self._idle = most, 0, 0
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._work = queue.SimpleQueue()
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            if self._idle <= self._work.qsize() and self._count < self._most:
                self._start()
        self._work.put((future, function, args))
        return future

    def replace(self) -> None:
        """One thread is stuck: start another."""
        with self._lock:
            self._most += 1
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
            if work is None:
                return
            future, function, args = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)


class _Child:
    """A process that answers one call at a time; see ``worker``."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-m", "trimtab.decode.engine.worker", str(theirs.fileno())]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))
        self.alive = True

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        try:
            self._pipe.send((function, args))
            result, error = self._pipe.recv()
        except (EOFError, OSError):
            self.kill()
            raise RuntimeError(f"its process ended with status {self._process.wait()}") from None
        if error is not None:
            raise error
        return result

    def kill(self) -> None:
        self.alive = False
        with contextlib.suppress(OSError):
            self._process.kill()

    def __del__(self) -> None:
        self.kill()
        self._process.wait()
        self._pipe.close()


_own = threading.local()


def _in_process(place: _Place, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Call in this thread's process, which is started first where there is none."""
    child: _Child | None = getattr(_own, "child", None)
    if child is None or not child.alive:
        child = _own.child = _Child()
    place.child = child
    if place.abandoned:  # while the process started
        return None
    return child.call(function, args)
