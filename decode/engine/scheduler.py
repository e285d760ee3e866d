"""Which waiting ops run in which forward pass, and who gets the pages.

One tick: take cancellations and the results of calls, admit queued requests, let drafts draft, then for each model run
one forward pass over the ops that wait for it. Oldest requests go first. A pass reads at most ``token_budget`` tokens,
so long prompts are cut into chunks and answers that are being written never wait for a whole prompt of somebody else.
When pages run out, requests that arrived later lose theirs and recompute them afterwards (law 4); so the oldest always
finishes.

A block of drafted tokens grows within one tick, a forward pass of the draft for each token, whatever the method that
asked for it; so the verification of all blocks, and every step that doesn't speculate, share the target's next pass.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from trimtab.decode.engine.batch import Span
from trimtab.decode.engine.blocks import Blocks
from trimtab.decode.engine.calls import Calls
from trimtab.decode.engine.model_instance import ModelInstance
from trimtab.decode.engine.pages import OutOfPages
from trimtab.decode.engine.plan import Entry, Output, Plan
from trimtab.decode.engine.request_state import RequestState
from trimtab.decode.engine.tasks import Op, Task
from trimtab.decode.engine.work import SHORT, Item, Pending
from trimtab.decode.errors import EngineFailed, RequestCancelled, TrimtabError
from trimtab.decode.ops import (
    Call,
    Draft,
    Drafted,
    Extend,
    Verify,
)
from trimtab.kernels.types import Pick

__all__ = ["Scheduler"]

log = logging.getLogger(__name__)


class Scheduler:
    """Decides what runs, and hands results to the methods that wait for them. Belongs to the thread that calls it.

    Args:
        models: by name.
        max_rows: sequences in one forward pass.
        token_budget: tokens that one forward pass reads at most.
        same_ids: whether two models share one vocabulary.
        wake: called on any thread when the engine's thread has something to do again.
    """

    def __init__(
        self,
        models: dict[str, ModelInstance],
        max_rows: int,
        token_budget: int,
        same_ids: Callable[[str, str], bool],
        wake: Callable[[], object],
    ) -> None:
        self.models, self.same_ids, self.max_rows, self.token_budget = models, same_ids, max_rows, token_budget
        self.queue: deque[RequestState] = deque()
        self.running: list[RequestState] = []
        self._waiting: dict[str, list[Item]] = {name: [] for name in models}
        self.blocks = Blocks(models, same_ids, max_rows)
        self._calls = Calls(wake)

    @property
    def idle(self) -> bool:
        return not self.queue and not self.running

    @property
    def pause(self) -> float | None:
        """Seconds for which there is nothing to do unless something comes in; None: there is."""
        if self.queue or any(self._waiting.values()) or any(state.job.cancelled for state in self.running):
            return None
        return self._calls.timeout()

    def copies(self, target: str, chance: float, most: int) -> int:
        """How many copied tokens pay to verify at the present load; each stands with probability ``chance``."""
        return self.blocks.copies(target, chance, most, self._rows(target))

    def close(self) -> None:
        """Stop the workers of calls."""
        self._calls.close()

    def abort(self, error: TrimtabError) -> None:
        """End every request with ``error``, even those that can't be cleaned up any more."""
        for state in list(self.running):
            try:
                self._retire(state, error)
            except Exception:
                log.exception("request %s could not be cleaned up", state.job.generation_id)
        while self.queue:
            self._tell_end(self.queue.popleft(), error)

    # --------------------------------------------------------------------------------------------- life of a request

    def admit(self) -> None:
        """Begin a tick: drop what was cancelled, start what was queued, in order, while there are rows and pages for
        the head of the queue, and take the results of calls.
        """
        for state in [s for s in self.running if s.job.cancelled]:
            self._retire(state, RequestCancelled("the request was cancelled"))
        for state in [s for s in self.queue if s.job.cancelled]:
            self.queue.remove(state)
            self._tell_end(state, RequestCancelled("the request was cancelled while it was queued"))
        while self.queue and len(self.running) < self.max_rows:
            needed = self.queue[0].needed_pages
            if self.running and any(self.models[name].pages.available < pages for name, pages in needed.items()):
                break
            state = self.queue.popleft()
            self.running.append(state)
            state.started = time.monotonic()
            state.task = Task(state.method(state), partial(self._submit, state))
            self._reply(state, state.task)
        for state, task, result, error in self._calls.poll():
            self._reply(state, task, result, error)

    def _submit(self, state: RequestState, task: Task, op: Op) -> None:
        """Queue an op of a running request. Raises ValueError if it makes no sense."""
        if isinstance(op, Call):
            self._calls.submit(state, task, op)
            return
        for item in Pending.of(state, task, op).items:
            self._waiting[item.sequence.model].append(item)

    def _reply(self, state: RequestState, task: Task, answer: Any = None, error: Exception | None = None) -> None:
        """Let a method go on, with an answer or by raising an error, and retire its request if that has ended."""
        if error is None:
            task.resume(answer)
        else:
            task.fail(error)
        root = state.task
        if root is None or not root.done or state not in self.running:
            return
        if root.error is None or isinstance(root.error, TrimtabError):
            self._retire(state, root.error)
        else:
            self._fail(state, "an internal fault ended the request", root.error)

    def _fail(self, state: RequestState, what: str, error: Exception) -> None:
        """End a request by a fault that is none of its owner's."""
        if state in self.running:
            log.error("request %s: %s", state.job.generation_id, what, exc_info=error)
            failure = EngineFailed(f"{what}: {type(error).__name__}")
            failure.__cause__ = error
            self._retire(state, failure)

    def _retire(self, state: RequestState, error: Exception | None) -> None:
        """Take a running request out, give back what it holds, and tell how it ended."""
        self.running.remove(state)
        for name, waiting in self._waiting.items():
            self._waiting[name] = [item for item in waiting if item.state is not state]
        self.blocks.forget(state)
        self._calls.forget(state)
        try:
            state.release()
        finally:
            self._tell_end(state, error)

    def _tell_end(self, state: RequestState, error: Exception | None) -> None:
        """The last event of a request: its result, or ``error``."""
        if state.task is not None and not state.task.done:
            state.task.close()
        state.job.finished.set()
        state.ended()
        try:
            state.on_event(error if error is not None or state.task is None else state.task.result)
        except Exception:  # a fault of whoever listens is not the engine's
            log.exception("the listener of request %s failed at its last event", state.job.generation_id)

    # ---------------------------------------------------------------------------------------------------------- plans

    def plans(self) -> Iterator[Plan]:
        """The passes of one tick; each is planned when those before it have been committed.

        First all blocks grow until they have stopped, but for those whose draft still reads a prompt. A part of that is
        read before, so that a block whose prompt is short is verified in this tick. Blocks that begin later grow in
        the next tick, with the others.
        """
        for model in self.models.values():
            if plan := self._plan(model, [item for item in self._drafts(model) if item.missing > SHORT]):
                yield plan
            # Until there are none, or no pages for any of them.
            while plan := self._plan(model, [i for i in self._drafts(model) if i.missing <= SHORT], drafting=True):
                yield plan
        for model in self.models.values():
            writing = [item for item in self._live(model) if not isinstance(item.pending.op, Draft)]
            if plan := self._plan(model, writing):
                yield plan

    def _live(self, model: ModelInstance) -> list[Item]:
        """What waits for a model. A task that its siblings' failure has closed wants no answer."""
        if any(item.pending.task.done for item in self._waiting[model.name]):
            self._waiting[model.name] = [i for i in self._waiting[model.name] if not i.pending.task.done]
        return self._waiting[model.name]

    def _drafts(self, model: ModelInstance) -> list[Item]:
        """Items whose blocks are under way. Those that wait to begin do, or are answered with an empty block where
        speculation doesn't pay now.
        """
        for item in list(self._live(model)):
            op = item.pending.op
            if not isinstance(op, Draft) or self.blocks.of(item.pending) or item.pending.task.done:
                continue
            if not self.blocks.begin(item, self._rows(op.target)):
                item.sequence.rewind(len(item.sequence.tokens) - len(op.tokens))
                self._take_back(item.pending)
                self._reply(item.state, item.pending.task, Drafted(()))
        return [item for item in self._live(model) if self.blocks.of(item.pending) is not None]

    def _rows(self, target: str) -> int:
        """Rows that wait for a target, or draft for it."""
        waiting = [item.pending.op for items in self._waiting.values() for item in items]
        return len(self._waiting[target]) + sum(isinstance(op, Draft) and op.target == target for op in waiting)

    def _take_back(self, pending: Pending) -> None:
        """An op waits no longer."""
        self.blocks.drop(pending)
        for item in pending.items:
            name = item.sequence.model
            self._waiting[name] = [other for other in self._waiting[name] if other is not item]

    def _plan(self, model: ModelInstance, waiting: Sequence[Item], drafting: bool = False) -> Plan | None:
        """A pass over some items that wait for a model, as many as there is room for; their pages are reserved.

        Who writes goes before who reads a prompt: a chunk of a prompt must not delay answers under way. But not twice
        in a row for later requests' sake: the oldest would wait for as long as new ones come.
        """
        if not waiting:
            return None
        waiting = sorted(waiting, key=lambda i: (not i.overtaken and i.missing > SHORT, i.state.arrival))
        chosen: list[Entry] = []
        budget = self.token_budget
        for item in waiting:
            if len(chosen) == self.max_rows or budget <= 0:
                break
            if item.sequence.closed:
                continue  # its request failed while pages were sought for an earlier one
            span = self._reserve(item, budget)
            if span is None and not chosen:
                span = self._preempt(item, budget)
            if span is not None:
                last = span.end == len(item.sequence.tokens)
                chosen.append(Entry(item, span, self.blocks.of(item.pending), last))
                budget -= len(span.tokens)
        taken = {entry.item for entry in chosen}
        latest = max((item.state.arrival for item in taken), default=-1)
        for item in waiting:
            item.overtaken = item not in taken and item.state.arrival < latest
        return Plan(model, tuple(chosen), drafting) if chosen else None

    def _reserve(self, item: Item, budget: int) -> Span | None:
        """Make room for the next part of an item; None if there are no pages for it."""
        sequence, model = item.sequence, item.sequence.instance
        pages, table = model.pages, sequence.table
        known = len(sequence.tokens) - (item.wanted - item.got)  # what comes after is read
        if item.state.request.prompt_cache and not table.pages and known > 0:
            model.storage.copy(pages.adopt(table, sequence.tokens[:known]))
            item.state.counter(model.name).cached_tokens += table.length
        if table.length > known:
            pages.truncate(table, known)
        start = table.length
        end = min(start + budget, len(sequence.tokens))
        try:
            copies = pages.reserve(table, end - start)
        except OutOfPages:
            return None
        model.storage.copy(copies)
        return Span(sequence.tokens[start:end], start, table.pages, max(0, end - known))

    def _preempt(self, item: Item, budget: int) -> Span | None:
        """Take pages from the latest arrivals until ``item`` fits; fail it if nobody is left to take from."""
        model = item.sequence.instance
        holders = [
            (state.arrival, sequence)
            for state in sorted(self.running, key=lambda state: -state.arrival)
            for sequence in reversed(list(state.sequences))
            if sequence.instance is model and sequence is not item.sequence and sequence.table.pages
        ]
        for arrival, sequence in holders:
            if arrival < item.state.arrival:
                return None
            sequence.evict()
            if (span := self._reserve(item, budget)) is not None:
                return span
        need = f"{model.pages.pages_for(len(item.sequence.tokens))} pages of model {model.name!r} needed"
        self._take_back(item.pending)
        error = EngineFailed(f"{need}, {model.pages.count} exist")
        self._reply(item.state, item.pending.task, error=error)
        return None

    # -------------------------------------------------------------------------------------------------------- results

    def commit(self, plan: Plan, output: Output) -> None:
        """Take note of what a pass computed, and answer the ops that are done."""
        model = plan.model
        for pending, failure in output.failures.items():
            self._fail(pending.state, *failure)
        # A request that has ended has taken its other rows with it.
        passed = [entry for entry in plan.entries if not entry.item.sequence.closed]
        model.forward_passes += bool(passed)
        for state in dict.fromkeys(entry.item.state for entry in passed):
            state.counter(model.name).forward_passes += 1
        finished: set[Item] = set()
        for item, span, block, last in passed:
            model.pages.commit(item.sequence.table, item.sequence.tokens, span.end)
            item.state.counter(model.name).tokens_read += len(span.tokens)
            if block is None:
                item.got += span.reads
                item.pending.reads += output.reads.get(item.pending, ())
                if item in output.rows:
                    item.rows.append(output.rows[item])
            if last and item not in output.growing:
                finished.add(item)
                item.pending.open -= 1
        self._waiting[model.name] = [item for item in self._waiting[model.name] if item not in finished]
        for pending, answer in output.answers.items():
            self._answer(pending, answer)
        self.blocks.observe(plan, output)

    def _answer(self, pending: Pending, answer: Any) -> None:
        """Answer an op that is done."""
        state, op = pending.state, pending.op
        if state not in self.running or pending.task.done:
            return  # it has ended with another row of its own
        if isinstance(op, Draft):
            self.blocks.drafted(pending)
        if not isinstance(op, (Extend, Verify)):
            self._reply(state, pending.task, answer)
            return
        if isinstance(op, Verify):
            state.drawn += 1
            accepted = len(answer) - 1
            self.blocks.verified(pending, accepted)
            for item in pending.items:
                item.sequence.rewind(len(item.sequence.tokens) - len(op.drafted.tokens) + accepted)
        else:
            state.drawn += sum(isinstance(pick, Pick) for pick in op.picks)
        error = None
        if any(read.token < 0 for read in answer):
            error = EngineFailed(f"model {op.seq.model!r} gave no finite logits")
        self._reply(state, pending.task, answer, error)
