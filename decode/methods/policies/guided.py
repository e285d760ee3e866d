"""The model against itself on another prompt, as one distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, cast

from trimtab.decode.methods.desk import Desk
from trimtab.decode.methods.policies.base import BaseWriter
from trimtab.decode.methods.writer import Writer
from trimtab.decode.ops import Mixed
from trimtab.decode.request.check import Check
from trimtab.decode.request.fields import Range
from trimtab.decode.request.method import Policy
from trimtab.decode.request.prompt import ChatMessage, Prompt, PromptKind, prompt_kind
from trimtab.kernels.types import Blend

__all__ = ["Guided"]


@dataclass(frozen=True, slots=True)
class Guided(Policy):
    """Away from what the model says to another prompt.

    ln p = scale x ln p_prompt + (1 - scale) x ln p_other, normalised. Classifier-free guidance (Sanchez et al., 2023),
    where the other prompt is the last token of the prompt alone; context-aware decoding (Shi et al., 2023), where it is
    the question without its context, and scale is 1 + alpha; a negative prompt, where it says what is not wanted.
    Penalty and bias apply to the weighted sum of the logits.

    Attributes:
        scale: 1 leaves the model as it is, 0 is the model on the other prompt.
        prompt: the other prompt; of a chat, what the user's last message says in it. None keeps that message.
        system: of a chat, the other prompt's system message; empty for none. None keeps the request's.
        plausibility: in [0, 1): only tokens with p_prompt >= plausibility x max p_prompt can be drawn; None keeps all.
            Where bans leave none of these, all others can.
    """

    scale: Annotated[float, Range("[0, 1e6]")] = 1.5
    prompt: str | None = None
    system: str | None = None
    plausibility: Annotated[float | None, Range("[0, 1)")] = None

    def check(self, check: Check) -> None:
        asked: object = check.request.prompt
        chat = prompt_kind(asked) is PromptKind.CHAT
        if self.prompt == "":
            check.refuse(f"{self.path}.prompt", self.prompt, "a text that is not empty, or None")
        if self.system is not None and not chat:
            check.refuse(f"{self.path}.system", self.system, "None, unless the prompt is chat messages")
        if self.prompt is not None and chat and not any(map(_is_user, cast("Sequence[object]", asked))):
            check.refuse(f"{self.path}.prompt", self.prompt, "None, unless the chat has a message of the user's")

    def other_prompts(self, prompt: Prompt, ids: Sequence[int]) -> tuple[Prompt, ...]:
        if self.prompt is None and self.system is None:
            return (tuple(ids[-1:]),)
        if prompt_kind(prompt) is not PromptKind.CHAT:
            return (cast("str", self.prompt),)
        turns = list(cast("Sequence[ChatMessage]", prompt))
        if self.prompt is not None:
            last = max(i for i, turn in enumerate(turns) if _is_user(turn))
            turns[last] = replace(turns[last], content=self.prompt)
        if self.system is not None:
            turns = [turn for turn in turns if turn.role != "system"]
            turns[:0] = [ChatMessage("system", self.system)] if self.system else []
        return (tuple(turns),)

    def writer(self, desk: Desk) -> Writer:
        answer, asked = desk.answer(own_figures=False), desk.open()
        (other,) = desk.others
        blend = Blend((self.scale, 1.0 - self.scale), plausibility=self.plausibility or 0.0)
        mixed = Mixed((asked, desk.context.open(asked.model, other)), blend)
        return BaseWriter(desk.draws(answer, mixed), answer, desk.team)


def _is_user(turn: object) -> bool:
    return isinstance(turn, ChatMessage) and turn.role == "user"
