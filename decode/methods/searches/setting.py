"""What a search works with, and what it gives back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.frozen import FrozenDict
from trimtab.decode.methods.answer import Answer, Preview
from trimtab.decode.methods.writer import Writer
from trimtab.decode.ops import Context, gather
from trimtab.decode.request.events import Chunk, Progress
from trimtab.decode.request.method import Facts
from trimtab.decode.request.objective import AnyObjective, Objective
from trimtab.decode.request.prompt import ChatMessage, Prompt
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Candidate
from trimtab.decode.rewards.base import Sample
from trimtab.decode.rewards.rating import Rating
from trimtab.kernels.types import Key

__all__ = [
    "Compare",
    "Emit",
    "Outcome",
    "Rate",
    "Setting",
    "ranked",
    "refuse_equals",
    "rewards_of",
    "sample_of",
    "written",
]

Emit = Callable[[Chunk | Progress], None]
Rate = Callable[[Context, AnyObjective, Sequence[Sample]], Awaitable[list[Rating]]]
Compare = Callable[[Context, AnyObjective, Sequence[tuple[Sample, Sample]]], Awaitable[list[float]]]


class Root(Protocol):
    """A writer at the beginning of an answer; ``prompt`` None is the request's own."""

    def __call__(
        self, key: Key, index: int = 0, *, emit: Callable[[Chunk], None] | None = None, prompt: Prompt | None = None
    ) -> Writer: ...


class Complete(Protocol):
    """What ``model`` alone answers to a few turns: at most ``most`` tokens, as text; ``varied``: even if greedy."""

    def __call__(
        self, model: str, turns: Sequence[ChatMessage], key: Key, most: int, varied: bool = False
    ) -> Coroutine[Any, Any, str]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a search.

    Attributes:
        candidates: all of them, pruned ones too; ``candidates[i].index`` is i.
        selected: which one is the answer.
        abstained: none was good enough; the selected one is the best of them.
        reproducible: whether the tokens depend on the request and its seed alone, not on load.
    """

    candidates: tuple[Candidate, ...]
    selected: int = 0
    abstained: bool = False
    reproducible: bool = True


def sample_of(request: Request, answer: Answer | Preview) -> Sample:
    """An answer, or the beginning of one, as rewards see it: against the request's own prompt."""
    return Sample(
        request.prompt, answer.text, answer.done, tuple(answer.tokens), request.references, prompts=answer.prompts
    )


@dataclass(frozen=True, slots=True)
class Setting:
    """What a search works with.

    Attributes:
        context: of the request.
        request: prompt, references and limits.
        key: root of the random numbers. Candidate 0 has this key, so a search of one candidate writes what the inner
            draw alone would; candidate k has ``child(position, k)``.
        root: makes writers by the request's policy and draw.
        complete: a helper's answer to a prompt of the search's own.
        rate, compare: of rewards; see ``trimtab.decode.rewards.rating``.
        emit: takes progress, and text that will not be retracted.
        greedy: every token is the most likely one, so the same prompt has one answer only.
    """

    context: Context
    request: Request
    key: Key
    root: Root
    complete: Complete
    rate: Rate
    compare: Compare
    emit: Emit
    greedy: bool = False

    def sample(self, answer: Answer) -> Sample:
        """An answer, or the beginning of one, as rewards see it: against the request's own prompt."""
        return sample_of(self.request, answer)

    async def ratings(self, objective: AnyObjective, answers: Sequence[Answer]) -> list[Rating]:
        """One rating per answer, by one call of each reward; equal answers are rated once."""
        if not answers:
            return []
        return await self.rate(self.context, Objective.of(objective), [self.sample(answer) for answer in answers])

    def progress(self, writers: Sequence[Writer], best: float | None = None) -> None:
        """Report how far candidates have come."""
        done = sum(writer.answer.done for writer in writers)
        generated = sum(len(writer.answer.tokens) for writer in writers)
        self.emit(Progress(len(writers) - done, done, generated, best))

    def commit(self, candidate: Candidate) -> None:
        """Send the whole of a candidate that nothing was sent of."""
        self.emit(Chunk(candidate.index, candidate.text, candidate.tokens))


async def together(children: Iterable[Any]) -> None:
    """Run coroutines side by side."""
    await gather(*children)


def rewards_of(rating: Rating | None) -> Mapping[str, float]:
    """What a candidate reports of its rating."""
    return FrozenDict() if rating is None else FrozenDict({**rating.by_name, "objective": rating.value})


def written(answer: Answer) -> tuple[tuple[str, int], ...]:
    """What tells an answer from another one: its tokens, and who wrote them."""
    return tuple((token.author, token.id) for token in answer.tokens)


def refuse_equals(facts: Facts, path: str, value: int, count: int, what: str) -> None:
    """Refuse a greedy request that would write the same text ``count`` times.

    Raises:
        InvalidRequest: naming the field by which there would be several.
    """
    if facts.greedy and count > 1:
        raise InvalidRequest.of(path, value, f"1, or sampling.temperature > 0: at 0, {what} are all the same")


def ranked(values: Sequence[float]) -> list[int]:
    """Indices from the largest value to the smallest, ties in order."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))
