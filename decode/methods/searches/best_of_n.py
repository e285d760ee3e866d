"""Best of n: n candidates side by side, of which one is taken; weak beginnings may be dropped on the way.

By the largest reward; or by a vote on what the answers come to: of as many as give it (self-consistency; Wang et al.,
ICLR 2023) or of the sum of their rewards (weighted best of n; Li et al., ACL 2023); or by likeness or comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trimtab.decode.frozen import FrozenDict
from trimtab.decode.methods.chance import Choice, chance, drawn
from trimtab.decode.methods.searches.extractors import conclude
from trimtab.decode.methods.searches.rejection import Rejection
from trimtab.decode.methods.searches.setting import Outcome, Setting, ranked, rewards_of, together
from trimtab.decode.methods.searches.votes import agreement, copeland, majority, tally, vote_weights
from trimtab.decode.methods.writer import Writer
from trimtab.decode.ops import Call
from trimtab.decode.request.methods import BestOfN, Choose
from trimtab.decode.request.objective import Objective
from trimtab.decode.request.result import FinishReason
from trimtab.decode.rewards.rating import Rating

__all__ = ["best_of_n"]


async def best_of_n(setting: Setting, search: BestOfN) -> Outcome:
    """Write ``search.candidates`` candidates and take one by ``search.choose``.

    Candidates report what they were rated, pruned ones their beginning, and where there was a vote, as "votes", which
    share of it what they say has. In a tournament the objective is the share of the others that a candidate beats, and
    "margin" by how much it does on average.
    """
    return await _BestOfN(setting, search).run()


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
