"""Best of n: n candidates side by side, of which one is taken; weak beginnings may be dropped on the way.

Early rejection: Sun et al., "Fast Best-of-N Decoding via Speculative Rejection", NeurIPS 2024. Every check ranks the
unfinished candidates by their partial answers, drops the worst of them and closes their sequences before anything else
runs; nothing is computed again. Checks come after so many tokens, or when the candidates fill the memory that they may
hold. (In the paper that is all of the device's; a share of their own keeps the candidates the same whatever else runs.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trimtab.decode.chance import Choice, chance, drawn
from trimtab.decode.ops import Call
from trimtab.decode.rewards.rating import Rating
from trimtab.decode.searches.setting import Outcome, Setting, ranked, rewards_of, together
from trimtab.decode.searches.votes import agreement, copeland, majority
from trimtab.decode.types import BestOfN, Choose, FinishReason, Objective
from trimtab.decode.writer import Writer

__all__ = ["best_of_n"]


async def best_of_n(setting: Setting, search: BestOfN) -> Outcome:
    """Write ``search.n`` candidates and take one by ``search.choose``.

    Candidates report what they were rated, pruned ones their beginning. In a tournament the objective is the share of
    the others that a candidate beats, and "margin" by how much it does on average.
    """
    return await _BestOfN(setting, search).run()


class _BestOfN:
    def __init__(self, setting: Setting, search: BestOfN) -> None:
        self.setting, self.search = setting, search
        self.writers: list[Writer] = []
        self.rated: dict[int, Rating] = {}
        self.settled: set[int] = set()  # rated as they ended

    async def run(self) -> Outcome:
        setting, n = self.setting, self.search.n
        root = setting.root(setting.key, emit=setting.emit if n == 1 else None)
        self.writers.append(root)
        if n > 1:
            await root.prime()
            self.writers += [root.fork(setting.key.child(0, k), k) for k in range(1, n)]
        running = list(range(n))
        if self.search.reject_fraction is not None:
            running = await self._reject(self.search.reject_fraction)
        await together(self._finish(i) for i in running)
        selected, abstained = await self._choose()
        candidates = tuple(
            writer.answer.candidate(rewards_of(self.rated.get(i))) for i, writer in enumerate(self.writers)
        )
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
        if self.search.n > 1:
            best = max((self.rated[i].value for i in self.settled), default=None)
            self.setting.progress(self.writers, best)

    async def _rate(self, which: Sequence[int]) -> None:
        """Rate these as they are; those that have ended are not rated again."""
        which = [i for i in which if i not in self.settled]
        answers = [self.writers[i].answer for i in which]
        assert self.search.objective is not None
        self.rated.update(zip(which, await self.setting.ratings(self.search.objective, answers), strict=True))
        self.settled.update(i for i, answer in zip(which, answers, strict=True) if answer.done)
        self._report()

    # ----------------------------------------------------------------------------------------------- early rejection

    async def _reject(self, fraction: float) -> list[int]:
        """Write and drop by turns until too few are left to drop one; returns those that are unfinished."""
        every, held = self.search.check_every_tokens, self.search.max_held_tokens
        least = 0 if held is None else 1
        running, pruned, due = list(range(self.search.n)), set[int](), 0
        while _share(fraction, len(running), least) > 0:
            due = due + every if every is not None else max(due, (held or 0) // len(running), 1)
            await together(self._advance(i, due) for i in running)
            running = [i for i in running if not self.writers[i].answer.done]
            await self._rate([i for i in range(self.search.n) if i not in pruned])
            if held is not None and len(running) * (due + 1) <= held:
                continue  # those that ended made room
            worst = sorted(running, key=lambda i: (self.rated[i].value, -i))
            for i in worst[: _share(fraction, len(running), least)]:
                running.remove(i)
                pruned.add(i)
                self.writers[i].answer.finish(FinishReason.PRUNED)
                self.writers[i].close()
        return running

    async def _advance(self, i: int, due: int) -> None:
        writer = self.writers[i]
        await writer.advance(lambda: len(writer.answer.tokens) >= due)
        if writer.answer.done:
            writer.close()

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
            case Choose.MAJORITY:
                agreed = [standing[k] for k in majority(texts)]
                return max(agreed, key=lambda i: (values.get(i, 0.0), -i)), False
            case Choose.CONSENSUS:
                # Quadratic in the candidates: away from the thread that decodes.
                return standing[ranked(await Call(agreement, (texts,)))[0]], False
            case Choose.WORST:
                return min(standing, key=lambda i: (values[i], i)), False
            case Choose.SOFT:
                return self._soft(standing, [values[i] for i in standing]), False
            case _:
                return max(standing, key=lambda i: (values[i], -i)), False

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


def _share(fraction: float, count: int, least: int = 0) -> int:
    """How many of ``count`` are dropped: never all, rounded down but for rounding errors of the fraction."""
    return min(count - 1, max(least, int(fraction * count + 1e-9)))


def _first(values: dict[int, float], value: float) -> int:
    return next(i for i, found in values.items() if found == value)
