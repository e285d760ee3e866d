"""Rewards that a language model's own probabilities give: no reward model is trained for them.

What is read is the answer's *text*, as the model itself spells it and after the request's prompt by its own template,
so models of different families compare. That holds whoever wrote it, by whatever policy: what ended the answer (the
end-of-sequence token, a stop string that was taken away) is not part of it. Where a model wrote these very tokens alone
after that very prompt, what it said then is the same and is not computed again.

An answer that says nothing, no text or white space alone, has no mean. It is rated as one token that the model can only
guess, ln(1 / tokens of its vocabulary): no more than any text that means something to the model. A *beginning* without
text is not bad yet: it is rated as its first token may be expected to be, which is minus the entropy there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.decode.ops import (
    Context,
    Extend,
    Given,
    Read,
    gather,
)
from trimtab.decode.rewards.base import EngineReward, Sample, distinct_prompts, turns
from trimtab.decode.rewards.options import OptionError, flag, number
from trimtab.decode.text.view import blind

if TYPE_CHECKING:
    from trimtab.decode.rewards.registry import Site

__all__ = ["Certainty", "Implicit", "Likelihood", "certainty", "implicit", "likelihood", "read_answer"]


@dataclass(frozen=True, slots=True)
class _Read:
    """What a model says of an answer: sums over so many tokens, at least one."""

    logprob: float
    entropy: float
    tokens: int


async def read_answer(context: Context, model: str, sample: Sample, chat: bool = True) -> list[Read]:
    """One read per token of the answer's text in the model's vocabulary; of an empty answer none.

    Args:
        context: of the request.
        model: that reads.
        sample: the prompt and the answer.
        chat: put a text prompt to the model as a message of the user; otherwise it is read as it is.

    Raises:
        ValueError: the prompt is token ids, or both together are longer than the model's context.
    """
    answer = context.vocabulary(model).encode(sample.text, False, continues=True)
    return await _read(context, model, _rendered(context, model, sample, chat), answer) if answer else []


async def _summed(context: Context, models: Sequence[str], samples: Sequence[Sample], chat: bool) -> list[list[_Read]]:
    """Per sample what each of the models says of it. Every prompt is rendered once."""
    keys, first = distinct_prompts(samples)
    prompts = {(m, key): _rendered(context, m, sample, chat) for key, sample in first.items() for m in models}
    found = await gather(
        *(_sum(context, m, prompts[m, key], sample) for key, sample in zip(keys, samples, strict=True) for m in models)
    )
    return [found[i : i + len(models)] for i in range(0, len(found), len(models))]


def _rendered(context: Context, model: str, sample: Sample, chat: bool) -> list[int]:
    said = turns(sample.prompt)  # no token ids
    return context.render(model, said if chat else sample.prompt)


async def _sum(context: Context, model: str, prompt: Sequence[int], sample: Sample) -> _Read:
    answer = context.vocabulary(model).encode(sample.text, False, continues=True)
    if not answer or _says_nothing(sample):
        return await _of_nothing(context, model, prompt, sample.finished)
    found = _known(sample, model, prompt, answer)
    if not found:
        found = [(read.logprob, read.entropy) for read in await _read(context, model, prompt, answer)]
    return _Read(math.fsum(p for p, _ in found), math.fsum(h for _, h in found), len(found))


def _says_nothing(sample: Sample) -> bool:
    """Whether the answer ended before its first visible character."""
    return sample.finished and not sample.text.strip()


def _known(sample: Sample, model: str, prompt: Sequence[int], answer: Sequence[int]) -> list[tuple[float, float]]:
    """ln p and entropy of each of the tokens, where the model wrote just these after just this prompt; else none."""
    written = sample.tokens[: len(answer)]
    if list(sample.prompts.get(model, ())) != list(prompt) or [token.id for token in written] != list(answer):
        return []
    found = [
        (token.logprob, token.entropy)
        for token in written
        if token.author == model and token.logprob is not None and token.entropy is not None
    ]
    return found if len(found) == len(answer) else []


async def _read(context: Context, model: str, prompt: Sequence[int], answer: Sequence[int]) -> list[Read]:
    if len(prompt) + len(answer) > (limit := context.limit(model) + 1):  # the last token is not read itself
        raise ValueError(f"prompt and answer take {len(prompt) + len(answer)} tokens; accepted: at most {limit}")
    seq = context.open(model, (*prompt, *answer[:-1]))
    try:
        return await Extend(seq, (), [Given(token) for token in answer])
    finally:
        seq.close()


async def _of_nothing(context: Context, model: str, prompt: Sequence[int], finished: bool) -> _Read:
    """What stands for an answer without text; see the head of this file."""
    if finished:
        guess = blind(context.vocabulary(model))
        return _Read(guess, -guess, 1)
    if len(prompt) > (limit := context.limit(model)):
        raise ValueError(f"the prompt takes {len(prompt)} tokens; accepted: at most {limit}")
    seq = context.open(model, prompt)
    try:
        (read,) = await Extend(seq)
    finally:
        seq.close()
    return _Read(-read.entropy, read.entropy, 1)


class Likelihood(EngineReward):
    """ln p(answer) / tokens^power under a model; with power 1 the reward of SimPO (Meng et al., 2024).

    Args:
        model: that reads the answer.
        beta: factor.
        power: 0 is the plain log-probability, which prefers short answers.
        chat: see ``read_answer``.
    """

    kind = "prefix"
    reads_prompt = True

    def __init__(self, model: str, beta: float = 1.0, power: float = 1.0, chat: bool = True) -> None:
        self.model, self.beta, self.power = model, number("beta", beta), number("power", power, 0, 2)
        self.chat = flag("chat", chat)
        self.models = (model,)
        self.description = f"log-probability under {model}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        reads = await _summed(context, self.models, samples, self.chat)
        return [self.beta * read.logprob / read.tokens**self.power for (read,) in reads]


class Implicit(EngineReward):
    """beta (ln p_aligned - ln p_base) of the answer: what alignment made likelier (Rafailov et al., DPO, 2023).

    Args:
        aligned, base: two models, of whatever vocabularies: both read the same text.
        beta: factor.
        per_token: divide by the aligned model's number of tokens, so that length is no merit.
        chat: see ``read_answer``.
    """

    kind = "prefix"
    reads_prompt = True

    def __init__(self, aligned: str, base: str, beta: float = 1.0, per_token: bool = False, chat: bool = True) -> None:
        self.aligned, self.base, self.beta = aligned, base, number("beta", beta)
        self.per_token, self.chat = flag("per_token", per_token), flag("chat", chat)
        if aligned == base:
            raise OptionError("base", base, "a model other than the aligned one")
        self.models = (aligned, base)
        self.description = f"log-probability under {aligned} beyond {base}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        reads = await _summed(context, self.models, samples, self.chat)
        return [self._rated(sample, *both) for sample, both in zip(samples, reads, strict=True)]

    def _rated(self, sample: Sample, aligned: _Read, base: _Read) -> float:
        if _says_nothing(sample):
            return self.beta * aligned.logprob  # as if the base were sure of it
        if not sample.text:
            return 0.0  # nothing is likelier yet
        return self.beta * (aligned.logprob - base.logprob) / (aligned.tokens if self.per_token else 1)


class Certainty(EngineReward):
    """Minus the mean entropy, in nats, with which a model reads the answer; after self-certainty (Kang et al., 2025).

    That is the mean divergence KL(p || uniform) up to a constant; the paper's own direction, KL(uniform || p), is ruled
    by tokens that are never drawn.

    Args:
        model: that reads the answer.
        chat: see ``read_answer``.
    """

    kind = "prefix"
    reads_prompt = True

    def __init__(self, model: str, chat: bool = True) -> None:
        self.model, self.chat = model, flag("chat", chat)
        self.models = (model,)
        self.description = f"certainty of {model}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        reads = await _summed(context, self.models, samples, self.chat)
        return [-read.entropy / read.tokens for (read,) in reads]


def likelihood(model: str, site: Site, beta: float = 1.0, power: float = 1.0, chat: bool = True) -> Likelihood:
    """The type ``likelihood``."""
    return Likelihood(site.model("model", model), beta, power, chat)


def implicit(
    aligned: str, base: str, site: Site, beta: float = 1.0, per_token: bool = False, chat: bool = True
) -> Implicit:
    """The type ``implicit``."""
    return Implicit(site.model("aligned", aligned), site.model("base", base), beta, per_token, chat)


def certainty(model: str, site: Site, chat: bool = True) -> Certainty:
    """The type ``certainty``."""
    return Certainty(site.model("model", model), chat)
