"""Greedy answers of the base alone, the nudger alone, and the two together, to the prompts of a data set."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.bench.data import append_rows, going_on, prompt_of
from trimtab.bench.progress import Progress
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.policies.base import Base
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import (
    Branching,
    Entropy,
    TopProb,
    Trigger,
)
from trimtab.decode.request.events import Completed, Event
from trimtab.decode.request.method import Policy
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Result
from trimtab.decode.request.sampling import Sampling, Stopping

if TYPE_CHECKING:
    from trimtab.decode.engine.engine import Engine

__all__ = ["METHODS", "Method", "answer", "methods", "parse_trigger", "trigger_text"]

METHODS = ("base", "nudger", "nudged")
_TRIGGER = "top_prob:P with P in (0, 1], entropy:NATS with NATS >= 0, or branching:FACTOR with FACTOR >= 1"


def parse_trigger(text: str) -> Trigger:
    """A trigger from ``top_prob:0.3``, ``entropy:2.0`` or ``branching:8``.

    Raises:
        InvalidRequest: anything else.
    """
    kind, _, number = text.partition(":")
    try:
        value = float(number)
    except ValueError:
        raise InvalidRequest.of("trigger", text, _TRIGGER) from None
    match kind:
        case "top_prob" if 0 < value <= 1:
            return TopProb(below=value)
        case "entropy" if 0 <= value < float("inf"):
            return Entropy(above=value)
        case "branching" if 1 <= value < float("inf"):
            return Branching(above=value)
    raise InvalidRequest.of("trigger", text, _TRIGGER)


def trigger_text(trigger: Trigger) -> str:
    """The text that ``parse_trigger`` reads."""
    match trigger:
        case TopProb(below):
            return f"top_prob:{below:g}"
        case Entropy(above):
            return f"entropy:{above:g}"
        case Branching(above):
            return f"branching:{above:g}"


@dataclass(frozen=True, slots=True)
class Method:
    """One way to answer.

    Attributes:
        name: one of ``METHODS``.
        model: the requested model.
        policy: how it decodes.
        trigger: of nudging, as text; empty otherwise.
    """

    name: str
    model: str
    policy: Policy
    trigger: str = ""


def methods(names: Iterable[str], base: str, nudger: str, trigger: Trigger) -> list[Method]:
    """The methods of those names for a pair of models.

    Raises:
        InvalidRequest: an unknown name.
    """
    known = {
        "base": Method("base", base, Base()),
        "nudger": Method("nudger", nudger, Base()),
        "nudged": Method("nudged", base, Nudged(nudger, when=trigger), trigger_text(trigger)),
    }
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            raise InvalidRequest.of("method", name, f"one of {', '.join(METHODS)}")
    return [known[name] for name in chosen]


def answer(
    engine: Engine,
    method: Method,
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    max_new_tokens: int,
    concurrency: int = 64,
    about: Mapping[str, Any] | None = None,
) -> int:
    """Answer each row that ``out`` does not have yet; returns how many that were.

    Args:
        engine: serves the method's models.
        method: how to answer.
        rows: of a data set; the prompt becomes one user message.
        out: JSONL of answers: the row of the data set with ``prompt``, ``response`` and the figures of the answer.
            Written as answers come, so that a run that was cut short goes on where it was.
        max_new_tokens: length limit of every answer.
        concurrency: requests in the engine at a time.
        about: what else is kept with every answer.

    Raises:
        InvalidRequest: ``out`` holds answers that were made otherwise.
    """
    made = {"method": method.name, "trigger": method.trigger, "max_new_tokens": max_new_tokens}
    done = {row["prompt"] for row in going_on(out, made)}
    prompts = {prompt_of(row): row for row in reversed(rows)}  # of equal prompts the first; the answers are equal too
    open_rows = [row for prompt, row in reversed(prompts.items()) if prompt not in done]
    if not open_rows:
        return 0
    begun = time.time()
    started = time.monotonic()
    with Progress(method.name, len(prompts), len(prompts) - len(open_rows), "answer") as progress:
        for row, result in _results(engine, method, open_rows, max_new_tokens, concurrency):
            figures = {"run": round(begun, 3), "seconds": round(time.monotonic() - started, 3)}
            append_rows(
                out, [{**row, "prompt": prompt_of(row), **_figures(method, result), **made, **(about or {}), **figures}]
            )
            progress.add(len(result.tokens))
    return len(open_rows)


def _results(
    engine: Engine, method: Method, rows: Sequence[Mapping[str, Any]], max_new_tokens: int, concurrency: int
) -> Iterator[tuple[Mapping[str, Any], Result]]:
    """Results as they come, with ``concurrency`` requests running."""
    ended: queue.SimpleQueue[tuple[int, Result | Exception]] = queue.SimpleQueue()
    jobs = []

    def submit(index: int) -> None:
        def on_event(event: Event | Exception) -> None:
            if isinstance(event, Completed):
                ended.put((index, event.result))
            elif isinstance(event, Exception):
                ended.put((index, event))

        request = Request(
            model=method.model,
            prompt=({"role": "user", "content": prompt_of(rows[index])},),
            sampling=Sampling(temperature=0.0, seed=0),
            stopping=Stopping(max_new_tokens=max_new_tokens),
            policy=method.policy,
        )
        jobs.append(engine.submit(request, on_event))

    try:
        for index in range(min(concurrency, len(rows))):
            submit(index)
        for _ in rows:
            index, result = ended.get()
            if isinstance(result, Exception):
                raise result
            if len(jobs) < len(rows):
                submit(len(jobs))
            yield rows[index], result
    finally:
        for job in jobs:
            job.cancel()


def _figures(method: Method, result: Result) -> dict[str, Any]:
    authors = [token.author for token in result.tokens]
    count = len(authors)
    nudged = sum(author != method.model for author in authors)
    return {
        "response": result.text,
        "tokens": count,
        "nudged_tokens": nudged,
        "share_nudged": round(nudged / count, 4) if count else 0.0,
        "switches": sum(a != b for a, b in itertools.pairwise(authors)),
        "finish_reason": str(result.finish_reason),
        "exp_mean_entropy": round(result.exp_mean_entropy, 4),
    }
