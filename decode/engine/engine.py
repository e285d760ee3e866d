"""The engine: models behind one thread, reached from any number of threads and event loops."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self, Unpack, overload

from trimtab.decode.config import EngineConfig, EngineOptions, ModelConfig
from trimtab.decode.engine.channel import Channel, aevents, aresults, results
from trimtab.decode.engine.loading import describe, load_models, share_ids
from trimtab.decode.engine.loop import Loop
from trimtab.decode.engine.prepare import Preparer
from trimtab.decode.engine.request_state import Body, Job, OnEvent, RequestState
from trimtab.decode.engine.root import answer
from trimtab.decode.engine.scheduler import Scheduler
from trimtab.decode.engine.stats import EngineStats, check, snapshot
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.frozen import FrozenDict
from trimtab.decode.request.events import Event
from trimtab.decode.request.generate_options import GenerateOptions
from trimtab.decode.request.info import Limits, ModelInfo, RewardInfo
from trimtab.decode.request.prompt import Prompt
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Result, Scored
from trimtab.decode.rewards.base import Reward
from trimtab.decode.rewards.registry import AnyReward, make_rewards

__all__ = ["Engine", "EngineStats"]


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
        ConfigError: a reward that can't be made; too little memory for pages.
        UnsupportedModel: a model can't be served exactly; the reason is in the message.
        ModelCacheError: a bundled model can't be fetched.

    All methods are safe to call from any thread; models run on one thread of the engine's own. Several engines can live
    in one process. The constructor loads the models, also before ``async with``: an event loop that must not wait for
    them calls it by ``asyncio.to_thread``.
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
        self._loop = Loop(partial(_load, configs, options), options.threads)
        served, same_ids = self._loop.scheduler.models, self._loop.scheduler.same_ids
        self.models: Mapping[str, ModelInfo] = FrozenDict(describe(served, configs))
        self.rewards: Mapping[str, RewardInfo] = FrozenDict({n: r.info for n, r in self._rewards.items()})
        self._preparer = Preparer(served, self.models, self._rewards, self.limits, same_ids)

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
    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    def generate(self, prompt: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[Result]: ...
    def generate(self, prompt: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]) -> Result | list[Result]:
        """Answer one prompt, or several at once.

        Args:
            prompt: text, chat messages, token ids, or a list of prompts. A list of strings is several prompts; a list
                of message dicts is one chat; a list of integers is one prompt. Text is no question: it is given to the
                model as it is, which goes on with it. To ask, give messages, as ``chat("...")`` makes them; the command
                line does so unless it is told ``--raw``.
            model: name of the one that is asked; by default the engine's first.
            policy, draw, search: the three axes, as values (``Nudged("chat")``) or spec strings (``"nudged:chat"``).
            objective: what the search maximises, where that doesn't say it itself: the name of a reward, names and
                weights, an ``Objective``, or a function of the prompt and an answer, for this request alone.
            references: answers, or one, that rewards may compare with.
            temperature, top_k, top_p, min_p, repetition_penalty, logit_bias, seed: see ``Sampling``. What isn't given
                is the model's own default.
            max_new_tokens, min_new_tokens, stop, stop_token_ids, eos_token_ids, ignore_eos, include_stop, time_budget:
                see ``Stopping``.
            sampling, stopping: whole objects in place of these.
            generation_config: transformers'; single options override its fields.
            top_logprobs: how many of the most likely tokens are reported beside each token.
            prompt_cache: see ``Request``.

        Returns:
            One ``Result``, or a list of them in the order of the prompts.

        Raises:
            InvalidRequest, NotFound, UnsupportedRequest: before anything runs; every bad field is named.
            Overloaded: the queue is full. EngineClosed, EngineFailed: the engine ended or failed.
        """
        many, requests = self._preparer.requests(prompt, options)
        found = results([partial(self._start, request) for request in requests])
        return found if many else found[0]

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Iterator[Event]:
        """The events of one answer: Started, chunks, Completed. Arguments and errors as ``generate``.

        Closing the iterator early cancels the request.
        """
        return self.stream_request(self._preparer.request(prompt, options))

    def stream_request(self, request: Request) -> Iterator[Event]:
        """As ``stream``, of a request object."""
        channel = Channel(everything=True)
        channel.open(partial(self.submit, request))
        return channel

    @overload
    async def agenerate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Result: ...  # type: ignore[overload-overlap]
    @overload
    async def agenerate(self, prompt: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[Result]: ...
    async def agenerate(
        self, prompt: Prompt | Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> Result | list[Result]:
        """``generate`` for asyncio; cancelling the task cancels the request."""
        many, requests = await asyncio.to_thread(self._preparer.requests, prompt, options)
        found = await aresults([partial(self._start, request) for request in requests])
        return found if many else found[0]

    def astream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncGenerator[Event, None]:
        """``stream`` for asyncio. Close the iterator, or cancel the task that reads it, to cancel the request."""
        return aevents(lambda on_event: self.submit(self._preparer.request(prompt, options), on_event))

    def astream_request(self, request: Request) -> AsyncGenerator[Event, None]:
        """As ``astream``, of a request object."""
        return aevents(partial(self.submit, request))

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
        self._preparer.validate(request)
        return self._start(request, on_event)

    def _start(self, request: Request, on_event: OnEvent) -> Job:
        """``submit`` of a request that has been validated."""
        submitted = time.monotonic()
        self._loop.check_open()
        plan = self._preparer.plan(request)
        models, needed = self._preparer.models_of(plan), self._preparer.needed_pages(plan)
        return self._launch(
            plan.request, models, lambda state: answer(state, plan), on_event, needed, submitted, plan.rewards
        )

    def _launch(
        self,
        request: Request,
        models: Iterable[str],
        method: Body,
        on_event: OnEvent,
        needed_pages: dict[str, int] | None = None,
        submitted: float | None = None,
        rewards: Mapping[str, Reward] = FrozenDict(),
    ) -> Job:
        """Queue a coroutine that runs as a request; its result is the last thing that ``on_event`` gets."""
        job = Job(os.urandom(8).hex(), self._loop.wake)
        state = RequestState(
            job=job,
            arrival=next(self._arrivals),
            request=request,
            method=method,
            models={name: self._loop.scheduler.models[name] for name in models},
            rewards={**self._rewards, **rewards},
            needed_pages=needed_pages or {},
            on_event=on_event,
            copies=self._loop.scheduler.copies,
            submitted=time.monotonic() if submitted is None else submitted,
            owner=self,
        )
        self._loop.submit(state, self.limits.max_queue)
        return job

    def same_ids(self, a: str, b: str) -> bool:
        """Whether two models share one vocabulary, id for id."""
        return self._preparer.same_ids(a, b)

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
        scored: list[Scored]
        (scored,) = results([partial(self._submit_score, items, reward, model)])
        return scored

    async def ascore(
        self, items: Sequence[tuple[Prompt, str]], *, reward: str | None = None, model: str | None = None
    ) -> list[Scored]:
        """``score`` for asyncio; cancelling the task cancels the work."""
        scored: list[Scored]
        (scored,) = await aresults([partial(self._submit_score, items, reward, model)])
        return scored

    def _submit_score(
        self, items: Sequence[tuple[Prompt, str]], reward: str | None, model: str | None, on_event: OnEvent
    ) -> Job:
        return self._launch(*self._preparer.score(items, reward, model), on_event)

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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # ------------------------------------------------------------------------------------------------------------- info

    @property
    def failure(self) -> Exception | None:
        """What stopped the engine, if it failed."""
        return self._loop.failure

    def stats(self) -> EngineStats:
        """A snapshot; cheap, and safe at any time."""
        return snapshot(self._loop)

    def check(self) -> None:
        """Verify the accounting of all pools; call it while the engine is idle.

        Raises:
            AssertionError: an invariant is broken, or pages are held though nothing runs.
        """
        check(self._loop)

    def tokenize(self, model: str, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[int]]:
        """Token ids of ``text`` and the byte at which each begins. Raises NotFound for an unknown model."""
        encoded = self._preparer.model(model).vocabulary.encode_with_offsets(text, add_special_tokens)
        return list(encoded[0]), list(encoded[1])

    def detokenize(self, model: str, ids: Sequence[int], skip_special_tokens: bool = False) -> bytes:
        """The bytes that ``ids`` stand for.

        Raises:
            NotFound: an unknown model. InvalidRequest: an id beyond the vocabulary.
        """
        instance = self._preparer.model(model)
        for i, token in enumerate(ids):
            if not 0 <= token < instance.width:
                raise InvalidRequest.of(f"ids[{i}]", token, f"0 to {instance.width - 1}")
        return instance.vocabulary.decode_bytes(ids, skip_special_tokens)


def _load(configs: Mapping[str, ModelConfig], options: EngineOptions, wake: Callable[[], None]) -> Scheduler:
    models = load_models(configs, options)
    return Scheduler(models, options.max_batch_rows, options.token_budget, share_ids(models), wake)
