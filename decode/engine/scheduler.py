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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.decode.engine.attention import reading
from trimtab.decode.engine.batch import RaggedBatch
from trimtab.decode.engine.batch import Span as Piece
from trimtab.decode.engine.calls import Calls
from trimtab.decode.engine.costs import Load
from trimtab.decode.engine.drafting import Block, Source, columns, grow
from trimtab.decode.engine.isolate import isolated
from trimtab.decode.engine.pages import OutOfPages
from trimtab.decode.engine.rounds import Kind
from trimtab.decode.engine.run import Run
from trimtab.decode.engine.sampler import Row, Span, drawable, mix, sample, verify
from trimtab.decode.engine.speculation import Part, Speculation, Spent
from trimtab.decode.engine.tasks import Task
from trimtab.decode.engine.view import View
from trimtab.decode.engine.work import SHORT, Item, ModelOp, Pending, sequences_of
from trimtab.decode.errors import EngineFailed, RequestCancelled, TrimtabError
from trimtab.decode.ops import Call, Draft, Drafted, Extend, Mixed, Pick, Read, Value, Verify
from trimtab.kernels import dispatch

__all__ = ["Scheduler"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Drafts:
    """Of a round: the seconds that went into them, those of these that were for reading the past (``Spent``), the kinds
    of their lengths, and whether some were drafted only to learn.
    """

    seconds: float = 0.0
    reading: float = 0.0
    kinds: set[Kind] = field(default_factory=set)
    trial: bool = False


class Scheduler:
    """Runs requests on the calling thread, tick by tick.

    Args:
        views: models by name.
        max_rows: sequences in one forward pass.
        token_budget: tokens that one forward pass reads at most.
        shared: whether two models share one vocabulary.
        wake: called on any thread when the engine's thread has something to do again.
    """

    def __init__(
        self,
        views: dict[str, View],
        max_rows: int,
        token_budget: int,
        shared: Callable[[str, str], bool],
        wake: Callable[[], object],
    ) -> None:
        self.views, self.max_rows, self.token_budget = views, max_rows, token_budget
        self.queue: deque[Run] = deque()
        self.running: list[Run] = []
        self.speculation = Speculation()
        self._waiting: dict[str, list[Item]] = {name: [] for name in views}
        self._blocks: dict[Pending, Block] = {}
        self._columns: dict[tuple[str, str], Any] = {}
        self._latest: dict[str, Load] = {}  # of the last pass that wrote
        self._written = 0  # tokens, by the pass under way
        self._drafts: dict[str, _Drafts] = {}  # by target, those that its next pass verifies
        self._shared = shared
        self._calls = Calls(wake)

    @property
    def idle(self) -> bool:
        return not self.queue and not self.running

    @property
    def pause(self) -> float | None:
        """Seconds for which there is nothing to do unless something comes in; None: there is."""
        if self.queue or any(self._waiting.values()) or any(run.job.cancelled for run in self.running):
            return None
        return self._calls.timeout()

    def tick(self) -> None:
        """Advance every request that can be advanced by one forward pass per model."""
        self._reap()
        self._admit()
        for run, task, result, error in self._calls.poll():
            if error is None:
                task.resume(result)
            else:
                task.fail(error)
            self._settle(run)
        for view in self.views.values():
            self._draft(view)
        for view in self.views.values():
            # Blocks that began meanwhile grow in the next tick, with the others.
            waiting = [item for item in self._waiting[view.name] if not isinstance(item.pending.op, Draft)]
            if waiting:
                self._pass(view, waiting)

    def copies(self, target: str, chance: float, most: int) -> int:
        """How many copied tokens pay to verify at the present load; each stands with probability ``chance``."""
        return self.speculation.copies(target, chance, most, self._load(self.views[target]))

    def close(self) -> None:
        """Stop the workers of calls."""
        self._calls.close()

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

    def submit(self, run: Run, task: Task, op: ModelOp | Call) -> None:
        """Queue an op of a running request."""
        if isinstance(op, Call):
            self._calls.submit(run, task, op)
            return
        sequences = sequences_of(op.seq)
        drafted = op.drafted.tokens if isinstance(op, Verify) else ()
        tokens = (*op.tokens, *drafted)
        wanted = len(op.picks) if isinstance(op, (Extend, Verify)) else op.last if isinstance(op, Value) else 1
        fault = None
        for sequence in sequences:
            total = len(sequence.tokens) + len(tokens)
            if sequence.closed:
                fault = "the sequence is closed"
            elif not 1 <= wanted <= total:
                fault = f"{wanted} reads of a sequence of {total} tokens"
            elif total > sequence.view.context:
                fault = f"{total} tokens exceed the context of {sequence.view.context}"
            elif outside := sequence.view.unknown(tokens):
                fault = outside
            elif isinstance(op, Value) is not (sequence.view.model.labels is not None):
                fault = f"{type(op).__name__} of model {sequence.view.name!r}"
        if isinstance(op, Verify) and wanted != len(drafted) + 1:
            fault = f"{wanted} picks for {len(drafted)} drafted tokens"
        if isinstance(op, Draft) and not op.picks:
            fault = "a draft without picks"
        if fault is not None:
            task.fail(ValueError(fault))
            return
        pending = Pending(run, task, op)
        for sequence in sequences:
            sequence.tokens.extend(tokens)
            item = Item(pending, sequence, wanted)
            pending.items.append(item)
            self._waiting[sequence.view.name].append(item)
        pending.open = len(pending.items)

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
            if any(item.run is run for item in waiting):
                self._waiting[name] = [item for item in waiting if item.run is not run]
        for pending in [p for p in self._blocks if p.run is run]:
            del self._blocks[pending]
        self._calls.forget(run)
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

    def _pass(self, view: View, waiting: Sequence[Item], drafting: bool = False) -> None:
        """One forward pass of ``view`` over items that wait for it.

        Args:
            view: the model.
            waiting: some or all of its items.
            drafting: all belong to blocks under way.
        """
        chosen = self._choose(view, waiting)
        if chosen:
            self._compute(view, chosen, drafting)

    def _compute(self, view: View, chosen: list[tuple[Item, Piece]], drafting: bool) -> None:
        """Run the pass; where it fails, its halves, until the one that makes it fail is alone and ends by that."""
        batch = RaggedBatch.pack([piece for _, piece in chosen], view.storage.page_tokens)
        blocks = [(item, self._blocks.get(item.pending)) for item, _ in chosen]
        part: Part = "target"
        if drafting:
            part = "later" if all(block is not None and block.tokens for _, block in blocks) else "first"
        device = view.model.device
        began = time.perf_counter()
        self._written = 0
        hidden: Tensor | None = None
        try:
            arguments = (
                torch.from_numpy(batch.tokens).to(device),
                torch.from_numpy(batch.positions).to(device),
                view.storage.begin(batch),
                torch.from_numpy(batch.rows).to(device),
            )
            wanted = any(block is not None and block.rule.wants_acceptance for _, block in blocks)
            if wanted and view.model.forward_hidden is not None:
                output, hidden = view.model.forward_hidden(*arguments)
            else:
                output = view.model.forward(*arguments)
            if output.shape[1] > view.width and view.model.labels is None:
                output = output[:, : view.width]
        except Exception as error:
            if len(chosen) == 1:
                self._fail(chosen[0][0].run, f"a forward pass of model {view.name!r} failed", error)
                return
            half = len(chosen) // 2
            for some in (chosen[:half], chosen[half:]):
                # A request that has ended meanwhile has taken its other rows with it.
                if left := [(item, piece) for item, piece in some if not item.sequence.closed]:
                    self._compute(view, left, drafting)
            return
        try:
            growing = self._read(view, chosen, output, hidden)
        except Exception as error:  # not of one row: those are told apart
            for item, _ in chosen:
                self._fail(item.run, f"reading a pass of model {view.name!r} failed", error)
            return
        view.forward_passes += 1
        for run in _unique([item.run for item, _ in chosen]):
            run.counter(view.name).forward_passes += 1
        finished: dict[int, Item] = {}
        for item, piece in chosen:
            view.pages.commit(item.sequence.table, item.sequence.tokens, piece.end)
            item.run.counter(view.name).tokens_read += len(piece.tokens)
            if piece.end == len(item.sequence.tokens) and item not in growing:
                finished[id(item)] = item
        self._waiting[view.name] = [item for item in self._waiting[view.name] if id(item) not in finished]
        self._answer(list(finished.values()))
        if all(len(piece.tokens) <= SHORT for _, piece in chosen):
            pieces = [piece for _, piece in chosen]
            took = time.perf_counter() - began
            positions = sum(piece.end * reading(len(piece.tokens)) for piece in pieces)
            spent = self.speculation.observe(view.name, len(batch.tokens), took, part, positions)
            grown = [block for _, block in blocks if drafting and block is not None]
            self._round(view, pieces, spent, grown)

    def _round(self, view: View, pieces: Sequence[Piece], spent: Spent, blocks: Sequence[Block]) -> None:
        """Add a pass to the round that it is part of, one that grew ``blocks`` or the target's, which ends it."""
        rows, tokens = len(pieces), sum(len(piece.tokens) for piece in pieces)
        load = Load(rows, sum(piece.end for piece in pieces))
        if not blocks:
            self._latest[view.name] = load
        seconds = spent.seconds
        if tokens > 2 * rows and blocks:
            # What a draft reads that was held back for long is no part of what a round takes.
            seconds = min(seconds, self.speculation.beginning(view.name, load) or seconds)
        for block in blocks:
            drafts = self._drafts.setdefault(block.op.target, _Drafts())
            drafts.kinds.add((type(block.op.length), block.rule.even))
            drafts.trial |= block.rule.trial
            drafts.seconds += seconds / len(blocks)
            drafts.reading += min(spent.reading, seconds) / len(blocks)
        if not blocks and self._written:
            drafts = self._drafts.pop(view.name, _Drafts())
            plain = not drafts.kinds and tokens == rows
            if (plain or len(drafts.kinds) == 1) and not drafts.trial:
                kind = None if plain else next(iter(drafts.kinds))
                seconds, read = seconds + drafts.seconds, spent.reading + drafts.reading
                self.speculation.rounds.add(view.name, kind, load, seconds, self._written, read)

    def _read(self, view: View, chosen: list[tuple[Item, Piece]], output: Tensor, hidden: Tensor | None) -> set[Item]:
        """Give each item its rows of output; sample those that can be. Returns the drafting items that go on.

        What a row raises is given to its item, which ends by it once it is computed whole.
        """
        rows: list[Row] = []
        joined = any(isinstance(item.pending.op, Verify) and len(item.pending.items) == 1 for item, _ in chosen)
        sampled: list[tuple[Item, int]] = []  # and the row of output
        drafting: list[tuple[Block, int]] = []
        at = 0
        for item, piece in chosen:
            block = self._blocks.get(item.pending)
            if piece.reads and block is not None:
                drafting.append((block, at))
            elif item.sampled and not (joined and item.joins):
                for i in range(piece.reads):
                    rows.append(_row(item, item.got + i))
                    item.run.drawn += isinstance(rows[-1].pick, Pick)
                    sampled.append((item, at + i))
            elif piece.reads:
                item.rows.append(output[at : at + piece.reads])
            item.got += piece.reads
            at += piece.reads
        if rows:
            own = output if len(rows) == len(output) else output[[i for _, i in sampled]]
            for (item, _), read in zip(sampled, _sampled(own, rows, view.vocabulary.piece), strict=True):
                if isinstance(read, Exception):
                    item.fault = item.fault or read
                else:
                    item.reads.append(read)
        growing: set[Item] = set()
        if drafting:
            blocks, at_rows = [b for b, _ in drafting], [i for _, i in drafting]
            accepts: list[float | None] = [None] * len(blocks)
            if hidden is not None and view.model.acceptance is not None:
                greedy = torch.tensor([block.op.picks[0].filters.temperature == 0 for block in blocks])
                accepts = view.model.acceptance(hidden[at_rows], greedy.to(hidden.device)).tolist()
            own = output if len(blocks) == len(output) else output[at_rows]
            for block, on in zip(blocks, grow(blocks, own, accepts), strict=True):
                if isinstance(on, Exception):
                    block.item.fault = on
                elif on:
                    growing.add(block.item)
        return growing

    def _answer(self, items: list[Item]) -> None:
        """Resume the tasks whose ops are computed whole."""
        ready: list[Pending] = []
        for item in items:
            item.pending.open -= 1
            if item.pending.open == 0 and item.run in self.running and not item.pending.task.done:
                ready.append(item.pending)
        answers: list[tuple[Pending, Any]] = []
        for pending in ready:
            if fault := next((item.fault for item in pending.items if item.fault is not None), None):
                answers.append((pending, fault))
        for kind, group in _groups([p for p in ready if all(item.fault is None for item in p.items)]):
            call = partial(self._results, kind)
            answers += zip(group, isolated(call, group), strict=True)
        order = {id(pending): i for i, pending in enumerate(ready)}
        for pending, answer in sorted(answers, key=lambda pair: order[id(pair[0])]):
            if pending.run not in self.running:
                continue
            if isinstance(answer, Exception):
                self._fail(pending.run, f"reading {type(pending.op).__name__} failed", answer)
                continue
            self._blocks.pop(pending, None)
            model = pending.items[0].sequence.view.name
            reads = [r for r in answer if isinstance(r, Read)] if isinstance(answer, list) else []
            self._written += len(reads)
            self._count(pending, reads)
            if any(read.token < 0 for read in reads):
                pending.task.fail(EngineFailed(f"model {model!r} gave no finite logits"))
            else:
                pending.task.resume(answer)
            self._settle(pending.run)

    def _count(self, pending: Pending, reads: Sequence[Read]) -> None:
        """Take note of what an answer says: tokens drawn, drafted ones accepted, sequences as long as what stands."""
        op = pending.op
        if isinstance(op, Extend) and not pending.items[0].sampled:
            pending.run.drawn += sum(isinstance(pick, Pick) for pick in op.picks)
        if not isinstance(op, Verify):
            return
        pending.run.drawn += 1
        count, accepted, source = len(op.drafted.tokens), len(reads) - 1, op.drafted.source
        if isinstance(source, Source) and count:
            target, request = pending.items[0].sequence.view.name, pending.run.job.generation_id
            self.speculation.verified(source.model, target, request, source.length, count, accepted, source.passes)
        for item in pending.items:
            item.sequence.rewind(len(item.sequence.tokens) - count + accepted)

    def _results(self, kind: type[ModelOp], group: Sequence[Pending]) -> list[Any]:
        """What ops that one call can answer are answered with; see ``_groups``. Nothing is changed by it."""
        view = group[0].items[0].sequence.view
        if kind is Draft:
            return [self._drafted(pending) for pending in group]
        if kind is Value:
            return [torch.cat(pending.items[0].rows).float().mean(0).tolist() for pending in group]
        if kind is Extend and len(group[0].items) == 1:
            return [pending.items[0].reads for pending in group]
        rows = [[_row(pending.items[0], i) for i in range(pending.items[0].wanted)] for pending in group]
        parts = [
            torch.cat([row for pending in group for row in pending.items[k].rows]) for k in range(len(group[0].items))
        ]
        blends = [_blend(p) for p, own in zip(group, rows, strict=True) for _ in own] if len(parts) > 1 else []
        flat = [row for own in rows for row in own]
        if kind is Extend:
            reads = iter(mix(parts, blends, flat, view.vocabulary.piece))
            return [[next(reads) for _ in own] for own in rows]
        logits = dispatch.blend(parts, drawable(parts, blends, flat)).logits if blends else parts[0]
        spans = []
        for pending, own in zip(group, rows, strict=True):
            drafted = pending.op.drafted if isinstance(pending.op, Verify) else Drafted(())
            source = drafted.source
            draft = source.draft if isinstance(source, Source) else dispatch.Draft(None, (), None)
            if isinstance(pending.op, Verify) and pending.op.coupled:
                draft = None
            spans.append(Span(own, drafted.tokens, draft))
        return verify(logits, spans, view.vocabulary.piece)

    def _drafted(self, pending: Pending) -> Drafted:
        """The block that a ``Draft`` op is answered with."""
        block = self._blocks[pending]
        if block.rule.dropped is not None:
            op, request = block.op, pending.run.job.generation_id
            self.speculation.dropped(
                op.seq.model, op.target, request, op.length, *block.rule.dropped, alone=not block.tokens
            )
        return block.drafted()

    def _fail(self, run: Run, what: str, error: Exception) -> None:
        """End a request whose work failed."""
        if run in self.running:
            log.error("%s", what, exc_info=error)
            failure = EngineFailed(f"{what}: {type(error).__name__}")
            failure.__cause__ = error
            self._end(run, failure)

    def _choose(self, view: View, waiting: Sequence[Item]) -> list[tuple[Item, Piece]]:
        """The items of this pass and the part of each that it computes; pages are reserved."""
        # A task that its siblings' failure has closed wants no answer.
        if any(item.pending.task.done for item in waiting):
            self._waiting[view.name] = [i for i in self._waiting[view.name] if not i.pending.task.done]
        waiting = sorted((i for i in waiting if not i.pending.task.done), key=lambda item: item.run.arrival)
        # Who writes goes before who reads a prompt: a chunk of a prompt must not delay answers under way. But not twice
        # in a row for later requests' sake: the oldest would wait for as long as new ones come.
        waiting.sort(key=lambda item: not item.overtaken and item.missing > SHORT)
        chosen: list[tuple[Item, Piece]] = []
        budget = self.token_budget
        for item in waiting:
            if len(chosen) == self.max_rows or budget <= 0:
                break
            if item.sequence.closed:
                continue  # its request failed while pages were sought for an earlier one
            piece = self._reserve(view, item, budget)
            if piece is None and not chosen:
                piece = self._preempt(view, item, budget)
                if piece is None:
                    continue
            if piece is not None:
                chosen.append((item, piece))
                budget -= len(piece.tokens)
        taken = {id(item) for item, _ in chosen}
        latest = max((item.run.arrival for item, _ in chosen), default=-1)
        for item in waiting:
            item.overtaken = id(item) not in taken and item.run.arrival < latest
        return chosen

    def _reserve(self, view: View, item: Item, budget: int) -> Piece | None:
        """Make room for the next part of an item; None if there are no pages for it."""
        sequence, pages = item.sequence, view.pages
        total = len(sequence.tokens)
        wanted = 1 if item.pending in self._blocks else item.wanted - item.got
        if item.run.request.prompt_cache and not sequence.table.pages and total > wanted:
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
        return Piece(sequence.tokens[start : start + take], start, table.pages, reads)

    def _preempt(self, view: View, item: Item, budget: int) -> Piece | None:
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
            piece = self._reserve(view, item, budget)
            if piece is not None:
                return piece
        older = any(
            sequence.view is view and sequence.table.pages
            for run in self.running
            if run.arrival < item.run.arrival
            for sequence in run.sequences
        )
        if not older:
            need = view.pages.pages_for(len(item.sequence.tokens))
            self._drop(item.pending)
            item.pending.task.fail(
                EngineFailed(f"{need} pages of model {view.name!r} needed, {view.pages.count} exist")
            )
            self._settle(item.run)
        return None

    def _drop(self, pending: Pending) -> None:
        self._blocks.pop(pending, None)
        for other in pending.items:
            name = other.sequence.view.name
            self._waiting[name] = [item for item in self._waiting[name] if item is not other]

    # -------------------------------------------------------------------------------------------------------- drafting

    def _draft(self, view: View) -> None:
        """Grow the blocks that wait for ``view`` until all have stopped, but for those that still read a prompt.

        A part of that is read first, so that a block whose prompt is short is verified in this tick.
        """
        self._begin_blocks(view)
        waiting = self._waiting[view.name]
        behind = [item for item in waiting if item.pending in self._blocks and not self._grows(item)]
        if behind:
            self._pass(view, behind)
        while True:
            self._begin_blocks(view)
            items = list(filter(self._grows, self._waiting[view.name]))
            if not items:
                return
            before = view.forward_passes
            self._pass(view, items, drafting=True)
            if view.forward_passes == before:
                return  # there are no pages for any of them, or they failed

    def _grows(self, item: Item) -> bool:
        """Whether it is a block of which only tokens are missing that a round has written."""
        return item.pending in self._blocks and item.missing <= SHORT

    def _begin_blocks(self, view: View) -> None:
        for item in list(self._waiting[view.name]):
            if isinstance(item.pending.op, Draft) and item.pending not in self._blocks:
                self._begin(item)

    def _begin(self, item: Item) -> None:
        """Start a block, or answer it with an empty one where speculation doesn't pay now."""
        op, run = item.pending.op, item.run
        assert isinstance(op, Draft)
        draft, target = item.sequence.view, self.views[op.target]
        load, missing = self._load(target), max(0, item.missing - 2)
        rule = self.speculation.rule(op.length, draft.name, target.name, run.job.generation_id, load, missing)
        if rule is None:
            sequence = item.sequence
            sequence.rewind(len(sequence.tokens) - len(op.tokens))
            self._drop(item.pending)
            item.pending.task.resume(Drafted(()))
            self._settle(run)
            return
        key = (draft.name, target.name)
        if key not in self._columns:
            self._columns[key] = columns(draft, target, self._shared(*key))
        ends = frozenset(target.vocabulary.eos_token_ids)
        self._blocks[item.pending] = Block(item, rule, self._columns[key], ends)

    def _load(self, target: View) -> Load:
        """What will probably share the target's next pass."""
        drafting = [
            item
            for items in self._waiting.values()
            for item in items
            if isinstance(item.pending.op, Draft) and item.pending.op.target == target.name
        ]
        now = len(self._waiting[target.name]) + len(drafting)  # some may only be about to ask
        latest = self._latest.get(target.name, Load(1))
        rows = max(1, min(self.max_rows, max(now, latest.rows)))
        return Load(rows, latest.alone.positions * rows)


def _row(item: Item, index: int) -> Row:
    """How row ``index`` of an op is read."""
    op, sequence = item.pending.op, item.sequence
    assert isinstance(op, (Extend, Verify))
    pick = op.picks[index]
    if not isinstance(pick, Pick) or pick.filters.repetition_penalty == 1.0:
        return Row(pick, (), op.top)
    return Row(pick, tuple(sequence.tokens[: len(sequence.tokens) - item.wanted + 1 + index]), op.top)


def _sampled(logits: Tensor, rows: Sequence[Row], piece: Callable[[int], bytes]) -> list[Read | Exception]:
    """``sample``, with a row's fault in the place of its read."""

    def some(which: Sequence[int]) -> list[Read]:
        whole = len(which) == len(rows)
        return sample(logits if whole else logits[list(which)], [rows[i] for i in which], piece)

    return isolated(some, range(len(rows)))


def _blend(pending: Pending) -> Any:
    seq = pending.op.seq
    assert isinstance(seq, Mixed)
    return seq.blend


def _groups(ready: list[Pending]) -> list[tuple[type[ModelOp], list[Pending]]]:
    """Ops that one call of the kernels can answer: of one kind and, by name, of the same models.

    Rows that wait for one token beside others' blocks are verified with these, as blocks of none: the same token for
    one call less.
    """
    groups: dict[tuple[type[ModelOp], tuple[str, ...]], list[Pending]] = {}
    for pending in ready:
        models = tuple(item.sequence.view.name for item in pending.items)
        kind = Verify if pending.items[0].sampled and pending.items[0].rows else type(pending.op)
        groups.setdefault((kind, models), []).append(pending)
    return [(kind, group) for (kind, _), group in groups.items()]


def _unique(runs: list[Run]) -> list[Run]:
    return list(dict.fromkeys(runs))
