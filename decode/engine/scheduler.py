"""Which waiting ops run in which forward pass, and who gets the pages.

One tick: take cancellations, admit queued requests, then for each model run one forward pass over the ops that wait for
it. Oldest requests go first. A pass reads at most ``token_budget`` tokens, so long prompts are cut into chunks and
answers that are being written never wait for a whole prompt of somebody else. When pages run out, requests that arrived
later lose theirs and recompute them afterwards (law 4); so the oldest always finishes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from trimtab.decode.engine.batch import RaggedBatch, Span
from trimtab.decode.engine.pages import OutOfPages
from trimtab.decode.engine.run import Run
from trimtab.decode.engine.sampler import sample
from trimtab.decode.engine.tasks import Task
from trimtab.decode.engine.view import LiveSequence, View
from trimtab.decode.errors import EngineFailed, RequestCancelled, TrimtabError
from trimtab.decode.ops import Extend, Pick, Read

__all__ = ["Scheduler"]

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Waiting:
    """An op and how far it has come."""

    run: Run
    task: Task
    op: Extend
    sequence: LiveSequence
    reads: list[Read] = field(default_factory=list)
    overtaken: bool = False  # left out of the last pass, which a later request was in


class Scheduler:
    """Runs requests on the calling thread, tick by tick.

    Args:
        views: models by name.
        max_rows: sequences in one forward pass.
        token_budget: tokens that one forward pass reads at most.
    """

    def __init__(self, views: dict[str, View], max_rows: int, token_budget: int) -> None:
        self.views, self.max_rows, self.token_budget = views, max_rows, token_budget
        self.queue: deque[Run] = deque()
        self.running: list[Run] = []
        self._waiting: dict[str, list[_Waiting]] = {name: [] for name in views}

    @property
    def idle(self) -> bool:
        return not self.queue and not self.running

    def tick(self) -> None:
        """Advance every request that can be advanced by one forward pass per model."""
        self._reap()
        self._admit()
        for view in self.views.values():
            if self._waiting[view.name]:
                self._pass(view)

    def abort(self, error: TrimtabError) -> None:
        """End every request with ``error``, even those that can't be cleaned up any more."""
        for run in list(self.running):
            try:
                self._end(run, error)
            except Exception:
                log.exception("request %s could not be cleaned up", run.job.generation_id)
        while self.queue:
            self._conclude(self.queue.popleft(), error)

    # ------------------------------------------------------------------------------------------------- life of a run

    def _reap(self) -> None:
        for run in [r for r in self.running if r.job.cancelled]:
            self._end(run, RequestCancelled("the request was cancelled"))
        if any(run.job.cancelled for run in self.queue):
            kept = [run for run in self.queue if not run.job.cancelled]
            for run in self.queue:
                if run.job.cancelled:
                    self._conclude(run, RequestCancelled("the request was cancelled while it was queued"))
            self.queue = deque(kept)

    def _admit(self) -> None:
        """Start queued requests, in order, while there are rows and pages for the head of the queue."""
        while self.queue and len(self.running) < self.max_rows:
            run = self.queue[0]
            if self.running and any(
                self.views[name].pages.available < pages for name, pages in run.needed_pages.items()
            ):
                return
            self.queue.popleft()
            self.running.append(run)
            run.started = time.monotonic()
            assert run.task is not None
            run.task.start()
            self._settle(run)

    def submit(self, run: Run, task: Task, op: Extend) -> None:
        """Queue an op of a running request."""
        sequence = op.seq
        assert isinstance(sequence, LiveSequence)
        if sequence.closed:
            task.fail(ValueError("the sequence is closed"))
            return
        total = len(sequence.tokens) + len(op.tokens)
        if not 1 <= len(op.picks) <= total:
            task.fail(ValueError(f"{len(op.picks)} reads of a sequence of {total} tokens"))
            return
        if total > sequence.view.context:
            task.fail(ValueError(f"{total} tokens exceed the context of {sequence.view.context}"))
            return
        sequence.tokens.extend(op.tokens)
        self._waiting[sequence.view.name].append(_Waiting(run, task, op, sequence))

    def _settle(self, run: Run) -> None:
        """Conclude the request if its method has ended."""
        task = run.task
        if task is None or not task.done or run not in self.running:
            return
        if task.error is None:
            self._end(run, None)
        elif isinstance(task.error, TrimtabError):
            self._end(run, task.error)
        else:
            log.error("request %s failed", run.job.generation_id, exc_info=task.error)
            failure = EngineFailed(f"an internal fault ended the request: {type(task.error).__name__}")
            failure.__cause__ = task.error
            self._end(run, failure)

    def _end(self, run: Run, error: Exception | None) -> None:
        self.running.remove(run)
        for name, waiting in self._waiting.items():
            if any(w.run is run for w in waiting):
                self._waiting[name] = [w for w in waiting if w.run is not run]
        try:
            run.release()
        finally:
            self._conclude(run, error)

    def _conclude(self, run: Run, error: Exception | None) -> None:
        if run.task is not None and not run.task.done:
            run.task.close()
        run.job.finished.set()
        try:
            if error is not None:
                run.on_event(error)
            elif run.task is not None:
                run.on_event(run.task.result)
        except Exception:  # a fault of whoever listens is not the engine's
            log.exception("the listener of request %s failed at its last event", run.job.generation_id)

    # ------------------------------------------------------------------------------------------------- forward passes

    def _pass(self, view: View) -> None:
        """One forward pass of ``view`` over the ops that wait for it."""
        batch_of = self._choose(view)
        if not batch_of:
            return
        spans = [span for _, span in batch_of]
        batch = RaggedBatch.pack(spans, view.storage.page_tokens)
        device = view.model.device
        try:
            logits = view.model.forward(
                torch.from_numpy(batch.tokens).to(device),
                torch.from_numpy(batch.positions).to(device),
                view.storage.begin(batch),
                torch.from_numpy(batch.rows).to(device),
            )
            reads = self._read(view, batch_of, logits)
        except Exception as error:  # a fault of the pass is the fault of the requests in it, and of no other
            log.exception("a forward pass of %s failed", view.name)
            for run in _unique([w.run for w, _ in batch_of]):
                failure = EngineFailed(f"a forward pass of model {view.name!r} failed: {type(error).__name__}")
                failure.__cause__ = error
                self._end(run, failure)
            return
        view.forward_passes += 1
        for run in _unique([w.run for w, _ in batch_of]):
            run.counter(view.name).forward_passes += 1
        finished: list[_Waiting] = []
        for waiting, span in batch_of:
            view.pages.commit(waiting.sequence.table, waiting.sequence.tokens, span.end)
            waiting.run.counter(view.name).tokens_read += len(span.tokens)
            if span.end == len(waiting.sequence.tokens):
                finished.append(waiting)
        for waiting, found in zip([w for w, s in batch_of for _ in range(s.reads)], reads, strict=True):
            waiting.reads.append(found)
        done = {id(w) for w in finished}
        self._waiting[view.name] = [w for w in self._waiting[view.name] if id(w) not in done]
        for waiting in finished:
            if waiting.run not in self.running:
                continue
            if any(read.token < 0 for read in waiting.reads):
                waiting.task.fail(EngineFailed(f"model {view.name!r} gave no finite logits"))
            else:
                waiting.task.resume(waiting.reads)
            self._settle(waiting.run)

    def _read(self, view: View, batch_of: list[tuple[_Waiting, Span]], logits: torch.Tensor) -> list[Read]:
        """Statistics and picks for every row of logits, in order."""
        rows: list[tuple[Pick | None, Sequence[int], int]] = []
        for waiting, span in batch_of:
            op, tokens = waiting.op, waiting.sequence.tokens
            first = len(tokens) - len(op.picks) + 1  # tokens that the first read has seen
            for i in range(len(waiting.reads), len(waiting.reads) + span.reads):
                pick = op.picks[i]
                waiting.run.drawn += pick is not None
                penalised = pick is not None and pick.filters.repetition_penalty != 1.0
                rows.append((pick, tokens[: first + i] if penalised else (), op.top))
        return sample(logits, rows, view.vocabulary.piece) if rows else []

    def _choose(self, view: View) -> list[tuple[_Waiting, Span]]:
        """The ops of this pass and the part of each that it computes; pages are reserved."""
        # A task that its siblings' failure has closed wants no answer.
        self._waiting[view.name] = [w for w in self._waiting[view.name] if not w.task.done]
        waiting = sorted(self._waiting[view.name], key=lambda w: w.run.arrival)
        # Who writes goes before who reads a prompt: a chunk of a prompt must not delay answers under way. But not twice
        # in a row for later requests' sake: the oldest would wait for as long as new ones come.
        waiting.sort(key=lambda w: not w.overtaken and len(w.sequence.tokens) - w.sequence.table.length > _SHORT)
        chosen: list[tuple[_Waiting, Span]] = []
        budget = self.token_budget
        for item in waiting:
            if len(chosen) == self.max_rows or budget <= 0:
                break
            if item.sequence.closed:
                continue  # its request failed while pages were sought for an earlier one
            span = self._reserve(view, item, budget)
            if span is None and not chosen:
                span = self._preempt(view, item, budget)
                if span is None:
                    continue
            if span is not None:
                chosen.append((item, span))
                budget -= len(span.tokens)
        taken = {id(item) for item, _ in chosen}
        latest = max((item.run.arrival for item, _ in chosen), default=-1)
        for item in waiting:
            item.overtaken = id(item) not in taken and item.run.arrival < latest
        return chosen

    def _reserve(self, view: View, item: _Waiting, budget: int) -> Span | None:
        """Make room for the next part of an op; None if there are no pages for it."""
        sequence, pages = item.sequence, view.pages
        total, wanted = len(sequence.tokens), len(item.op.picks) - len(item.reads)
        if not sequence.table.pages and total > wanted:
            copies = pages.adopt(sequence.table, sequence.tokens[: total - wanted])
            view.storage.copy(copies)
            item.run.counter(view.name).cached_tokens += sequence.table.length
        table = sequence.table
        if table.length > total - wanted:
            pages.truncate(table, total - wanted)
        take = min(budget, total - table.length)
        try:
            copies = pages.reserve(table, take)
        except OutOfPages:
            return None
        view.storage.copy(copies)
        start = table.length
        reads = max(0, start + take - (total - wanted))
        return Span(sequence.tokens[start : start + take], start, table.pages, reads)

    def _preempt(self, view: View, item: _Waiting, budget: int) -> Span | None:
        """Take pages from the latest arrivals until ``item`` fits; fail it if nobody is left to take from."""
        victims = [
            sequence
            for run in sorted(self.running, key=lambda r: -r.arrival)
            if run.arrival >= item.run.arrival
            for sequence in reversed(list(run.sequences))
            if sequence.view is view and sequence is not item.sequence and sequence.table.pages
        ]
        for victim in victims:
            victim.evict()
            span = self._reserve(view, item, budget)
            if span is not None:
                return span
        older = any(
            sequence.view is view and sequence.table.pages
            for run in self.running
            if run.arrival < item.run.arrival
            for sequence in run.sequences
        )
        if not older:
            need = view.pages.pages_for(len(item.sequence.tokens))
            item.task.fail(EngineFailed(f"{need} pages of model {view.name!r} needed, {view.pages.count} exist"))
            self._waiting[view.name] = [w for w in self._waiting[view.name] if w is not item]
            self._settle(item.run)
        return None


_SHORT = 16  # uncached tokens up to which an op counts as writing, not as reading a prompt


def _unique(runs: list[Run]) -> list[Run]:
    return list(dict.fromkeys(runs))
