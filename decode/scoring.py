"""Scores of given answers: by a reward, or by the probability that a model gives them."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.decode.ops import Context, Extend, Given, gather
from trimtab.decode.rewards.base import Sample
from trimtab.decode.rewards.rating import rate
from trimtab.decode.types import Objective, Prompt, Scored, Token, TokenDraw

__all__ = ["score_by_model", "score_by_reward"]


async def score_by_reward(context: Context, reward: str, items: Sequence[tuple[Prompt, str]]) -> list[Scored]:
    """The reward of each (prompt, answer)."""
    samples = [Sample(prompt, text) for prompt, text in items]
    return [Scored(rating.value) for rating in await rate(context, Objective.of(reward), samples)]


async def score_by_model(
    context: Context, model: str, items: Sequence[tuple[Prompt, Sequence[int], Sequence[int]]]
) -> list[Scored]:
    """Sum of ln p of each answer's tokens; of an empty answer that of the token by which the model would end it.

    Args:
        context: of the request.
        model: its name; one that ends answers, if an answer is empty.
        items: (prompt, its ids, ids of the answer).
    """
    return await gather(*(_one(context, model, ids, answer) for _, ids, answer in items))


async def _one(context: Context, model: str, prompt: Sequence[int], answer: Sequence[int]) -> Scored:
    seq = context.open(model, [*prompt, *answer[:-1]])
    if answer:
        reads = await Extend(seq, (), [Given(token) for token in answer])
    else:
        ends = [(await Extend(seq, (), [Given(token)]))[0] for token in context.vocabulary(model).eos_token_ids]
        reads = [max(ends, key=lambda read: read.logprob)]
    seq.close()
    piece = context.vocabulary(model).piece
    tokens = tuple(
        Token(r.token, piece(r.token), model, TokenDraw.FORCED, r.logprob, r.entropy, r.top_prob) for r in reads
    )
    return Scored(sum(read.logprob for read in reads), len(tokens), tokens)
