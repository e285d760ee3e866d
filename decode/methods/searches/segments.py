"""Search over segments: look-ahead by rewards, beams or trees.

DeAL (Huang et al., "DeAL: Decoding-time Alignment for Large Language Models", 2024) keeps the beams of the largest
ln p(y) + weight x reward, the reward of what a beam would become some tokens later; beams and diverse verifier trees
over steps are those of Beeching, Tunstall and Rush ("Scaling test-time compute with open models", 2024), by the reward.
ln p(y) is of what would be kept, not of what was looked ahead, and falls with every token: where answers of unlike
lengths compete, ``Logprob.MEAN`` puts them on equal terms.

Every round continues each beam by several segments, candidates in one flat list. The look-ahead of a candidate is the
very text that it would go on with, written on a fork that is closed again. An answer that has ended keeps its place
among the candidates for as long as its score holds it. What all kept beams have in common is sent to the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.searches.boundary import Boundary
from trimtab.decode.methods.searches.setting import (
    Outcome,
    Setting,
    ranked,
    refuse_equals,
    rewards_of,
    together,
    written,
)
from trimtab.decode.methods.writer import Writer
from trimtab.decode.ops import gather
from trimtab.decode.request.check import Check
from trimtab.decode.request.fields import Range, Rated, Text
from trimtab.decode.request.method import Facts, Search
from trimtab.decode.request.objective import AnyObjective
from trimtab.decode.rewards.rating import Rating

__all__ = ["Logprob", "Segments"]


class Logprob(StrEnum):
    """How the log-probabilities of an answer's tokens become one number."""

    SUM = "sum"  # ln p of the answer, as DeAL has it: longer answers have less
    MEAN = "mean"  # per token: answers of any length on equal terms


@dataclass(frozen=True, slots=True)
class Segments(Search):
    """Look-ahead search over segments (DeAL; Huang et al., 2024); beams or trees over steps (Beeching et al., 2024).

    Each round, every beam is continued ``samples_per_beam`` times by one segment; the continuations are looked ahead,
    rated by reward_weight x reward + logprob_weight x log-probability, and the best ``beams`` go on. More than one
    continuation in all needs sampling, since greedy ones are all equal.

    Attributes:
        objective: what is good; its rewards must be able to rate a beginning.
        beams: kept after each round.
        samples_per_beam: continuations of each.
        max_tokens: a segment ends after so many tokens,
        delimiter: or after this text,
        entropy_above: or before a token of larger entropy (nats) than this, whichever comes first.
        lookahead: tokens written beyond the segment for its rating only.
        reward_weight, logprob_weight: of the two parts of a score.
        diverse: every beam is a tree of its own and keeps its own best continuation (DVTS).
        logprob: which log-probability of the answer so far, without what was looked ahead.
    """

    objective: Annotated[AnyObjective, Rated(beginnings=True)]
    beams: Annotated[int, Range("[1, max_n]")] = 4
    samples_per_beam: Annotated[int, Range("[1, max_n]")] = 4
    max_tokens: Annotated[int, Range("[1, inf)")] = 32
    delimiter: Annotated[str | None, Text("max_stop_bytes")] = None
    entropy_above: Annotated[float | None, Range("[0, inf)", "of nats")] = None
    lookahead: Annotated[int, Range("[0, max_new_tokens]")] = 0
    reward_weight: Annotated[float, Range("[-1e6, 1e6]")] = 1.0
    logprob_weight: Annotated[float, Range("[-1e6, 1e6]")] = 0.0
    diverse: bool = False
    logprob: Logprob = Logprob.SUM

    @property
    def candidates(self) -> int:
        return self.beams * self.samples_per_beam

    @property
    def results(self) -> int:
        return self.beams

    def check(self, check: Check) -> None:
        most = check.limits.max_n
        if check.fine(self.path, "beams", "samples_per_beam") and self.candidates > most:
            value = f"{self.beams} beams of {self.samples_per_beam}"
            check.refuse(f"{self.path}.samples_per_beam", value, f"at most {most} continuations together")

    def resolved(self, facts: Facts) -> Self:
        name = "beams" if self.samples_per_beam == 1 else "samples_per_beam"
        refuse_equals(facts, f"{self.path}.{name}", getattr(self, name), self.candidates, "continuations")
        return self

    async def run(self, setting: Setting) -> Outcome:
        """Write the answer segment by segment; the candidates are the beams that were kept to the end, best first."""
        return await _segments(setting, self)


@dataclass(slots=True, eq=False)
class _Beam:
    """A candidate.

    Attributes:
        tree: number of the tree that it grows in; 0 where all beams compete.
        rating: of the last round, look-ahead included.
        score: reward and log-probability, weighted.
        settled: the rating is of the whole answer.
    """

    writer: Writer
    tree: int
    rating: Rating | None = None
    score: float = 0.0
    settled: bool = False

    @property
    def answer(self) -> Answer:
        return self.writer.answer


async def _segments(setting: Setting, search: Segments) -> Outcome:
    boundary = Boundary(search.max_tokens, delimiter=search.delimiter, entropy_above=search.entropy_above)
    root = setting.root(setting.key)
    sent = root.answer.fork(setting.key, emit=setting.emit)
    width = search.candidates
    if width > 1:
        await root.prime()
    pool = _continued(_Beam(root, 0), width)
    if search.diverse:
        for k, beam in enumerate(pool):
            beam.tree = k // search.samples_per_beam
    while True:
        await together(boundary.advance(beam.writer) for beam in pool if not beam.answer.done)
        await _rate(setting, search, pool)
        kept = _kept(search, pool)
        for beam in pool:
            if beam not in kept or beam.answer.done:
                beam.writer.close()
        best = max(beam.rating.value for beam in kept if beam.rating is not None)
        setting.progress([beam.writer for beam in kept], best)
        if all(beam.answer.done for beam in kept):
            break
        sent.replay(kept[0].answer, _common([beam.answer for beam in kept]))
        pool = [
            new for beam in kept for new in ([beam] if beam.answer.done else _continued(beam, search.samples_per_beam))
        ]
    order = ranked([beam.score for beam in kept])
    for rank, i in enumerate(order):
        kept[i].answer.index = rank
    beams = [kept[i] for i in order]
    sent.replay(beams[0].answer)
    candidates = tuple(beam.answer.candidate(rewards_of(beam.rating)) for beam in beams)
    return Outcome(candidates, reproducible=root.reproducible)


def _continued(beam: _Beam, count: int) -> list[_Beam]:
    """The beam itself and its forks, ``count`` in all."""
    answer = beam.answer
    key, position = answer.key, len(answer.tokens)
    forks = [_Beam(beam.writer.fork(key.child(position, k)), beam.tree) for k in range(1, count)]
    return [beam, *forks]


async def _rate(setting: Setting, search: Segments, pool: Sequence[_Beam]) -> None:
    """Score what is new; an answer that ended in an earlier round has its score already."""
    fresh = [beam for beam in pool if not beam.settled]
    answers = await gather(*(_look(beam, search.lookahead) for beam in fresh))
    found = await setting.ratings(search.objective, answers)
    for beam, rating in zip(fresh, found, strict=True):
        beam.rating, beam.settled = rating, beam.answer.done
        beam.score = search.reward_weight * rating.value
        if search.logprob_weight:
            kept = beam.answer
            logprob = kept.sum_logprob if search.logprob is Logprob.SUM else kept.mean_logprob
            beam.score += search.logprob_weight * logprob
    # Beams of one text differ in nothing but rounding, and in their random numbers: which goes on must not hang on it.
    looked = dict(zip(map(id, fresh), answers, strict=True))
    first: dict[object, float] = {}
    for beam in pool:
        beam.score = first.setdefault(written(looked.get(id(beam), beam.answer)), beam.score)


async def _look(beam: _Beam, tokens: int) -> Answer:
    """What the beam's answer would be so many tokens later."""
    if not tokens or beam.answer.done:
        return beam.answer
    fork = beam.writer.fork()
    due = len(fork.answer.tokens) + tokens
    await fork.advance(lambda: len(fork.answer.tokens) >= due)
    fork.close()
    return fork.answer


def _kept(search: Segments, pool: Sequence[_Beam]) -> list[_Beam]:
    """The best of all, or of each tree; in order of the pool, which is by what they descend from."""
    if search.diverse:
        trees: dict[int, list[_Beam]] = {}
        for beam in pool:
            trees.setdefault(beam.tree, []).append(beam)
        return [tree[ranked([beam.score for beam in tree])[0]] for tree in trees.values()]
    best = set(ranked([beam.score for beam in pool])[: search.beams])
    return [beam for i, beam in enumerate(pool) if i in best]


def _common(answers: Sequence[Answer]) -> int:
    """Tokens that all of them begin with."""
    first, *others = (answer.tokens for answer in answers)
    for i, token in enumerate(first):
        if any(i >= len(other) or other[i] != token for other in others):
            return i
    return len(first)
