"""Composition root: a validated request becomes one coroutine, search over draw over policy, that writes the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from trimtab.decode.frozen import FrozenDict
from trimtab.decode.methods.answer import NO_PROMPTS, Answer, Drawing, Preview
from trimtab.decode.methods.draws.autoregressive import AutoregressiveDraw
from trimtab.decode.methods.draws.base import TokenDraws
from trimtab.decode.methods.draws.foreign import ForeignDrafter
from trimtab.decode.methods.draws.lookup import CopyingDrafter, LookupDrafter
from trimtab.decode.methods.draws.speculative import Drafter, ModelDrafter, SpeculativeDraw
from trimtab.decode.methods.policies.base import BaseWriter
from trimtab.decode.methods.policies.handover import HandoverWriter
from trimtab.decode.methods.policies.nudged import NudgedWriter
from trimtab.decode.methods.policies.token_reward import RateAnswers, TokenRewardWriter
from trimtab.decode.methods.policies.trigger import DEFAULT_TRIGGER
from trimtab.decode.methods.searches.best_of_n import best_of_n
from trimtab.decode.methods.searches.evolution import evolution
from trimtab.decode.methods.searches.refine import refine
from trimtab.decode.methods.searches.reject_segments import reject_segments
from trimtab.decode.methods.searches.segments import segments
from trimtab.decode.methods.searches.setting import Compare, Emit, Outcome, Rate, Setting, sample_of
from trimtab.decode.methods.searches.single import single
from trimtab.decode.methods.writer import Team, Writer
from trimtab.decode.ops import Context, Mixed, Seq
from trimtab.decode.request.events import Chunk, Progress
from trimtab.decode.request.methods import (
    Autoregressive,
    Base,
    BestOfN,
    Confidence,
    Evolution,
    Fixed,
    Length,
    Mixture,
    Nudged,
    PromptLookup,
    Refine,
    RejectSegments,
    Segments,
    Single,
    Speculative,
    TokenReward,
)
from trimtab.decode.request.prompt import ChatMessage, Prompt, PromptKind, beginning, prompt_kind
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.rewards import rating
from trimtab.decode.text.templates import BASE_STOPS
from trimtab.kernels.types import Blend, Key

__all__ = ["Maker", "Plan", "write"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A request after preparation.

    Attributes:
        request: as validated.
        prompts: token ids of the prompt for each model that writes or drafts; see ``prepare.templates``.
        drawing: filters and random numbers.
        stops: texts with which the base turns to a question of its own; see ``PromptTemplate.stops``.
        same_vocabulary: whether the nudger, or all experts of a mixture, share the base's token ids.
        same_draft: whether a draft model does.
        length: of a speculative draw that names none.
    """

    request: Request
    prompts: dict[str, list[int]]
    drawing: Drawing
    stops: tuple[str, ...] = ()
    same_vocabulary: bool = False
    same_draft: bool = True
    length: Length = field(default_factory=Confidence)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.prompts)


async def write(
    context: Context,
    plan: Plan,
    emit: Emit | None = None,
    *,
    rate: Rate = rating.rate,
    compare: Compare = rating.compare,
) -> Outcome:
    """Write the answer to a request: its search, over its policy, over its draw.

    Args:
        context: of the running request.
        plan: the request.
        emit: takes chunks of text that will not be retracted, and progress where there is none yet.
        rate, compare: of rewards.

    However it ends, every sequence that was opened is closed.
    """
    maker = Maker(context, plan, rate)
    setting = Setting(
        context,
        plan.request,
        plan.drawing.key,
        maker.root,
        maker.complete,
        rate,
        compare,
        emit or _silent,
        plan.drawing.filters.temperature == 0,
    )
    try:
        match plan.request.search:
            case Single():
                return await single(setting)
            case BestOfN() as search:
                return await best_of_n(setting, search)
            case Segments() as search:
                return await segments(setting, search)
            case RejectSegments() as search:
                return await reject_segments(setting, search)
            case Evolution() as search:
                return await evolution(setting, search)
            case Refine() as search:
                return await refine(setting, search)
    finally:
        maker.team.close()


def _silent(_: Chunk | Progress) -> None:
    pass


class Maker:
    """Makes the writers of a request."""

    def __init__(self, context: Context, plan: Plan, rate: Rate) -> None:
        self.context, self.plan, self.rate = context, plan, rate
        self.team = Team()
        self._prompts: Mapping[str, tuple[int, ...]] | None = None

    def root(
        self, key: Key, index: int = 0, *, emit: Callable[[Chunk], None] | None = None, prompt: Prompt | None = None
    ) -> Writer:
        """A writer by the request's policy and draw, at the beginning of an answer."""
        plan, request = self.plan, self.plan.request
        prompts = plan.prompts if prompt is None else self._render(prompt)
        stops = plan.stops if prompt is None else tuple(dict.fromkeys((*plan.stops, *BASE_STOPS)))
        policy = request.policy
        foreign = isinstance(policy, Nudged) and not plan.same_vocabulary
        asked = request.prompt if prompt is None else prompt
        # Whatever is no turn of its own goes on where the prompt ends.
        begun = prompt_kind(asked) is not PromptKind.CHAT or bool(beginning(asked))
        answer = Answer(
            self.context,
            request,
            replace(plan.drawing, key=key),
            stops=() if foreign else stops,
            same_vocabulary=plan.models if plan.same_vocabulary else (),
            text_only=foreign,
            index=index,
            prompts=NO_PROMPTS if isinstance(policy, Mixture) else self._as_read(prompts),
            emit=emit,
        )
        seq = self._open(request.model, prompts)
        match policy:
            case Base():
                return BaseWriter(self._draw(answer, seq, prompts, begun), answer, self.team)
            case Mixture(experts, plausibility):
                parts = (seq, *(self._open(expert.model, prompts) for expert in experts))
                weights = (1.0, *(expert.weight for expert in experts))
                mixed = Mixed(parts, Blend(weights, plausibility=plausibility or 0.0))
                return BaseWriter(self._draw(answer, mixed, prompts, begun), answer, self.team)
            case TokenReward(reward, weight, width):
                return TokenRewardWriter(self.context, seq, answer, self.team, self._rating_of(reward), weight, width)
            case Nudged(nudger, when, max_span):
                draw, helper = self._draw(answer, seq, prompts, begun), self._open(nudger, prompts)
                trigger = when or DEFAULT_TRIGGER
                if plan.same_vocabulary:
                    return NudgedWriter(self.context, draw, helper, answer, self.team, trigger, max_span)
                return HandoverWriter(self.context, draw, helper, answer, self.team, trigger, max_span, stops, begun)

    async def complete(
        self, model: str, turns: Sequence[ChatMessage], key: Key, most: int, varied: bool = False
    ) -> str:
        """What ``model`` alone answers to a few turns: at most ``most`` tokens, drawn by the request's sampling.

        With ``varied`` it is drawn at temperature 1 where the request is greedy: several should differ.
        """
        request = replace(
            self.plan.request,
            model=model,
            stopping=Stopping(
                max_new_tokens=most,
                time_budget=self.plan.request.stopping.time_budget,
                eos_token_ids=self.plan.request.stopping.eos_token_ids if model == self.plan.request.model else (),
            ),
            top_logprobs=0,
        )
        filters = self.plan.drawing.foreign
        if varied and filters.temperature == 0:
            filters = replace(filters, temperature=1.0)
        answer = Answer(self.context, request, Drawing(filters, filters, key), stops=BASE_STOPS)
        seq = self.context.open(model, self.context.render(model, turns))
        writer = BaseWriter(AutoregressiveDraw(self.context, answer, seq), answer, self.team)
        await writer.advance()
        writer.close()
        return answer.text

    def _as_read(self, prompts: dict[str, list[int]]) -> Mapping[str, tuple[int, ...]]:
        """Prompts as answers and their samples carry them; those of the request are one object for all."""
        if prompts is not self.plan.prompts:
            return FrozenDict({name: tuple(ids) for name, ids in prompts.items()})
        if self._prompts is None:
            self._prompts = FrozenDict({name: tuple(ids) for name, ids in prompts.items()})
        return self._prompts

    def _open(self, model: str, prompts: dict[str, list[int]]) -> Seq:
        return self.context.open(model, prompts[model])

    def _draw(self, answer: Answer, seq: Seq, prompts: dict[str, list[int]], begun: bool) -> TokenDraws:
        draw, context = self.plan.request.draw, self.context
        if isinstance(draw, Autoregressive):
            return AutoregressiveDraw(context, answer, seq)
        return SpeculativeDraw(context, answer, seq, self._drafter(draw, seq, prompts, begun), coupled=draw.coupled)

    def _drafter(self, draw: Speculative, seq: Seq, prompts: dict[str, list[int]], begun: bool) -> Drafter:
        context, prompt = self.context, len(seq.tokens)
        tokens = draw.length.tokens if isinstance(draw.length, Fixed) else None

        def lookup(found: PromptLookup) -> LookupDrafter:
            return LookupDrafter(seq.tokens, found.max_ngram, tokens, partial(context.copies, seq.model))

        if isinstance(draw.draft, PromptLookup):
            return lookup(draw.draft)
        own, limit = self._open(draw.draft, prompts), context.limit(draw.draft)
        length = draw.length or self.plan.length
        drafter: Drafter
        if self.plan.same_draft:
            drafter = ModelDrafter(own, seq.model, prompt, length, limit)
        else:
            vocabularies = context.vocabulary(draw.draft), context.vocabulary(seq.model)
            drafter = ForeignDrafter(own, vocabularies[0], seq.model, vocabularies[1], prompt, length, limit, begun)
        return drafter if draw.copying is None else CopyingDrafter(lookup(draw.copying), drafter)

    def _rating_of(self, reward: str) -> RateAnswers:
        """Ratings of what an answer might become."""
        request = self.plan.request

        async def rated(answers: Sequence[Preview]) -> list[float]:
            samples = [sample_of(request, answer) for answer in answers]
            return [found.value for found in await self.rate(self.context, reward, samples)]

        return rated

    def _render(self, prompt: Prompt) -> dict[str, list[int]]:
        """A prompt of a search's own, text or chat, for every model of the plan, as the engine renders the request's.

        A model that only drafts, in the base's token ids, reads the base's prompt.
        """
        request, context = self.plan.request, self.context
        own = context.render(request.model, prompt)
        drafts = {request.draw.draft} if isinstance(request.draw, Speculative) and self.plan.same_draft else set()
        match request.policy:
            case Nudged(nudger):
                drafts.discard(nudger)
            case Mixture(experts):
                drafts.difference_update(expert.model for expert in experts)
        same = {request.model, *drafts}
        return {name: own if name in same else context.render(name, prompt) for name in self.plan.prompts}
