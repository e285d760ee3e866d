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
    answer. ``max_span`` nudger tokens in a row are followed by at least one of the base, unless that would be EOS. A
    stop token id that the request names ends the answer whoever writes it. A full context ends it when that model is
    needed.
    """
    model, helper = base.seq.model, nudger.model
    missing: list[int] = []  # tokens of the answer that the nudger hasn't read
    span = 0
    while not answer.done:
        if base.full:
            answer.finish(FinishReason.CONTEXT_FULL)
            return
        for read in await base.propose():
            gives_up = answer.is_eos(model, read.token) or answer.is_eos(helper, read.token)
            if gives_up or (fires(when, read) and (max_span is None or span < max_span)):
                if len(nudger.tokens) + len(missing) >= context.limit(helper):
                    answer.finish(FinishReason.CONTEXT_FULL)
                    return
                (found,) = await Extend(nudger, missing, (answer.pick(helper),), answer.top)
                answer.write([answer.token(helper, found)])
                base.accept([found.token])
                missing, span = [found.token], span + 1
                break
            answer.write([answer.token(model, read)])
            base.accept([read.token])
            missing.append(read.token)
            span = 0
            if answer.done:
                break
