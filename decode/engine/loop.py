"""The engine's thread: loads the models, then advances requests until it is told to stop.

The thread refers to the loop, never to the ``Engine`` that callers hold: an engine that nobody holds any more can be
collected, and stops its loop.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

import torch

from trimtab.decode.engine.memory import give_back
from trimtab.decode.engine.run import Run
from trimtab.decode.engine.scheduler import Scheduler
from trimtab.decode.engine.view import View
from trimtab.decode.errors import EngineClosed, EngineFailed, Overloaded, TrimtabError

__all__ = ["Loop"]

log = logging.getLogger(__name__)


class Loop:
    """Serves models on one thread of its own.

    Args:
        load: makes the models; called on the thread.
        threads: of torch's CPU kernels; None leaves torch's setting alone.

    Attributes:
        views: the models, by name.
        failure: what stopped the thread, if it failed.

    Raises:
        whatever ``load`` does.

    Models are loaded on the thread that runs them. Each thread that computes has OpenMP workers of its own; where those
    of two threads outnumber the cores, GNU's OpenMP lets idle ones sleep at once, and each of the hundreds of parallel
    regions of a step pays a wake-up: with models loaded elsewhere a token took 20 ms instead of 10 (2 cores,
    SmolLM2-135M).
    """

    def __init__(self, load: Callable[[], dict[str, View]], threads: int | None) -> None:
        self._inbox: deque[Run] = deque()
        self._open = 0  # submitted and not finished
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._ready = threading.Event()  # the scheduler is set
        self.failure: Exception | None = None
        loaded: queue.SimpleQueue[dict[str, View] | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, args=(load, threads, loaded), name="trimtab-engine", daemon=True
        )
        self._thread.start()
        views = loaded.get()
        if isinstance(views, BaseException):
            raise views
        self.views = views

    def start(self, max_rows: int, token_budget: int, shared: Callable[[str, str], bool]) -> None:
        """Begin to serve; see ``Scheduler``. ``shared`` must not refer to the engine."""
        self.scheduler = Scheduler(self.views, max_rows, token_budget, shared, self._wake.set)
        self._ready.set()

    # --------------------------------------------------------------------------------------------- from any thread

    def wake(self) -> None:
        """Have the thread look again for what is to be done."""
        self._wake.set()

    def submit(self, run: Run, most: int) -> None:
        """Queue a request. ``done`` is to be called when it has ended.

        Args:
            run: the request.
            most: requests that may be queued or running.

        Raises:
            Overloaded, EngineClosed, EngineFailed.
        """
        with self._lock:
            self.check_open()
            if self._open >= most:
                raise Overloaded(f"{self._open} requests are waiting or running; limits.max_queue is {most}")
            self._open += 1
            self._inbox.append(run)
        self._wake.set()

    def done(self) -> None:
        """A submitted request is about to end: its owner may submit the next at once."""
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
        self._ready.set()
        self._wake.set()
        if wait and self._thread is not threading.current_thread():
            self._thread.join()

    # --------------------------------------------------------------------------------------------------- the thread

    def _run(
        self,
        load: Callable[[], dict[str, View]],
        threads: int | None,
        loaded: queue.SimpleQueue[dict[str, View] | BaseException],
    ) -> None:
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            views = load()
        except BaseException as error:  # whatever it is, the constructor waits for it
            loaded.put(error)
            return
        loaded.put(views)
        del load, loaded
        self._ready.wait()
        if hasattr(self, "scheduler"):
            self._serve(self.scheduler)
        for view in views.values():
            view.release()
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
                    scheduler.tick()
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
