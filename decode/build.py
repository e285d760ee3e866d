"""Composition root: a validated request becomes one coroutine that writes the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trimtab.decode.answer import Answer, Drawing
from trimtab.decode.draws.autoregressive import AutoregressiveDraw, write_base
from trimtab.decode.ops import Context
from trimtab.decode.policies.handover import Handover
from trimtab.decode.policies.nudged import write_nudged
from trimtab.decode.policies.trigger import DEFAULT_TRIGGER
from trimtab.decode.types import Base, Candidate, Chunk, Nudged, Request

__all__ = ["Plan", "write"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A request after preparation.

    Attributes:
        request: as validated.
        prompts: token ids of the prompt for each model, each rendered by the model's own template.
        drawing: filters and random numbers.
        stops: texts with which the base turns to a question of its own; see ``PromptTemplate.stops``.
        same_vocabulary: whether the nudger shares the base's token ids.
    """

    request: Request
    prompts: dict[str, list[int]]
    drawing: Drawing
    stops: tuple[str, ...] = ()
    same_vocabulary: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.prompts)


async def write(context: Context, plan: Plan, emit: Callable[[Chunk], None] | None) -> Candidate:
    """Write one candidate: policy x draw under the search ``Single``."""
    request, policy = plan.request, plan.request.policy
    foreign = isinstance(policy, Nudged) and not plan.same_vocabulary
    answer = Answer(
        context,
        request,
        plan.drawing,
        stops=() if foreign else plan.stops,
        same_vocabulary=plan.models if plan.same_vocabulary else (),
        text_only=foreign,
        emit=emit,
    )
    base = AutoregressiveDraw(context, answer, context.open(request.model, plan.prompts[request.model]))
    match policy:
        case Base():
            await write_base(base, answer)
        case Nudged(nudger, when, max_span):
            helper = context.open(nudger, plan.prompts[nudger])
            trigger = when or DEFAULT_TRIGGER
            if plan.same_vocabulary:
                await write_nudged(context, base, helper, answer, trigger, max_span)
            else:
                await Handover(context, base, helper, answer, trigger, max_span, plan.stops).write()
    return answer.candidate()
