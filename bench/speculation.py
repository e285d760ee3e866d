"""Speculation measured: every length rule beside plain decoding, on several kinds of text, greedy and sampled.

Two things are asked of each method. *How well it drafts*: passes of the target per written token (verification rate),
drafted tokens that fell per written token (discard rate), tokens accepted per block. And *how fast it is*: tokens per
second end to end, at several numbers of answers at a time. Methods run in turn within a case, so that a slow minute of
the machine hits all of them. Every prompt is read once before its case is timed: none is new to one method and known
to another. Each measurement is appended to a file of its own, so a run that was cut short goes on where it was.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.bench.data import append_rows, prompt_of, read_rows, select
from trimtab.bench.record import Recorder
from trimtab.bench.statistics import percentile
from trimtab.bench.timing import paired_ratio
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.notation import parse_draw
from trimtab.decode.types import Completed, Draw, Event, Prompt, Request, Result, Sampling, Stopping

if TYPE_CHECKING:
    from trimtab.decode.engine.engine import Engine

__all__ = ["METHODS", "Options", "answers", "measure", "record", "speculation"]

# Name in the tables -> the draw, in the notation of the command line.
METHODS: Mapping[str, str] = {
    "plain": "autoregressive",
    **{f"fixed {k}": f"speculative:draft,length=fixed:{k}" for k in (1, 2, 3, 4, 6, 8)},
    "confidence": "speculative:draft,length=confidence",
    "acceptance": "speculative:draft,length=acceptance",
    "lookup": "speculative:lookup",
    "both": "speculative:draft,copying=lookup",  # copies where they stand, and what "acceptance" drafts elsewhere
}
_MINUTE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``trimtab bench speculation`` is asked for.

    Attributes:
        data: JSONL files of prompts, each a case of its own.
        out: file of single measurements.
        target, draft: bundled names, folders or hub ids.
        methods: some of ``METHODS``.
        split: which rows of the data; None takes all.
        prompts: per case.
        timed: of these, the first so many are timed.
        max_new_tokens: per answer.
        temperatures: each a case of its own.
        batches: answers at a time.
        repeats: timed rounds; the prompts that aren't timed are answered in the first, at the smallest batch.
        stop_after: seconds after which no measurement is begun.
    """

    data: tuple[Path, ...]
    out: Path = Path("build/speculation/runs.jsonl")
    target: str = "smollm2-135m-instruct"
    draft: str = "smollm2-135m-draft"
    methods: tuple[str, ...] = tuple(METHODS)
    split: str | None = None
    prompts: int = 40
    timed: int = 24
    max_new_tokens: int = 96
    temperatures: tuple[float, ...] = (0.0, 1.0)
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 2
    stop_after: float | None = None

    def checked(self) -> Options:
        """Raises InvalidRequest: a value out of range."""
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            raise InvalidRequest.of("methods", unknown or self.methods, f"some of {', '.join(METHODS)}")
        for name in ("prompts", "timed", "max_new_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise InvalidRequest.of(name, getattr(self, name), "1 or more")
        if not self.batches or min(self.batches) < 1:
            raise InvalidRequest.of("batches", self.batches, "numbers of answers, each 1 or more")
        return self


@dataclass(frozen=True, slots=True)
class _Round:
    """One measurement that is still to be made."""

    case: str
    temperature: float
    batch: int
    method: str
    repeat: int

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.case, self.temperature, self.batch, self.method, self.repeat)


def speculation(options: Options) -> Recorder | None:
    """Make the measurements that are missing, and put all of them together; None if ``stop_after`` left some.

    Raises:
        InvalidRequest: an option or a file can't be used.
    """
    from trimtab.decode.config import ModelConfig
    from trimtab.decode.engine.engine import Engine

    options = options.checked()
    texts = {path.stem: _texts(path, options) for path in options.data}
    known = read_rows(options.out) if options.out.exists() else []
    done = {(r["case"], r["temperature"], r["batch"], r["method"], r["repeat"]) for r in known}
    todo = [step for step in _rounds(options, list(texts)) if step.key not in done]
    if todo:
        models = {
            "target": ModelConfig(source=options.target),
            "draft": ModelConfig(source=options.draft, role="draft"),
        }
        with Engine(models) as engine:
            if not _run(engine, options, texts, todo):
                return None
    return record(read_rows(options.out), options)


def _rounds(options: Options, cases: Sequence[str]) -> Iterator[_Round]:
    for case in cases:
        for temperature in options.temperatures:
            for batch in options.batches:
                for repeat in range(options.repeats):
                    order = options.methods if repeat % 2 == 0 else options.methods[::-1]
                    for method in order:
                        yield _Round(case, temperature, batch, method, repeat)


def _texts(path: Path, options: Options) -> list[str]:
    rows = select(read_rows(path), options.split, None)
    return list(dict.fromkeys(prompt_of(row) for row in rows))[: options.prompts]


def _run(engine: Engine, options: Options, texts: Mapping[str, list[str]], todo: Sequence[_Round]) -> bool:
    began = said = time.monotonic()
    warm: tuple[str, float, int] | None = None
    for number, step in enumerate(todo):
        if options.stop_after is not None and time.monotonic() - began > options.stop_after:
            return False
        prompts = texts[step.case]
        draw = parse_draw(METHODS[step.method])
        if warm != (step.case, step.temperature, step.batch):
            # Reads every prompt with both models, and lets costs be measured that adaptive lengths go by.
            warm = (step.case, step.temperature, step.batch)
            measure(engine, prompts, parse_draw(METHODS["plain"]), step.temperature, step.batch, 2)
            if any(name != "plain" for name in options.methods):
                measure(
                    engine, prompts, parse_draw("speculative:draft,length=fixed:2"), step.temperature, step.batch, 8
                )
        measure(engine, prompts[:4], draw, step.temperature, step.batch, 32)
        figures = measure(engine, prompts[: options.timed], draw, step.temperature, step.batch, options.max_new_tokens)
        rest = prompts[options.timed :]
        if step.repeat == 0 and step.batch == min(options.batches) and rest:
            more = measure(engine, rest, draw, step.temperature, step.batch, options.max_new_tokens)
            figures["all"] = {name: figures["sums"][name] + more["sums"][name] for name in more["sums"]}
        row = {**_fields(step), **figures}
        append_rows(options.out, [row])
        now = time.monotonic()
        if sys.stderr.isatty() or now - said > _MINUTE or number + 1 == len(todo):
            said = now
            left = (now - began) / (number + 1) * (len(todo) - number - 1)
            sys.stderr.write(f"trimtab: {number + 1} of {len(todo)} measurements, about {left / 60:.0f} min left\n")
    return True


def _fields(step: _Round) -> dict[str, Any]:
    return {
        "case": step.case,
        "temperature": step.temperature,
        "batch": step.batch,
        "method": step.method,
        "repeat": step.repeat,
    }


def answers(
    engine: Engine, prompts: Sequence[Prompt], draw: Draw, temperature: float, batch: int, max_new_tokens: int
) -> tuple[float, list[Result]]:
    """Answer prompts, ``batch`` at a time, with the model called ``target``.

    Returns:
        Seconds for all of them, and the results in the order of the prompts.
    """
    events: queue.SimpleQueue[tuple[int, Event | Exception]] = queue.SimpleQueue()

    def submit(index: int) -> None:
        request = Request(
            model="target",
            prompt=prompts[index],
            sampling=Sampling(temperature=temperature, top_p=1.0, seed=index),
            stopping=Stopping(max_new_tokens=max_new_tokens),
            draw=draw,
        )
        engine.submit(request, lambda event: events.put((index, event)))

    began = time.perf_counter()
    upcoming = iter(range(len(prompts)))
    for _ in range(min(batch, len(prompts))):
        submit(next(upcoming))
    results: dict[int, Result] = {}
    while len(results) < len(prompts):
        index, event = events.get()
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Completed):
            results[index] = event.result
            following = next(upcoming, None)
            if following is not None:
                submit(following)
    return time.perf_counter() - began, [results[index] for index in range(len(prompts))]


def measure(
    engine: Engine, prompts: Sequence[str], draw: Draw, temperature: float, batch: int, max_new_tokens: int
) -> dict[str, Any]:
    """Answer questions, and add up what it took.

    Returns:
        ``seconds`` for all answers and ``sums`` of tokens, target passes, drafted, accepted and discarded tokens.
    """
    asked = [[{"role": "user", "content": text}] for text in prompts]
    seconds, results = answers(engine, asked, draw, temperature, batch, max_new_tokens)
    sums = dict.fromkeys(("tokens", "passes", "drafted", "accepted", "discarded", "blocks"), 0)
    for result in results:
        usage = result.usage
        sums["tokens"] += usage.returned_tokens
        sums["passes"] += next(m.forward_passes for m in usage.models if m.model == "target")
        sums["drafted"] += usage.drafted_tokens
        sums["accepted"] += usage.accepted_tokens
        sums["discarded"] += usage.discarded_tokens
        sums["blocks"] += sum(token.draw in ("bonus", "corrected") for token in result.tokens)
    return {"seconds": seconds, "sums": sums}


def record(runs: Sequence[Mapping[str, Any]], options: Options) -> Recorder:
    """Medians and ratios of measurements.

    Raises:
        InvalidRequest: there are none.
    """
    if not runs:
        raise InvalidRequest.of("out", options.out.name, "a file with measurements")
    settings = {
        "target": Path(options.target).name,
        "draft": Path(options.draft).name,
        "max_new_tokens": options.max_new_tokens,
        "prompts": options.prompts,
        "timed": options.timed,
    }
    recorder = Recorder("speculation", seed=0, dtype="", settings=settings)
    groups: dict[tuple[str, float, int], dict[str, list[Mapping[str, Any]]]] = {}
    for run in sorted(runs, key=lambda r: r["repeat"]):
        where = groups.setdefault((run["case"], run["temperature"], run["batch"]), {})
        where.setdefault(run["method"], []).append(run)
    for (case, temperature, batch), methods in groups.items():
        name = json.dumps({"data": case, "temperature": temperature, "batch": batch})
        rates = {m: [run["sums"]["tokens"] / run["seconds"] for run in found] for m, found in methods.items()}
        for method, found in methods.items():
            recorder.spread(name, method, "speed", "tokens/s", rates[method])
            sums = found[0].get("all", found[0]["sums"])
            count = options.prompts if "all" in found[0] else options.timed
            recorder.value(name, method, "target passes", "per token", sums["passes"] / sums["tokens"], count)
            recorder.value(name, method, "discarded", "per token", sums["discarded"] / sums["tokens"], count)
            if sums["blocks"]:
                recorder.value(name, method, "accepted", "per block", sums["accepted"] / sums["blocks"], count)
        fixed = [m for m in rates if m.startswith("fixed")]
        best = max(fixed, key=lambda m: percentile(rates[m], 50), default=None)
        for method in rates:
            if "plain" in rates and method != "plain" and len(rates[method]) == len(rates["plain"]):
                recorder.ratio(name, f"{method} / plain", "speed", paired_ratio(rates[method], rates["plain"]))
        if best is not None and "acceptance" in rates and len(rates["acceptance"]) == len(rates[best]):
            recorder.ratio(name, f"acceptance / {best}", "speed", paired_ratio(rates["acceptance"], rates[best]))
    return recorder
