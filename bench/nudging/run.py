"""How well nudging works: constraints kept (IFEval), share of tokens nudged, length and speed, method by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.bench.data import read_rows, select
from trimtab.bench.nudging.answers import METHODS, answer, methods, parse_trigger, trigger_text
from trimtab.bench.record import Recorder
from trimtab.bench.statistics import Array, bootstrap_interval, mean_ratio
from trimtab.bench.weights import quantised
from trimtab.decode.errors import InvalidRequest

if TYPE_CHECKING:
    from trimtab.bench.nudging.ifeval import Checkers
    from trimtab.decode.engine.engine import Engine

__all__ = ["Options", "Scored", "collect", "nudging", "record", "score"]

_FIELDS = {
    "method",
    "trigger",
    "max_new_tokens",
    "response",
    "tokens",
    "nudged_tokens",
    "finish_reason",
    "run",
    "seconds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``trimtab bench nudging`` is asked for.

    Attributes:
        data: JSONL of prompts.
        out: folder for the answers, one file per method.
        methods: some of ``METHODS``.
        trigger: text of the trigger; None takes the engine's default.
        split, limit: which rows; None takes all.
        max_new_tokens: length limit of every answer.
        concurrency: requests in the engine at a time.
        config: a trimtab.toml; None takes the bundled pair.
        base, nudger: names of the models in it.
    """

    data: Path
    out: Path
    methods: tuple[str, ...] = METHODS
    trigger: str | None = None
    split: str | None = None
    limit: int | None = None
    max_new_tokens: int = 256
    concurrency: int = 64
    config: Path | None = None
    base: str = "base"
    nudger: str = "chat"


def nudging(options: Options) -> list[Path]:
    """Answer the prompts with each method; returns the files of answers. A run that was cut short goes on.

    Raises:
        InvalidRequest: an option or a file can't be used.
    """
    from trimtab.decode.config import EngineConfig
    from trimtab.decode.engine.engine import Engine
    from trimtab.decode.methods.policies.trigger import DEFAULT_TRIGGER

    if options.concurrency < 1:
        raise InvalidRequest.of("concurrency", options.concurrency, "1 or more")
    trigger = DEFAULT_TRIGGER if options.trigger is None else parse_trigger(options.trigger)
    chosen = methods(options.methods, options.base, options.nudger, trigger)
    rows = select(read_rows(options.data), options.split, options.limit)
    config = EngineConfig.demo() if options.config is None else EngineConfig.load(options.config)
    written = []
    with Engine.from_config(config) as engine:
        concurrency = min(options.concurrency, engine.limits.max_queue)
        for method in chosen:
            # Answers with different triggers never mix: the trigger is part of the name.
            suffix = "-" + trigger_text(trigger).replace(":", "-") if method.trigger else ""
            path = options.out / f"{method.name}{suffix}.jsonl"
            limit = options.max_new_tokens
            about = _about(engine, options)
            answer(engine, method, rows, path, max_new_tokens=limit, concurrency=concurrency, about=about)
            written.append(path)
    return written


def _about(engine: Engine, options: Options) -> dict[str, Any]:
    """The models, and what their weights were made from."""
    infos = [engine.models[name] for name in (options.base, options.nudger) if name in engine.models]
    return {
        "models": [Path(info.source).name for info in infos],
        "quantisation": quantised(*(info.source for info in infos)),
        "dtype": " ".join(dict.fromkeys(info.dtype for info in infos)),
    }


@dataclass(frozen=True, slots=True)
class Scored:
    """Answers of one method to the prompts that all methods answered, in one order.

    Attributes:
        label: ``base``, ``nudger``, or ``nudged`` with its trigger.
        rows: the answers.
        followed: per answer, whether each constraint of its prompt is kept.
    """

    label: str
    rows: list[dict[str, Any]]
    followed: list[list[bool]]

    @property
    def constraints(self) -> Array:
        """[n, 2]: constraints kept, constraints asked for."""
        return np.array([[sum(row), len(row)] for row in self.followed], dtype=np.float64)

    @property
    def prompts(self) -> Array:
        """[n, 2]: whether all constraints are kept, and 1."""
        return np.array([[all(row), 1] for row in self.followed], dtype=np.float64)

    @property
    def nudged(self) -> Array:
        """[n, 2]: tokens that the nudger wrote, tokens."""
        return np.array([[row["nudged_tokens"], row["tokens"]] for row in self.rows], dtype=np.float64)

    @property
    def lengths(self) -> Array:
        """[n, 2]: tokens, and 1."""
        return np.array([[row["tokens"], 1] for row in self.rows], dtype=np.float64)

    @property
    def rate(self) -> float:
        """Tokens per second, all answers running together: over the time of the runs that they came from."""
        spent: dict[float, float] = {}
        for row in self.rows:
            spent[row["run"]] = max(spent.get(row["run"], 0.0), row["seconds"])
        return float(sum(row["tokens"] for row in self.rows) / max(sum(spent.values()), 1e-9))

    def ended(self, *reasons: str) -> float:
        """Share of answers that ended for one of these reasons."""
        return sum(row["finish_reason"] in reasons for row in self.rows) / len(self.rows)


def collect(paths: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """Answers by method, of the prompts that every method answered, in one order.

    Raises:
        InvalidRequest: a file has no answers, answers twice, or answers of another length limit; or no prompt was
            answered by all.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    limits = set()
    for path in paths:
        rows = read_rows(path)
        missing = sorted(_FIELDS - (rows[0] if rows else {}).keys())
        if missing:
            raise InvalidRequest.of("responses", path.name, f"answers of 'trimtab bench nudging', which have {missing}")
        for row in rows:
            label = " ".join(filter(None, (row["method"], row["trigger"])))
            answers = found.setdefault(label, {})
            if row["prompt"] in answers:
                raise InvalidRequest.of("responses", path.name, f"one answer of {label!r} to each prompt")
            answers[row["prompt"]] = row
            limits.add(row["max_new_tokens"])
    if len(limits) != 1:
        raise InvalidRequest.of("responses", sorted(limits), "answers with one max_new_tokens")
    common = [p for p in next(iter(found.values())) if all(p in answers for answers in found.values())]
    if not common:
        raise InvalidRequest.of("responses", [p.name for p in paths], "answers of all methods to the same prompts")
    common.sort()
    return {label: [answers[p] for p in common] for label, answers in found.items()}


def score(answers: Mapping[str, list[dict[str, Any]]], checkers: Checkers) -> list[Scored]:
    """Check the constraints of every answer."""
    return [Scored(label, rows, [checkers.followed(row) for row in rows]) for label, rows in answers.items()]


def record(scored: Sequence[Scored], case: str, quick: bool = False) -> Recorder:
    """Rows of results: each method's figures, and the differences nudged - other in accuracy, paired by prompt."""
    row = scored[0].rows[0]
    names = ("max_new_tokens", "models", "quantisation")
    settings: dict[str, Any] = {name: row[name] for name in names if name in row}
    recorder = Recorder("nudging", seed=0, dtype=row.get("dtype", ""), settings=settings, quick=quick)
    for one in scored:
        n = len(one.rows)
        for metric, samples in (("constraints kept", one.constraints), ("prompts kept whole", one.prompts)):
            recorder.value(case, one.label, metric, "share", *_estimate(samples))
        recorder.value(case, one.label, "tokens nudged", "share", *_estimate(one.nudged))
        recorder.value(case, one.label, "length", "tokens", *_estimate(one.lengths))
        recorder.value(case, one.label, "speed", "tokens/s", one.rate, n)
        recorder.value(case, one.label, "ended by itself", "share", one.ended("eos", "stop"), n)
        recorder.value(case, one.label, "ended as a loop", "share", one.ended("repetition"), n)
    for a, b in combinations(scored, 2):
        ours, other = (a, b) if a.label.startswith("nudged") else (b, a)
        if not ours.label.startswith("nudged"):
            continue
        for metric, left, right in (
            ("constraints kept", ours.constraints, other.constraints),
            ("prompts kept whole", ours.prompts, other.prompts),
        ):
            pairs = np.concatenate([left, right], axis=1)
            interval = bootstrap_interval(pairs, _difference)
            subject = f"{ours.label} - {other.label}"
            recorder.value(case, subject, metric, "share", float(_difference(pairs)), len(pairs), interval)
    return recorder


def _estimate(samples: Array) -> tuple[float, int, tuple[float, float]]:
    return float(mean_ratio(samples)), len(samples), bootstrap_interval(samples, mean_ratio)


def _difference(samples: Array) -> Array:
    """[..., n, 4] -> [...]: rate of the first two columns less that of the last two."""
    return mean_ratio(samples[..., :2]) - mean_ratio(samples[..., 2:])
