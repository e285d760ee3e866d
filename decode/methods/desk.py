"""What the writer of one answer is made of: its prompt for every model, its draw, and the answer to write into."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from trimtab.decode.methods.answer import NO_PROMPTS, Answer, Preview
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.methods.draws.base import TokenDraws
from trimtab.decode.methods.searches.setting import Rate, sample_of
from trimtab.decode.methods.writer import Team
from trimtab.decode.ops import Context, Seq
from trimtab.decode.request.events import Chunk
from trimtab.decode.request.request import Request

__all__ = ["Desk"]


@dataclass(frozen=True, slots=True)
class Desk:
    """What a policy makes a writer of, and a draw its sequences.

    Attributes:
        context: of the running request.
        request: as it runs, every value known.
        prompts: token ids of the prompt for each model that writes or drafts.
        drawing: how the answer's tokens are drawn.
        team: closes all writers with the request.
        rate: of rewards.
        stops: texts with which the base turns to a question of its own; see ``PromptTemplate.stops``.
        same_ids: models that share the requested model's token ids.
        begun: the prompts end with the beginning of the answer, which goes on without a space of its own.
        index: number of the candidate.
        emit: takes chunks of the answer's text as they are certain; None: nobody listens.
        others: token ids of what the policy has the requested model read besides; see ``Policy.other_prompts``.
    """

    context: Context
    request: Request
    prompts: Mapping[str, tuple[int, ...]]
    drawing: Drawing
    team: Team
    rate: Rate
    stops: tuple[str, ...] = ()
    same_ids: frozenset[str] = frozenset()
    begun: bool = False
    index: int = 0
    emit: Callable[[Chunk], None] | None = None
    others: Sequence[tuple[int, ...]] = ()

    def shares_ids(self, model: str) -> bool:
        """Whether a model has the requested model's token ids."""
        return model in self.same_ids

    def open(self, model: str | None = None) -> Seq:
        """A sequence of a model, the requested one by default, that holds its prompt."""
        model = self.request.model if model is None else model
        return self.context.open(model, self.prompts[model])

    def draws(self, answer: Answer, seq: Seq) -> TokenDraws:
        """Tokens that continue a sequence of the requested model, or a mixture in its place, by the request's draw."""
        return self.request.draw.draws(self, answer, seq)

    def answer(self, own_figures: bool = True) -> Answer:
        """The answer to write into.

        Args:
            own_figures: whether the figures of its tokens are those of the models that write them.
        """
        text_only = self.request.policy.passes_text(self.same_ids)
        return Answer(
            self.context,
            self.request,
            self.drawing,
            stops=() if text_only else self.stops,
            same_vocabulary=self.same_ids,
            text_only=text_only,
            index=self.index,
            prompts=self.prompts if own_figures else NO_PROMPTS,
            emit=self.emit,
        )

    def rating_of(self, reward: str) -> Callable[[Sequence[Preview]], Awaitable[list[float]]]:
        """Rewards of what an answer might become."""

        async def rated(answers: Sequence[Preview]) -> list[float]:
            samples = [sample_of(self.request, answer) for answer in answers]
            return [found.value for found in await self.rate(self.context, reward, samples)]

        return rated
