"""Rewards that a language model's own probabilities give: no reward model is trained for them.

The answer's text is read under each model's own template and vocabulary, so models of different families compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.decode.ops import Context, Extend, Given, Read, gather
from trimtab.decode.rewards.base import EngineReward, Sample, turns
from trimtab.decode.rewards.options import OptionError, flag, number

if TYPE_CHECKING:
    from trimtab.decode.rewards.registry import Site

__all__ = ["Certainty", "Implicit", "Likelihood", "certainty", "implicit", "likelihood", "read_answer"]


@dataclass(frozen=True, slots=True)
class _Read:
    """What a model says of an answer."""

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
        ValueError: the prompt is token ids and ``chat`` is set, or both together are longer than the model's context.
    """
    prompt = context.render(model, turns(sample.prompt) if chat else sample.prompt)
    answer = context.vocabulary(model).encode(sample.text, False, continues=True)
    if not answer:
        return []
    if len(prompt) + len(answer) > (limit := context.limit(model) + 1):  # the last token is not read itself
        raise ValueError(f"prompt and answer take {len(prompt) + len(answer)} tokens; accepted: at most {limit}")
    seq = context.open(model, (*prompt, *answer[:-1]))
    try:
        return await Extend(seq, (), [Given(token) for token in answer])
    finally:
        seq.close()


async def _summed(context: Context, model: str, sample: Sample, chat: bool) -> _Read:
    known = [t for t in sample.tokens if t.id not in context.vocabulary(model).eos_token_ids] if sample.tokens else []
    if known and not (chat and isinstance(sample.prompt, str)):
        # The model wrote the answer itself, to the prompt as it would be put to it here: all is known already.
        own = [(t.logprob, t.entropy) for t in known if t.author == model]
        if len(own) == len(known) and all(p is not None and e is not None for p, e in own):
            return _Read(math.fsum(p or 0.0 for p, _ in own), math.fsum(e or 0.0 for _, e in own), len(own))
    reads = await read_answer(context, model, sample, chat)
    return _Read(math.fsum(r.logprob for r in reads), math.fsum(r.entropy for r in reads), len(reads))


class Likelihood(EngineReward):
    """ln p(answer) / tokens^power under a model; with power 1 the reward of SimPO (Meng et al., 2024).

    Args:
        model: that reads the answer.
        beta: factor.
        power: 0 is the plain log-probability, which prefers short answers.
        chat: see ``read_answer``.
    """

    kind = "prefix"

    def __init__(self, model: str, beta: float = 1.0, power: float = 1.0, chat: bool = True) -> None:
        self.model, self.beta, self.power = model, number("beta", beta), number("power", power, 0, 2)
        self.chat = flag("chat", chat)
        self.models = (model,)
        self.description = f"log-probability under {model}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        reads = await gather(*(_summed(context, self.model, sample, self.chat) for sample in samples))
        return [self.beta * read.logprob / max(1, read.tokens) ** self.power for read in reads]


class Implicit(EngineReward):
    """beta (ln p_aligned - ln p_base) of the answer: what alignment made likelier (Rafailov et al., DPO, 2023).

    Args:
        aligned, base: two models, of whatever vocabularies: both read the same text.
        beta: factor.
        per_token: divide by the aligned model's number of tokens, so that length is no merit.
        chat: see ``read_answer``.
    """

    kind = "prefix"

    def __init__(self, aligned: str, base: str, beta: float = 1.0, per_token: bool = False, chat: bool = True) -> None:
        self.aligned, self.base, self.beta = aligned, base, number("beta", beta)
        self.per_token, self.chat = flag("per_token", per_token), flag("chat", chat)
        if aligned == base:
            raise OptionError("base", base, "a model other than the aligned one")
        self.models = (aligned, base)
        self.description = f"log-probability under {aligned} beyond {base}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        reads = await gather(
            *(_summed(context, model, sample, self.chat) for sample in samples for model in self.models)
        )
        return [
            self.beta * (a.logprob - b.logprob) / (max(1, a.tokens) if self.per_token else 1)
            for a, b in zip(reads[::2], reads[1::2], strict=True)
        ]


class Certainty(EngineReward):
    """Minus the mean entropy, in nats, with which a model reads the answer; after self-certainty (Kang et al., 2025).

    That is the mean divergence KL(p || uniform) up to a constant; the paper's own direction, KL(uniform || p), is ruled
    by tokens that are never drawn.

    Args:
        model: that reads the answer; where it wrote the answer, what it said then is used.
        chat: see ``read_answer``.
    """

    kind = "prefix"

    def __init__(self, model: str, chat: bool = True) -> None:
        self.model, self.chat = model, flag("chat", chat)
        self.models = (model,)
        self.description = f"certainty of {model}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        reads = await gather(*(_summed(context, self.model, sample, self.chat) for sample in samples))
        return [-read.entropy / max(1, read.tokens) for read in reads]


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
