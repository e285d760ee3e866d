"""What one would write with PyTorch's own operators: the formulas that the kernels are measured against.

Logits are [R, V] of any floating dtype and are worked on in float32. Each formula gives what a decoding step needs of a
row: a token, its logprob, the entropy and the top probability of the distribution it is drawn from at temperature 1.
Where there are ways to write one, it is the cheaper: tokens are drawn from sorted logits and looked up, not scattered
back, and a residual is formed only where a token fell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["greedy", "mixed", "plausible", "sampled", "statistics", "temperature_distribution", "verified"]

Read = tuple[Tensor, Tensor, Tensor, Tensor]  # token, logprob, entropy, top probability, each [R]


def statistics(logits: Tensor, tokens: Tensor) -> Read:
    """The argmax, and of the given ``tokens`` [R] the logprobs."""
    logprobs = torch.log_softmax(logits.float(), -1)
    probs = logprobs.exp()
    top, argmax = probs.max(-1)
    return argmax, _at(logprobs, tokens), -(probs * logprobs).sum(-1), top


def greedy(logits: Tensor) -> Read:
    """The most likely token."""
    logprobs = torch.log_softmax(logits.float(), -1)
    best, token = logprobs.max(-1)
    return token, best, -(logprobs.exp() * logprobs).sum(-1), best.exp()


def temperature_distribution(logits: Tensor, temperature: float, top_p: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """What a token is drawn from: probabilities [R, V], and the token of each column unless it is the column."""
    scaled = logits.float() / temperature
    if top_p >= 1:
        return torch.softmax(scaled, -1), None
    ordered, ids = scaled.sort(-1, descending=True)
    probs = torch.softmax(ordered, -1)
    outside = probs.cumsum(-1) - probs >= top_p
    return torch.softmax(ordered.masked_fill(outside, float("-inf")), -1), ids


def sampled(logits: Tensor, temperature: float, top_p: float = 1.0) -> Read:
    """A token drawn under a temperature and from a nucleus."""
    z = logits.float()
    law, ids = temperature_distribution(z, temperature, top_p)
    token = torch.multinomial(law, 1)
    if ids is not None:
        token = ids.gather(-1, token)
    logprobs = torch.log_softmax(z, -1)
    probs = logprobs.exp()
    return token[:, 0], _at(logprobs, token[:, 0]), -(probs * logprobs).sum(-1), probs.amax(-1)


def mixed(models: Sequence[Tensor], weights: Sequence[float], temperature: float, top_p: float = 1.0) -> Read:
    """A token drawn from the log-linear mixture of several models."""
    base, *others = models
    z = base.float() * weights[0]
    for model, weight in zip(others, weights[1:], strict=True):
        z = z + weight * model.float()
    return sampled(z, temperature, top_p)


def plausible(models: Sequence[Tensor], weights: Sequence[float], plausibility: float) -> Read:
    """``mixed`` at temperature 1 of the tokens with at least ``plausibility`` of the base's top probability."""
    base = torch.softmax(models[0].float(), -1)
    z = models[0].float() * weights[0]
    for model, weight in zip(models[1:], weights[1:], strict=True):
        z = z + weight * model.float()
    z = z.masked_fill(base < plausibility * base.amax(-1, keepdim=True), float("-inf"))
    law = torch.softmax(z, -1)
    token = torch.multinomial(law, 1)[:, 0]
    logprobs = torch.log_softmax(z, -1)
    # 0 ln 0 is 0 here, and NaN as a product.
    return token, _at(logprobs, token), torch.special.entr(law).sum(-1), law.amax(-1)


def verified(target: Tensor, draft: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Speculative sampling at temperature 1 of windows of one length.

    Args:
        target: [R, K + 1, V] logits.
        draft: [R, K, V] logits that the tokens were drawn from.
        tokens: int64 [R, K].

    Returns:
        accepted int64 [R], the token after them int64 [R], and of the target's rows the logprobs of ``tokens`` [R, K]
        and the entropies [R, K + 1].
    """
    logprobs = torch.log_softmax(target.float(), -1)
    p, q = logprobs.exp(), torch.softmax(draft.float(), -1)
    entropy = -(p * logprobs).sum(-1)
    rows, drafted = tokens.shape
    of_target, of_draft = (part[:, :drafted].gather(-1, tokens[..., None])[..., 0] for part in (p, q))
    stands = torch.rand(tokens.shape, device=tokens.device) * of_draft < of_target
    accepted = stands.long().cumprod(-1).sum(-1)
    each = torch.arange(rows, device=tokens.device)
    # After all of them q is 0, and the residual p itself.
    refused = q[each, accepted.clamp(max=drafted - 1)] * (accepted < drafted)[:, None]
    token = torch.multinomial((p[each, accepted] - refused).clamp(min=0), 1)[:, 0]
    return accepted, token, logprobs[:, :drafted].gather(-1, tokens[..., None])[..., 0], entropy


def _at(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens[:, None])[:, 0]
