"""Speed of best-of-n: n candidates of one prompt in this engine, beside ``generate`` with ``num_return_sequences=n``.

Both sample from the whole distribution at one temperature and write exactly the same number of tokens; one prompt is
answered at a time, and what a repeat asks is new to both. Every contestant has a process of its own, all take turns.
This engine also chooses among its candidates (by majority, which needs no reward); ``generate`` only returns them.

Candidates share the pages of the cache that their prompt fills: a page is held once however many go on from it. How
large pages should be is measured, too: small ones share more, large ones are read faster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trimtab.bench.contestants import Apart, Batch, Contestant
from trimtab.bench.data import prompt_of, read_rows
from trimtab.bench.progress import Progress
from trimtab.bench.prompts import PROMPTS, spaced
from trimtab.bench.record import Recorder
from trimtab.bench.timing import interleaved, paired_ratio
from trimtab.bench.weights import quantised
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.request.sampling import Sampling, Stopping

if TYPE_CHECKING:
    from trimtab.decode.engine.engine import Engine
    from trimtab.decode.request.result import Result

__all__ = ["Candidates", "Held", "Options", "Returned", "bench_best_of_n", "held_pages"]

_MODEL = "model"
_LEAST_MEMORY = 64 << 20  # for an engine that only tokenises


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``trimtab bench best-of-n`` is asked for.

    Attributes:
        model: a bundled name, a folder or a hub id.
        n: candidates.
        page_tokens: sizes of pages, each a contestant; 0 is the engine's own choice.
        prompts: how many are asked.
        data: JSONL file of prompts; None takes the project's own.
        temperature: of both sides.
        max_new_tokens: written per candidate.
        repeats: measured rounds.
        threads: of torch; None leaves torch's setting alone.
        memory_mb: for the engine's pages.
        seed: of the first round; every round has its own.
        quick: whether this is a smoke run: one prompt, 8 tokens, one repeat.
    """

    model: str = "smollm2-135m-instruct"
    n: int = 16
    page_tokens: tuple[int, ...] = (0, 64)
    prompts: int = 4
    data: Path | None = None
    temperature: float = 1.0
    max_new_tokens: int = 128
    repeats: int = 5
    threads: int | None = None
    memory_mb: int = 1600
    seed: int = 0
    quick: bool = False

    def checked(self) -> Options:
        """With the values of a smoke run if it is one.

        Raises:
            InvalidRequest: a value out of range.
        """
        for name in ("n", "prompts", "max_new_tokens", "repeats", "memory_mb"):
            if getattr(self, name) < 1:
                raise InvalidRequest.of(name, getattr(self, name), "1 or more")
        if not self.page_tokens or min(self.page_tokens) < 0 or len(set(self.page_tokens)) < len(self.page_tokens):
            raise InvalidRequest.of("page_tokens", self.page_tokens, "sizes of pages, all different; 0 is the default")
        if not 0 < self.temperature <= 10:
            raise InvalidRequest.of("temperature", self.temperature, "above 0 and at most 10")
        if self.threads is not None and self.threads < 1:
            raise InvalidRequest.of("threads", self.threads, "1 or more")
        if not self.quick:
            return self
        return replace(self, prompts=1, max_new_tokens=min(self.max_new_tokens, 8), repeats=1)


@dataclass(frozen=True, slots=True)
class Held:
    """Pages that n candidates of one prompt hold.

    Attributes:
        most: at most, at any time.
        shared: what whole pages of the prompt that are held once, and the rest per candidate, add up to.
        apart: what as many requests hold that share nothing.
    """

    most: int
    shared: int
    apart: int

    @classmethod
    def expected(cls, page_tokens: int, prompt_tokens: int, n: int, new_tokens: int, most: int = 0) -> Held:
        """The sums. Each candidate reads the prompt's last token itself, to draw its first, and never its own last."""
        once, each = (prompt_tokens - 1) // page_tokens, -(-(prompt_tokens + new_tokens - 1) // page_tokens)
        return cls(most, once + n * (each - once), n * each)


@dataclass(frozen=True, slots=True)
class _Counted(Batch):
    """A batch, and the pages that were counted in place of timing it."""

    held: Held | None = None


class Candidates:
    """This project's engine: best-of-n of one prompt after another.

    Args:
        source: of the model.
        n: candidates.
        temperature: of sampling.
        page_tokens: size of pages; 0 is the engine's choice.
        memory_bytes: for its pages.
        threads: of torch.
    """

    def __init__(
        self, source: str, n: int, temperature: float, page_tokens: int, memory_bytes: int, threads: int | None
    ) -> None:
        from trimtab.decode.config import EngineOptions
        from trimtab.decode.engine.engine import Engine

        options = EngineOptions(page_tokens=page_tokens or None, memory_bytes=memory_bytes, threads=threads)
        self._engine = Engine({_MODEL: source}, options=options)
        self._n, self._temperature, self._page_tokens = n, temperature, page_tokens
        self._runs = 0

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Batch:
        """A negative number of tokens asks for the pages that the longest prompt holds, not for time."""
        if new_tokens < 0:
            longest = max(prompts, key=len)
            held = held_pages(self._engine, longest, self._n, -new_tokens, self._page_tokens)
            return _Counted([], [], 0.0, 0, held)
        self._runs += 1
        began = time.perf_counter()
        tokens: list[list[int]] = []
        for prompt in prompts:
            tokens += _written(self._engine, prompt, self._n, self._temperature, new_tokens, self._runs)
        return Batch(tokens, [], time.perf_counter() - began, 0)


def held_pages(engine: Engine, prompt: Sequence[int], n: int, new_tokens: int, page_tokens: int) -> Held:
    """Count the pages that n candidates of a prompt hold, by watching the pool while they are written.

    Args:
        engine: idle, with one model.
        prompt: token ids.
        n: candidates.
        new_tokens: of each.
        page_tokens: of the engine's pages.
    """
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, *engine.stats().pages_used.values())
            time.sleep(0.0002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _written(engine, prompt, n, 1.0, new_tokens, 0)
    finally:
        over.set()
        watcher.join()
    return Held.expected(page_tokens, len(prompt), n, new_tokens, most)


def _written(
    engine: Engine, prompt: Sequence[int], n: int, temperature: float, new_tokens: int, seed: int
) -> list[list[int]]:
    """Token ids of n candidates of exactly ``new_tokens`` tokens."""
    result: Result = engine.generate(
        list(prompt),
        search=BestOfN(n, choose=Choose.MAJORITY, extract="text"),
        sampling=Sampling(temperature=temperature, top_k=0, top_p=1.0, seed=seed),
        stopping=Stopping(max_new_tokens=new_tokens, min_new_tokens=new_tokens),
    )
    return [[token.id for token in candidate.tokens] for candidate in result.candidates]


class Returned:
    """``generate`` of transformers with ``num_return_sequences``, one prompt after another.

    Args:
        source: folder or hub id of the model.
        dtype: of its weights.
        device: where it runs.
        n: sequences.
        temperature: of sampling, from the whole distribution.
    """

    def __init__(self, source: str, dtype: torch.dtype, device: str, n: int, temperature: float) -> None:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        self._model = model.eval().to(device)
        eos = self._model.generation_config.eos_token_id
        self._pad = eos[0] if isinstance(eos, list) else eos
        self._n, self._temperature = n, temperature

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Batch:
        began = time.perf_counter()
        tokens: list[list[int]] = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=self._model.device)
            with torch.inference_mode():
                out = self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    num_return_sequences=self._n,
                    do_sample=True,
                    temperature=self._temperature,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=new_tokens,
                    min_new_tokens=new_tokens,
                    pad_token_id=self._pad,
                )
            tokens += out[:, len(prompt) :].tolist()
        return Batch(tokens, [], time.perf_counter() - began, 0)


def bench_best_of_n(options: Options) -> Recorder:
    """Run the benchmark; the caller saves what it returns.

    Raises:
        InvalidRequest: an option or the data can't be used. UnsupportedModel, ModelCacheError: the model can't.
    """
    from trimtab.decode.config import EngineOptions
    from trimtab.decode.engine.engine import Engine
    from trimtab.decode.models.bundled import bundled, ensure

    options = options.checked()
    names = [model.name for model in bundled()]
    source = str(ensure(options.model)) if options.model in names else options.model
    texts = list(PROMPTS) if options.data is None else list(map(prompt_of, read_rows(options.data)))
    if not texts:
        raise InvalidRequest.of("data", options.data, "a file with at least one prompt")
    # Only to tokenise, and to say what the model is; nothing of it runs beside those that are timed.
    with Engine({_MODEL: source}, options=EngineOptions(memory_bytes=_LEAST_MEMORY, threads=options.threads)) as engine:
        info = engine.models[_MODEL]
        ids = {text: engine.tokenize(_MODEL, text)[0] for text in dict.fromkeys(texts)}
        chosen = spaced(sorted(ids, key=lambda text: len(ids[text])), options.prompts)
        asked = {
            repeat: [engine.tokenize(_MODEL, f"[{repeat}] {text}")[0] for text in chosen]
            for repeat in range(-1, options.repeats)
        }
    sizes = [len(prompt) for prompt in asked[0]]
    recorder = Recorder(
        "best_of_n",
        seed=options.seed,
        dtype=info.dtype,
        settings={
            "model": options.model if options.model in names else Path(options.model).name,
            "n": options.n,
            "max_new_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "prompts": options.prompts,
            "prompt_tokens": [min(sizes), max(sizes)],
            "quantisation": quantised(options.model),
        },
        quick=options.quick,
    )
    share = options.n, options.temperature
    makers: dict[str, Callable[[], Contestant]] = {
        _name(size): partial(Candidates, source, *share, size, options.memory_mb << 20, options.threads)
        for size in options.page_tokens
    }
    makers["transformers"] = partial(Returned, source, getattr(torch, info.dtype), info.device, *share)
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(closing(Apart(make, options.threads))) for name, make in makers.items()
        }
        compare(recorder, contestants, asked, options)
    return recorder


def compare(
    recorder: Recorder,
    contestants: Mapping[str, Contestant],
    asked: Mapping[int, Sequence[Sequence[int]]],
    options: Options,
) -> None:
    """Time the contestants in turn, count pages, and record the rows.

    Args:
        recorder: takes the rows.
        contestants: by name; the last is what the others are measured against.
        asked: prompts by number of the round, -1 the warm-up.
        options: of the run.
    """

    def measure(contestant: Contestant, repeat: int) -> Batch:
        batch = contestant.run(asked[repeat], options.max_new_tokens)
        lengths = {len(written) for written in batch.tokens}
        count = options.n * len(asked[repeat])
        if lengths != {options.max_new_tokens} or len(batch.tokens) != count:
            raise RuntimeError(f"{len(batch.tokens)} candidates of {lengths} tokens in place of {count}")
        return batch

    runs = {name: (lambda repeat, c=contestant: measure(c, repeat)) for name, contestant in contestants.items()}
    with Progress(f"best of {options.n}", len(runs) * (options.repeats + 1)) as progress:
        batches = interleaved(runs, options.repeats, progress=progress)
    rates = {name: [batch.rate for batch in found] for name, found in batches.items()}
    case = f"best of {options.n}"
    for name, found in rates.items():
        recorder.spread(case, name, "speed", "tokens/s", found)
    *ours, other = rates
    for name in ours:
        recorder.ratio(case, f"{name} / {other}", "speed", paired_ratio(rates[name], rates[other]))
    for size in filter(None, options.page_tokens):
        counted = contestants[_name(size)].run(asked[0], -options.max_new_tokens)
        assert isinstance(counted, _Counted)
        assert counted.held is not None
        for metric, value in (
            ("pages held", counted.held.most),
            ("pages if the prompt's are held once", counted.held.shared),
            ("pages of as many requests", counted.held.apart),
        ):
            recorder.value(case, _name(size), metric, "pages", value, 1)


def _name(page_tokens: int) -> str:
    return f"trimtab, pages of {page_tokens}" if page_tokens else "trimtab"
