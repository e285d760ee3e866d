"""Best of n: n candidates side by side, of which one is taken; weak beginnings may be dropped on the way.

By the largest reward; or by a vote on what the answers come to: of as many as give it (self-consistency; Wang et al.,
ICLR 2023) or of the sum of their rewards (weighted best of n; Li et al., ACL 2023); or by likeness or comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Self

from trimtab.decode.frozen import FrozenDict
from trimtab.decode.methods.chance import Choice, chance, drawn
from trimtab.decode.methods.searches.extractors import conclude, refusal
from trimtab.decode.methods.searches.rejection import MIN_HELD_TOKENS, Rejection
from trimtab.decode.methods.searches.setting import Outcome, Setting, ranked, refuse_equals, rewards_of, together
from trimtab.decode.methods.searches.votes import agreement, copeland, majority, tally, vote_weights
from trimtab.decode.methods.writer import Writer
from trimtab.decode.ops import Call
from trimtab.decode.request.check import Check
from trimtab.decode.request.fields import Accepts, Range, Rated
from trimtab.decode.request.method import Facts, Search
from trimtab.decode.request.objective import AnyObjective, Objective
from trimtab.decode.request.result import FinishReason
from trimtab.decode.rewards.rating import Rating

__all__ = ["BestOfN", "Choose"]


class Choose(StrEnum):
    """How ``BestOfN`` takes one of its candidates."""

    BEST = "best"  # the largest reward
    SOFT = "soft"  # drawn with probability proportional to exp(reward / temperature)
    WORST = "worst"  # the smallest reward, for red-teaming
    MAJORITY = "majority"  # the conclusion given most often
    WEIGHTED = "weighted"  # the conclusion whose answers have the largest sum of rewards
    CONSENSUS = "consensus"  # minimum Bayes risk: the answer most similar to the others
    TOURNAMENT = "tournament"  # most pairwise wins, by a pairwise reward


@dataclass(frozen=True, slots=True)
class BestOfN(Search):
    """Writes n candidates side by side and takes one.

    Attributes:
        n: candidates, in [1, limits.max_n]; more than one needs sampling, since greedy ones are all equal. None, with
            ``max_held_tokens`` only: as many as it has room for, at ``MIN_HELD_TOKENS`` each.
        objective: what is good; not needed by ``MAJORITY`` and ``CONSENSUS``.
        choose: how one is taken.
        temperature: of ``SOFT``, > 0.
        reject_fraction: in (0, 1): at each check this share of the unfinished candidates, the worst by their partial
            answers, is dropped (speculative rejection; Sun et al., 2024). Needs one of the next two, and rewards that
            can rate a beginning.
        check_every_tokens: tokens of each candidate between two checks.
        max_held_tokens: a check comes when the answers under way hold so many tokens together, at least
            ``MIN_HELD_TOKENS`` for each of n, and drops so many that the others have room for as many more: rejection
            by memory pressure, at the same places whatever else runs.
        threshold: candidates below this reward are not acceptable; if none is above, the answer is an abstention.
        extract: what ``MAJORITY`` and ``WEIGHTED`` count. ``auto``: a choice, a number or words, by built-in rules;
            ``letter`` of a choice; ``number``; ``text``: all words; ``math``: values that math-verify calls equal
            (extra ``math``); or an extractor that a package adds (see ``trimtab.decode.methods.searches.extractors``).
    """

    n: Annotated[int | None, Range("[1, max_n]")] = None
    objective: Annotated[AnyObjective | None, Rated(beginnings=None)] = None
    choose: Choose = Choose.BEST
    temperature: Annotated[float, Range("(0, inf)")] = 1.0
    reject_fraction: Annotated[float | None, Range("(0, 1)")] = None
    check_every_tokens: Annotated[int | None, Range("[1, inf)")] = None
    threshold: Annotated[float | None, Range("(-inf, inf)", "of the objective")] = None
    max_held_tokens: Annotated[int | None, Range("[1, inf)")] = None
    extract: Annotated[str, Accepts(refusal)] = "auto"

    @property
    def candidates(self) -> int:
        """``n``, or how many candidates there is room for."""
        if self.n is not None:
            return self.n
        return max(1, (self.max_held_tokens or 0) // MIN_HELD_TOKENS)

    def check(self, check: Check) -> None:
        _check(self, check)

    def resolved(self, facts: Facts) -> Self:
        n = self.n if self.n is not None else min(facts.limits.max_n, self.candidates)
        refuse_equals(facts, f"{self.path}.n", n, n, "candidates")
        return replace(self, n=n)

    async def run(self, setting: Setting) -> Outcome:
        """Write the candidates and take one by ``choose``.

        Candidates report what they were rated, pruned ones their beginning, and where there was a vote, as "votes",
        which share of it what they say has. In a tournament the objective is the share of the others that a candidate
        beats, and "margin" by how much it does on average.
        """
        return await _BestOfN(setting, self).run()


def _check(search: BestOfN, check: Check) -> None:
    path, choose = search.path, search.choose
    pruned = search.reject_fraction is not None
    if search.objective is None:
        if pruned or search.threshold is not None:
            why = "with reject_fraction" if pruned else "with threshold"
            check.refuse(f"{path}.objective", None, f"an objective, {why}")
        elif isinstance(choose, Choose) and choose not in (Choose.MAJORITY, Choose.CONSENSUS):
            check.refuse(f"{path}.objective", None, f"an objective, with choose={choose}")
    else:
        check.rates(path, search.objective, beginnings=pruned, single=pruned or choose is not Choose.TOURNAMENT)
    held, every = search.max_held_tokens, search.check_every_tokens
    if search.n is None and held is None:
        check.refuse(f"{path}.n", None, f"a whole number in [1, {check.limits.max_n}]")
    if pruned and every is None and held is None:
        accepted = "a whole number >= 1 here or for max_held_tokens, with reject_fraction"
        check.refuse(f"{path}.check_every_tokens", None, accepted)
    elif pruned and every is not None and held is not None:
        check.refuse(f"{path}.max_held_tokens", held, "None with check_every_tokens")
    elif pruned and type(search.n) is int and type(held) is int and 0 < held < MIN_HELD_TOKENS * search.n:
        room = f">= {MIN_HELD_TOKENS} for each of n = {search.n}, or n unset: as many as have room"
        check.refuse(f"{path}.max_held_tokens", held, f"a whole number {room}")
    for name in ("check_every_tokens", "max_held_tokens"):
        if getattr(search, name) is not None and not pruned:
            check.refuse(f"{path}.{name}", getattr(search, name), "None without reject_fraction")
    if search.extract != "auto" and isinstance(choose, Choose) and choose not in (Choose.MAJORITY, Choose.WEIGHTED):
        check.refuse(f"{path}.extract", search.extract, "auto, or another with choose=majority or choose=weighted")
    if search.threshold is not None and choose is Choose.TOURNAMENT:
        pair = "threshold with choose=tournament, which compares answers and rates none"
        check.unsupport(f"{path}.threshold", pair, "None with choose=tournament")


class _BestOfN:
    def __init__(self, setting: Setting, search: BestOfN) -> None:
        self.setting, self.search = setting, search
        self.writers: list[Writer] = []
        self.rated: dict[int, Rating] = {}
        self.settled: set[int] = set()  # rated as they ended
        self.votes: dict[int, float] = {}  # share of the votes that a candidate's conclusion has

    async def run(self) -> Outcome:
        setting, n = self.setting, self.search.candidates
        root = setting.root(setting.key, emit=setting.emit if n == 1 else None)
        self.writers.append(root)
        if n > 1:
            await root.prime()
            self.writers += [root.fork(setting.key.child(0, k), k) for k in range(1, n)]
        running = list(range(n))
        if self.search.reject_fraction is not None:
            running = await Rejection(self.writers, self.search, self._rate, self.rated).run()
        await together(self._finish(i) for i in running)
        selected, abstained = await self._choose()
        candidates = tuple(writer.answer.candidate(self._told(i)) for i, writer in enumerate(self.writers))
        if n > 1:
            setting.commit(candidates[selected])
        reproducible = all(writer.reproducible for writer in self.writers)
        return Outcome(candidates, selected, abstained, reproducible)

    async def _finish(self, i: int) -> None:
        writer = self.writers[i]
        await writer.advance()
        writer.close()
        self._report()

    def _report(self) -> None:
        if len(self.writers) > 1:
            best = max((self.rated[i].value for i in self.settled), default=None)
            self.setting.progress(self.writers, best)

    def _told(self, i: int) -> Mapping[str, float]:
        """What a candidate reports of its rating, and of the votes for what it says."""
        rewards = rewards_of(self.rated.get(i))
        return FrozenDict({"votes": self.votes[i], **rewards}) if i in self.votes else rewards

    async def _rate(self, which: Sequence[int]) -> None:
        """Rate these as they are; those that have ended are not rated again."""
        which = [i for i in which if i not in self.settled]
        answers = [self.writers[i].answer for i in which]
        assert self.search.objective is not None
        self.rated.update(zip(which, await self.setting.ratings(self.search.objective, answers), strict=True))
        self.settled.update(i for i, answer in zip(which, answers, strict=True) if answer.done)
        self._report()

    # ------------------------------------------------------------------------------------------------------- choosing

    async def _choose(self) -> tuple[int, bool]:
        """The index of the chosen candidate, and whether none was acceptable."""
        search = self.search
        standing = [i for i, w in enumerate(self.writers) if w.answer.finish_reason != FinishReason.PRUNED]
        if search.choose is Choose.TOURNAMENT:
            return await self._tournament(standing), False
        values: dict[int, float] = {}
        if search.objective is not None:
            await self._rate(standing)
            values = {i: self.rated[i].value for i in standing}
            if search.threshold is not None:
                standing = [i for i in standing if values[i] >= search.threshold]
                if not standing:
                    return _first(values, max(values.values())), True
        texts = [self.writers[i].answer.text for i in standing]
        match search.choose:
            case Choose.MAJORITY | Choose.WEIGHTED:
                return await self._vote(standing, texts, values), False
            case Choose.CONSENSUS:
                # Quadratic in the candidates: away from the thread that decodes.
                return standing[ranked(await Call(agreement, (texts,)))[0]], False
            case Choose.WORST:
                return min(standing, key=lambda i: (values[i], i)), False
            case Choose.SOFT:
                return self._soft(standing, [values[i] for i in standing]), False
            case _:
                return max(standing, key=lambda i: (values[i], -i)), False

    async def _vote(self, standing: Sequence[int], texts: Sequence[str], values: Mapping[int, float]) -> int:
        """The best answer of the conclusion that wins; the first of it without ratings."""
        weighted = self.search.choose is Choose.WEIGHTED
        weights = vote_weights([values[i] for i in standing]) if weighted else None
        said = await conclude(self.search.extract, texts)
        self.votes = dict(zip(standing, tally(said, weights), strict=True))
        agreed = [standing[k] for k in majority(said, weights)]
        return max(agreed, key=lambda i: (values.get(i, 0.0), -i))

    def _soft(self, standing: Sequence[int], values: Sequence[float]) -> int:
        top = max(values)
        weights = [math.exp((value - top) / self.search.temperature) for value in values]
        return standing[drawn(weights, chance(self.setting.key, 0, Choice.CANDIDATE))]

    async def _tournament(self, standing: Sequence[int]) -> int:
        assert self.search.objective is not None
        samples = [self.setting.sample(self.writers[i].answer) for i in standing]
        pairs = [(samples[i], samples[j]) for i in range(len(samples)) for j in range(i + 1, len(samples))]
        objective = Objective.of(self.search.objective)
        odds = await self.setting.compare(self.setting.context, objective, pairs) if pairs else []
        scores = copeland(len(standing), odds)
        for i, (wins, margin) in zip(standing, scores, strict=True):
            self.rated[i] = Rating(wins, {"margin": margin})
        return standing[max(range(len(scores)), key=lambda k: (*scores[k], -k))]


def _first(values: dict[int, float], value: float) -> int:
    return next(i for i, found in values.items() if found == value)
