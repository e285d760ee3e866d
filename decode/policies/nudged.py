"""Nudging where both models share a vocabulary: token by token (Fei et al., "Nudging", ACL 2025, local variant).

The base reads every position; where it is unsure the nudger writes the token. The nudger's cache stands still meanwhile
and catches up in one chunk when it is needed.
"""

from __future__ import annotations

from trimtab.decode.answer import Answer
from trimtab.decode.draws.autoregressive import AutoregressiveDraw
from trimtab.decode.ops import Context, Extend, Seq
from trimtab.decode.policies.trigger import fires
from trimtab.decode.types import FinishReason, Trigger

__all__ = ["write_nudged"]


async def write_nudged(
    context: Context, base: AutoregressiveDraw, nudger: Seq, answer: Answer, when: Trigger, max_span: int | None
) -> None:
    """Write an answer.

    The base's end-of-sequence token is not trusted alone: the nudger is asked for that token too, and its own ends the
    answer. ``max_span`` nudger tokens in a row are followed by at least one of the base.
    """
    model, helper = base.seq.model, nudger.model
    missing: list[int] = []  # tokens of the answer that the nudger hasn't read
    span = 0
    while not answer.done:
        if base.full or len(nudger.tokens) + len(missing) >= context.limit(helper):
            answer.finish(FinishReason.CONTEXT_FULL)
            return
        reads = await base.propose()
        taken: list[int] = []
        for read in reads:
            unsure = fires(when, read) or answer.ends(model, read.token)
            if unsure and (max_span is None or span < max_span):
                (found,) = await Extend(nudger, missing + taken, (answer.pick(helper),), answer.top)
                missing, span = [], span + 1
                answer.write([answer.token(helper, found)])
                base.accept([found.token])
                missing.append(found.token)
                taken = []
                break
            span = 0
            if not answer.write([answer.token(model, read)]):
                break
            taken.append(read.token)
            base.accept([read.token])
            if answer.done:
                break
        missing.extend(taken)
