"""A request's writers, and its search over them."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from trimtab.decode.frozen import FrozenDict
from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.desk import Desk
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.methods.draws.autoregressive import AutoregressiveDraw
from trimtab.decode.methods.policies.base import BaseWriter
from trimtab.decode.methods.searches.setting import Compare, Emit, Outcome, Rate, Setting
from trimtab.decode.methods.writer import Team, Writer
from trimtab.decode.ops import Context
from trimtab.decode.request.events import Chunk, Progress
from trimtab.decode.request.prompt import ChatMessage, Prompt, PromptKind, beginning, prompt_kind
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.rewards import rating
from trimtab.decode.rewards.base import Reward
from trimtab.decode.text.templates import BASE_STOPS
from trimtab.kernels.types import Key

__all__ = ["Maker", "Prepared", "prompts_of", "write"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request after preparation.

    Attributes:
        request: as it runs, every value known.
        prompts: token ids of the prompt for each model that writes or drafts; see ``text.templates``.
        drawing: filters and random numbers.
        stops: texts with which the base turns to a question of its own; see ``PromptTemplate.stops``.
        same_ids: models that share the requested model's token ids, it among them.
        rewards: of this request alone, by name.
        others: token ids of what the policy has the requested model read besides its prompt.
    """

    request: Request
    prompts: Mapping[str, tuple[int, ...]]
    drawing: Drawing
    stops: tuple[str, ...] = ()
    same_ids: frozenset[str] = frozenset()
    rewards: Mapping[str, Reward] = field(default_factory=FrozenDict)
    others: tuple[tuple[int, ...], ...] = ()


def prompts_of(
    request: Request, same_ids: Container[str], render: Callable[[str], Sequence[int]]
) -> Mapping[str, tuple[int, ...]]:
    """Token ids of a prompt for each model that writes or drafts, the requested one first.

    A model that only drafts, in the requested model's token ids, reads that one's very prompt, whatever its template.

    Args:
        request: whose models.
        same_ids: models that share the requested model's token ids.
        render: the prompt for a model, by its own template.
    """
    found = {request.model: tuple(render(request.model))}
    for name in request.policy.models():
        found[name] = tuple(render(name))
    for name in request.draw.models():
        if name not in found:
            found[name] = found[request.model] if name in same_ids else tuple(render(name))
    return FrozenDict(found)


async def write(
    context: Context,
    plan: Prepared,
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
    drawing, listen = plan.drawing, emit or _silent
    setting = Setting(
        context, plan.request, drawing.key, maker.root, maker.complete, rate, compare, listen, drawing.greedy
    )
    try:
        return await plan.request.search.run(setting)
    finally:
        maker.team.close()


def _silent(_: Chunk | Progress) -> None:
    pass


class Maker:
    """Makes the writers of a request."""

    def __init__(self, context: Context, plan: Prepared, rate: Rate) -> None:
        self.context, self.plan, self.rate = context, plan, rate
        self.team = Team()

    def root(
        self, key: Key, index: int = 0, *, emit: Callable[[Chunk], None] | None = None, prompt: Prompt | None = None
    ) -> Writer:
        """A writer by the request's policy and draw, at the beginning of an answer."""
        plan, request, context = self.plan, self.plan.request, self.context
        asked, prompts, stops, others = request.prompt, plan.prompts, plan.stops, plan.others
        if prompt is not None:  # a search's own, text or chat
            asked, stops = prompt, tuple(dict.fromkeys((*plan.stops, *BASE_STOPS)))
            prompts = prompts_of(request, plan.same_ids, lambda model: context.render(model, prompt))
            besides = request.policy.other_prompts(prompt, prompts[request.model])
            others = tuple(tuple(context.render(request.model, other)) for other in besides)
        # Whatever is no turn of its own goes on where the prompt ends.
        begun = prompt_kind(asked) is not PromptKind.CHAT or bool(beginning(asked))
        drawing = replace(plan.drawing, key=key)
        same = plan.same_ids
        desk = Desk(context, request, prompts, drawing, self.team, self.rate, stops, same, begun, index, emit, others)
        return request.policy.writer(desk)

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
