"""Answer, criticise, revise, and keep the best under the objective (Madaan et al., "Self-Refine", NeurIPS 2023).

Every round starts from the best answer so far. A critic says what is wrong with it, and the requested model, by the
request's own policy and draw, writes a new answer to the same turns, the best answer and the criticism. A revision that
is not better is kept as a candidate and not built upon, which the published method does not check. Where every token is
the most likely one, the same answer would then be criticised and revised in the same words, so the search ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trimtab.decode.methods.searches.setting import Outcome, Setting, ranked, rewards_of
from trimtab.decode.methods.searches.turns import said_so_far, turns_of
from trimtab.decode.methods.writer import Writer
from trimtab.decode.request.fields import Model, Range, Rated
from trimtab.decode.request.method import Search
from trimtab.decode.request.objective import AnyObjective
from trimtab.decode.request.prompt import ChatMessage, Prompt, beginning
from trimtab.decode.rewards.rating import Rating
from trimtab.kernels.types import Key

__all__ = ["Refine"]


@dataclass(frozen=True, slots=True)
class Refine(Search):
    """Answers, criticises its answer, revises it, and keeps the best under the objective.

    Attributes:
        objective: what is good.
        rounds: of critique and revision.
        critic: model that criticises; None takes the requested one.
    """

    objective: Annotated[AnyObjective, Rated()]
    rounds: Annotated[int, Range("[0, 64]")] = 2
    critic: Annotated[str | None, Model()] = None

    @property
    def results(self) -> int:
        return 1 + self.rounds

    async def run(self, setting: Setting) -> Outcome:
        """Write an answer and ``rounds`` revisions, and take the best."""
        return await _refine(setting, self)


_CRITIQUE_TOKENS = 256
_CRITICISE = (
    "Criticise the answer you just gave. Say in a few short points what is wrong, missing or could be better. Do not "
    "write a new answer."
)
_REVISE = (
    "A critic says about your answer:\n\n{critique}\n\nWrite a better answer to my request above. Reply with the "
    "answer and nothing else."
)


async def _refine(setting: Setting, search: Refine) -> Outcome:
    turns = turns_of(setting.request.prompt, setting.context.vocabulary(setting.request.model))
    critic = search.critic or setting.request.model
    writers: list[Writer] = []
    ratings: list[Rating] = []

    async def attempt(key: Key, prompt: Prompt | None) -> None:
        writer = setting.root(key, len(writers), prompt=prompt)
        writers.append(writer)
        await writer.advance()
        writer.close()
        ratings.extend(await setting.ratings(search.objective, [writer.answer]))
        setting.progress(writers, max(rating.value for rating in ratings))

    await attempt(setting.key, None)
    for number in range(1, search.rounds + 1):
        leader = ranked([rating.value for rating in ratings])[0]
        if setting.context.out_of_time() or (setting.greedy and leader < number - 1):
            break
        key = setting.key.child(0, number)
        best = writers[leader].answer
        dialogue = said_so_far(turns, best.text)
        question = (*dialogue, ChatMessage("user", _CRITICISE))
        critique = await setting.complete(critic, question, key.child(0, 0), _CRITIQUE_TOKENS)
        revise = ChatMessage("user", _REVISE.format(critique=critique.strip()))
        begun = turns[-1:] if beginning(turns) else ()  # the revision begins as the answer did
        await attempt(key, (*dialogue, revise, *begun))
    selected = ranked([rating.value for rating in ratings])[0]
    candidates = tuple(
        writer.answer.candidate(rewards_of(rating)) for writer, rating in zip(writers, ratings, strict=True)
    )
    setting.commit(candidates[selected])
    return Outcome(candidates, selected, reproducible=all(writer.reproducible for writer in writers))
