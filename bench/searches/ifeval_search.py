"""Searches on a gold standard: IFEval's constraints, searched by our own rules, scored by the public checkers.

The reward that a search sees is built from the arguments of each prompt's constraints (``constraints.py``); whether an
answer counts, the public checkers alone say (``ifeval.py``). So a search can be fooled by a rule that reads a
constraint otherwise than its checker does, and the ceiling says how much that costs: pass@N, whether any of the N
candidates counts.

Best-of-n is read off one pool of candidates per prompt: of its first n the one with the largest reward. Beside it stand
greedy decoding, one sample, and segment search under the same reward; all are measured in tokens generated per answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.bench.data import read_rows, select
from trimtab.bench.record import Recorder
from trimtab.bench.searches.constraints import reward_for
from trimtab.bench.searches.pool import Asked, Deadline, best, candidates, collect, kept_rows, messages, seed_of
from trimtab.bench.statistics import Array, bootstrap_interval, mean_ratio
from trimtab.bench.weights import quantised
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.policies.base import Base
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.methods.searches.single import Single
from trimtab.decode.request.method import Policy, Search
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Sampling, Stopping

if TYPE_CHECKING:
    from trimtab.bench.nudging.ifeval import Checkers
    from trimtab.decode.config import ModelConfig
    from trimtab.decode.engine.engine import Engine
    from trimtab.decode.request.result import Result

__all__ = ["METHODS", "SYSTEMS", "Options", "Tried", "ifeval_search", "record", "tried"]

SYSTEMS = ("instruct", "nudged")  # the aligned model alone; the base with the aligned model as its nudger
METHODS = ("pool", "greedy", "segments")
_REWARD = "constraints"
_ROWS = 64  # sequences in one forward pass
_REWARD_SECONDS = 300.0  # on a machine with other work a batch of texts may take a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``trimtab bench ifeval-search`` is asked for.

    Attributes:
        data: JSONL of IFEval's prompts and constraints.
        out: folder of the answers, a file per system and method.
        systems: some of ``SYSTEMS``.
        methods: some of ``METHODS``.
        aligned, base: bundled names, folders or hub ids.
        split: which rows of the data; None takes all.
        limit: at most so many rows.
        samples: pool size of every prompt,
        deep_samples, deep_prompts: and of the first few.
        nudged_prompts: prompts of the system ``nudged``, whose pools have ``samples`` candidates.
        temperature: of everything but greedy decoding.
        max_new_tokens: per answer.
        beams, samples_per_beam, segment_tokens, lookahead: of segment search.
        seed: of the run.
        threads: of torch; None leaves its setting alone.
        memory_mb: for the engine's pages.
        stop_after: seconds after which nothing new is begun; the same command goes on.
        quick: marks the results as a smoke run's.
    """

    data: Path
    out: Path = Path("build/ifeval_search")
    systems: tuple[str, ...] = ("instruct",)
    methods: tuple[str, ...] = METHODS
    aligned: str = "smollm2-135m-instruct"
    base: str = "gemma-3-270m"
    split: str | None = "report"
    limit: int | None = None
    samples: int = 16
    deep_samples: int = 64
    deep_prompts: int = 60
    nudged_prompts: int = 40
    temperature: float = 0.8
    max_new_tokens: int = 256
    beams: int = 4
    samples_per_beam: int = 4
    segment_tokens: int = 32
    lookahead: int = 0
    seed: int = 0
    threads: int | None = None
    memory_mb: int = 1600
    stop_after: float | None = None
    quick: bool = False

    def checked(self) -> Options:
        """Raises InvalidRequest: a value out of range."""
        for name, known in (("systems", SYSTEMS), ("methods", METHODS)):
            given = getattr(self, name)
            if not given or (unknown := [one for one in given if one not in known]):
                raise InvalidRequest.of(name, unknown if given else given, f"some of {', '.join(known)}")
        least = {"deep_prompts": 0, "nudged_prompts": 1, "lookahead": 0, "deep_samples": self.samples}
        for name in ("samples", *least, "max_new_tokens", "beams", "samples_per_beam", "segment_tokens", "memory_mb"):
            if getattr(self, name) < least.get(name, 1):
                raise InvalidRequest.of(name, getattr(self, name), f"{least.get(name, 1)} or more")
        if not 0 < self.temperature <= 10:
            raise InvalidRequest.of("temperature", self.temperature, "above 0 and at most 10: a pool of equals is none")
        return self


@dataclass(frozen=True, slots=True)
class _Part:
    """Prompts of one system answered by one method, in one file."""

    system: str
    method: str
    work: tuple[Asked, ...]
    made: Mapping[str, Any]
    concurrency: int

    @property
    def file(self) -> str:
        return f"{self.system}-{self.method}.jsonl"


def ifeval_search(options: Options) -> Recorder | None:
    """Make the answers that are missing, score all, and sum up; None if the time was up before all were there.

    Raises:
        InvalidRequest: an option or the data can't be used. CheckersMissing: the public checkers aren't installed.
    """
    from trimtab.bench.nudging.ifeval import Checkers

    options = options.checked()
    checkers = Checkers()  # first: what can't be scored isn't worth writing
    rows = select(read_rows(options.data), options.split, options.limit)
    if not all(isinstance(row.get("prompt"), str) for row in rows):
        raise InvalidRequest.of("data", options.data.name, "rows of IFEval: prompt, instruction_id_list and kwargs")
    deadline = Deadline(options.stop_after)
    whole = True
    for system in options.systems:
        parts = list(_parts(options, system, rows))
        if any(asked.row["prompt"] not in found for part, found in _found(options, parts) for asked in part.work):
            with _engine(options, system, rows) as engine:
                for part in parts:
                    whole &= collect(
                        engine,
                        part.work,
                        options.out / part.file,
                        part.made,
                        _kept,
                        concurrency=part.concurrency,
                        deadline=deadline,
                    )
    if not whole:
        return None
    tried = {system: _tried(options, system, rows, checkers) for system in options.systems}
    return record(tried, options, _dtype(options, rows))


def _engine(options: Options, system: str, rows: Sequence[Mapping[str, Any]]) -> Engine:
    from trimtab.decode.config import EngineOptions, ModelConfig
    from trimtab.decode.engine.engine import Engine

    models: dict[str, ModelConfig | str] = {"aligned": ModelConfig(source=options.aligned, role="aligned")}
    if system == "nudged":
        models = {"base": ModelConfig(source=options.base), **models}
    reward = reward_for(rows)
    reward.timeout = _REWARD_SECONDS
    memory = options.memory_mb << 20
    settings = EngineOptions(threads=options.threads, memory_bytes=memory, max_batch_rows=_ROWS)
    return Engine(models, rewards={_REWARD: reward}, options=settings)


def _parts(options: Options, system: str, rows: Sequence[dict[str, Any]]) -> Iterator[_Part]:
    """The deep pools first: they are what most is learned from."""
    nudged = system == "nudged"
    rows = rows[: options.nudged_prompts] if nudged else rows
    deep = 0 if nudged else min(options.deep_prompts, len(rows))
    segments = Segments(
        _REWARD, options.beams, options.samples_per_beam, options.segment_tokens, lookahead=options.lookahead
    )
    for method in (name for name in METHODS if name in options.methods):
        made = {"system": system, "method": method, "max_new_tokens": options.max_new_tokens}
        if method != "greedy":
            made |= {"temperature": options.temperature, "seed": options.seed}
        if method == "segments":
            made |= {"beams": options.beams, "samples_per_beam": options.samples_per_beam}
            made |= {"segment_tokens": options.segment_tokens, "lookahead": options.lookahead}
        searches: list[tuple[Search, int, Sequence[dict[str, Any]]]] = [(Single(), 1, rows)]
        if method == "segments":
            searches = [(segments, options.beams * options.samples_per_beam, rows)]
        elif method == "pool":
            sizes = (options.deep_samples, rows[:deep]), (options.samples, rows[deep:])
            searches = [(BestOfN(n, _REWARD), n, some) for n, some in sizes]
        for search, width, some in searches:
            work = [Asked(row, _request(options, nudged, row["prompt"], search, method == "greedy")) for row in some]
            # Half as many again as fit a forward pass: ends of answers leave room for others.
            yield _Part(system, method, tuple(work), made, max(2, 3 * _ROWS // (2 * width)))


def _request(options: Options, nudged: bool, prompt: str, search: Search, greedy: bool) -> Request:
    policy: Policy = Nudged("aligned") if nudged else Base()
    temperature = 0.0 if greedy else options.temperature
    return Request(
        model="base" if nudged else "aligned",
        prompt=messages(prompt),
        sampling=Sampling(temperature=temperature, top_k=0, top_p=1.0, seed=seed_of(prompt, options.seed)),
        stopping=Stopping(max_new_tokens=options.max_new_tokens),
        policy=policy,
        search=search,
    )


def _kept(asked: Asked, result: Result) -> Mapping[str, Any]:
    found = candidates(result)
    if not isinstance(asked.request.search, BestOfN):
        found = [found[result.selected]]
    return {"candidates": found, "generated": result.usage.generated_tokens}


def _found(options: Options, parts: Sequence[_Part]) -> Iterator[tuple[_Part, dict[str, dict[str, Any]]]]:
    for part in parts:
        yield part, kept_rows(options.out / part.file, part.made)


# ---------------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True, slots=True)
class Tried:
    """All answers of one system to one prompt.

    Attributes:
        prompt: the prompt.
        followed: per candidate of the pool, whether each constraint is kept, by the public checkers.
        rewards, tokens: per candidate.
        others: per other method the same of its answer, and the tokens generated for it.
    """

    prompt: str
    followed: tuple[tuple[bool, ...], ...]
    rewards: tuple[float, ...]
    tokens: tuple[int, ...]
    others: Mapping[str, tuple[tuple[bool, ...], int]]

    def best_of(self, n: int) -> tuple[tuple[bool, ...], int]:
        """Of the best of the first n: whether each constraint is kept, and the tokens generated for it."""
        return self.followed[best(self.rewards[:n])], sum(self.tokens[:n])

    def passed(self, n: int) -> bool:
        """Whether any of the first n keeps all constraints."""
        return any(all(kept) for kept in self.followed[:n])


def tried(answers: Mapping[str, Mapping[str, Any]], checkers: Checkers) -> Tried:
    """Score one prompt's rows by method; a pool is needed for what is chosen from it, and not for the others."""

    def followed(row: Mapping[str, Any], candidate: Mapping[str, Any]) -> tuple[bool, ...]:
        return tuple(checkers.followed({**row, "response": candidate["response"]}))

    pool = answers.get("pool", {})
    found = pool.get("candidates", ())
    others = {name: row for name, row in answers.items() if name != "pool"}
    return Tried(
        prompt=next(row["prompt"] for row in answers.values()),
        followed=tuple(followed(pool, candidate) for candidate in found),
        rewards=tuple(candidate["reward"] for candidate in found),
        tokens=tuple(candidate["tokens"] for candidate in found),
        others={
            name: (followed(row, row["candidates"][0]), int(row["generated"])) for name, row in sorted(others.items())
        },
    )


def _tried(options: Options, system: str, rows: Sequence[dict[str, Any]], checkers: Checkers) -> Sequence[Tried]:
    every = replace(options, methods=METHODS)
    found = {part.method: rows for part, rows in _found(every, list(_parts(every, system, rows))) if rows}
    first, *_ = (*found.values(), {})  # in the order of METHODS: the pool, if there is one
    return [
        tried({method: answered[prompt] for method, answered in found.items()}, checkers)
        for prompt in first
        if all(prompt in answered for answered in found.values())
    ]


def _dtype(options: Options, rows: Sequence[dict[str, Any]]) -> str:
    """Of the weights that answers were written with; empty for what was written before it was kept."""
    every = [part for system in options.systems for part in _parts(options, system, rows)]
    return " ".join({row.get("dtype", ""): 0 for _, found in _found(options, every) for row in found.values()})


# --------------------------------------------------------------------------------------------------------- recording


def record(systems: Mapping[str, Sequence[Tried]], options: Options, dtype: str = "") -> Recorder:
    """Rows of results: for each system, of the prompts with deep pools, and of all.

    Args:
        systems: what was tried, by system.
        options: of the run.
        dtype: of the weights.

    Raises:
        InvalidRequest: no prompt was answered by all methods.
    """
    settings = {
        "aligned": Path(options.aligned).name,
        "base": Path(options.base).name,
        "temperature": options.temperature,
        "max_new_tokens": options.max_new_tokens,
        "segments": f"{options.beams} beams of {options.samples_per_beam}, {options.segment_tokens} tokens",
        "quantisation": quantised(options.aligned, *([options.base] if "nudged" in options.systems else [])),
    }
    recorder = Recorder("ifeval_search", seed=options.seed, dtype=dtype, settings=settings, quick=options.quick)
    for system, found in systems.items():
        if not found:
            raise InvalidRequest.of("methods", options.methods, f"answers of {system!r} to one prompt by all of them")
        deep = [one for one in found if len(one.rewards) >= options.deep_samples > options.samples]
        for rows in (deep, found) if 0 < len(deep) < len(found) else (found,):
            _record(recorder, f"{system}, {len(rows)} prompts", rows)
    return recorder


def _record(recorder: Recorder, case: str, found: Sequence[Tried]) -> None:
    most = min(len(one.rewards) for one in found)
    answers: dict[str, list[tuple[tuple[bool, ...], int]]] = {}
    for name in found[0].others:
        answers[name] = [one.others[name] for one in found]
    sizes = [n for n in (1, 4, 16, 64) if n <= most]
    for n in sizes:
        answers["one sample" if n == 1 else f"best of {n}"] = [one.best_of(n) for one in found]
    order = sorted(answers, key=lambda name: (name != "greedy", name == "segments"))
    greedy = [all(kept) for kept, _ in answers.get("greedy", ())]
    for name in order:
        rows = answers[name]
        whole = np.array([[all(kept), 1] for kept, _ in rows], dtype=np.float64)
        single = np.array([[sum(kept), len(kept)] for kept, _ in rows], dtype=np.float64)
        tokens = np.array([[count, 1] for _, count in rows], dtype=np.float64)
        recorder.value(case, name, "prompts kept whole", "share", *_estimate(whole))
        recorder.value(case, name, "constraints kept", "share", *_estimate(single))
        recorder.value(case, name, "tokens generated", "per answer", *_estimate(tokens))
        if name != "greedy" and any(greedy):
            pairs = np.stack([whole[:, 0], np.array(greedy, dtype=np.float64)], axis=1)
            value, interval = float(_multiple(pairs)), bootstrap_interval(pairs, _multiple)
            recorder.value(case, f"{name} / greedy", "prompts kept whole", "ratio", value, len(rows), interval)
    agreed = [
        [(reward >= 1) == all(kept), 1] for one in found for reward, kept in zip(one.rewards, one.followed, strict=True)
    ]
    if agreed:
        share = float(mean_ratio(np.array(agreed, dtype=np.float64)))
        recorder.value(case, "rules", "agree with the checkers", "share", share, len(agreed))
    for n in sizes:
        passed = np.array([[one.passed(n), 1] for one in found], dtype=np.float64)
        recorder.value(case, f"pass@{n}", "prompts kept whole", "share", *_estimate(passed))


def _estimate(samples: Array) -> tuple[float, int, tuple[float, float]]:
    return float(mean_ratio(samples)), len(samples), bootstrap_interval(samples, mean_ratio)


def _multiple(samples: Array) -> Array:
    """[..., n, 2] counts -> [...]: the first column's sum over the second's, which counts as 1 at least."""
    sums = samples.sum(axis=-2)
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1), dtype=np.float64)
