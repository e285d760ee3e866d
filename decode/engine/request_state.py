"""One request while it is queued or running: its sequences, its counters, its events, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.decode.engine.model_instance import LiveSequence, ModelInstance
from trimtab.decode.engine.tasks import Task
from trimtab.decode.request.events import Event
from trimtab.decode.request.prompt import Prompt
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import ModelUsage
from trimtab.decode.rewards.base import Reward
from trimtab.decode.text.vocabulary import Vocabulary

__all__ = ["Body", "Counter", "Job", "OnEvent", "RequestState"]

OnEvent = Callable[[Any], None]  # takes events, and last a result or an exception; called on the engine's thread


@dataclass(slots=True)
class Counter:
    """Work of one model for one request."""

    forward_passes: int = 0
    tokens_read: int = 0
    tokens_written: int = 0
    cached_tokens: int = 0


class Job:
    """A submitted request, as its owner sees it."""

    def __init__(self, generation_id: str, wake: Callable[[], None]) -> None:
        self.generation_id = generation_id
        self.cancelled = False
        self.finished = threading.Event()
        self._wake = wake

    def cancel(self) -> None:
        """Stop within one tick and give everything back. Thread-safe, idempotent, harmless after the end."""
        if not self.cancelled and not self.finished.is_set():
            self.cancelled = True
            self._wake()


@dataclass(eq=False, slots=True)
class RequestState:
    """State of one request on the engine thread; also the ``Context`` of its methods.

    Attributes:
        arrival: number in order of submission; decides ties and who is preempted.
        method: the coroutine that runs as the request; its result is the last event.
        models: those that the request uses.
        needed_pages: with which it is admitted, by model.
        copies: see ``Context``.
        ended: called before the last event: its owner may submit the next request at once.
        owner: is not dropped while the request runs.
        drawn: tokens drawn by any model, discarded ones included, drafted ones not.
    """

    job: Job
    arrival: int
    request: Request
    method: Body
    models: dict[str, ModelInstance]
    rewards: Mapping[str, Reward]
    needed_pages: dict[str, int]
    on_event: OnEvent
    copies: Callable[[str, float, int], int]
    submitted: float
    ended: Callable[[], None] = lambda: None
    owner: object = None
    started: float = 0.0
    first_token: float = 0.0
    drawn: int = 0
    drafted: int = 0
    accepted: int = 0
    reward_calls: int = 0
    task: Task | None = None
    sequences: dict[LiveSequence, None] = field(default_factory=dict)
    counters: dict[str, Counter] = field(default_factory=dict)

    def open(self, model: str, tokens: Sequence[int]) -> LiveSequence:
        return LiveSequence(self.models[model], tokens, self.sequences)

    def vocabulary(self, model: str) -> Vocabulary:
        return self.models[model].vocabulary

    def limit(self, model: str) -> int:
        return self.models[model].context

    def out_of_time(self) -> bool:
        budget = self.request.stopping.time_budget
        return budget is not None and time.monotonic() - self.started >= budget

    def render(self, model: str, prompt: Prompt) -> list[int]:
        return self.models[model].template.encode(prompt)

    def turn_end(self, model: str) -> list[int]:
        return self.models[model].template.turn_end()

    def reward(self, name: str) -> Reward:
        self.reward_calls += 1
        return self.rewards[name]

    def count(self, drafted: int, accepted: int) -> None:
        self.drafted += drafted
        self.accepted += accepted

    def counter(self, model: str) -> Counter:
        found = self.counters.get(model)
        if found is None:
            found = self.counters[model] = Counter()
        return found

    def emit(self, event: Event) -> None:
        self.on_event(event)

    def model_usage(self) -> tuple[ModelUsage, ...]:
        return tuple(
            ModelUsage(name, c.forward_passes, c.tokens_read, c.tokens_written) for name, c in self.counters.items()
        )

    def release(self) -> None:
        """Close whatever the request's methods left open."""
        if self.task is not None:
            self.task.close()
        for sequence in list(self.sequences):
            sequence.close()


Body = Callable[[RequestState], Coroutine[Any, Any, Any]]
