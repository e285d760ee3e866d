"""Early rejection measured: reward of the chosen answer against tokens generated, plain best-of-n and with rejection.

A pool of n candidates per prompt is written once, whole, and rated after every few tokens. The random numbers of a
candidate are its own (law 3), so a candidate that is dropped would have written exactly what the pool has; hence every
rule of rejection is replayed from the pool: what it drops, chooses and spends. Some points are confirmed by real runs.

The rule (candidates to begin with, share dropped at a check, tokens between checks) is chosen on one split of the data
and reported on another: of those that spend at most the given budget, in tokens of plain best-of-n, the one with the
largest reward.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.bench.data import append_rows, prompt_of, read_rows, select
from trimtab.bench.progress import Progress
from trimtab.bench.record import Recorder
from trimtab.bench.searches.pool import Asked, Deadline, best, candidates, collect, kept_rows, messages, seed_of
from trimtab.bench.statistics import Array, bootstrap_interval, mean_ratio
from trimtab.bench.weights import quantised
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Candidate
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.decode.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from trimtab.decode.engine.engine import Engine
    from trimtab.decode.request.result import Result

__all__ = [
    "Options",
    "Point",
    "Rated",
    "Replayed",
    "Rule",
    "beginning",
    "choose",
    "foretold",
    "point",
    "record",
    "rejection",
    "replay",
]

_REWARD = "reward"
_MODEL = "model"
_PAIRS = 3  # of which a correlation is taken
_ROWS = 64  # sequences in one forward pass
_PAGE = 64  # small: the reward model's pages of all candidates must stay until the next check, which copies the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``trimtab bench rejection`` is asked for.

    Attributes:
        data: JSONL of prompts with splits.
        reward: folder or hub id of the reward model.
        out: folder of the work.
        model: a bundled name, a folder or a hub id.
        prompts: of the split ``report``, for the figures,
        tune_prompts: and of ``tune``, to choose the rule on.
        samples: candidates of every pool; a rule begins with 3/8 of them or more.
        step: tokens between two ratings of a beginning.
        fractions: shares that a rule may drop at a check.
        every: tokens that may lie between its checks, multiples of ``step``.
        against: size of the plain best-of-n to be matched,
        budget: and the share of its tokens that may be spent.
        confirm: prompts that the chosen rule is run on for real.
        temperature, max_new_tokens, seed: of all answers.
        threads: of torch; None leaves its setting alone.
        memory_mb: for the engine's pages.
        stop_after: seconds after which nothing new is begun; the same command goes on.
        quick: marks the results as a smoke run's.
    """

    data: Path
    reward: str
    out: Path = Path("build/rejection")
    model: str = "smollm2-135m-instruct"
    prompts: int = 60
    tune_prompts: int = 30
    samples: int = 64
    step: int = 16
    fractions: tuple[float, ...] = (0.25, 0.5, 0.65, 0.75, 0.85, 0.9)
    every: tuple[int, ...] = (16, 32, 48, 64)
    against: int = 32
    budget: float = 0.4
    confirm: int = 4
    temperature: float = 0.8
    max_new_tokens: int = 192
    seed: int = 0
    threads: int | None = None
    memory_mb: int = 2400
    stop_after: float | None = None
    quick: bool = False

    def checked(self) -> Options:
        """Raises InvalidRequest: a value out of range."""
        for name in ("prompts", "tune_prompts", "step", "max_new_tokens", "memory_mb"):
            if getattr(self, name) < 1:
                raise InvalidRequest.of(name, getattr(self, name), "1 or more")
        if self.samples < 2:
            raise InvalidRequest.of("samples", self.samples, "2 or more")
        if not 1 <= self.against <= self.samples:
            raise InvalidRequest.of("against", self.against, f"1 to {self.samples}, the samples")
        if self.confirm < 0:
            raise InvalidRequest.of("confirm", self.confirm, "0 or more")
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            raise InvalidRequest.of("fractions", self.fractions, "shares between 0 and 1, both excluded")
        if not self.every or any(every < 1 or every % self.step for every in self.every):
            raise InvalidRequest.of("every", self.every, f"multiples of step = {self.step}")
        if not 0 < self.budget <= 1:
            raise InvalidRequest.of("budget", self.budget, "above 0 and at most 1")
        return self

    @property
    def made(self) -> Mapping[str, Any]:
        """How answers are made; a file with others is refused."""
        return {
            "model": Path(self.model).name,
            "reward": named(self.reward),
            "samples": self.samples,
            "step": self.step,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }

    @property
    def rules(self) -> list[Rule]:
        return [Rule(fraction, every) for fraction, every in itertools.product(self.fractions, self.every)]

    @property
    def counts(self) -> list[int]:
        """Candidates to begin with."""
        return sorted({max(2, self.samples * k // 16) for k in range(6, 17)})


def named(source: str) -> str:
    """The name of a model, and of a folder the checksum of its weights too: one that was trained again is another."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    sums = [zlib.crc32(path.read_bytes()) for path in sorted(folder.glob("*.safetensors"))]
    return f"{folder.name}@{zlib.crc32(repr(sums).encode()):08x}"


# ------------------------------------------------------------------------------------------------------------ replay


@dataclass(frozen=True, slots=True)
class Rule:
    """Early rejection: at each check this share of the candidates that compete is dropped."""

    fraction: float
    every: int

    def __str__(self) -> str:
        return f"{self.fraction:g} every {self.every}"


@dataclass(frozen=True, slots=True)
class Rated:
    """A whole candidate of a pool.

    Attributes:
        tokens: its length.
        reward: of the whole answer.
        beginnings: rewards of its first ``step``, 2 ``step``, … tokens, of those beginnings that are shorter than it.
    """

    tokens: int
    reward: float
    beginnings: tuple[float, ...]

    def after(self, tokens: int, step: int) -> float:
        """Its reward after so many tokens, a multiple of ``step``: of the beginning, or of all if it has ended."""
        return self.beginnings[tokens // step - 1] if self.tokens > tokens else self.reward


@dataclass(frozen=True, slots=True)
class Replayed:
    """What best-of-n does with candidates: the one it takes, and the tokens it writes in all."""

    chosen: int
    tokens: int


def replay(pool: Sequence[Rated], rule: Rule | None, step: int) -> Replayed:
    """Best of all candidates of a pool; as ``searches.best_of_n`` does it, from ratings that are known.

    Args:
        pool: whole candidates, in order.
        rule: of early rejection; None is plain best-of-n.
        step: tokens between the beginnings that were rated.

    Raises:
        ValueError: the rule checks where no beginning was rated.
    """
    competing, written = list(range(len(pool))), {i: one.tokens for i, one in enumerate(pool)}
    standing = set(competing)
    if rule is not None:
        if rule.every % step:
            raise ValueError(f"a check every {rule.every} tokens: accepted: multiples of {step}")
        due = 0
        while _dropped(rule.fraction, len(competing)) > 0 and any(pool[i].tokens > due for i in competing):
            due += rule.every
            said = {i: pool[i].after(due, step) for i in competing}
            worst = sorted(competing, key=lambda i: (said[i], -i))
            for i in worst[: _dropped(rule.fraction, len(competing))]:
                competing.remove(i)
                if pool[i].tokens > due:
                    standing.remove(i)
                    written[i] = due
    order = sorted(standing)
    return Replayed(order[best([pool[i].reward for i in order])], sum(written.values()))


def _dropped(fraction: float, count: int) -> int:
    return max(0, min(count - 1, int(fraction * count + 1e-9)))


@dataclass(frozen=True, slots=True)
class Point:
    """Best-of-n under one rule: per prompt the reward of the chosen answer and the tokens written, [prompts] each."""

    reward: Array
    tokens: Array

    @property
    def mean(self) -> tuple[float, float]:
        return float(self.reward.mean()), float(self.tokens.mean())


def point(pools: Sequence[Sequence[Rated]], n: int, rule: Rule | None, step: int) -> Point:
    """Best-of-n on every prompt, averaged over all the groups of n candidates that its pool divides into."""
    rewards, tokens = [], []
    for pool in pools:
        groups = [pool[at : at + n] for at in range(0, len(pool) - n + 1, n)]
        runs = [replay(group, rule, step) for group in groups]
        rewards.append(sum(group[run.chosen].reward for group, run in zip(groups, runs, strict=True)) / len(runs))
        tokens.append(sum(run.tokens for run in runs) / len(runs))
    return Point(np.array(rewards, dtype=np.float64), np.array(tokens, dtype=np.float64))


def foretold(pools: Sequence[Sequence[Rated]], step: int) -> dict[int, Array]:
    """How well a beginning's rating foretells the whole answer's, by its tokens: Spearman's rank correlation among the
    candidates of each prompt that are longer, [prompts with at least three unlike ones].
    """
    found: dict[int, list[float]] = {}
    for pool in pools:
        for at in range(max(len(one.beginnings) for one in pool)):
            pairs = np.array([(one.beginnings[at], one.reward) for one in pool if len(one.beginnings) > at])
            if len(pairs) >= _PAIRS and np.ptp(pairs, axis=0).all():
                both = np.corrcoef(_ranks(pairs[:, 0]), _ranks(pairs[:, 1]))
                found.setdefault((at + 1) * step, []).append(float(both[0, 1]))
    return {tokens: np.array(values, dtype=np.float64) for tokens, values in found.items()}


def _ranks(values: Array) -> Array:
    """1 for the least; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    means: Array = (counts.cumsum() - (counts - 1) / 2)[place]
    return means


def choose(pools: Sequence[Sequence[Rated]], options: Options) -> tuple[int, Rule]:
    """The number of candidates and the rule with the largest mean reward of those within the budget; where none is, the
    ones that spend least.
    """
    limit = options.budget * point(pools, options.against, None, options.step).mean[1]
    every = itertools.product(options.counts, options.rules)
    found = {(n, rule): point(pools, n, rule, options.step).mean for n, rule in every}
    fitting = {chosen: reward for chosen, (reward, tokens) in found.items() if tokens <= limit}
    return max(fitting, key=fitting.__getitem__) if fitting else min(found, key=lambda chosen: found[chosen][1])


# ------------------------------------------------------------------------------------------------------------- pools


def rejection(options: Options) -> Recorder | None:
    """Write and rate the pools that are missing, replay, confirm, and sum up; None if the time was up before.

    Raises:
        InvalidRequest: an option or the data can't be used. UnsupportedModel: a model can't.
    """
    options = options.checked()
    wanted = {"tune": options.tune_prompts, "report": options.prompts}
    data = read_rows(options.data)
    rows = {split: _rows(data, split, count) for split, count in wanted.items()}
    everything = [*rows["tune"], *rows["report"]]
    deadline = Deadline(options.stop_after)
    path = options.out / "pool.jsonl"
    work = [
        Asked({"prompt": row["prompt"], "split": row["split"]}, _request(options, row["prompt"], options.samples))
        for row in everything
    ]
    known = kept_rows(path, options.made)
    engine: Engine | None = None
    try:
        if any(asked.row["prompt"] not in known for asked in work):
            engine = _engine(options)
            if not fill(engine, work, path, options, deadline):
                return None
        known = kept_rows(path, options.made)
        pools = {split: [rated(known[row["prompt"]]) for row in found] for split, found in rows.items()}
        n, rule = choose(pools["tune"], options)
        runs = options.out / "runs.jsonl"
        made = {**options.made, "rule": f"{n}, {rule}", "against": options.against}
        checks = [known[row["prompt"]] for row in rows["report"][: options.confirm]]
        done = kept_rows(runs, made)
        left = [row for row in checks if row["prompt"] not in done]
        with Progress("real runs", len(checks), len(checks) - len(left), "prompt") as progress:
            for row in left:
                if deadline.passed:
                    return None
                engine = engine or _engine(options)
                append_rows(runs, [{"prompt": row["prompt"], **made, **confirmed(engine, row, n, rule, options)}])
                progress.add()
        done = kept_rows(runs, made)
    finally:
        if engine is not None:
            engine.close()
    dtype = " ".join({row.get("dtype", ""): 0 for row in known.values()})
    return record(pools["report"], n, rule, [done[row["prompt"]] for row in checks], options, dtype)


def _rows(data: Sequence[dict[str, Any]], split: str, count: int) -> list[dict[str, Any]]:
    unlike = {prompt_of(row): row for row in reversed(select(data, split, None))}
    return [{"prompt": prompt, "split": split} for prompt in reversed(unlike)][:count]


def _engine(options: Options) -> Engine:
    from trimtab.decode.config import EngineOptions
    from trimtab.decode.engine.engine import Engine

    settings = EngineOptions(
        threads=options.threads,
        memory_bytes=options.memory_mb << 20,
        max_batch_rows=_ROWS,
        page_tokens=_PAGE,
    )
    reward = {"type": "classifier", "source": options.reward, "partial": "closed"}
    return Engine({_MODEL: options.model}, rewards={_REWARD: reward}, options=settings)


def _request(options: Options, prompt: str, n: int, rule: Rule | None = None) -> Request:
    search = BestOfN(n, _REWARD)
    if rule is not None:
        search = BestOfN(n, _REWARD, reject_fraction=rule.fraction, check_every_tokens=rule.every)
    return Request(
        model=_MODEL,
        prompt=messages(prompt),
        sampling=Sampling(temperature=options.temperature, top_k=0, top_p=1.0, seed=seed_of(prompt, options.seed)),
        stopping=Stopping(max_new_tokens=options.max_new_tokens),
        search=search,
    )


def fill(engine: Engine, work: Sequence[Asked], path: Path, options: Options, deadline: Deadline) -> bool:
    """Write and rate the pools that are missing in a file; returns whether it then has all.

    Args:
        engine: serves ``model``, and a reward of the name ``reward`` that rates a beginning as if it ended there.
        work: requests for whole pools.
        path: of the file.
        options: of the run.
        deadline: after it no pool is begun.
    """

    def keep(asked: Asked, result: Result) -> Mapping[str, Any]:
        rows = candidates(result)
        found: list[list[float]] = [[] for _ in rows]
        for length in range(options.step, options.max_new_tokens, options.step):  # in order: each grows the one before
            longer = [i for i, candidate in enumerate(result.candidates) if len(candidate.tokens) > length]
            texts = [beginning(engine, result.candidates[i], length) for i in longer]
            items = [(asked.request.prompt, text) for text in texts]
            for i, scored in zip(longer, engine.score(items, reward=_REWARD) if items else (), strict=True):
                found[i].append(round(scored.value, 6))
        kept = [
            {**{key: row[key] for key in ("tokens", "finish_reason", "reward")}, "beginnings": values}
            for row, values in zip(rows, found, strict=True)
        ]
        return {"candidates": kept, "generated": result.usage.generated_tokens, "seconds": result.usage.total_time}

    return collect(engine, work, path, options.made, keep, concurrency=2, deadline=deadline)


def beginning(engine: Engine, candidate: Candidate, length: int) -> str:
    """The text of a candidate after its first ``length`` tokens, as a reward is shown it."""
    ids = [token.id for token in candidate.tokens[:length]]
    return Detokenizer().feed(engine.detokenize(_MODEL, ids, skip_special_tokens=True))


def rated(row: Mapping[str, Any]) -> list[Rated]:
    """The candidates of a row of a pool's file."""
    return [Rated(one["tokens"], one["reward"], tuple(one["beginnings"])) for one in row["candidates"]]


def confirmed(engine: Engine, row: Mapping[str, Any], n: int, rule: Rule, options: Options) -> Mapping[str, Any]:
    """Run the rule for real and say whether the replay said the same; and time it beside the plain best-of-n that it is
    measured against.

    What is timed is new to the engine: had it rated the same answers before, it would remember them.
    """
    expected = replay(rated(row)[:n], rule, options.step)
    runs = {}
    for name, count, how, shift in (
        ("same", n, rule, 0),
        ("plain", options.against, None, 1),
        ("rejecting", n, rule, 2),
    ):
        request = _request(options, row["prompt"], count, how)
        sampling = replace(request.sampling, seed=seed_of(row["prompt"], options.seed + shift))
        runs[name] = engine.generate(
            request.prompt,
            model=request.model,
            search=request.search,
            sampling=sampling,
            stopping=request.stopping,
        )
    result = runs["same"]
    return {
        "same": result.selected == expected.chosen,
        "real_reward": result.chosen.rewards["objective"],
        "replayed_reward": row["candidates"][expected.chosen]["reward"],
        "real_tokens": sum(len(candidate.tokens) for candidate in result.candidates),
        "replayed_tokens": expected.tokens,
        "plain_seconds": runs["plain"].usage.total_time,
        "rejecting_seconds": runs["rejecting"].usage.total_time,
    }


# --------------------------------------------------------------------------------------------------------- recording


def record(
    pools: Sequence[Sequence[Rated]],
    count: int,
    rule: Rule,
    runs: Sequence[Mapping[str, Any]],
    options: Options,
    dtype: str = "",
) -> Recorder:
    """Rows of results: reward and tokens by n, plain and with the chosen rule; the comparison of rejection with
    ``count`` candidates; every rule at full n.
    """
    chosen = {"chosen": count, "rule": str(rule), "against": options.against, "budget": options.budget}
    settings = {**options.made, **chosen, "quantisation": quantised(options.model)}
    recorder = Recorder("rejection", seed=options.seed, dtype=dtype, settings=settings, quick=options.quick)

    def add(case: str, subject: str, found: Point) -> None:
        for metric, unit, values in (("reward", "", found.reward), ("tokens generated", "per answer", found.tokens)):
            samples = np.stack([values, np.ones_like(values)], axis=1)
            interval = bootstrap_interval(samples, mean_ratio)
            recorder.value(case, subject, metric, unit, float(values.mean()), len(values), interval)

    for n in sorted({*_sizes(options.samples), count}):
        add(f"{n} candidates", "plain", point(pools, n, None, options.step))
        add(f"{n} candidates", "rejecting", point(pools, n, rule, options.step))
    for other in options.rules:
        add(f"{options.samples} candidates", f"dropping {other}", point(pools, options.samples, other, options.step))
    for tokens, values in foretold(pools, options.step).items():
        interval = bootstrap_interval(np.stack([values, np.ones_like(values)], axis=1), mean_ratio)
        case = f"beginnings of {tokens} tokens"
        recorder.value(
            case, "reward", "rank correlation with the whole", "", float(values.mean()), len(values), interval
        )
    plain = point(pools, options.against, None, options.step)
    ours = point(pools, count, rule, options.step)
    names = f"rejecting of {count}", f"plain of {options.against}"
    gain = np.stack([ours.reward - plain.reward, np.ones_like(plain.reward)], axis=1)
    spent = np.stack([ours.tokens, plain.tokens], axis=1)
    for mark, metric, unit, samples in ((" - ", "reward", "", gain), (" / ", "tokens generated", "ratio", spent)):
        interval = bootstrap_interval(samples, mean_ratio)
        recorder.value("all", mark.join(names), metric, unit, float(mean_ratio(samples)), len(samples), interval)
    if runs:
        case, subject = "all", "real runs"
        recorder.value(case, subject, "same answer", "share", sum(r["same"] for r in runs) / len(runs), len(runs))
        for metric, name in (("reward", "reward"), ("tokens generated", "tokens")):
            drift = sum(abs(run[f"real_{name}"] - run[f"replayed_{name}"]) for run in runs) / len(runs)
            recorder.value(case, subject, f"difference of {metric}", "mean", drift, len(runs))
        for name in ("plain", "rejecting"):
            recorder.spread(case, name, "time", "s", [run[f"{name}_seconds"] for run in runs])
    return recorder


def _sizes(most: int) -> Iterator[int]:
    return itertools.takewhile(lambda n: n <= most, (4 * 2**k for k in itertools.count()))
