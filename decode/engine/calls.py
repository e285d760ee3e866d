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
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import Any

from trimtab.decode.engine.request_state import RequestState
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
    """A call under way.

    Attributes:
        state: whose it is; None: nobody waits for it any more.
        taken: when a worker took it.
        begun: when its function began: in a process, once that was there.
        child: the process, of a call that wants one.
        abandoned: it was given up.
    """

    state: RequestState | None
    task: Task
    op: Call
    future: Future[Any] = field(default_factory=Future)
    taken: float = 0.0
    begun: float | None = None
    child: _Child | None = None
    abandoned: bool = False

    @property
    def deadline(self) -> float | None:
        """None before it has begun: a call that waits for those of other requests loses none of its time."""
        return None if self.begun is None else self.begun + self.op.timeout

    def kill(self) -> None:
        self.abandoned = True
        if self.child is not None:
            self.child.kill()

    def run(self) -> Any:
        """On a worker's thread."""
        child = None if self.op.where == "thread" else _own_child()
        self.child = child
        if self.abandoned:  # while its process started
            return None
        self.begun = time.monotonic()
        return self.op.function(*self.op.args) if child is None else child.call(self.op.function, self.op.args)


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
        self._open: dict[_Open, None] = {}
        self._ended: deque[_Open] = deque()
        self._threads = _Threads(_THREADS, _MOST_THREADS)
        # Threads that each wait for a process of their own.
        self._processes = _Threads(_PROCESSES, _MOST_PROCESSES)

    def submit(self, state: RequestState, task: Task, op: Call) -> None:
        """Begin a call."""
        call = _Open(state, task, op)
        self._open[call] = None
        call.future.add_done_callback(lambda _: self._done(call))
        (self._threads if op.where == "thread" else self._processes).submit(call)

    def forget(self, state: RequestState) -> None:
        """Nobody waits for the calls of a request any more; those that haven't begun never will."""
        for call in [call for call in self._open if call.state is state]:
            if call.future.cancel() or call.future.done():
                del self._open[call]
            else:  # it runs, in a thread perhaps for ever
                call.state = None
                if call.op.where == "process":
                    call.kill()

    def timeout(self) -> float | None:
        """Seconds until the next look is due, 0 if a call has ended already; None without open calls."""
        waited_for = [call for call in self._open if call.state is not None]
        if not waited_for:
            return None
        if self._ended:
            return 0.0
        now = time.monotonic()
        return max(0.0, min(now + _STUCK if c.deadline is None else c.deadline for c in waited_for) - now)

    def poll(self) -> list[tuple[RequestState, Task, Any, Exception | None]]:
        """Calls that have ended or run out of time since the last look: (request, task, result, error)."""
        found: list[tuple[RequestState, Task, Any, Exception | None]] = []
        while self._ended:
            call = self._ended.popleft()
            if call not in self._open:
                continue
            del self._open[call]
            if call.state is None:
                continue
            error = call.future.exception()
            if error is not None and not isinstance(error, Exception):  # SystemExit and the like
                error = RuntimeError(f"{type(error).__name__}: {error}")
            found.append((call.state, call.task, None if error else call.future.result(), error))
        now = time.monotonic()
        for call in list(self._open):
            if call.deadline is None or call.deadline > now or call.future.done():
                continue
            del self._open[call]
            self._abandon(call)
            if call.state is not None:
                found.append((call.state, call.task, None, TimeoutError(f"no result after {call.op.timeout:g} s")))
        for workers in (self._threads, self._processes):
            workers.help(now - _STUCK)
        return found

    def close(self) -> None:
        """Stop workers; nobody is waited for."""
        for call in self._open:
            call.kill()
        self._open.clear()
        self._threads.close()
        self._processes.close()

    def _done(self, call: _Open) -> None:
        self._ended.append(call)
        self._wake()

    def _abandon(self, call: _Open) -> None:
        if call.op.where == "process":
            call.kill()
        else:
            log.warning("a function on a thread ran past its %g s and is left behind", call.op.timeout)
            self._threads.leave(call)


class _Threads:
    """Daemon threads that run functions: unlike those of the standard pool, one that hangs keeps no program alive.

    Args:
        usual: so many work at a time.
        most: so many where the usual ones don't come to an end.
    """

    def __init__(self, usual: int, most: int) -> None:
        self._usual, self._most, self._count, self._idle = usual, most, 0, 0  # the count without those left behind
        self._work: queue.SimpleQueue[_Open | None] = queue.SimpleQueue()
        self._running: set[_Open] = set()
        self._lock = threading.Lock()

    def submit(self, call: _Open) -> None:
        with self._lock:
            if self._idle <= self._work.qsize() and self._count < self._usual:
                self._start()
        self._work.put(call)

    def help(self, since: float) -> None:
        """One worker more, if work waits and every worker has been at its own since then."""
        with self._lock:
            busy = len(self._running) == self._count and all(call.taken <= since for call in self._running)
            if busy and self._count < self._most and not self._work.empty():
                self._start()

    def leave(self, call: _Open) -> None:
        """The thread that runs it may never come back: start another."""
        with self._lock:
            if call in self._running:
                self._running.discard(call)
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
            call = self._work.get()
            with self._lock:
                self._idle -= 1
            if call is None or not self._one(call):
                return

    def _one(self, call: _Open) -> bool:
        """Run one function; whether this thread is to go on."""
        if not call.future.set_running_or_notify_cancel():
            return True
        with self._lock:
            self._running.add(call)
            call.taken = time.monotonic()
        try:
            call.future.set_result(call.run())
        except BaseException as error:
            call.future.set_exception(error)
        with self._lock:
            if call not in self._running:  # left behind
                return False
            self._running.discard(call)
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


_own = threading.local()


def _own_child() -> _Child:
    """This thread's process, which is started first where there is none."""
    child: _Child | None = getattr(_own, "child", None)
    if child is None or not child.alive:
        child = _own.child = _Child()
    return child
