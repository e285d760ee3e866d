"""The engine: models behind one thread, reached from any number of threads and event loops."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self, overload

from trimtab.decode.config import EngineConfig, EngineOptions, ModelConfig
from trimtab.decode.engine.loop import Loop
from trimtab.decode.engine.memory import give_back
from trimtab.decode.engine.run import Job, Run
from trimtab.decode.engine.tasks import Task
from trimtab.decode.engine.view import View, memory_for_pages, page_size
from trimtab.decode.errors import (
    EngineFailed,
    InvalidRequest,
    NotFound,
    TrimtabError,
)
from trimtab.decode.frozen import FrozenDict, freeze_fields
from trimtab.decode.methods.build import Plan, prompts_of, write
from trimtab.decode.methods.drawing import resolve_sampling
from trimtab.decode.methods.scoring import check_prompts, score_by_model, score_by_reward
from trimtab.decode.models.load import load
from trimtab.decode.request.events import (
    Chunk,
    Completed,
    Event,
    Progress,
    Started,
)
from trimtab.decode.request.info import Limits, ModelInfo, RewardInfo
from trimtab.decode.request.keywords import request_from_kwargs
from trimtab.decode.request.method import Facts
from trimtab.decode.request.prompt import Prompt, PromptKind, prompt_kind
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Result, Scored, Usage
from trimtab.decode.request.validate import check_length, validate
from trimtab.decode.rewards.registry import AnyReward, make_rewards
from trimtab.decode.text.ends import Ends, check_drawable
from trimtab.decode.text.stops import check_stops
from trimtab.decode.text.templates import as_text

__all__ = ["Engine", "EngineStats"]

log = logging.getLogger(__name__)

OnEvent = Callable[[Event | Exception], None]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine's work.

    Attributes:
        running, queued: requests.
        pages_used: pages held by running requests, by model; 0 when idle (law 5).
        pages_total: size of each pool.
        forward_passes: since the start, by model.
    """

    running: int
    queued: int
    pages_used: Mapping[str, int]
    pages_total: Mapping[str, int]
    forward_passes: Mapping[str, int]

    def __post_init__(self) -> None:
        freeze_fields(self, "pages_used", "pages_total", "forward_passes")


class Engine:
    """Serves aligned generations from one or several models in this process.

    Example::

        with Engine(models={"base": "gemma-3-270m", "chat": "smollm2-135m-instruct"}) as engine:
            messages = [{"role": "user", "content": "Give me three tips for staying healthy."}]
            print(engine.generate(messages, model="base", policy=Nudged("chat")).text)

    Args:
        models: name -> source (a bundled name, a folder, a hub id) or ``ModelConfig``; the first is the default.
        rewards: name -> what searches maximise: a function of (prompt, answer), a ``Reward``, or a table as in
            ``trimtab.toml`` (``{"type": "keywords", "wanted": ["please"]}``).
        limits: bounds on one request.
        options: of the engine itself.

    Raises:
        ConfigError: a reward that can't be made.
        UnsupportedModel: a model can't be served exactly; the reason is in the message.
        ModelCacheError: a bundled model can't be fetched.

    All methods are safe to call from any thread; models run on one thread of the engine's own. Several engines can live
    in one process.
    """

    def __init__(
        self,
        models: Mapping[str, ModelConfig | str],
        *,
        rewards: Mapping[str, AnyReward] | None = None,
        limits: Limits | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        if not models:
            raise InvalidRequest.of("models", dict(models), "at least one model")
        options = options or EngineOptions()
        self.limits = limits or Limits()
        configs = {n: c if isinstance(c, ModelConfig) else ModelConfig(source=c) for n, c in models.items()}
        self._rewards = make_rewards(rewards or {}, configs)
        for reward in self._rewards.values():
            configs.update(reward.brings)
        self._arrivals = itertools.count()
        self._loop = Loop(partial(_views, configs, options), options.threads)
        self._views = views = self._loop.views
        self._same = same = {
            (a, b): views[a].vocabulary.same_ids(views[b].vocabulary) for a, b in itertools.product(views, repeat=2)
        }
        for _ in views:  # until the narrowest is known to all
            for name, view in views.items():
                view.width = min(other.width for n, other in views.items() if same[name, n])
        self.models: Mapping[str, ModelInfo] = FrozenDict(_infos(views, configs))
        self.rewards: Mapping[str, RewardInfo] = FrozenDict({n: r.info for n, r in self._rewards.items()})
        self._loop.start(options.max_batch_rows, options.token_budget, lambda a, b: same[a, b])

    @classmethod
    def from_config(cls, config: EngineConfig | str | os.PathLike[str]) -> Self:
        """An engine from a ``trimtab.toml`` or what was read from one.

        Raises:
            ConfigError: the file can't be used.
        """
        if not isinstance(config, EngineConfig):
            config = EngineConfig.load(config)
        return cls(config.models, rewards=config.rewards, limits=config.limits, options=config.engine)

    # ------------------------------------------------------------------------------------------------------ generation

    @overload
    def generate(self, prompt: str, **options: Any) -> Result: ...
    @overload
    def generate(self, prompt: Sequence[Any], **options: Any) -> Any: ...
    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Any) -> Result | list[Result]:
        """Answer one prompt, or several at once.

        Args:
            prompt: text (given to the model as it is), chat messages, token ids, or a list of prompts. A list of
                strings is several prompts; a list of message dicts is one chat; a list of integers is one prompt.
            **options: ``model`` (default: the first), ``policy``, ``draw``, ``search``, any field of ``Sampling`` or
                ``Stopping``, ``top_logprobs``, or ``generation_config`` (transformers').

        Returns:
            One ``Result``, or a list of them in the order of the prompts.

        Raises:
            InvalidRequest, NotFound, UnsupportedRequest: before anything runs; every bad field is named.
            Overloaded: the queue is full. EngineClosed, EngineFailed: the engine ended or failed.
        """
        many, requests = self._requests(prompt, options)
        waiting = [_Waiter() for _ in requests]
        jobs: list[Job] = []
        try:
            for request, waiter in zip(requests, waiting, strict=True):
                jobs.append(self._start(request, waiter.put))
            results = [waiter.result() for waiter in waiting]
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
        return results if many else results[0]

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Event]:
        """The events of one answer: Started, chunks, Completed. Arguments and errors as ``generate``.

        Closing the iterator early cancels the request.
        """
        return self.stream_request(self._request(prompt, options))

    def stream_request(self, request: Request) -> Iterator[Event]:
        """As ``stream``, of a request object."""
        events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
        job = self.submit(request, events.put)
        return _Events(events, job)

    async def agenerate(self, prompt: Prompt | Sequence[Prompt], **options: Any) -> Any:
        """``generate`` for asyncio; cancelling the task cancels the request."""
        many, requests = await asyncio.to_thread(self._requests, prompt, options)
        if not many:
            return await self._aresult(requests[0])
        first: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._aresult(request)) for request in requests]
        except BaseExceptionGroup as failures:
            first = failures.exceptions[0]  # the rest were cancelled because of it
        if first is not None:
            raise first
        return [task.result() for task in tasks]

    def astream(self, prompt: Prompt, **options: Any) -> AsyncGenerator[Event, None]:
        """``stream`` for asyncio. Close the iterator, or cancel the task that reads it, to cancel the request."""
        return self._astream(lambda on_event: self.submit(self._request(prompt, options), on_event))

    def astream_request(self, request: Request) -> AsyncGenerator[Event, None]:
        """As ``astream``, of a request object."""
        return self._astream(partial(self.submit, request))

    async def _aresult(self, request: Request) -> Result:
        async with aclosing(self._astream(partial(self._start, request))) as events:
            async for event in events:
                if isinstance(event, Completed):
                    return event.result
        raise EngineFailed("a stream ended without its last event")

    async def _astream(self, begin: Callable[[OnEvent], Job]) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        buffer: deque[Event | Exception] = deque()
        ready = asyncio.Event()
        waking = False
        lock = threading.Lock()
        abandoned = False
        job: Job | None = None

        def on_event(event: Event | Exception) -> None:
            # The loop is woken only when the buffer turns non-empty: one wake-up drains all that came meanwhile.
            nonlocal waking
            with lock:
                buffer.append(event)
                if waking:
                    return
                waking = True
            try:
                loop.call_soon_threadsafe(ready.set)
            except RuntimeError:  # the loop is closed: nobody reads any more
                if job is not None:
                    job.cancel()

        def submit() -> Job:
            # The reader may be gone by the time the prompt is tokenised; then nothing must start unattended.
            nonlocal job
            job = begin(on_event)
            if abandoned:
                job.cancel()
            return job

        try:
            await asyncio.to_thread(submit)
            while True:
                await ready.wait()
                ready.clear()
                with lock:
                    waking = False
                    events = list(buffer)
                    buffer.clear()
                for event in events:
                    if isinstance(event, Exception):
                        raise event
                    yield event
                    if isinstance(event, Completed):
                        return
        finally:
            abandoned = True
            if job is not None:
                job.cancel()

    # ------------------------------------------------------------------------------------------------------ submission

    def submit(self, request: Request, on_event: OnEvent) -> Job:
        """Queue a request.

        Args:
            request: what to do.
            on_event: called on the engine's thread with Started, chunks, and last Completed or an exception. It
                must not block.

        Raises:
            InvalidRequest, NotFound, UnsupportedRequest: before anything runs.
            Overloaded: the queue is full.
            EngineClosed: the engine is closing.
        """
        self._loop.check_open()
        self._validate(request)
        return self._start(request, on_event)

    def _start(self, request: Request, on_event: OnEvent) -> Job:
        """``submit`` of a request that has been validated."""
        submitted = time.monotonic()
        self._loop.check_open()
        plan = self._prepare(request)
        needed = self._needed_pages(plan)

        return self._launch(
            plan.request,
            self._views_of(self._models_of(plan)),
            needed,
            lambda run: self._answer(run, plan),
            on_event,
            submitted,
        )

    def _launch(
        self,
        request: Request,
        views: dict[str, View],
        needed: dict[str, int],
        make: Callable[[Run], Coroutine[Any, Any, Any]],
        on_event: Callable[[Any], None],
        submitted: float | None = None,
    ) -> Job:
        """Queue a coroutine that runs as a request; its result is the last thing that ``on_event`` gets."""
        last: list[Any] = []

        loop = self._loop

        def deliver(event: Any) -> None:
            if last or isinstance(event, Exception):
                loop.done()  # before its owner hears of the end, who may submit the next at once
            on_event(event)

        async def whole(run: Run) -> Any:
            result = await make(run)
            last.append(True)
            return result

        job = Job(f"{os.urandom(8).hex()}", loop.wake)
        run = Run(
            job=job,
            arrival=next(self._arrivals),
            request=request,
            views=views,
            rewards=self._rewards,
            needed_pages=needed,
            on_event=deliver,
            copies=loop.scheduler.copies,
            submitted=time.monotonic() if submitted is None else submitted,
        )
        run.task = Task(whole(run), lambda task, op: loop.scheduler.submit(run, task, op))
        try:
            loop.submit(run, self.limits.max_queue)
        except TrimtabError:
            run.release()  # its coroutine never starts
            raise
        return job

    def _views_of(self, models: Iterable[str]) -> dict[str, View]:
        return {name: self._views[name] for name in models}

    def _requests(self, prompt: Any, options: dict[str, Any]) -> tuple[bool, list[Request]]:
        """Whether several prompts were given, and a checked request for each."""
        many = not isinstance(prompt, str) and isinstance(prompt, Sequence) and _is_many(prompt)
        requests = [self._request(one, options) for one in (prompt if many else [prompt])]
        for request in requests:
            self._validate(request)
        return many, requests

    def _validate(self, request: Request) -> None:
        validate(request, self.models, self.limits, rewards=self.rewards, same_ids=self.same_ids)

    def same_ids(self, a: str, b: str) -> bool:
        """Whether two models share one vocabulary, id for id."""
        return self._same[a, b]

    def _request(self, prompt: Prompt, options: dict[str, Any]) -> Request:
        options = dict(options)
        model = options.pop("model", None) or next(iter(self.models))
        view = self._views.get(model) if isinstance(model, str) else None
        own = None if view is None else view.model.generation_config
        return request_from_kwargs(prompt, model=model, model_generation_config=own, **options)

    def _prepare(self, request: Request) -> Plan:
        """Tokenise the prompt for every model and fill what the request leaves open."""
        view, policy = self._views[request.model], request.policy
        same = frozenset(name for name in self._views if self.same_ids(request.model, name))
        prompts = prompts_of(request, same, lambda name: self._rendered(name, request))
        for name, ids in prompts.items():
            if not ids:
                raise InvalidRequest.of("prompt", request.prompt, f"a prompt of at least one token of model {name!r}")
            if outside := self._views[name].unknown(ids):
                raise InvalidRequest.of("prompt", outside, "a text of tokens that the model has")
            check_length(len(ids), request.stopping.max_new_tokens, self._views[name].context)
        writing = [request.model, *(policy.models() if policy.helpers_write else ())]
        vocabularies = {name: self._views[name].vocabulary for name in writing}
        check_stops(request, vocabularies)
        ends = Ends(request, vocabularies.__getitem__, same, policy.passes_text(same))
        check_drawable(request, ends, {name: self.models[name] for name in writing})
        drawing = resolve_sampling(request.sampling, view.model.generation_config)
        facts = Facts(self.limits, drawing.greedy, self.models)
        stops = view.template.stops(request.prompt)
        request = replace(
            request,
            policy=policy.resolved(facts),
            draw=request.draw.resolved(facts),
            search=request.search.resolved(facts),
        )
        if prompt_kind(request.prompt) is PromptKind.TOKEN_IDS:  # rewards and searches read text
            text = view.vocabulary.decode_bytes(prompts[request.model]).decode(errors="replace")
            request = replace(request, prompt=text)
        return Plan(request, prompts, drawing, stops, same)

    def _rendered(self, model: str, request: Request) -> list[int]:
        """The prompt as a model reads it."""
        own = request.prompt
        if not self.same_ids(request.model, model):
            own = as_text(own, self._views[request.model].vocabulary)
        return self._views[model].template.encode(own)

    def _models_of(self, plan: Plan) -> set[str]:
        """All models that a request may use."""
        methods = (plan.request.policy, plan.request.draw, plan.request.search)
        names = {*plan.prompts, *(name for method in methods for name in method.models())}
        return names.union(*(self.rewards[reward].models for method in methods for reward in method.rewards()))

    def _needed_pages(self, plan: Plan) -> dict[str, int]:
        """Pages to admit a request with: its prompts and some room to write.

        Raises:
            InvalidRequest: it could never fit, not even alone.
        """
        needed: dict[str, int] = {}
        for name, ids in plan.prompts.items():
            view = self._views[name]
            limit = view.pages.count * view.pages.page_tokens
            longest = min(len(ids) + plan.request.stopping.max_new_tokens, view.context)
            if view.pages.pages_for(longest) > view.pages.count:
                raise InvalidRequest.of(
                    "stopping.max_new_tokens",
                    plan.request.stopping.max_new_tokens,
                    f"at most {limit - len(ids)} after a prompt of {len(ids)} tokens: the cache holds {limit}",
                )
            most = plan.request.search.candidates
            if most > view.pages.count:
                raise InvalidRequest.of(
                    "search", f"{most} candidates", f"at most {view.pages.count}: the cache's pages"
                )
            needed[name] = view.pages.pages_for(len(ids)) + most
        return needed

    async def _answer(self, run: Run, plan: Plan) -> Completed:
        """The root coroutine of a request: writes the answer and sums up."""
        request = plan.request
        authors = (request.model, *request.policy.models())
        run.emit(
            Started(
                run.job.generation_id,
                authors,
                len(plan.prompts[request.model]),
                plan.drawing.key.seed,
                request.stopping.max_new_tokens,
            )
        )

        def emit(event: Chunk | Progress) -> None:
            if isinstance(event, Chunk) and not run.first_token:
                run.first_token = time.monotonic()
            run.emit(event)

        outcome = await write(run, plan, emit)
        now = time.monotonic()
        chosen = outcome.candidates[outcome.selected]
        for candidate in outcome.candidates:
            for token in candidate.tokens:
                run.counter(token.author).tokens_written += 1
        usage = Usage(
            prompt_tokens=len(plan.prompts[request.model]),
            cached_prompt_tokens=min(run.counter(request.model).cached_tokens, len(plan.prompts[request.model])),
            returned_tokens=len(chosen.tokens),
            # A policy may choose tokens by itself, among the most likely ones.
            generated_tokens=max(run.drawn + run.drafted, sum(len(c.tokens) for c in outcome.candidates)),
            drafted_tokens=run.drafted,
            accepted_tokens=run.accepted,
            discarded_tokens=run.drafted - run.accepted,
            nudged_tokens=sum(t.author != request.model for t in chosen.tokens),
            reward_calls=run.reward_calls,
            models=run.model_usage(),
            queue_time=run.started - run.submitted,
            time_to_first_token=(run.first_token or now) - run.submitted,
            total_time=now - run.submitted,
        )
        return Completed(
            Result(
                model=request.model,
                models=authors,
                candidates=outcome.candidates,
                usage=usage,
                seed=plan.drawing.key.seed,
                selected=outcome.selected,
                reproducible=outcome.reproducible,
                abstained=outcome.abstained,
            )
        )

    # ---------------------------------------------------------------------------------------------------------- scoring

    def score(
        self, items: Sequence[tuple[Prompt, str]], *, reward: str | None = None, model: str | None = None
    ) -> list[Scored]:
        """Score given answers, with a reward or by the probability that a model gives them.

        Args:
            items: (prompt, answer) pairs.
            reward: its name, or
            model: its name; exactly one of the two. A model's score is the sum of ln p of the answer's tokens;
                of an empty answer that of the token by which the model would end it.

        Raises:
            InvalidRequest, NotFound: before anything runs. RewardFailed: the reward did.
            Overloaded, EngineClosed, EngineFailed: as ``generate``.
        """
        waiter = _Waiter()
        job = self._submit_score(items, reward, model, waiter.put)
        try:
            scored: list[Scored] = waiter.result()
        except BaseException:
            job.cancel()
            raise
        return scored

    async def ascore(
        self, items: Sequence[tuple[Prompt, str]], *, reward: str | None = None, model: str | None = None
    ) -> list[Scored]:
        """``score`` for asyncio; cancelling the task cancels the work."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[list[Scored]] = loop.create_future()
        abandoned = False
        job: Job | None = None

        def settle(outcome: Any) -> None:
            if ended.done():
                return
            if isinstance(outcome, Exception):
                ended.set_exception(outcome)
            else:
                ended.set_result(outcome)

        def on_event(event: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, event)

        def submit() -> None:
            # The caller may be gone by the time the items are tokenised; then nothing must start unattended.
            nonlocal job
            job = self._submit_score(items, reward, model, on_event)
            if abandoned:
                job.cancel()

        try:
            await asyncio.to_thread(submit)
            return await ended
        finally:
            abandoned = True
            if job is not None:
                job.cancel()

    def _submit_score(
        self,
        items: Sequence[tuple[Prompt, str]],
        reward: str | None,
        model: str | None,
        on_event: Callable[[Any], None],
    ) -> Job:
        if (reward is None) == (model is None):
            raise InvalidRequest.of("scorer", {"reward": reward, "model": model}, "a reward or a model")
        by = model if model is not None else next(iter(self.models))
        request = Request(model=by, prompt="-")
        if reward is not None:
            if reward not in self.rewards:
                raise NotFound("reward", reward, sorted(self.rewards))
            if self.rewards[reward].pairwise:
                raise InvalidRequest.of("reward", reward, "a reward that rates single answers; this one compares two")
            check_prompts(self._rewards[reward], items)
            views = self._views_of(self.rewards[reward].models)
            return self._launch(request, views, {}, lambda run: score_by_reward(run, reward, items), on_event)
        view = self._view(by)
        rows = []
        for i, (prompt, text) in enumerate(items):
            ids, answer = view.template.encode(prompt), view.vocabulary.encode(text, False, continues=True)
            if not 1 <= len(ids) <= len(ids) + len(answer) <= view.context:
                accepted = f"1 to {view.context} tokens of prompt and completion together"
                raise InvalidRequest.of(f"items[{i}]", f"{len(ids) + len(answer)} tokens", accepted)
            if not answer and not view.vocabulary.eos_token_ids:
                accepted = f"a text of at least one token: model {by!r} has no token that ends an answer"
                raise InvalidRequest.of(f"items[{i}].completion", text, accepted)
            rows.append((prompt, ids, answer))
        return self._launch(request, {by: view}, {}, lambda run: score_by_model(run, by, rows), on_event)

    # ---------------------------------------------------------------------------------------------------------- its end

    def close(self) -> None:
        """End all requests with EngineClosed, stop the thread and free the models' memory. Idempotent."""
        self._loop.close()

    def __del__(self) -> None:
        loop: Loop | None = getattr(self, "_loop", None)  # none where the constructor failed
        if loop is not None and not loop.closing:
            warnings.warn(f"{self!r} was dropped and not closed", ResourceWarning, stacklevel=2)
            loop.close(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------------- info

    @property
    def failure(self) -> Exception | None:
        """What stopped the engine, if it failed."""
        return self._loop.failure

    def stats(self) -> EngineStats:
        """A snapshot; cheap, and safe at any time."""
        return EngineStats(
            running=len(self._loop.scheduler.running),
            queued=self._loop.queued,
            pages_used=FrozenDict({n: v.pages.held for n, v in self._views.items()}),
            pages_total=FrozenDict({n: v.pages.count for n, v in self._views.items()}),
            forward_passes=FrozenDict({n: v.forward_passes for n, v in self._views.items()}),
        )

    def check(self) -> None:
        """Verify the accounting of all pools; call it while the engine is idle.

        Raises:
            AssertionError: an invariant is broken, or pages are held though nothing runs.
        """
        for view in self._views.values():
            view.pages.check()
            if self._loop.idle:
                assert view.pages.held == 0, f"{view.pages.held} pages of {view.name!r} are held though nothing runs"

    def tokenize(self, model: str, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[int]]:
        """Token ids of ``text`` and the byte at which each begins. Raises NotFound for an unknown model."""
        encoded = self._view(model).vocabulary.encode_with_offsets(text, add_special_tokens)
        return list(encoded[0]), list(encoded[1])

    def detokenize(self, model: str, ids: Sequence[int], skip_special_tokens: bool = False) -> bytes:
        """The bytes that ``ids`` stand for.

        Raises:
            NotFound: an unknown model. InvalidRequest: an id beyond the vocabulary.
        """
        view = self._view(model)
        for i, token in enumerate(ids):
            if not 0 <= token < view.width:
                raise InvalidRequest.of(f"ids[{i}]", token, f"0 to {view.width - 1}")
        return view.vocabulary.decode_bytes(ids, skip_special_tokens)

    def _view(self, model: str) -> View:
        if model not in self._views:
            raise NotFound("model", model, list(self._views))
        return self._views[model]


class _Waiter:
    """Keeps what a request ends with for a thread that waits for it."""

    def __init__(self) -> None:
        self._last: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, event: Any) -> None:
        if not isinstance(event, (Started, Chunk, Progress)):
            self._last.put(event)

    def result(self) -> Any:
        last = self._last.get()
        if isinstance(last, Exception):
            raise last
        return last.result if isinstance(last, Completed) else last


class _Events(Iterator[Event]):
    """The events of a request. Closing the iterator or dropping it cancels the request, read or not."""

    def __init__(self, events: queue.SimpleQueue[Event | Exception], job: Job) -> None:
        self._events, self._job = events, job
        self._ended = False

    def __next__(self) -> Event:
        if self._ended:
            raise StopIteration
        event = self._events.get()
        if isinstance(event, Exception):
            self._ended = True
            raise event
        self._ended = isinstance(event, Completed)
        return event

    def close(self) -> None:
        """Read no further."""
        self._ended = True
        self._job.cancel()

    def __del__(self) -> None:
        self._job.cancel()


def _is_many(prompt: Sequence[Any]) -> bool:
    """Whether a list holds several prompts: strings, or lists of ids or messages."""
    first = prompt[0] if prompt else None
    return isinstance(first, str) or (isinstance(first, Sequence) and not isinstance(first, Mapping))


def _views(configs: Mapping[str, ModelConfig], options: EngineOptions) -> dict[str, View]:
    """Load all models and share the memory for pages among those of one device: each holds as many tokens."""
    loaded = {}
    for name, config in configs.items():
        loaded[name] = load(name, config)
        give_back()  # what reading a checkpoint and its tokenizer took
    shares = {}
    for name, model in loaded.items():
        given = configs[name].memory_share
        peers = [n for n, m in loaded.items() if m.device == model.device]
        fixed = sum(configs[n].memory_share or 0.0 for n in peers)
        open_ = [n for n in peers if configs[n].memory_share is None]
        part = model.bytes_per_token / sum(loaded[n].bytes_per_token for n in open_) if given is None else 0.0
        shares[name] = given if given is not None else (1.0 - fixed) * part
    views = {}
    for name, model in loaded.items():
        memory = int((options.memory_bytes or memory_for_pages(model.device)) * shares[name])
        size = options.page_tokens or page_size(model, memory, options.max_batch_rows)
        most = options.max_batch_rows * -(-model.context // size)
        pages = max(1, min(memory // (model.bytes_per_token * size), most))
        views[name] = View(model, pages, size, configs[name].template)
    return views


def _infos(views: Mapping[str, View], configs: Mapping[str, ModelConfig]) -> dict[str, ModelInfo]:
    infos = {}
    for name, view in views.items():
        model = view.model
        infos[name] = ModelInfo(
            name=name,
            role=configs[name].role,
            source=configs[name].source,
            architecture=model.architecture,
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            max_context_tokens=view.context,
            vocab_size=view.width,
            eos_token_ids=model.vocabulary.eos_token_ids,
            acceptance_head=model.acceptance is not None,
        )
    return _partners(infos)


def _partners(infos: Mapping[str, ModelInfo]) -> dict[str, ModelInfo]:
    """The same, each with the models that can nudge it and draft for it: what a request may name (``decode.axes``)."""
    found = {}
    for name, info in infos.items():
        others = [o for o in infos.values() if o.name != name and "reward" not in (o.role, info.role)]
        nudging = tuple(o.name for o in others if not o.source or o.source != info.source)
        found[name] = replace(info, nudge_models=nudging, draft_models=tuple(o.name for o in others))
    return found
