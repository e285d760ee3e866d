"""Speculation measured: every length rule beside plain decoding, on several kinds of text, greedy and sampled.

Two things are asked of each method. *How well it drafts*: passes of the target per written token (verification rate),
rejected tokens per written token (discard rate), tokens accepted per block. And *how fast it is*: tokens per second end
to end, at several numbers of answers at a time. Methods take turns at small shares of the prompts, so that a slow
minute of the machine hits all of them. Every prompt is read once before its case is timed: none is new to one method
and known to another. Each measurement is appended to a file of its own, so a run that was cut short goes on where it
was.
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.bench.data import append_rows, going_on, prompt_of, read_rows, select
from trimtab.bench.progress import Progress
from trimtab.bench.record import Recorder, commit
from trimtab.bench.statistics import bootstrap_interval, percentile, rate_ratio
from trimtab.bench.timing import LEAST
from trimtab.bench.weights import quantised
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.request.events import Completed, Event
from trimtab.decode.request.method import Draw
from trimtab.decode.request.prompt import Prompt
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Result
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.decode.request.spec_string import parse_draw

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
_ADAPTING = ("confidence", "acceptance", "lookup", "both")
_SHARE = 4  # times as many prompts as are answered at a time: the fewer, the more of a share is its end, with few rows


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
        repeats: timed rounds; the prompts that are only counted are answered in the first, at the smallest batch.
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
        if not self.temperatures or min(self.temperatures) < 0:
            raise InvalidRequest.of("temperatures", self.temperatures, "one or more, each 0 or above")
        return self

    @property
    def made(self) -> Mapping[str, Any]:
        """How measurements are made; a file with others is refused. Other code may well be another speed."""
        models = [Path(self.target).name, Path(self.draft).name]
        asked = {"split": self.split, "asked": [self.prompts, self.timed], "max_new_tokens": self.max_new_tokens}
        return {"models": models, **asked, "commit": commit()}


@dataclass(frozen=True, slots=True)
class _Step:
    """One measurement that is still to be made.

    Attributes:
        share: which share of the prompts; those that are only counted follow those that are timed.
    """

    case: str
    temperature: float
    batch: int
    repeat: int
    share: int
    method: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Step:
        """Of a measurement that was made."""
        return cls(**{field.name: row[field.name] for field in fields(cls)})


def speculation(options: Options) -> Recorder | None:
    """Make the measurements that are missing, and put all of them together; None if ``stop_after`` left some.

    Raises:
        InvalidRequest: an option or a file can't be used.
    """
    from trimtab.decode.config import ModelConfig
    from trimtab.decode.engine.engine import Engine

    options = options.checked()
    texts = {path.stem: _texts(path, options) for path in options.data}
    made, wanted = options.made, list(_steps(options, texts))
    done = {_Step.of(row) for row in going_on(options.out, made)}
    todo = [step for step in wanted if step not in done]
    if todo:
        models = {
            "target": ModelConfig(source=options.target),
            "draft": ModelConfig(source=options.draft, role="draft"),
        }
        with Engine(models) as engine:
            if not _run(engine, options, texts, todo, len(wanted)):
                return None
    asked = set(wanted)
    return record([row for row in going_on(options.out, made) if _Step.of(row) in asked], options)


def _shares(options: Options, batch: int, prompts: int) -> tuple[list[slice], int]:
    """Shares of the prompts, and how many of them, the first ones, are timed."""
    timed, size = min(options.timed, prompts), _SHARE * batch
    shares = [slice(at, min(at + size, timed)) for at in range(0, timed, size)]
    more = [slice(at, at + size) for at in range(timed, prompts, size)]
    return shares + more, len(shares)


def _steps(options: Options, texts: Mapping[str, Sequence[str]]) -> Iterator[_Step]:
    for case in texts:
        for temperature in options.temperatures:
            for batch in options.batches:
                shares, timed = _shares(options, batch, len(texts[case]))
                for repeat in range(options.repeats):
                    counted = repeat == 0 and batch == min(options.batches)
                    for share in range(len(shares) if counted else timed):
                        order = options.methods if (repeat + share) % 2 == 0 else options.methods[::-1]
                        for method in order:
                            yield _Step(case, temperature, batch, repeat, share, method)


def _texts(path: Path, options: Options) -> list[str]:
    rows = select(read_rows(path), options.split, None)
    return list(dict.fromkeys(prompt_of(row) for row in rows))[: options.prompts]


def _run(engine: Engine, options: Options, texts: Mapping[str, list[str]], todo: Sequence[_Step], whole: int) -> bool:
    with Progress("speculation", whole, whole - len(todo)) as progress:
        return _measured(engine, options, texts, todo, progress)


def _measured(
    engine: Engine, options: Options, texts: Mapping[str, list[str]], todo: Sequence[_Step], progress: Progress
) -> bool:
    began = time.monotonic()
    made = {**options.made, "dtype": engine.models["target"].dtype}
    warm: tuple[str, float, int] | None = None
    for step in todo:
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
        shares, timed = _shares(options, step.batch, len(prompts))
        if step.method in _ADAPTING:  # the others' blocks are no guide to its own
            measure(engine, prompts[: step.batch], draw, step.temperature, step.batch, 32)
        asked = prompts[shares[step.share]]
        figures = measure(engine, asked, draw, step.temperature, step.batch, options.max_new_tokens)
        row = {**asdict(step), "prompts": len(asked), "timed": step.share < timed, **made, **figures}
        append_rows(options.out, [row])
        progress.add(figures["sums"]["tokens"])
    return True


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
            sampling=Sampling(temperature=temperature, top_k=0, top_p=1.0, seed=index),
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
        "quantisation": quantised(options.target),
        **_asked(runs),
    }
    dtypes = dict.fromkeys(run.get("dtype", "") for run in runs)
    recorder = Recorder("speculation", seed=0, dtype=" ".join(dtypes), settings=settings)
    cases: dict[tuple[str, float, int], dict[str, list[Mapping[str, Any]]]] = {}
    for run in sorted(runs, key=lambda r: (r["batch"], r["repeat"], r["share"])):
        methods = cases.setdefault((run["case"], run["temperature"], run["batch"]), {})
        methods.setdefault(run["method"], []).append(run)
    for (case, temperature, batch), methods in cases.items():
        name = json.dumps({"data": case, "temperature": temperature, "batch": batch})
        rates = {method: _rates(found) for method, found in methods.items()}
        for method, found in methods.items():
            recorder.spread(name, method, "speed", "tokens/s", rates[method])
            first = [run for run in found if run["repeat"] == 0]
            sums = {key: sum(run["sums"][key] for run in first) for key in first[0]["sums"]}
            count = sum(run["prompts"] for run in first)
            recorder.value(name, method, "target passes", "per token", sums["passes"] / sums["tokens"], count)
            recorder.value(name, method, "discarded", "per token", sums["discarded"] / sums["tokens"], count)
            if sums["blocks"]:
                recorder.value(name, method, "accepted", "per block", sums["accepted"] / sums["blocks"], count)
        fixed = [method for method in rates if method.startswith("fixed")]
        best = max(fixed, key=lambda m: percentile(rates[m], 50), default=None)
        pairs = [(method, "plain") for method in rates if method != "plain"]
        if best is not None:
            pairs += [(method, best) for method in ("acceptance", "both")]
        for ours, theirs in pairs:
            if ours in methods and theirs in methods:
                ratio, interval = _ratio(methods[ours], methods[theirs])
                recorder.value(name, f"{ours} / {theirs}", "speed", "ratio", *ratio, interval)
    return recorder


def _asked(runs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Prompts of a case that were answered, and timed, at most: what was asked for may be more than there is."""
    counted: dict[tuple[Any, ...], list[int]] = {}
    for run in runs:
        if run["repeat"] == 0:
            sums = counted.setdefault((run["case"], run["temperature"], run["batch"], run["method"]), [0, 0])
            sums[0] += run["prompts"]
            sums[1] += run["prompts"] * run["timed"]
    return {name: max(sums[i] for sums in counted.values()) for i, name in enumerate(("prompts", "timed"))}


def _rates(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Tokens per second of each repeat."""
    sums: dict[int, tuple[int, float]] = {}
    for run in runs:
        if run["timed"]:
            tokens, seconds = sums.get(run["repeat"], (0, 0.0))
            sums[run["repeat"]] = tokens + run["sums"]["tokens"], seconds + run["seconds"]
    return [tokens / seconds for tokens, seconds in sums.values()]


def _ratio(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> tuple[tuple[float, int], tuple[float, float] | None]:
    """How many times as fast, over the shares that both have answered; how many these are, and the 95 % interval, which
    a few can't give.
    """
    seen = {(run["repeat"], run["share"]): run for run in theirs if run["timed"]}
    pairs = [(run, seen[at]) for run in ours if run["timed"] and (at := (run["repeat"], run["share"])) in seen]
    samples = np.array([[a["sums"]["tokens"], a["seconds"], b["sums"]["tokens"], b["seconds"]] for a, b in pairs])
    interval = bootstrap_interval(samples, rate_ratio) if len(pairs) >= LEAST else None
    return (float(rate_ratio(samples)), len(pairs)), interval
