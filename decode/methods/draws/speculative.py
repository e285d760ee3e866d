"""Speculative decoding: a draft proposes several tokens, which are accepted or rejected in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Self

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.desk import Desk
from trimtab.decode.methods.draws.base import TokenDraws
from trimtab.decode.methods.draws.block_draw import Drafter, ModelDrafter, SpeculativeDraw
from trimtab.decode.methods.draws.cross_vocabulary import CrossVocabularyDrafter
from trimtab.decode.methods.draws.length import (
    LENGTHS,
    Acceptance,
    Confidence,
    Fixed,
    Length,
)
from trimtab.decode.methods.draws.lookup import CopyingDrafter, LookupDrafter, PromptLookup
from trimtab.decode.ops import Seq
from trimtab.decode.request.check import Check
from trimtab.decode.request.fields import Model, OneOf
from trimtab.decode.request.method import Draw, Facts

__all__ = ["Speculative"]


@dataclass(frozen=True, slots=True)
class Speculative(Draw):
    """A draft proposes several tokens, which the policy's own distribution accepts or rejects in one forward pass.

    The distribution of the answer does not change (Leviathan et al., 2023; Chen et al., 2023).

    Attributes:
        draft: name of a draft model, or ``PromptLookup``.
        length: when to stop drafting; None takes ``Acceptance`` where the draft has a trained head, else
            ``Confidence``.
        coupled: draw as plain decoding would, token for token, and accept what agrees. Accepts somewhat fewer tokens.
        copying: beside a draft model: copy in its place where the text's last n-gram occurred before and such copies
            were mostly accepted. ``length = Fixed(k)`` holds for copies, too; otherwise theirs adapt.
    """

    draft: Annotated[str | PromptLookup, OneOf("drafter", {"draft_model": str, "lookup": PromptLookup}), Model()]
    length: Annotated[Length | None, LENGTHS] = None
    coupled: bool = False
    copying: PromptLookup | None = None

    speculates: ClassVar[bool] = True

    def check(self, check: Check) -> None:
        if isinstance(self.draft, PromptLookup):
            if isinstance(self.length, Confidence | Acceptance):
                pair = f"{type(self.length).__name__} with PromptLookup, whose drafts have no probabilities"
                check.unsupport(f"{self.path}.length", pair, "Fixed, or None, with PromptLookup")
            if self.copying is not None:
                check.refuse(f"{self.path}.copying", self.copying, "None, where PromptLookup drafts")
            return
        info, draft = check.info, check.models.get(self.draft)
        if draft is None:
            return
        if info is not None and draft.name == info.name:
            # A twin from the same source is fine: it may have another dtype.
            check.refuse(
                f"{self.path}.draft_model", self.draft, f"a model other than the requested one ({info.name!r})"
            )
        elif isinstance(self.length, Acceptance) and not draft.acceptance_head:
            accepted = f"Fixed or Confidence: draft model {self.draft!r} has no acceptance head"
            check.refuse(f"{self.path}.acceptance", self.length, accepted)

    def resolved(self, facts: Facts) -> Self:
        if self.length is not None or isinstance(self.draft, PromptLookup):
            return self
        return replace(self, length=Acceptance() if facts.models[self.draft].acceptance_head else Confidence())

    def draws(self, desk: Desk, answer: Answer, seq: Seq) -> TokenDraws:
        return SpeculativeDraw(desk.context, answer, seq, self._drafter(desk, seq), coupled=self.coupled)

    def _drafter(self, desk: Desk, seq: Seq) -> Drafter:
        context, prompt = desk.context, len(seq.tokens)
        tokens = self.length.tokens if isinstance(self.length, Fixed) else None

        def lookup(found: PromptLookup) -> LookupDrafter:
            return LookupDrafter(seq.tokens, found.max_ngram, tokens, partial(context.copies, seq.model))

        if isinstance(self.draft, PromptLookup):
            return lookup(self.draft)
        own, limit, length = desk.open(self.draft), context.limit(self.draft), self.length or Confidence()
        drafter: Drafter
        if desk.shares_ids(self.draft):
            drafter = ModelDrafter(own, seq.model, prompt, length, limit)
        else:
            vocabularies = context.vocabulary(self.draft), context.vocabulary(seq.model)
            drafter = CrossVocabularyDrafter(
                own, vocabularies[0], seq.model, vocabularies[1], prompt, length, limit, desk.begun
            )
        return drafter if self.copying is None else CopyingDrafter(lookup(self.copying), drafter)
