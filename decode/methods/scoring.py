"""Scores of given answers: by a reward, or by the probability that a model gives them."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.decode.errors import InvalidRequest, Violation
from trimtab.decode.ops import Context, Extend, Given, gather
from trimtab.decode.request.objective import Objective
from trimtab.decode.request.prompt import Prompt, PromptKind, prompt_kind
from trimtab.decode.request.result import Scored, Token, TokenDraw
from trimtab.decode.rewards.base import Reward, Sample
from trimtab.decode.rewards.rating import rate

__all__ = ["check_prompts", "score_by_model", "score_by_reward"]


def check_prompts(reward: Reward, items: Sequence[tuple[Prompt, str]]) -> None:
    """Whether a reward can read the prompts of (prompt, answer) pairs.

    Raises:
        InvalidRequest: naming each that it can't. No model is asked whose the ids could be.
    """
    accepted = f"a text or chat messages: reward {reward.name!r} reads what was asked"
    found = [
        Violation.of(f"items[{i}].prompt", prompt, accepted)
        for i, (prompt, _) in enumerate(items)
        if reward.reads_prompt and not isinstance(prompt, str) and prompt_kind(prompt) is not PromptKind.CHAT
    ]
    if found:
        raise InvalidRequest(found)


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
