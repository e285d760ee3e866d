"""Evolving instructions and answers together (DARWIN; Hung et al., "Inference Time Alignment with Reward-Guided Tree
Search", 2024).

A plain answer comes first. Then, in every round, an instruction is taken from the archive and rewritten by the
mutator; one answer is written for each rewritten instruction, side by side. After every period the best of all answers
of the round survive, ended or not, and each unfinished other is replaced by an unfinished survivor: it goes on with the
survivor's text after its own instruction. Where all survivors have ended, it is dropped. Rewards always see the user's
own prompt. The two instructions whose answers survived most often go to the archive; the best answer of all rounds is
the result.

Unlike the published code, an answer that changes instructions keeps its tokens: they are read again after the other
prompt in one chunk, and nothing else is computed twice. One answer of each round keeps its instruction as it is. Where
every token is the most likely one that would be an answer that is known already, as would be a second one to the same
instruction; then both are left out, and a round can be smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from trimtab.decode.methods.chance import Choice, chance
from trimtab.decode.methods.searches.setting import Outcome, Setting, ranked, rewards_of, together
from trimtab.decode.methods.searches.turns import instruction_of, turns_of, with_instruction
from trimtab.decode.methods.writer import Writer
from trimtab.decode.ops import gather
from trimtab.decode.request.check import Check
from trimtab.decode.request.fields import Model, Range, Rated
from trimtab.decode.request.method import Search
from trimtab.decode.request.objective import AnyObjective
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.result import FinishReason
from trimtab.decode.rewards.rating import Rating

__all__ = ["Evolution"]


@dataclass(frozen=True, slots=True)
class Evolution(Search):
    """Evolves instructions and answers together (DARWIN; Hung et al., 2024).

    Attributes:
        objective: what is good; its rewards must be able to rate a beginning.
        population: answers written side by side.
        survivors: best ones that replace the others at the end of each period.
        period_tokens: tokens between replacements.
        rounds: of mutating the instruction.
        mutator: model that rewrites the instruction; None takes the requested one.
    """

    objective: Annotated[AnyObjective, Rated(beginnings=True)]
    population: Annotated[int, Range("[1, max_n]")] = 8
    survivors: Annotated[int, Range("[1, max_n]")] = 3
    period_tokens: Annotated[int, Range("[1, inf)")] = 40
    rounds: Annotated[int, Range("[0, 64]")] = 2
    mutator: Annotated[str | None, Model()] = None

    @property
    def candidates(self) -> int:
        return self.population

    @property
    def results(self) -> int:
        return 1 + self.rounds * self.population

    def check(self, check: Check) -> None:
        if check.fine(self.path, "population", "survivors") and self.survivors > self.population:
            accepted = f"a whole number in [1, {self.population}], the population"
            check.refuse(f"{self.path}.survivors", self.survivors, accepted)

    async def run(self, setting: Setting) -> Outcome:
        """Write an answer and ``rounds`` populations of answers, and take the best."""
        return await _Evolution(setting, self).run()


_ARCHIVE = 2  # instructions that go on to the next round
_MUTATION_TOKENS = 256
_MUTATE = (
    "Rewrite the instruction below so that it leads to a better answer. Keep everything it asks for; make it clearer "
    "and more specific. Reply with the rewritten instruction and nothing else.\n\nInstruction: {instruction}"
)


class _Evolution:
    def __init__(self, setting: Setting, search: Evolution) -> None:
        self.setting, self.search = setting, search
        self.writers: list[Writer] = []
        self.ratings: dict[int, Rating] = {}
        self.settled: set[int] = set()  # rated as they ended
        self.turns = turns_of(setting.request.prompt, setting.context.vocabulary(setting.request.model))
        self.asked = {instruction_of(self.turns)}

    async def run(self) -> Outcome:
        setting = self.setting
        self.writers.append(setting.root(setting.key))
        await self._finish([0])
        archive = [instruction_of(self.turns)]
        for number in range(self.search.rounds):
            if setting.context.out_of_time():
                break
            u = chance(setting.key, number, Choice.PARENT)
            archive = await self._round(number, archive[int(u * len(archive))]) or archive
        ratings = [self.ratings[i] for i in range(len(self.writers))]
        selected = ranked([rating.value for rating in ratings])[0]
        rated = zip(self.writers, ratings, strict=True)
        candidates = tuple(writer.answer.candidate(rewards_of(rating)) for writer, rating in rated)
        setting.commit(candidates[selected])
        return Outcome(candidates, selected, reproducible=all(writer.reproducible for writer in self.writers))

    async def _round(self, number: int, parent: str) -> list[str]:
        """One population; returns the archive that it leaves, nothing if there was nobody in it."""
        setting, first = self.setting, len(self.writers)
        instructions = await self._instructions(parent, 1 + number * self.search.population)
        if not instructions:
            return []
        population = range(first, first + len(instructions))
        self.writers += [
            setting.root(
                setting.key.child(0, k),
                k,
                prompt=with_instruction(setting.request.prompt, self.turns, instruction),
            )
            for k, instruction in zip(population, instructions, strict=True)
        ]
        survivals = await self._compete(population)
        await self._finish(population)
        order = sorted(population, key=lambda k: (-survivals[k], -self.ratings[k].value, k))
        return list(dict.fromkeys(instructions[k - first] for k in order))[:_ARCHIVE]

    async def _instructions(self, parent: str, first: int) -> list[str]:
        """Those of one round: the parent's, and others in its place."""
        size, greedy = self.search.population, self.setting.greedy
        kept = [parent] if size > 1 and not greedy else []
        mutated = await gather(*(self._mutate(parent, first + k) for k in range(len(kept), size)))
        if not greedy:
            return [*kept, *mutated]
        fresh = [instruction for instruction in dict.fromkeys(mutated) if instruction not in self.asked]
        self.asked.update(fresh)
        return fresh

    async def _mutate(self, parent: str, number: int) -> str:
        """The instruction in other words; as it is where the mutator says nothing."""
        setting = self.setting
        model = self.search.mutator or setting.request.model
        turns = (ChatMessage("user", _MUTATE.format(instruction=parent)),)
        key = setting.key.child(0, number).child(0, 0)
        said = (await setting.complete(model, turns, key, _MUTATION_TOKENS, varied=True)).strip()
        return said.removeprefix("Instruction:").strip() or parent

    async def _compete(self, population: Sequence[int]) -> dict[int, int]:
        """Write until all have ended, replacing after each period; returns how often each has survived."""
        survivals = dict.fromkeys(population, 0)
        due = 0
        while True:
            due += self.search.period_tokens
            await together(self._advance(k, due) for k in self._running(population))
            if not self._running(population):
                return survivals
            await self._rate(population)
            best = sorted(population, key=lambda k: (-self.ratings[k].value, k))
            survivors = best[: self.search.survivors]
            for k in survivors:
                survivals[k] += 1
            self._replace([k for k in self._running(population) if k not in survivors], self._running(survivors), due)
            self._report()

    def _replace(self, others: Sequence[int], survivors: Sequence[int], due: int) -> None:
        for k in others:
            writer = self.writers[k]
            if survivors:
                u = chance(self.setting.key, due, Choice.SURVIVOR + k)
                writer.adopt(self.writers[survivors[int(u * len(survivors))]])
            else:
                writer.answer.finish(FinishReason.PRUNED)
                writer.close()
                self.settled.add(k)

    def _running(self, which: Sequence[int]) -> list[int]:
        return [k for k in which if not self.writers[k].answer.done]

    async def _advance(self, k: int, due: int) -> None:
        writer = self.writers[k]
        await writer.advance(lambda: len(writer.answer.tokens) >= due)
        if writer.answer.done:
            writer.close()

    async def _finish(self, which: Sequence[int]) -> None:
        """Write to the end what has not ended, and rate."""
        await together(self.writers[k].advance() for k in which)
        for k in which:
            self.writers[k].close()
        await self._rate(which)
        self._report()

    async def _rate(self, which: Sequence[int]) -> None:
        """Rate these as they are; those that have ended are not rated again."""
        which = [k for k in which if k not in self.settled]
        answers = [self.writers[k].answer for k in which]
        self.ratings.update(zip(which, await self.setting.ratings(self.search.objective, answers), strict=True))
        self.settled.update(k for k, answer in zip(which, answers, strict=True) if answer.done)

    def _report(self) -> None:
        best = max((self.ratings[k].value for k in self.settled), default=None)
        self.setting.progress(self.writers, best)
