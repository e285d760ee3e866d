"""The engine with random models: whatever runs beside it, a request gets its own answer, and nothing is left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.engine.loop import Loop
from trimtab.decode.engine.model_instance import ModelInstance
from trimtab.decode.engine.request_state import Job
from trimtab.decode.engine.sampler import Row, Window, read
from trimtab.decode.engine.scheduler import Scheduler
from trimtab.decode.errors import (
    EngineClosed,
    EngineFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestCancelled,
    UnsupportedRequest,
)
from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.draws.autoregressive import Autoregressive
from trimtab.decode.methods.policies.base import Base
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches.setting import Outcome
from trimtab.decode.models.load import LoadedModel
from trimtab.decode.ops import Extend, gather
from trimtab.decode.request.as_json import from_json, to_json
from trimtab.decode.request.events import (
    Chunk,
    Completed,
    Event,
    Started,
)
from trimtab.decode.request.info import Limits
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import (
    Candidate,
    FinishReason,
    Result,
    TokenDraw,
)
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.kernels import dispatch, paths
from trimtab.kernels.types import Filters, Key, Pick

Folder = Callable[..., Path]
Factory = Callable[..., Engine]
WAIT = 60.0  # seconds after which a test that waits has failed


# ---------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """A tiny model is slower on two threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make(tiny_folder: Folder) -> Iterator[Factory]:
    """``make(kind, ..., **options)``: an engine of random models, verified and closed after the test.

    Kinds are architectures, by name of the model if given as keywords of ``models``.
    """
    made: list[Engine] = []

    def factory(
        *kinds: str,
        models: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        context: int | None = None,
        seeds: Mapping[str, int] | None = None,
        **options: Any,
    ) -> Engine:
        options.setdefault("memory_bytes", 64 << 20)
        options.setdefault("page_tokens", 16)
        named = {kind: kind for kind in kinds} | dict(models or {})
        configs = {
            name: ModelConfig(
                source=str(tiny_folder(kind, (seeds or {}).get(name, 0))), dtype="float32", context_tokens=context
            )
            for name, kind in named.items()
        }
        engine = Engine(configs, limits=limits, options=EngineOptions(**options))
        made.append(engine)
        return engine

    yield factory
    for engine in made:
        if engine.failure is None:
            settle(engine)
            engine.check()
        engine.close()
        assert not any(engine.stats().pages_used.values())


@pytest.fixture(scope="module")
def shared(tiny_folder: Folder) -> Iterator[Engine]:
    """One engine of two models for tests that leave it as it was."""
    configs = {
        name: ModelConfig(source=str(tiny_folder(kind)), dtype="float32")
        for name, kind in (("base", "llama"), ("chat", "qwen3"))
    }
    with Engine(configs, options=EngineOptions(memory_bytes=64 << 20, page_tokens=16)) as engine:
        yield engine


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    """The shared engine, verified after the test."""
    yield shared
    settle(shared)
    shared.check()
    assert not any(shared.stats().pages_used.values())


def settle(engine: Engine) -> None:
    """Wait until nothing runs."""
    limit = time.monotonic() + WAIT
    while (stats := engine.stats()).running or stats.queued:
        assert time.monotonic() < limit, stats
        time.sleep(0.002)


class Inbox:
    """The events of a submitted request."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.events: list[Event | Exception] = []
        self._done: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()
        self._started = threading.Event()
        self.job: Job = engine.submit(request, self.put)

    def put(self, event: Event | Exception) -> None:
        self.events.append(event)
        if isinstance(event, Chunk):
            self._started.set()
        if isinstance(event, Completed):
            self._done.put(event.result)
        elif isinstance(event, Exception):
            self._done.put(event)

    def wait_for_chunk(self) -> None:
        assert self._started.wait(WAIT)

    def outcome(self) -> Result | Exception:
        return self._done.get(timeout=WAIT)

    def result(self) -> Result:
        outcome = self.outcome()
        assert isinstance(outcome, Result), outcome
        return outcome


def run_all(engine: Engine, requests: Sequence[Request]) -> list[Result]:
    """All at once."""
    inboxes = [Inbox(engine, request) for request in requests]
    return [inbox.result() for inbox in inboxes]


def run_each(engine: Engine, requests: Sequence[Request]) -> list[Result]:
    """One after another."""
    return [Inbox(engine, request).result() for request in requests]


def ids(result: Result) -> list[int]:
    return [token.id for token in result.tokens]


def request(
    model: str, prompt: Any, new: int = 12, *, policy: Any = None, top: int = 0, stop: Any = None, **sampling: Any
) -> Request:
    sampling.setdefault("seed", 1)
    stopping = stop or Stopping(max_new_tokens=new, ignore_eos=True)
    return Request(
        model=model,
        prompt=prompt,
        sampling=Sampling(**sampling),
        stopping=stopping,
        policy=policy or Base(),
        top_logprobs=top,
    )


@contextmanager
def forward_of(engine: Engine, model: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Replace the forward pass of a model by ``wrap`` of it."""
    instance = engine._loop.scheduler.models[model]
    kept = instance.model
    instance.model = dataclasses.replace(kept, forward=wrap(kept.forward))
    try:
        yield
    finally:
        instance.model = kept


class Recorder:
    """Forward passes that went through: the spans of each."""

    def __init__(self) -> None:
        self.passes: list[list[tuple[int, int, int]]] = []  # start, tokens, reads

    def __call__(self, forward: Any) -> Any:
        def recorded(tokens: Any, positions: Any, step: Any, rows: Any) -> Any:
            self.passes.append([(span.start, len(span.tokens), span.reads) for span in step.batch.spans])
            return forward(tokens, positions, step, rows)

        return recorded


SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.9, "repetition_penalty": 1.3},
    {"temperature": 0.0, "repetition_penalty": 2.0},
    {"temperature": 1.0, "logit_bias": {7: 3.0, 8: -math.inf}},
    {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1},
)


def assorted(models: Sequence[str], count: int, seed: int, longest: int = 90) -> list[Request]:
    """Requests of all kinds; some share the beginning of their prompts."""
    rng = random.Random(seed)
    stem = [rng.randrange(256) for _ in range(longest)]
    made = []
    for i in range(count):
        shared = rng.choice([0, 0, rng.randrange(longest)])
        prompt = stem[:shared] + [rng.randrange(256) for _ in range(rng.randrange(1, longest - shared + 1))]
        sampling = SAMPLINGS[i % len(SAMPLINGS)] | {"seed": rng.randrange(2**32)}
        made.append(request(rng.choice(models), prompt, rng.randrange(1, 24), **sampling))
    return made


# ------------------------------------------------------------------------------------- one request, its own answer


def test_an_answer_is_the_models_own(engine: Engine, tiny_folder: Folder) -> None:
    """Greedy tokens are transformers' and the statistics those of its logits."""
    model = hf.AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32).eval()
    prompt = [5, 90, 33, 7, 7, 1]
    result = engine.generate(prompt, temperature=0, max_new_tokens=30, ignore_eos=True, top_logprobs=4)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + ids(result)])).logits[0, len(prompt) - 1 : -1].double()
    assert ids(result) == logits.argmax(-1).tolist()
    for token, row in zip(result.tokens, logits.log_softmax(-1), strict=True):
        assert token.author == "base"
        assert token.draw is TokenDraw.PLAIN
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert token.entropy == pytest.approx(float(-(row.exp() * row).sum()), abs=1e-4)
        assert token.top_prob == pytest.approx(float(row.exp().max()), abs=1e-4)
        top = row.topk(4)
        assert [t.id for t in token.top] == top.indices.tolist()
        assert [t.logprob for t in token.top] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert token.piece == engine.detokenize("base", [token.id])
    assert result.model == "base"
    assert result.models == ("base",)
    assert result.reproducible
    assert result.exp_mean_entropy == pytest.approx(math.exp(result.mean_entropy))


def test_usage_counts_what_was_done(engine: Engine) -> None:
    rng = random.Random(8)
    prompt = [rng.randrange(256) for _ in range(50)]
    before = engine.stats().forward_passes["base"]
    result = engine.generate(prompt, temperature=1, seed=1, max_new_tokens=10, ignore_eos=True)
    usage = result.usage
    assert (usage.prompt_tokens, usage.returned_tokens, usage.generated_tokens) == (50, 10, 10)
    assert (usage.cached_prompt_tokens, usage.nudged_tokens, usage.drafted_tokens) == (0, 0, 0)
    (work,) = usage.models
    assert (work.model, work.forward_passes, work.tokens_read, work.tokens_written) == ("base", 10, 59, 10)
    assert engine.stats().forward_passes["base"] == before + 10
    assert 0 <= usage.queue_time <= usage.time_to_first_token <= usage.total_time


def test_the_same_request_twice(engine: Engine) -> None:
    """The seed decides: the same gives the same, another another; none draws one and reports it."""
    options: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 20, "ignore_eos": True}
    one = engine.generate("the end", seed=5, **options)
    assert ids(engine.generate("the end", seed=5, **options)) == ids(one)
    assert ids(engine.generate("the end", seed=6, **options)) != ids(one)
    free = engine.generate("the end", **options)
    assert ids(engine.generate("the end", seed=free.seed, **options)) == ids(free)
    assert engine.generate("the end", **options).seed != free.seed


@pytest.mark.parametrize("block", range(3))
def test_answers_do_not_depend_on_what_else_runs(block: int, make: Factory) -> None:
    """Law 3: alone, all at once, in small batches, in small chunks, over other pages; with every kind of sampling."""
    requests = assorted(["llama", "gemma3"], 18, seed=block)
    alone = run_each(make("llama", "gemma3"), requests)
    assert len({tuple(ids(result)) for result in alone}) >= 17
    for options in (
        {},
        {"max_batch_rows": 2},
        {"token_budget": 7, "page_tokens": 4},
        {"token_budget": 1, "max_batch_rows": 5},
        {"page_tokens": 64, "token_budget": 33},
    ):
        for ours, theirs in zip(alone, run_all(make("llama", "gemma3", **options), requests), strict=True):
            assert ids(ours) == ids(theirs), options
            assert ours.text == theirs.text
            for a, b in zip(ours.tokens, theirs.tokens, strict=True):
                assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
                assert a.entropy == pytest.approx(b.entropy, abs=1e-4)


def test_negative_control_other_seeds_give_other_answers(engine: Engine) -> None:
    requests = [r for r in assorted(["base"], 18, seed=0) if r.sampling.temperature and r.stopping.max_new_tokens > 5]
    moved = [dataclasses.replace(r, sampling=dataclasses.replace(r.sampling, seed=3)) for r in requests]
    pairs = zip(run_all(engine, requests), run_all(engine, moved), strict=True)
    assert all(ids(a) != ids(b) for a, b in pairs)


@pytest.mark.parametrize("policy", [None, Nudged("gemma3", Entropy(above=2.5))])
def test_a_pool_that_is_too_small_changes_no_answer(policy: Any, make: Factory) -> None:
    """Law 4: requests lose their pages and compute them again."""
    requests = assorted(["llama"], 10, seed=4, longest=70)
    requests += [request("llama", [i, 4], 60, temperature=1.0) for i in range(10)]  # start small, grow together
    requests = [dataclasses.replace(r, policy=policy or Base()) for r in requests]
    large, small = make("llama", "gemma3"), make("llama", "gemma3", memory_bytes=5 << 15, page_tokens=4)
    assert small.stats().pages_total["llama"] * 4 < 4 * 95, "room for fewer than four of them"
    expected = run_all(large, requests)
    found = run_all(small, requests)
    for ours, theirs in zip(expected, found, strict=True):
        assert ids(ours) == ids(theirs)
        assert ours.finish_reason is theirs.finish_reason
    reads = [sum(m.tokens_read for r in results for m in r.usage.models) for results in (expected, found)]
    assert reads[1] > reads[0], "nothing was ever computed twice, so nothing lost its pages"


def test_the_oldest_is_not_starved_by_a_stream_of_younger_ones(make: Factory) -> None:
    """A long prompt gets its pages although short requests, which are cheaper to serve, never stop coming."""
    engine = make("llama", memory_bytes=40 * 576 * 4, page_tokens=4, token_budget=64, context=128)
    assert engine.stats().pages_total["llama"] == 40
    rng = random.Random(1)
    alive: list[Inbox] = []
    spawned = 0

    def small() -> Request:
        return request("llama", [rng.randrange(256) for _ in range(3)], 8)

    class Spawner(Inbox):
        """Starts the next when it ends, on the engine's thread, so that there is always one."""

        def put(self, event: Event | Exception) -> None:
            nonlocal spawned
            super().put(event)
            if isinstance(event, Completed) and spawned < 2000 and not alive[0].job.finished.is_set():
                spawned += 1
                alive.append(Spawner(engine, small()))

    class Opener(Inbox):
        """Submits everything between two passes, so that all start together."""

        def put(self, event: Event | Exception) -> None:
            super().put(event)
            if isinstance(event, Completed):
                alive.append(Inbox(engine, request("llama", [rng.randrange(256) for _ in range(100)], 20)))
                alive.extend(Spawner(engine, small()) for _ in range(45))

    Opener(engine, request("llama", [1], 1)).result()
    while len(alive) < 46:
        time.sleep(0.001)
    alive[0].result()
    assert spawned < 500, "the oldest request finished only when the stream of younger ones had dried up"
    settle(engine)


def test_a_long_prompt_does_not_hold_up_an_answer(make: Factory) -> None:
    """While 2,000 tokens are read in chunks, the answer under way gets a token in every pass."""
    engine = make("llama", token_budget=128)
    rng = random.Random(2)
    recorder = Recorder()
    late: list[Inbox] = []

    class First(Inbox):
        def put(self, event: Event | Exception) -> None:
            super().put(event)
            if len(self.events) == 6:  # on the engine's thread, so between two passes
                late.append(Inbox(engine, request("llama", [rng.randrange(256) for _ in range(2000)], 3)))

    with forward_of(engine, "llama", recorder):
        first = First(engine, request("llama", [1, 2, 3], 60))
        first.result()
        late[0].result()
    chunks = [spans for spans in recorder.passes if any(size > 16 for _, size, _ in spans)]
    assert len(chunks) == math.ceil(2000 / 127)
    for spans in chunks:
        assert sum(size for _, size, _ in spans) <= 128
        assert any(size == 1 and reads == 1 for _, size, reads in spans), "the answer waited for a chunk"
    assert max(len(spans) for spans in recorder.passes) == 2


def test_many_requests_share_passes(engine: Engine) -> None:
    recorder = Recorder()
    requests = [request("base", [i, 2, 3], 20) for i in range(16)]
    with forward_of(engine, "base", recorder):
        run_all(engine, requests)
    assert max(map(len, recorder.passes)) == 16
    assert len(recorder.passes) < 60, "320 tokens"


def test_max_batch_rows_bounds_every_pass(make: Factory) -> None:
    engine = make("llama", max_batch_rows=3)
    recorder = Recorder()
    with forward_of(engine, "llama", recorder):
        run_all(engine, [request("llama", [i, 2, 3], 6) for i in range(10)])
    assert max(map(len, recorder.passes)) == 3


def test_two_engines_in_one_process(make: Factory) -> None:
    """Law 7: models of the same name and another's weights stay apart, also while both run."""
    one, other = make(models={"m": "llama"}), make(models={"m": "llama"}, seeds={"m": 1})
    prompts = [[i, i + 1, 40] for i in range(6)]
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    alone = [one.generate(prompts, **options), other.generate(prompts, **options)]
    found: list[Any] = [None, None]

    def work(index: int) -> None:
        found[index] = (one, other)[index].generate(prompts, **options)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    for expected, results in zip(alone, found, strict=True):
        assert [ids(r) for r in expected] == [ids(r) for r in results]
    assert [ids(r) for r in alone[0]] != [ids(r) for r in alone[1]]
    one.close()
    assert other.generate("still here", max_new_tokens=2).text is not None


def test_pages_are_reused_across_requests(make: Factory) -> None:
    engine, cold = make("gemma3"), make("gemma3")
    rng = random.Random(3)
    stem = [rng.randrange(256) for _ in range(64)]
    first = Inbox(engine, request("gemma3", stem, 12)).result()
    assert first.usage.cached_prompt_tokens == 0
    tail = [rng.randrange(256) for _ in range(9)]
    again = request("gemma3", stem + tail, 8, temperature=1.0)
    warm = Inbox(engine, again).result()
    assert warm.usage.cached_prompt_tokens == 64
    assert warm.usage.models[0].tokens_read == 9 + 7
    assert ids(warm) == ids(Inbox(cold, again).result())
    assert Inbox(engine, request("gemma3", stem, 1)).result().usage.cached_prompt_tokens == 63, "one must be read"
    # What was written is reused too: the next turn of a conversation.
    turn = [*stem, *ids(first), 5, 6, 7]
    follow = request("gemma3", turn, 8)
    warm = Inbox(engine, follow).result()
    assert warm.usage.cached_prompt_tokens == 64 + 11
    assert ids(warm) == ids(Inbox(cold, follow).result())


# ------------------------------------------------------------------------------------------------------------- ends


def text_of(engine: Engine, model: str, result: Result) -> str:
    special = engine._loop.scheduler.models[model].vocabulary.special_ids
    return b"".join(t.piece for t in result.tokens if t.id not in special).decode(errors="replace")


def test_stop_strings_across_tokens(engine: Engine) -> None:
    """Any stretch of an answer, wherever it lies in its tokens, ends it there."""
    options: dict[str, Any] = {"temperature": 1.0, "seed": 4, "ignore_eos": True, "top_k": 60}
    # Few of the bytes that are no ASCII, and many tokens of several characters.
    options["logit_bias"] = dict.fromkeys(range(188, 256), -math.inf) | dict.fromkeys(range(256, 285), 3.0)
    full = engine.generate("the", max_new_tokens=60, **options)
    assert full.text == text_of(engine, "base", full)
    ends = [len(t) for t in _prefixes(full)]
    rng = random.Random(0)
    cut_inside = 0
    for _ in range(12):
        begin = rng.randrange(3, len(full.text) - 8)
        stop = full.text[begin : begin + rng.randrange(1, 7)]
        if "\ufffd" in stop:
            continue
        at = full.text.index(stop)
        for include in (False, True):
            events = list(
                engine.stream("the", max_new_tokens=60, stop=[stop, "never this"], include_stop=include, **options)
            )
            completed = events[-1]
            assert isinstance(completed, Completed)
            result = completed.result
            assert result.text == full.text[: at + (len(stop) if include else 0)]
            assert result.finish_reason is FinishReason.STOP
            assert result.chosen.stop_match == stop
            assert ids(result) == ids(full)[: len(result.tokens)]
            assert "".join(e.text for e in events if isinstance(e, Chunk)) == result.text
        cut_inside += at not in ends
    assert cut_inside >= 3, "no stop began inside a token"


def _prefixes(result: Result) -> list[str]:
    data, found = b"", []
    for token in result.tokens:
        data += token.piece
        found.append(data.decode(errors="replace"))
    return found


def test_eos(engine: Engine) -> None:
    eos = engine.models["base"].eos_token_ids
    assert len(eos) == 1
    forced: dict[str, Any] = {"temperature": 1.0, "seed": 1, "logit_bias": {eos[0]: 100.0}}
    result = engine.generate("a", max_new_tokens=9, **forced)
    assert (result.finish_reason, ids(result), result.text) == (FinishReason.EOS, list(eos), "")
    ignored = engine.generate("a", max_new_tokens=9, ignore_eos=True, **forced)
    assert ids(ignored) == list(eos) * 9
    assert ignored.finish_reason is FinishReason.MAX_NEW_TOKENS
    late = engine.generate("a", max_new_tokens=9, min_new_tokens=4, **forced)
    assert len(late.tokens) == 5
    assert eos[0] not in ids(late)[:4]
    assert late.finish_reason is FinishReason.EOS
    never = engine.generate("a", max_new_tokens=5, min_new_tokens=5, **forced)
    assert never.finish_reason is FinishReason.MAX_NEW_TOKENS
    assert eos[0] not in ids(never)


def test_a_list_of_eos_tokens(tiny: Any, tmp_path: Path) -> None:
    """Generation configs may name several; each ends an answer, and the minimum length bans them all."""
    model = tiny.make("llama")
    model.generation_config.eos_token_id = [286, 40, 41]
    tiny.save(model, tmp_path)
    with Engine({"m": ModelConfig(source=str(tmp_path), dtype="float32")}) as engine:
        assert engine.models["m"].eos_token_ids == (286, 40, 41)
        for end in (286, 40, 41):
            bias = {286: 50.0, 40: 50.0, 41: 50.0, end: 100.0}
            result = engine.generate("a", temperature=0, logit_bias=bias, min_new_tokens=3, max_new_tokens=8)
            assert ids(result)[3:] == [end]
            assert not {286, 40, 41} & set(ids(result)[:3])
            assert result.finish_reason is FinishReason.EOS
        engine.check()


def test_stop_token_ids(engine: Engine) -> None:
    bias = {9: 100.0}
    result = engine.generate("a", temperature=0, logit_bias=bias, stop_token_ids=[8, 9], max_new_tokens=5)
    assert ids(result) == [9]
    assert result.finish_reason is FinishReason.STOP
    late = engine.generate("a", temperature=0, logit_bias=bias, stop_token_ids=[9], min_new_tokens=2, max_new_tokens=5)
    assert len(late.tokens) == 3
    assert ids(late)[-1] == 9
    assert 9 not in ids(late)[:2]


def test_the_context_is_full(make: Factory) -> None:
    engine = make("llama", context=32)
    assert engine.models["llama"].max_context_tokens == 32
    result = engine.generate([1] * 30, temperature=0, max_new_tokens=10, ignore_eos=True)
    assert result.finish_reason is FinishReason.CONTEXT_FULL
    assert len(result.tokens) == 2
    assert len(engine.generate([1] * 31, temperature=0, max_new_tokens=10, ignore_eos=True).tokens) == 1
    with pytest.raises(InvalidRequest, match="at most 31 tokens"):
        engine.generate([1] * 32, max_new_tokens=1)


def test_a_time_budget_returns_the_answer_so_far(engine: Engine) -> None:
    result = engine.generate("a", temperature=0, ignore_eos=True, max_new_tokens=4000, time_budget=0.05)
    assert result.finish_reason is FinishReason.TIME_BUDGET
    assert 1 <= len(result.tokens) < 2000
    free = engine.generate("a", temperature=0, ignore_eos=True, max_new_tokens=len(result.tokens), time_budget=1000)
    assert ids(free) == ids(result)


def test_max_new_tokens(engine: Engine) -> None:
    for new in (1, 2, 7):
        result = engine.generate("a", temperature=0, ignore_eos=True, max_new_tokens=new)
        assert len(result.tokens) == new
        assert result.finish_reason is FinishReason.MAX_NEW_TOKENS


# ---------------------------------------------------------------------------------------------------------- sampling


def test_bans_and_biases_hold(engine: Engine) -> None:
    banned = dict.fromkeys(range(0, 304, 2), -math.inf)
    result = engine.generate("a", temperature=2.0, logit_bias=banned, max_new_tokens=60, seed=1, ignore_eos=True)
    assert all(token % 2 for token in ids(result))
    assert all(token.logprob is not None and token.logprob > -math.inf for token in result.tokens)


def test_filters_are_the_ones_asked_for(engine: Engine) -> None:
    """Every drawn token is inside the support that its filter leaves, by the reported statistics."""
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_new_tokens": 80, "ignore_eos": True}
    for token in engine.generate("a", top_k=3, top_logprobs=3, **options).tokens:
        assert token.id in [top.id for top in token.top]
    for token in engine.generate("a", min_p=0.3, **options).tokens:
        assert math.exp(token.logprob or 0.0) >= 0.3 * (token.top_prob or 0.0) * (1 - 1e-5)
    for token in engine.generate("a", top_p=0.4, top_logprobs=20, **options).tokens:
        before = sum(math.exp(top.logprob) for top in token.top[: [t.id for t in token.top].index(token.id)])
        assert before < 0.4 + 1e-5
    free = engine.generate("a", top_logprobs=3, **options).tokens
    assert any(token.id not in [top.id for top in token.top] for token in free), "the filters above filter nothing"


def test_a_repetition_penalty_sees_the_whole_sequence(make: Factory, tiny_folder: Folder) -> None:
    """Greedy with a penalty is transformers' generate with the same, over several chunks of prompt."""
    engine = make("llama", token_budget=16)
    model = hf.AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32).eval()
    rng = random.Random(6)
    prompt = [rng.randrange(20) for _ in range(40)]
    config = hf.GenerationConfig(max_new_tokens=30, do_sample=False, repetition_penalty=1.8, pad_token_id=0)
    with torch.inference_mode():
        inputs = torch.tensor([prompt])
        rows = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
    expected = rows[0, 40:].tolist()
    result = engine.generate(prompt, temperature=0, repetition_penalty=1.8, max_new_tokens=30)
    assert ids(result) == expected
    plain = engine.generate(prompt, temperature=0, repetition_penalty=1.0, max_new_tokens=30)
    assert ids(plain) != expected


def test_picks_go_through_the_kernels() -> None:
    """What ran is recorded by the dispatcher, for this thread."""
    logits = torch.randn(3, 50)
    pick = Pick(Filters(temperature=1.0), Key(1), 0)
    windows = [Window([row]) for row in (Row(None), Row(pick._replace(seen=(1, 2))), Row(pick, 3))]
    with paths.record() as calls:
        reads = [found for (found,) in read([logits], windows, lambda token: bytes([token]))]
    assert [call.op for call in calls] == ["pick", "top_logprobs"]
    assert reads[0].token == reads[0].argmax == int(logits[0].argmax())
    assert [top.piece for top in reads[2].top] == [bytes([top.id]) for top in reads[2].top]
    assert [len(read.top) for read in reads] == [0, 0, 3]
    with paths.record() as calls:
        read([logits[:1]], windows[:1], bytes)
    assert [call.op for call in calls] == ["pick"]


def test_a_pass_of_the_engine_makes_one_call_to_the_sampler(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    pick = dispatch.pick

    def counted(logits: torch.Tensor, rows: Any, **options: Any) -> Any:
        seen.append(len(rows))
        return pick(logits, rows, **options)

    monkeypatch.setattr(dispatch, "pick", counted)
    before = engine.stats().forward_passes["base"]
    results = engine.generate([[i, 3] for i in range(5)], temperature=1.0, max_new_tokens=4, ignore_eos=True)
    assert sum(seen) == sum(len(r.tokens) for r in results) == 20
    assert len(seen) == engine.stats().forward_passes["base"] - before


# ------------------------------------------------------------------------------------------------------- the surface


def test_prompts_of_all_kinds(engine: Engine) -> None:
    vocabulary = engine._loop.scheduler.models["base"].vocabulary
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 5, "ignore_eos": True}
    text = engine.generate("the cat", **options)
    assert ids(engine.generate(vocabulary.encode("the cat"), **options)) == ids(text)
    chat = engine.generate([{"role": "user", "content": "the cat"}], **options)
    assert ids(engine.generate("<bos><user>the cat<bot>", **options)) == ids(chat)
    assert ids(chat) != ids(text)
    assert ids(engine.generate("the cat", model="chat", **options)) != ids(text)


def test_several_prompts_keep_their_order(engine: Engine) -> None:
    prompts: list[Any] = [f"number {i} is " + "very " * (i % 5) for i in range(12)]
    options: dict[str, Any] = {"temperature": 1.0, "seed": 9, "ignore_eos": True, "max_new_tokens": 6}
    together = engine.generate(prompts, **options)
    assert [ids(r) for r in together] == [ids(engine.generate(prompt, **options)) for prompt in prompts]
    assert len(engine.generate(["one"], **options)) == 1
    mixed = engine.generate([[1, 2], [{"role": "user", "content": "hi"}], "text"], **options)
    sizes = [2, *(len(engine.tokenize("base", text)[0]) for text in ("<bos><user>hi<bot>", "text"))]
    assert [r.usage.prompt_tokens for r in mixed] == sizes


def test_a_generation_config(engine: Engine) -> None:
    config = hf.GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.8, top_k=9, eos_token_id=286)
    result = engine.generate("a", generation_config=config, seed=2, ignore_eos=True)
    same = engine.generate("a", max_new_tokens=7, temperature=0.8, top_k=9, seed=2, ignore_eos=True)
    assert ids(result) == ids(same)
    with pytest.raises(InvalidRequest) as caught:
        engine.generate("a", generation_config=hf.GenerationConfig(num_beams=4, no_repeat_ngram_size=3))
    assert [v.field for v in caught.value.violations] == [
        "generation_config.no_repeat_ngram_size",
        "generation_config.num_beams",
    ]


@pytest.mark.parametrize("new", [1, 40])
def test_a_stream_adds_up(engine: Engine, new: int) -> None:
    options: dict[str, Any] = {"temperature": 1.2, "seed": 7, "max_new_tokens": new, "ignore_eos": True, "stop": "zq"}
    events = list(engine.stream("Größe", **options))
    started, *_, completed = events
    assert isinstance(started, Started)
    assert isinstance(completed, Completed)
    chunks = [chunk for chunk in events if isinstance(chunk, Chunk)]
    assert events == [started, *chunks, completed]
    result = completed.result
    assert (started.seed, started.max_new_tokens, started.models) == (7, new, ("base",))
    assert started.prompt_tokens == result.usage.prompt_tokens
    assert "".join(chunk.text for chunk in chunks) == result.text == text_of(engine, "base", result)
    assert [t for chunk in chunks for t in chunk.tokens] == list(result.tokens)
    assert len(chunks) >= new
    assert "\ufffd" in result.text or new == 1, "bytes at random: some are no UTF-8"
    whole = engine.generate("Größe", **options)
    assert dataclasses.replace(whole, usage=result.usage) == result


def test_a_result_survives_json(engine: Engine) -> None:
    result = engine.generate("Größe", temperature=1.5, max_new_tokens=30, ignore_eos=True, top_logprobs=3)
    assert from_json(json.loads(json.dumps(to_json(result), allow_nan=False))) == result


def test_nudged_answers_say_who_wrote_what(engine: Engine) -> None:
    """Two models of one vocabulary: where the base is sure it writes, elsewhere the nudger."""
    policy = Nudged("chat", Entropy(above=4.5))
    result = engine.generate("the cat", policy=policy, temperature=0, max_new_tokens=60, ignore_eos=True)
    authors = [token.author for token in result.tokens]
    assert set(authors) == {"base", "chat"}
    assert result.usage.nudged_tokens == authors.count("chat")
    assert {work.model: work.tokens_written for work in result.usage.models} == {
        "base": authors.count("base"),
        "chat": authors.count("chat"),
    }
    assert all((t.entropy or 0.0) <= 4.5 for t in result.tokens if t.author == "base")
    assert result.models == ("base", "chat")


async def _collect(events: Any) -> list[Any]:
    return [event async for event in events]


def test_asyncio_gives_the_same(engine: Engine) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_new_tokens": 9, "ignore_eos": True}
    expected = engine.generate("one two", **options)

    async def main() -> tuple[Any, Any, list[Any]]:
        single, many, events = await asyncio.gather(
            engine.agenerate("one two", **options),
            engine.agenerate(["one two", "three"], **options),
            _collect(engine.astream("one two", **options)),
        )
        return single, many, events

    single, many, events = asyncio.run(main())
    assert ids(single) == ids(expected) == ids(many[0]) == ids(events[-1].result)
    assert "".join(e.text for e in events if isinstance(e, Chunk)) == expected.text
    assert len(many) == 2


# --------------------------------------------------------------------------------------------- methods of other kinds


class Explorer:
    """A method that does to sequences whatever a policy, draw or search may do, and notes what it read.

    Attributes:
        notes: for each read, the tokens before it and what was read.
    """

    def __init__(self, seed: int, steps: int = 14) -> None:
        self.rng, self.steps = random.Random(seed), steps
        self.notes: list[tuple[tuple[int, ...], Any]] = []
        self.live: set[Any] = set()

    def tokens(self, most: int = 6) -> list[int]:
        return [self.rng.randrange(256) for _ in range(self.rng.randrange(most))]

    async def extend(self, seq: Any, tokens: Sequence[int]) -> None:
        """Read after some of the last tokens, also ones that were computed before."""
        total = len(seq.tokens) + len(tokens)
        count = self.rng.randrange(1, min(9, total) + 1)
        reads = await Extend(seq, tokens, [None] * count, 1)
        assert len(seq.tokens) == total
        for i, found in enumerate(reads):
            self.notes.append((tuple(seq.tokens[: total - count + 1 + i]), found))

    async def wander(self, seq: Any, steps: int, depth: int) -> int:
        try:
            for _ in range(steps):
                if len(seq.tokens) > 90:
                    seq.rewind(60)
                match self.rng.randrange(6):
                    case 0 if depth:
                        twins = [seq.fork() for _ in range(3)]
                        counts = [self.wander(twin, steps // 3, depth - 1) for twin in twins]
                        assert await gather(*counts) == [steps // 3] * 3
                    case 1 if len(seq.tokens) > 8:
                        seq.rewind(len(seq.tokens) - self.rng.randrange(1, 8))
                    case _:
                        await self.extend(seq, self.tokens())
            return steps
        finally:
            seq.close()

    async def __call__(self, context: Any, plan: Any, emit: Any) -> Outcome:
        (model,) = plan.prompts
        await self.wander(context.open(model, plan.prompts[model]), self.steps, 2)
        return Outcome((Candidate(0, "", (), FinishReason.STOP),))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gemma3", {}),
        ("llama", {"token_budget": 5, "page_tokens": 4}),
        ("llama", {"max_batch_rows": 2, "page_tokens": 4}),
        ("gemma3", {"page_tokens": 4, "memory_bytes": 3 * 40 * 4 * 16 * 2 * 3 * 4}),
    ],
    ids=["roomy", "chunks", "rows", "small pool"],
)
def test_reads_depend_only_on_the_tokens(
    kind: str, options: dict[str, int], make: Factory, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 2 through the scheduler: forks, rewinds and reads of several rows, of several requests at once."""
    explorers = [Explorer(seed) for seed in range(5)]
    left = iter(explorers)
    monkeypatch.setattr("trimtab.decode.engine.root.write", lambda *given: next(left)(*given))
    engine = make(kind, context=128, **options)
    rng = random.Random(9)
    stem = [rng.randrange(256) for _ in range(20)]
    run_all(engine, [request(kind, [*stem[: 4 * i], i, 7], 1) for i in range(5)])
    settle(engine)
    engine.check()

    model = hf.AutoModelForCausalLM.from_pretrained(tiny_folder(kind), dtype=torch.float32).eval()
    notes = [note for explorer in explorers for note in explorer.notes]
    assert len(notes) > 300
    longest = max(len(tokens) for tokens, _ in notes)
    rows = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens, _ in notes])
    with torch.inference_mode():
        for begin in range(0, len(notes), 64):
            logprobs = model(input_ids=rows[begin : begin + 64]).logits.double().log_softmax(-1)
            for (tokens, found), row in zip(notes[begin : begin + 64], logprobs, strict=False):
                truth = row[len(tokens) - 1]
                assert found.token == found.argmax == found.top[0].id == int(truth.argmax())
                assert found.logprob == pytest.approx(float(truth.max()), abs=1e-4)
                assert found.entropy == pytest.approx(float(-(truth.exp() * truth).sum()), abs=1e-4)


def test_branches_of_one_request_take_pages_from_one_another(make: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose sequences don't all fit is slow, but it is answered, and in the same way."""
    answers: list[list[int]] = []

    async def branch(seq: Any, steps: int) -> list[int]:
        written: list[int] = []
        for _ in range(steps):
            (found,) = await Extend(seq, written[-1:])
            written.append(found.token)
        return written

    async def method(context: Any, plan: Any, emit: Any) -> Outcome:
        seqs = [context.open("llama", [i, *plan.prompts["llama"]]) for i in range(5)]
        answers.extend(await gather(*(branch(seq, 8) for seq in seqs)))
        return Outcome((Candidate(0, "", (), FinishReason.STOP),))

    monkeypatch.setattr("trimtab.decode.engine.root.write", method)
    for pages in (100, 12):
        engine = make("llama", page_tokens=4, memory_bytes=pages * 4 * 576, context=48)
        run_each(engine, [request("llama", [9] * 26, 1)])
    assert len(answers) == 10
    assert answers[:5] == answers[5:]
    assert engine.stats().forward_passes["llama"] > 8, "everything fitted"


def test_a_failing_branch_closes_the_others_and_gives_their_pages_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    reads: list[int] = []

    async def branch(seq: Any, fails: bool) -> None:
        try:
            for i in range(40):
                await Extend(seq, [i])
                reads.append(i)
                if fails and i == 5:
                    raise ArithmeticError
        finally:
            seq.close()

    async def method(context: Any, plan: Any, emit: Any) -> Outcome:
        root = context.open("base", plan.prompts["base"])
        await Extend(root)
        with pytest.raises(ArithmeticError):
            await gather(*(branch(root.fork(), i == 2) for i in range(5)))
        held.append(engine.stats().pages_used["base"])
        await Extend(root, [1])
        return Outcome((Candidate(0, "", (), FinishReason.STOP),))

    monkeypatch.setattr("trimtab.decode.engine.root.write", method)
    run_each(engine, [request("base", [1] * 40, 1)])
    assert held == [3], "only the root's own pages"
    assert len(reads) <= 5 * 6


def test_a_branch_that_is_closed_costs_no_further_pass(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed task's op is taken back even where its sequence stays open."""

    async def branch(seq: Any) -> None:
        await Extend(seq, [7] * 60)

    async def fails() -> None:
        raise ArithmeticError

    async def method(context: Any, plan: Any, emit: Any) -> Outcome:
        root = context.open("base", plan.prompts["base"])
        twins = [root.fork() for _ in range(4)]
        with pytest.raises(ArithmeticError):
            await gather(*(branch(twin) for twin in twins), fails())
        await Extend(root)
        return Outcome((Candidate(0, "", (), FinishReason.STOP),))

    monkeypatch.setattr("trimtab.decode.engine.root.write", method)
    recorder = Recorder()
    with forward_of(engine, "base", recorder):
        run_each(engine, [request("base", [1] * 5, 1)])
    assert recorder.passes == [[(0, 5, 1)]]


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (lambda seq: Extend(seq, (), ()), "0 reads of a sequence of 3 tokens"),
        (lambda seq: Extend(seq, (), [None] * 4), "4 reads of a sequence of 3 tokens"),
        (lambda seq: Extend(seq, [1] * 5000), "5003 tokens exceed the context of 4096"),
        (lambda seq: seq.close() or Extend(seq), "the sequence is closed"),
        (lambda seq: Extend(seq) if seq.rewind(9) else None, "cannot rewind 3 tokens to 9"),
    ],
)
def test_a_method_that_asks_the_impossible_hears_of_it(
    op: Any, message: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def method(context: Any, plan: Any, emit: Any) -> Outcome:
        seq = context.open("base", plan.prompts["base"])
        with pytest.raises(ValueError, match=message):
            await op(seq)
        assert list(seq.tokens) == [1, 2, 3]
        return Outcome((Candidate(0, message, (), FinishReason.STOP),))

    monkeypatch.setattr("trimtab.decode.engine.root.write", method)
    assert run_each(engine, [request("base", [1, 2, 3], 1)])[0].text == message


# -------------------------------------------------------------------------------------------------------- cancelling

LONG: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 4000, "ignore_eos": True}


def test_cancelling_a_job(engine: Engine) -> None:
    inbox = Inbox(engine, request("base", [1, 2], 4000))
    inbox.wait_for_chunk()
    inbox.job.cancel()
    inbox.job.cancel()
    assert isinstance(inbox.outcome(), RequestCancelled)
    assert inbox.job.finished.is_set()
    assert not engine.stats().pages_used["base"]
    inbox.job.cancel()
    settle(engine)
    assert sum(isinstance(event, Exception) for event in inbox.events) == 1


def test_cancelling_takes_one_tick(engine: Engine) -> None:
    """No forward pass begins for a request after the pass in which it was cancelled."""
    recorder = Recorder()
    at: list[int] = []

    class Impatient(Inbox):
        def put(self, event: Event | Exception) -> None:
            super().put(event)
            if len(self.events) == 5:
                self.job.cancel()
                at.append(len(recorder.passes))

    with forward_of(engine, "base", recorder):
        inbox = Impatient(engine, request("base", [1, 2], 4000))
        assert isinstance(inbox.outcome(), RequestCancelled)
        settle(engine)
    assert len(recorder.passes) == at[0]


def test_cancelling_while_queued(make: Factory) -> None:
    engine = make("llama", max_batch_rows=1)
    first, second = (Inbox(engine, request("llama", [1, 2], 4000)) for _ in range(2))
    first.wait_for_chunk()
    second.job.cancel()
    assert isinstance(second.outcome(), RequestCancelled)
    assert second.events == [second.events[-1]], "it never started"
    first.job.cancel()
    first.outcome()


def test_closing_a_stream_cancels(engine: Engine) -> None:
    stream = engine.stream("a", **LONG)
    for _ in range(4):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    settle(engine)
    assert not engine.stats().pages_used["base"]


def test_closing_a_stream_that_was_never_read_cancels(engine: Engine) -> None:
    before = engine.stats().forward_passes["base"]
    stream = engine.stream("a", **LONG)
    stream.close()  # type: ignore[attr-defined]
    settle(engine)
    assert engine.stats().forward_passes["base"] < before + 1000, "it ran to its end with nobody listening"


def test_a_stream_that_is_dropped_cancels(engine: Engine) -> None:
    before = engine.stats().forward_passes["base"]
    engine.stream("a", **LONG)
    stream = engine.stream("a", **LONG)
    next(stream)
    del stream
    settle(engine)
    assert engine.stats().forward_passes["base"] < before + 1000


def test_closing_an_async_stream_cancels(engine: Engine) -> None:
    async def main() -> int:
        events = engine.astream("a", **LONG)
        count = 0
        async for _ in events:
            count += 1
            if count == 5:
                break
        await events.aclose()
        return count

    assert asyncio.run(main()) == 5
    settle(engine)
    assert not engine.stats().pages_used["base"]


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.05])
def test_cancelling_a_task_cancels(engine: Engine, delay: float) -> None:
    """At once, while the prompt is being encoded on another thread, or under way."""
    before = engine.stats().forward_passes["base"]

    async def main() -> None:
        task = asyncio.create_task(engine.agenerate(["a", "b"], **LONG))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    settle(engine)
    assert engine.stats().forward_passes["base"] < before + 1000


def test_a_timeout_cancels(engine: Engine) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await _collect(engine.astream("a", **LONG))

    asyncio.run(main())
    settle(engine)


def test_a_loop_that_dies_while_it_reads_cancels(engine: Engine) -> None:
    async def main() -> None:
        events = engine.astream("a", **LONG)
        await anext(events)
        # returns without closing: the loop shuts its generators down

    asyncio.run(main())
    settle(engine)


# ------------------------------------------------------------------------------------------------------ many threads


@settings(max_examples=12)
@given(
    st.integers(0, 2**32 - 1), st.integers(2, 4), st.sampled_from([{}, {"memory_bytes": 1 << 17}, {"token_budget": 9}])
)
def test_random_programs_leave_nothing_behind(
    tiny_folder: Folder, seed: int, workers: int, options: dict[str, int]
) -> None:
    """Law 5: generate, stream, cancel, close early and fail, from several threads at once."""
    configs = {
        name: ModelConfig(source=str(tiny_folder(name)), dtype="float32", context_tokens=256)
        for name in ("llama", "gemma3")
    }
    chosen = EngineOptions(**({"memory_bytes": 8 << 20, "page_tokens": 4, "max_batch_rows": 6} | options))
    engine = Engine(configs, options=chosen, limits=Limits(max_queue=8))
    faults: list[BaseException] = []

    def work(index: int) -> None:
        rng = random.Random(f"{seed} {index}")
        for _ in range(6):
            try:
                _random_action(engine, rng)
            except Overloaded:
                time.sleep(0.001)
            except BaseException as fault:
                faults.append(fault)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    assert not faults
    settle(engine)
    engine.check()
    assert set(engine.stats().pages_used.values()) == {0}
    engine.close()


def _random_action(engine: Engine, rng: random.Random) -> None:
    model = rng.choice(["llama", "gemma3"])
    other = "gemma3" if model == "llama" else "llama"
    prompt = [rng.randrange(40) for _ in range(rng.randrange(1, 60))]
    options: dict[str, Any] = {"model": model, "max_new_tokens": rng.randrange(1, 25), "temperature": 1.0}
    if rng.random() < 0.3:
        options["policy"] = Nudged(other, Entropy(above=2.0))
    match rng.randrange(6):
        case 0 | 1:
            result = engine.generate(prompt, **options)
            assert 1 <= len(result.tokens) <= options["max_new_tokens"]
        case 2:
            text, stream = "", engine.stream(prompt, **options)
            for event in stream:
                text += event.text if isinstance(event, Chunk) else ""
            assert isinstance(event, Completed)
            assert event.result.text == text
        case 3:
            stream = engine.stream(prompt, **options)
            for _ in range(rng.randrange(4)):
                next(stream, None)
            stream.close()  # type: ignore[attr-defined]
        case 4:
            inbox = Inbox(engine, request(model, prompt, 30))
            if rng.random() < 0.5:
                time.sleep(rng.random() * 0.01)
            inbox.job.cancel()
            assert isinstance(inbox.outcome(), Result | RequestCancelled)
        case _:
            with pytest.raises(InvalidRequest):
                engine.generate(prompt, **{**options, "temperature": -1})


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ("", {}, "prompt"),
        ([], {}, "prompt"),
        (None, {}, "prompt"),
        (b"bytes", {}, "prompt"),
        ("\ud800", {}, "prompt"),
        ([1, 304], {}, "prompt.token_ids[1]"),
        ([1, -1], {}, "prompt.token_ids[1]"),
        ([1, True], {}, "prompt.token_ids[1]"),
        ([1, "a"], {}, "prompt.token_ids[1]"),
        ([{"role": "nobody", "content": "x"}], {}, "prompt.messages[0].role"),
        ([{"role": "user", "content": 7}], {}, "prompt.messages[0].content"),
        ("a", {"temperature": -0.1}, "sampling.temperature"),
        ("a", {"temperature": math.nan}, "sampling.temperature"),
        ("a", {"top_p": 0}, "sampling.top_p"),
        ("a", {"top_k": -1}, "sampling.top_k"),
        ("a", {"min_p": 1}, "sampling.min_p"),
        ("a", {"repetition_penalty": 0}, "sampling.repetition_penalty"),
        ("a", {"logit_bias": {304: 1.0}}, "sampling.logit_bias[304]"),
        ("a", {"logit_bias": {3: math.nan}}, "sampling.logit_bias[3]"),
        ("a", {"logit_bias": {3: math.inf}}, "sampling.logit_bias[3]"),
        ("a", {"seed": -1}, "sampling.seed"),
        ("a", {"seed": 2**32}, "sampling.seed"),
        ("a", {"max_new_tokens": 0}, "stopping.max_new_tokens"),
        ("a", {"max_new_tokens": 10**6}, "stopping.max_new_tokens"),
        ("a", {"min_new_tokens": 9, "max_new_tokens": 8}, "stopping.min_new_tokens"),
        ("a", {"stop": [""]}, "stopping.stop[0]"),
        ("a", {"stop": ["x"] * 9}, "stopping.stop"),
        ("a", {"stop_token_ids": [400]}, "stopping.stop_token_ids[0]"),
        ("a", {"time_budget": 0}, "stopping.time_budget"),
        ("a", {"top_logprobs": 21}, "top_logprobs"),
        ("a", {"policy": Nudged("base")}, "policy.nudged.nudger"),
        ("a", {"policy": Nudged("chat", Entropy(above=-1))}, "policy.nudged.entropy_nats_above"),
        ("a", {"temprature": 1}, "temprature"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_any_work(engine: Engine, prompt: Any, options: dict[str, Any], field: str) -> None:
    before = engine.stats().forward_passes["base"]

    async def astream() -> None:
        await _collect(engine.astream(prompt, **options))

    calls: list[Callable[[], Any]] = [
        lambda: engine.generate(prompt, **options),
        lambda: engine.stream(prompt, **options),
        lambda: asyncio.run(engine.agenerate(prompt, **options)),
        lambda: asyncio.run(astream()),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert field in [violation.field for violation in caught.value.violations]
        assert not caught.value.retryable
    assert engine.stats().forward_passes["base"] == before


@pytest.mark.parametrize(
    ("options", "kind", "field"),
    [
        ({"model": "nobody"}, NotFound, "model"),
        ({"policy": Nudged("nobody")}, NotFound, "policy.nudged.nudger"),
        ({"policy": "nudged:nobody"}, NotFound, "policy.nudged.nudger"),
        ({"policy": "nudged"}, InvalidRequest, "policy nudged.nudger"),
        ({"draw": "speculative"}, InvalidRequest, "draw speculative.draft"),
        ({"policy": 16}, UnsupportedRequest, "policy"),
        ({"draw": 16}, UnsupportedRequest, "draw"),
        ({"search": 16}, UnsupportedRequest, "search"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    engine: Engine, options: dict[str, Any], kind: type[Exception], field: str
) -> None:
    before = engine.stats().forward_passes
    with pytest.raises(kind) as caught:
        engine.generate("a", **options)
    assert [violation.field for violation in caught.value.violations] == [field]  # type: ignore[attr-defined]
    assert engine.stats().forward_passes == before
    engine.generate("a", draw=Autoregressive(), max_new_tokens=1)


def test_one_bad_prompt_of_several_stops_none_half_way(engine: Engine) -> None:
    before = engine.stats().forward_passes["base"]
    with pytest.raises(InvalidRequest):
        engine.generate(["fine", "", "fine"], max_new_tokens=3)
    settle(engine)
    assert engine.stats().forward_passes["base"] == before


def test_ids_outside_the_vocabulary_have_no_bytes(engine: Engine) -> None:
    assert engine.detokenize("base", [303]) == b""
    with pytest.raises(InvalidRequest, match=r"ids\[1\] = 304"):
        engine.detokenize("base", [0, 304])
    with pytest.raises(NotFound):
        engine.tokenize("nobody", "a")


@pytest.mark.parametrize("fault", [RuntimeError, SystemExit])
def test_a_fault_while_loading_reaches_the_caller(
    fault: type[BaseException], tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, config: ModelConfig) -> Any:
        raise fault("no such luck")

    monkeypatch.setattr("trimtab.decode.engine.loading.load", broken)
    with pytest.raises(fault, match="no such luck"):
        Engine({"m": ModelConfig(source=str(tiny_folder("llama")))})


def test_no_models_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one model"):
        Engine({})


# ------------------------------------------------------------------------------------------------------------ faults


def _poison(token: int) -> Callable[[Any], Any]:
    """Logits that are not numbers, after one token only."""

    def wrap(forward: Any) -> Any:
        def poisoned(tokens: Any, positions: Any, step: Any, rows: Any) -> Any:
            logits = forward(tokens, positions, step, rows).clone()
            logits[tokens[rows] == token] = math.nan
            return logits

        return poisoned

    return wrap


def test_logits_that_are_no_numbers_fail_one_request(engine: Engine) -> None:
    requests = [request("base", [i, 5, 200 + i], 8, logit_bias={201: -math.inf}) for i in range(4)]
    expected = run_all(engine, requests)
    with forward_of(engine, "base", _poison(201)):
        inboxes = [Inbox(engine, r) for r in requests]
        outcomes = [inbox.outcome() for inbox in inboxes]
    assert isinstance(outcomes[1], EngineFailed)
    assert "no finite logits" in str(outcomes[1])
    for i in (0, 2, 3):
        found = outcomes[i]
        assert isinstance(found, Result)
        assert ids(found) == ids(expected[i])
    settle(engine)
    engine.check()
    assert ids(run_each(engine, requests[1:2])[0]) == ids(expected[1])


def test_a_failing_pass_fails_the_request_that_makes_it_fail(engine: Engine) -> None:
    """And no other: neighbours in the pass and requests of another model get what they get alone."""

    def wrap(forward: Any) -> Any:
        def failing(tokens: Any, positions: Any, step: Any, rows: Any) -> Any:
            if 77 in tokens.tolist():
                raise RuntimeError("out of luck")
            return forward(tokens, positions, step, rows)

        return failing

    with forward_of(engine, "base", wrap):
        other = Inbox(engine, request("chat", [1, 2, 3], 50))
        inboxes = [Inbox(engine, request("base", [1, 77 if i == 4 else 7, 3 + i], 9, seed=i)) for i in range(9)]
        victim = inboxes.pop(4).outcome()
        assert isinstance(victim, EngineFailed)
        assert isinstance(victim.__cause__, RuntimeError)
        assert len(other.result().tokens) == 50
        found = [ids(inbox.result()) for inbox in inboxes]
    assert found == [ids(engine.generate([1, 7, 3 + i], max_new_tokens=9, seed=i)) for i in range(9) if i != 4]
    settle(engine)
    engine.check()
    assert engine.generate("a", max_new_tokens=1).tokens


def test_a_failing_method_fails_its_own_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Answer.write

    def faulty(self: Answer, tokens: Any) -> int:
        if len(self.tokens) == 3 and self.top == 2:
            raise ArithmeticError("a bug in a method")
        return write(self, tokens)

    monkeypatch.setattr(Answer, "write", faulty)
    inboxes = [Inbox(engine, request("base", [i, 3], 9, top=i)) for i in range(4)]
    outcomes = [inbox.outcome() for inbox in inboxes]
    assert [isinstance(outcome, EngineFailed) for outcome in outcomes] == [False, False, True, False]
    assert isinstance(outcomes[2].__cause__, ArithmeticError)  # type: ignore[union-attr]


def test_a_listener_that_fails_fails_its_own_request(engine: Engine) -> None:
    """An exception in a callback must reach neither the engine's thread nor other requests."""

    def broken(event: Event | Exception) -> None:
        raise LookupError("a bug in a callback")

    job = engine.submit(request("base", [1, 2], 30), broken)
    other = Inbox(engine, request("base", [1, 3], 30))
    assert len(other.result().tokens) == 30
    assert job.finished.wait(WAIT)
    settle(engine)
    assert engine.failure is None
    last = engine.submit(
        request("base", [1, 2], 3), lambda event: broken(event) if isinstance(event, Completed) else None
    )
    assert last.finished.wait(WAIT)
    settle(engine)
    assert engine.failure is None


def test_a_fault_of_the_engine_ends_everything_with_an_error(make: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make("llama", max_batch_rows=2)
    inboxes = [Inbox(engine, request("llama", [i, 2], 4000)) for i in range(4)]
    inboxes[0].wait_for_chunk()

    def broken() -> Any:
        raise AssertionError("an invariant is gone")

    monkeypatch.setattr(engine._loop.scheduler, "plans", broken)
    for inbox in inboxes:
        outcome = inbox.outcome()
        assert isinstance(outcome, EngineFailed)
        assert inbox.job.finished.is_set()
    assert isinstance(engine.failure, AssertionError)
    for call in (lambda: engine.generate("a"), lambda: next(engine.stream("a"))):
        with pytest.raises(EngineFailed) as caught:
            call()
        assert isinstance(caught.value.__cause__, AssertionError)


def test_broken_pages_end_everything_with_an_error(make: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where a request can't be cleaned up any more, all get their last event."""
    engine = make("llama")
    inboxes = [Inbox(engine, request("llama", [i, 2], 4000)) for i in range(3)]
    for inbox in inboxes:
        inbox.wait_for_chunk()
    pages = engine._loop.scheduler.models["llama"].pages
    good = pages.close
    broken = [True]

    def close(table: Any, tokens: Any) -> None:
        good(table, tokens)
        if broken.pop() if broken else False:
            raise AssertionError("an invariant is gone")

    monkeypatch.setattr(pages, "close", close)
    inboxes[0].job.cancel()
    for inbox in inboxes:
        assert isinstance(inbox.outcome(), EngineFailed | RequestCancelled)
    assert isinstance(engine.failure, AssertionError)


def test_a_full_queue_refuses(make: Factory) -> None:
    engine = make("llama", limits=Limits(max_queue=3))
    inboxes = [Inbox(engine, request("llama", [i], 4000)) for i in range(3)]
    for call in (
        lambda: Inbox(engine, request("llama", [1], 1)),
        lambda: engine.generate("a"),
        lambda: asyncio.run(engine.agenerate("a")),
        lambda: asyncio.run(_collect(engine.astream("a"))),
    ):
        with pytest.raises(Overloaded) as caught:
            call()
        assert caught.value.retryable
        assert caught.value.retry_after > 0
        assert "3" in str(caught.value)
    for inbox in inboxes:
        inbox.job.cancel()
        inbox.outcome()
    # A place is free as soon as the answer is there, not a moment later.
    for i in range(60):
        more = [Inbox(engine, request("llama", [i], 1)) for _ in range(3)]
        for inbox in more:
            inbox.result()


def test_closing_ends_everything(make: Factory) -> None:
    engine = make("llama", max_batch_rows=2)
    inboxes = [Inbox(engine, request("llama", [i], 4000)) for i in range(5)]
    inboxes[0].wait_for_chunk()
    engine.close()
    assert all(isinstance(inbox.outcome(), EngineClosed) for inbox in inboxes)
    assert not any(engine.stats().pages_used.values())
    engine.check()
    engine.close()
    for call in (lambda: engine.generate("a"), lambda: asyncio.run(engine.agenerate("a"))):
        with pytest.raises(EngineClosed) as caught:
            call()
        assert caught.value.retryable


def test_closing_while_others_submit_strands_nobody(make: Factory) -> None:
    """Every request that was accepted gets its last event, however close to the end it came."""
    model = make("llama")
    loaded = {name: instance.model for name, instance in model._loop.scheduler.models.items()}
    for round_ in range(25):
        engine = _reopened(model, loaded)
        accepted: list[Inbox] = []
        go = threading.Event()

        def work(accepted: list[Inbox] = accepted, engine: Engine = engine, go: threading.Event = go) -> None:
            go.wait()
            try:
                for i in range(50):
                    accepted.append(Inbox(engine, request("llama", [i], 2)))
            except (EngineClosed, Overloaded):
                pass

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        go.set()
        time.sleep(0.0005 * (round_ % 5))
        engine.close()
        for thread in threads:
            thread.join(WAIT)
        for inbox in accepted:
            assert isinstance(inbox.outcome(), Result | EngineClosed)


def _reopened(engine: Engine, models: Mapping[str, LoadedModel]) -> Engine:
    """A new engine over the same models: loading them again would be all that a test does."""
    fresh = Engine.__new__(Engine)
    fresh.__dict__.update(engine.__dict__)
    made = {name: ModelInstance(model, 64, 16, None) for name, model in models.items()}
    fresh._loop = Loop(lambda wake: Scheduler(made, 64, 512, engine.same_ids, wake), None)
    return fresh


def test_a_request_that_arrives_as_the_engine_closes_is_answered(make: Factory) -> None:
    """Accepted after the engine's thread emptied its inbox, and closed before the thread looked whether it must end."""
    engine = make("llama")
    engine.generate("a", max_new_tokens=1)
    late: list[Inbox] = []

    class Racing(type(engine._loop._inbox)):  # type: ignore[misc]
        def __bool__(self) -> bool:
            if not len(self) and not late:
                late.append(Inbox(engine, request("llama", [1], 1)))
                self.popped = self.pop()
                engine.close()
                self.append(self.popped)
                return False
            return len(self) > 0

    engine._loop._inbox = Racing()
    engine._loop.wake()
    while not late:
        time.sleep(0.001)
    assert isinstance(late[0].outcome(), EngineClosed)


def test_an_engine_that_never_ran_closes(make: Factory) -> None:
    engine = make("llama")
    engine.close()
    with pytest.raises(EngineClosed):
        engine.generate("a")
