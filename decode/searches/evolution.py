"""Evolving instructions and answers together (DARWIN; Hung et al., "Inference Time Alignment with Reward-Guided Tree
Search", 2024).

A plain answer comes first. Then, in every round, an instruction is taken from the archive and rewritten by the
mutator; one answer is written for each rewritten instruction, side by side. After every period the best of the
unfinished answers survive, and each of the others is replaced by one of them: it goes on with the survivor's text after
its own instruction. Rewards always see the user's own prompt. The two instructions whose answers survived most often go
to the archive; the best answer of all rounds is the result.

Unlike the published code, an answer that changes instructions keeps its tokens: they are read again after the other
prompt in one chunk, and nothing else is computed twice. One answer of each round keeps its instruction as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.decode.chance import Choice, chance
from trimtab.decode.ops import gather
from trimtab.decode.rewards.rating import Rating
from trimtab.decode.searches.setting import Outcome, Setting, ranked, rewards_of, together
from trimtab.decode.searches.turns import instruction_of, turns_of, with_instruction
from trimtab.decode.types import ChatMessage, Evolution
from trimtab.decode.writer import Writer

__all__ = ["evolution"]

_ARCHIVE = 2  # instructions that go on to the next round
_MUTATION_TOKENS = 256
_MUTATE = (
    "Rewrite the instruction below so that it leads to a better answer. Keep everything it asks for; make it clearer "
    "and more specific. Reply with the rewritten instruction and nothing else.\n\nInstruction: {instruction}"
)


async def evolution(setting: Setting, search: Evolution) -> Outcome:
    """Write an answer and ``rounds`` populations of answers, and take the best."""
    return await _Evolution(setting, search).run()


class _Evolution:
    def __init__(self, setting: Setting, search: Evolution) -> None:
        self.setting, self.search = setting, search
        self.writers: list[Writer] = []
        self.ratings: list[Rating] = []
        self.turns = turns_of(setting.request.prompt, setting.context.vocabulary(setting.request.model))

    async def run(self) -> Outcome:
        setting = self.setting
        self.writers.append(setting.root(setting.key))
        await self._finish(self.writers)
        archive = [instruction_of(self.turns)]
        for number in range(self.search.rounds):
            if setting.context.out_of_time():
                break
            u = chance(setting.key, number, Choice.PARENT)
            archive = await self._round(archive[int(u * len(archive))])
        selected = ranked([rating.value for rating in self.ratings])[0]
        rated = zip(self.writers, self.ratings, strict=True)
        candidates = tuple(writer.answer.candidate(rewards_of(rating)) for writer, rating in rated)
        setting.commit(candidates[selected])
        return Outcome(candidates, selected, reproducible=all(writer.reproducible for writer in self.writers))

    async def _round(self, parent: str) -> list[str]:
        """One population; returns the archive that it leaves."""
        setting, size, first = self.setting, self.search.population, len(self.writers)
        kept = [parent] if size > 1 else []
        mutated = await gather(*(self._mutate(parent, first + k) for k in range(len(kept), size)))
        instructions = [*kept, *mutated]
        population = [
            setting.root(
                setting.key.child(0, first + k),
                first + k,
                prompt=with_instruction(setting.request.prompt, self.turns, instruction),
            )
            for k, instruction in enumerate(instructions)
        ]
        self.writers += population
        survivals = await self._compete(population, first)
        await self._finish(population)
        fitness = [(survivals[k], self.ratings[first + k].value) for k in range(size)]
        order = sorted(range(size), key=lambda k: (-fitness[k][0], -fitness[k][1], k))
        return list(dict.fromkeys(instructions[k] for k in order))[:_ARCHIVE]

    async def _mutate(self, parent: str, number: int) -> str:
        """The instruction in other words; as it is where the mutator says nothing."""
        setting = self.setting
        model = self.search.mutator or setting.request.model
        turns = (ChatMessage("user", _MUTATE.format(instruction=parent)),)
        key = setting.key.child(0, number).child(0, 0)
        said = (await setting.complete(model, turns, key, _MUTATION_TOKENS, varied=True)).strip()
        return said.removeprefix("Instruction:").strip() or parent

    async def _compete(self, population: Sequence[Writer], first: int) -> list[int]:
        """Write until all have ended, replacing after each period; returns how often each has survived."""
        setting, search = self.setting, self.search
        survivals = [0] * len(population)
        due = 0
        while True:
            due += search.period_tokens
            await together(_advance(writer, due) for writer in population if not writer.answer.done)
            running = [k for k, writer in enumerate(population) if not writer.answer.done]
            if not running:
                return survivals
            found = await setting.ratings(search.objective, [population[k].answer for k in running])
            best = [running[i] for i in ranked([rating.value for rating in found])]
            survivors, others = best[: search.survivors], best[search.survivors :]
            for k in survivors:
                survivals[k] += 1
            for k in others:
                u = chance(setting.key, due, Choice.SURVIVOR + first + k)
                population[k].adopt(population[survivors[int(u * len(survivors))]])
            self._report()

    async def _finish(self, writers: Sequence[Writer]) -> None:
        """Write to the end what has not ended, and rate."""
        await together(writer.advance() for writer in writers)
        for writer in writers:
            writer.close()
        self.ratings += await self.setting.ratings(self.search.objective, [writer.answer for writer in writers])
        self._report()

    def _report(self) -> None:
        best = max((rating.value for rating in self.ratings), default=None)
        self.setting.progress(self.writers, best)


async def _advance(writer: Writer, due: int) -> None:
    await writer.advance(lambda: len(writer.answer.tokens) >= due)
    if writer.answer.done:
        writer.close()
