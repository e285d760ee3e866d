"""How long drafts should be: ways to decide, replayed on recorded blocks at costs measured once, and timed.

*Recorded.* Blocks of the greatest length are drafted and verified for every prompt. A shorter block from any place
would have held the same tokens, so what any rule would have drafted there, and how much of it would have been accepted,
is known.

*Replayed.* Rows that go in step draft by a rule; their passes are counted and multiplied by what such passes take. Only
the decisions of the rules tell results apart: neither clocks nor neighbours.

*Timed.* The same rules in the engine, taking turns at small shares of the prompts: by the clock, and by the time that
the processor gave to this process, which neighbours disturb less.

Each measurement is appended to a file of its own, so a run that was cut short goes on where it was.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.bench.data import append_rows, going_on, prompt_of, read_rows, select
from trimtab.bench.progress import Progress
from trimtab.bench.record import Recorder, commit
from trimtab.bench.speculation.replay import Blocks, Replay
from trimtab.bench.speculation.run import answers
from trimtab.bench.statistics import bootstrap_interval, median_ratio, percentile
from trimtab.bench.timing import LEAST
from trimtab.bench.weights import quantised
from trimtab.decode.engine.lengths import LengthController
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.draws.length import Acceptance, Length
from trimtab.decode.methods.draws.length_rules import Rule
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.request.spec_string import parse_draw

if TYPE_CHECKING:
    from trimtab.decode.engine.engine import Engine

__all__ = ["ARMS", "Options", "record", "speculation_lengths"]

# Name in the tables -> the draw, in the notation of the command line.
ARMS: Mapping[str, str] = {
    "plain": "autoregressive",
    **{f"fixed {k}": f"speculative:draft,length=fixed:{k}" for k in (1, 2, 3, 4)},
    "confidence": "speculative:draft,length=confidence",
    "top probability": "speculative:draft,length=confidence:0.01",
    "acceptance": "speculative:draft,length=acceptance",
}
_FEWEST = 4  # prompts of a share
_LONGEST = 8  # tokens of a recorded block
_SHUFFLES = 3  # orders of the answers that are replayed
_UNDISTURBED = 20  # percentile of the times of like passes that is taken for their cost
_MODELS = ("target", "draft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``trimtab bench speculation-lengths`` is asked for.

    Attributes:
        data: JSONL files of prompts.
        out: file of single measurements.
        target, draft: bundled names, folders or hub ids.
        split: which rows of the data; None takes all.
        prompts: of each file.
        max_new_tokens: per answer.
        temperatures, batches: answers at a time; each pair is a case.
        repeats: timed rounds.
        stop_after: seconds after which no measurement is begun.
    """

    data: tuple[Path, ...]
    out: Path = Path("build/speculation/lengths.jsonl")
    target: str = "smollm2-135m-instruct"
    draft: str = "smollm2-135m-draft"
    split: str | None = None
    prompts: int = 12
    max_new_tokens: int = 96
    temperatures: tuple[float, ...] = (0.0, 1.0)
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 2
    stop_after: float | None = None

    def checked(self) -> Options:
        """Raises InvalidRequest: a value out of range."""
        for name in ("prompts", "max_new_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise InvalidRequest.of(name, getattr(self, name), "1 or more")
        if not self.batches or min(self.batches) < 1:
            raise InvalidRequest.of("batches", self.batches, "numbers of answers, each 1 or more")
        return self

    @property
    def made(self) -> Mapping[str, Any]:
        """How measurements are made; a file with others is refused. Other code may well be another speed."""
        models = [Path(self.target).name, Path(self.draft).name]
        asked = {"data": [path.stem for path in self.data], "split": self.split, "asked": self.prompts}
        return {"models": models, **asked, "max_new_tokens": self.max_new_tokens, "commit": commit()}


@dataclass(slots=True)
class _Everything(Rule):
    """Drafts the longest blocks, and keeps both probabilities that rules read."""

    both: list[tuple[float, float | None]] = field(default_factory=list)

    def keeps(self, top_prob: float, accept_prob: float | None) -> bool:
        self.both.append((round(top_prob, 4), None if accept_prob is None else round(accept_prob, 4)))
        return True

    def goes_on(self, top_prob: float) -> bool:
        return len(self.both) < self.max_tokens


class _Recording(LengthController):
    """Keeps blocks, and what passes take, instead of deciding."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[tuple[list[tuple[float, float | None]], int]] = []
        self.passes: dict[str, dict[int, list[float]]] = {}

    def length_rule(self, length: Length, draft: str, target: str, rows: int) -> Rule | None:
        if not isinstance(length, Acceptance):
            return super().length_rule(length, draft, target, rows)
        return _Everything(_LONGEST, wants_acceptance=True)

    def observe_block(self, found: Rule, accepted: int) -> None:
        if isinstance(found, _Everything):
            self.blocks.append((found.both, accepted))

    def observe_pass(self, model: str, size: int, seconds: float, *, drafting: bool = False) -> None:
        self.passes.setdefault(model, {}).setdefault(size, []).append(seconds)


def speculation_lengths(options: Options) -> Recorder | None:
    """Make the measurements that are missing, and put all of them together; None if ``stop_after`` left some.

    Raises:
        InvalidRequest: an option or a file can't be used.
    """
    from trimtab.decode.config import ModelConfig
    from trimtab.decode.engine.engine import Engine

    options = options.checked()
    texts = [prompt_of(row) for path in options.data for row in select(read_rows(path), options.split, options.prompts)]
    models = {
        "target": ModelConfig(source=options.target),
        "draft": ModelConfig(source=options.draft, role="draft"),
    }
    with Engine(models) as engine:
        if not _measure(engine, options, [[{"role": "user", "content": text}] for text in texts]):
            return None
    return record(going_on(options.out, options.made), options)


def _measure(engine: Engine, options: Options, prompts: Sequence[Any]) -> bool:
    began, made = time.monotonic(), options.made
    done = {tuple(row["step"]) for row in going_on(options.out, made)}
    controllers = {arm: LengthController() for arm in ARMS}
    wanted = _steps(options, len(prompts))
    todo = [step for step in wanted if step not in done]
    common = {**made, "dtype": engine.models["target"].dtype}
    with Progress("speculation lengths", len(wanted), len(wanted) - len(todo)) as progress:
        for step in todo:
            if options.stop_after is not None and time.monotonic() - began > options.stop_after:
                return False
            figures = _made(engine, options, prompts, step, controllers)
            append_rows(options.out, [{"step": step, **common, **figures}])
            progress.add()
    return True


def _steps(options: Options, prompts: int) -> list[tuple[Any, ...]]:
    """Their keys, in the order in which they are made."""
    steps: list[tuple[Any, ...]] = [("costs",)]
    steps += [("blocks", *pair) for pair in product(options.temperatures, range(prompts))]
    for repeat, temperature, batch in product(range(options.repeats), options.temperatures, options.batches):
        arms = list(ARMS) if repeat % 2 == 0 else list(ARMS)[::-1]
        steps += [("timed", temperature, batch, repeat, arm) for arm in arms]
    return steps


def _made(
    engine: Engine,
    options: Options,
    prompts: Sequence[Any],
    step: tuple[Any, ...],
    controllers: Mapping[str, LengthController],
) -> dict[str, Any]:
    """One measurement."""
    scheduler, recording = engine._loop.scheduler, _Recording()
    if step[0] == "costs":
        scheduler.blocks.lengths = recording
        for batch, tokens in product(sorted({1, 2, 4, *options.batches}), (0, 1, 2, 3, 4, 8)):
            draw = parse_draw(f"speculative:draft,length=fixed:{tokens}" if tokens else "autoregressive")
            answers(engine, prompts[:batch], draw, 0.0, batch, 32)
        return {
            model: [[size, percentile(times, _UNDISTURBED)] for size, times in sorted(sizes.items()) if len(times) > 4]
            for model, sizes in recording.passes.items()
        }
    if step[0] == "blocks":
        _, temperature, index = step
        scheduler.blocks.lengths = recording
        answers(
            engine,
            prompts[index : index + 1],
            Speculative("draft", Acceptance()),
            temperature,
            1,
            options.max_new_tokens,
        )
        return {"blocks": recording.blocks}
    _, temperature, batch, repeat, arm = step
    scheduler.blocks.lengths = controllers[arm]
    count = max(_FEWEST, 2 * batch)
    asked = [prompts[(repeat * count + i) % len(prompts)] for i in range(count)]
    used = time.process_time()
    seconds, results = answers(engine, asked, parse_draw(ARMS[arm]), temperature, batch, options.max_new_tokens)
    tokens = sum(result.usage.returned_tokens for result in results)
    return {"tokens": tokens, "seconds": seconds, "processor": time.process_time() - used}


# ------------------------------------------------------------------------------------------------------------- results


def record(rows: Sequence[Mapping[str, Any]], options: Options) -> Recorder:
    """Replays the recorded blocks, and makes ratios of all measurements.

    Raises:
        InvalidRequest: there are no costs or blocks.
    """
    found = {tuple(row["step"]): row for row in rows}
    costs = found.get(("costs",))
    if costs is None:
        raise InvalidRequest.of("out", options.out.name, "a file with measurements")
    settings = {
        "target": Path(options.target).name,
        "draft": Path(options.draft).name,
        "max_new_tokens": options.max_new_tokens,
        "quantisation": quantised(options.target),
        "costs": {model: costs[model] for model in _MODELS},
    }
    recorder = Recorder("speculation_lengths", seed=0, dtype=costs.get("dtype", ""), settings=settings)
    for temperature, batch in product(options.temperatures, options.batches):
        blocks = [row["blocks"] for step, row in found.items() if step[:2] == ("blocks", temperature)]
        timed: dict[str, dict[Any, Mapping[str, Any]]] = {}
        for step, row in found.items():
            if step[:3] == ("timed", temperature, batch):
                timed.setdefault(step[-1], {})[step[3]] = row
        case = f"T = {temperature:g}, {batch} at a time"
        replayed = {arm: _replayed(arm, blocks, costs, batch) for arm in ARMS}
        for step, row in found.items():
            if step[:3] == ("replayed", temperature, batch):
                replayed[step[3]] = row["seconds"]
        _ratios(recorder, case, replayed, timed, len(blocks))
    return recorder


def _replayed(arm: str, blocks: Sequence[Blocks], costs: Mapping[str, Any], batch: int) -> float:
    """Seconds per token."""
    draw = parse_draw(ARMS[arm])
    length = draw.length if isinstance(draw, Speculative) else None
    target, draft = (partial(np.interp, xp=x, fp=y) for x, y in (zip(*costs[m], strict=True) for m in _MODELS))
    sums = np.zeros(2)
    for seed in range(_SHUFFLES):
        order = list(blocks)
        random.Random(seed).shuffle(order)
        replay = Replay(order, batch, length, target, draft, LengthController())
        replay.run()
        sums += replay.seconds, replay.tokens
    return float(sums[0] / sums[1])


def _ratios(
    recorder: Recorder,
    case: str,
    replayed: Mapping[str, float],
    timed: Mapping[str, Mapping[Any, Mapping[str, Any]]],
    answers: int,
) -> None:
    """Speeds as multiples of the best fixed length's."""
    best = min((arm for arm in replayed if arm.startswith("fixed")), key=replayed.__getitem__)
    recorder.value(case, best, "seconds per token", "s", replayed[best], answers)
    for arm, seconds in replayed.items():
        recorder.value(case, arm, "replayed", "ratio", replayed[best] / seconds, answers)
    for arm, found in timed.items():
        pairs = [(row, timed[best][at]) for at, row in found.items() if at in timed.get(best, {})]
        if not pairs:
            continue
        for metric, name in (("timed", "seconds"), ("processor", "processor")):
            samples = np.array([[a["tokens"] / a[name], b["tokens"] / b[name]] for a, b in pairs])
            interval = bootstrap_interval(samples, median_ratio) if len(pairs) >= LEAST else None
            recorder.value(case, arm, metric, "ratio", float(median_ratio(samples)), len(pairs), interval)
