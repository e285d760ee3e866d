"""The engine's thread: loads the models, then advances requests until it is told to stop.

The thread refers to the loop, never to the ``Engine`` that callers hold: an engine that nobody holds any more can be
collected, and stops its loop.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import torch

from trimtab.decode.engine import runner
from trimtab.decode.engine.memory import give_back
from trimtab.decode.engine.request_state import RequestState
from trimtab.decode.engine.scheduler import Scheduler
from trimtab.decode.errors import EngineClosed, EngineFailed, Overloaded, TrimtabError

__all__ = ["Loop", "tick"]

log = logging.getLogger(__name__)


def tick(scheduler: Scheduler) -> None:
    """Advance every request that can be advanced by one forward pass per model."""
    scheduler.admit()
    for plan in scheduler.plans():
        output = runner.run(plan)
        scheduler.commit(plan, output)


class Loop:
    """Serves models on one thread of its own.

    Args:
        make: loads the models and gives what schedules them; called on the thread, with how to wake that.
        threads: of torch's CPU kernels; None leaves torch's setting alone.

    Attributes:
        scheduler: what ``make`` gave.
        failure: what stopped the thread, if it failed.

    Raises:
        whatever ``make`` does.

    Models are loaded on the thread that runs them. Each thread that computes has OpenMP workers of its own; where those
    of two threads outnumber the cores, GNU's OpenMP lets idle ones sleep at once, and each of the hundreds of parallel
    regions of a step pays a wake-up: with models loaded elsewhere a token took 20 ms instead of 10 (2 cores,
    SmolLM2-135M).
    """

    def __init__(self, make: Callable[[Callable[[], None]], Scheduler], threads: int | None) -> None:
        self._inbox: deque[RequestState] = deque()
        self._open = 0  # submitted and not finished
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self.failure: Exception | None = None
        made: Future[Scheduler] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(make, threads, made), name="trimtab-engine", daemon=True
        )
        self._thread.start()
        self.scheduler = made.result()

    # --------------------------------------------------------------------------------------------- from any thread

    def wake(self) -> None:
        """Have the thread look again for what is to be done."""
        self._wake.set()

    def submit(self, state: RequestState, most: int) -> None:
        """Queue a request.

        Args:
            state: the request.
            most: requests that may be queued or running.

        Raises:
            Overloaded, EngineClosed, EngineFailed.
        """
        with self._lock:
            self.check_open()
            if self._open >= most:
                raise Overloaded(f"{self._open} requests are waiting or running; limits.max_queue is {most}")
            self._open += 1
            state.ended = self._done
            self._inbox.append(state)
        self._wake.set()

    def _done(self) -> None:
        with self._lock:
            self._open -= 1

    @property
    def queued(self) -> int:
        """Requests that wait to be started."""
        return len(self._inbox) + len(self.scheduler.queue)

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and not self._inbox

    def check_open(self) -> None:
        """Raises EngineFailed or EngineClosed unless requests are taken."""
        if self.failure is not None:
            raise EngineFailed("the engine has failed; make another") from self.failure
        if self._closing:
            raise EngineClosed("the engine is closed")

    @property
    def closing(self) -> bool:
        return self._closing

    def close(self, wait: bool = True) -> None:
        """End all requests with EngineClosed, stop the thread and free the models. Idempotent."""
        with self._lock:
            self._closing = True
        self._wake.set()
        if wait and self._thread is not threading.current_thread():
            self._thread.join()

    # --------------------------------------------------------------------------------------------------- the thread

    def _run(
        self, make: Callable[[Callable[[], None]], Scheduler], threads: int | None, made: Future[Scheduler]
    ) -> None:
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            scheduler = make(self.wake)
        except BaseException as error:  # whatever it is, the constructor waits for it
            made.set_exception(error)
            return
        made.set_result(scheduler)
        del make, made
        self._serve(scheduler)
        for model in scheduler.models.values():
            model.release()
        give_back()

    def _serve(self, scheduler: Scheduler) -> None:
        try:
            with torch.inference_mode():
                while True:
                    self._wake.clear()
                    closing = self._closing  # read first: what was accepted before it was set is in the inbox
                    self._take(scheduler)
                    if closing:
                        scheduler.abort(EngineClosed("the engine was closed"))
                        return
                    if scheduler.idle:
                        self._wake.wait()
                        continue
                    if (pause := scheduler.pause) is not None:
                        self._wake.wait(pause)
                    tick(scheduler)
        except Exception as error:
            log.exception("the engine thread failed")
            with self._lock:
                self.failure = error
                self._closing = True
            self._take(scheduler)
            failure: TrimtabError = EngineFailed(f"the engine thread failed: {type(error).__name__}")
            failure.__cause__ = error
            scheduler.abort(failure)
        finally:
            scheduler.close()

    def _take(self, scheduler: Scheduler) -> None:
        while self._inbox:
            scheduler.queue.append(self._inbox.popleft())
