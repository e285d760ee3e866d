"""Losses of a draft's distribution q against its target's p, with their gradients, without a table of [T, V] floats.

========  =====================  ====================================================================================
name      of one position        what it does
========  =====================  ====================================================================================
``kl``    -sum p ln q            plain distillation (cross-entropy with the target's distribution)
``tv``    1 - sum min(p, q)      the probability that a drafted token is rejected: what speculation pays for
``nla``   -ln sum min(p, q)      the same, but its gradient doesn't fade where the draft is far off
========  =====================  ====================================================================================

p is known at a few dozen ids of each row (``rollout``), q is dense. For every one of these losses the gradient with
respect to the logits is ``q * (g - sum(g * q))`` where g, the gradient with respect to q, is zero off those ids. So a
block of rows is one product, one softmax, work on the few ids, and one product back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trimtab.decode.errors import InvalidRequest

__all__ = ["LOSSES", "Loss", "Sparse", "Totals", "distil"]

Loss = Literal["kl", "tv", "nla"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
_BLOCK = 256  # rows whose logits exist at a time
_TINY = 1e-6


@dataclass(frozen=True, slots=True)
class Sparse:
    """The target's probabilities at [n] positions, of the ids that the draft has.

    Attributes:
        starts: int64 [n + 1], row r owns entries [starts[r], starts[r + 1]).
        columns: int64 [e], columns of the draft's head.
        probs: float32 [e], of the target, before normalisation over these ids: a row sums to 1 or less.
        best: int64 [n], column of the target's most likely id, -1 where the draft doesn't have it.
    """

    starts: Tensor
    columns: Tensor
    probs: Tensor
    best: Tensor


@dataclass(slots=True)
class Totals:
    """Sums over positions; attributes are float except ``positions``."""

    positions: int = 0
    loss: float = 0.0
    accepted: float = 0.0  # sum of sum min(p, q)
    agreed: float = 0.0  # positions where both have the same most likely id
    missing: float = 0.0  # probability of the target on ids that the draft doesn't have, or below the recorded floor

    def add(self, other: Totals) -> None:
        for name in ("positions", "loss", "accepted", "agreed", "missing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def means(self) -> dict[str, float]:
        """Of every sum, the mean per position."""
        count = max(self.positions, 1)
        return {
            "loss": self.loss / count,
            "acceptance": self.accepted / count,
            "agreement": self.agreed / count,
            "missing": self.missing / count,
        }


class _Distil(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, sparse: Sparse, kind: Loss, totals: Totals) -> Tensor:
        grad = torch.empty_like(hidden)
        count = len(hidden)
        loss = hidden.new_zeros((), dtype=torch.float64)
        want = hidden.requires_grad
        starts = sparse.starts.tolist()
        for begin in range(0, count, _BLOCK):
            end = min(begin + _BLOCK, count)
            first, last = starts[begin], starts[end]
            logits = torch.nn.functional.linear(hidden[begin:end].to(head.dtype), head).float()
            totals.agreed += float((logits.argmax(-1) == sparse.best[begin:end]).sum())
            q = torch.softmax(logits, -1)
            sizes = sparse.starts[begin + 1 : end + 1] - sparse.starts[begin:end]
            row = torch.repeat_interleave(sizes)
            at = row * q.shape[1] + sparse.columns[first:last]
            p, q_at = sparse.probs[first:last], q.view(-1)[at]
            kept = torch.zeros(end - begin)
            accepted = kept.index_add(0, row, torch.minimum(p, q_at))
            kept.index_add_(0, row, p)
            if kind == "kl":
                block = kept.new_zeros(end - begin).index_add(0, row, -p * q_at.clamp_min(1e-30).log())
                pull = -p  # g * q
            elif kind == "tv":
                block = 1 - accepted
                pull = -torch.where(q_at < p, q_at, 0.0)
            else:
                block = -(accepted + _TINY).log()
                pull = -torch.where(q_at < p, q_at, 0.0) / (accepted + _TINY)[row]
            loss += block.sum(dtype=torch.float64)
            totals.accepted += float(accepted.sum())
            totals.missing += float((1 - kept).sum())
            if want:
                total = torch.zeros(end - begin).index_add_(0, row, pull)
                q.mul_(-total[:, None])
                q.view(-1).index_add_(0, at, pull)
                grad[begin:end] = q.to(head.dtype) @ head
        totals.positions += count
        totals.loss += float(loss)
        ctx.save_for_backward(grad.div_(count))
        return (loss / max(count, 1)).to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None, None, None, None


def distil(hidden: Tensor, head: Tensor, sparse: Sparse, kind: Loss, totals: Totals) -> Tensor:
    """Mean loss over positions.

    Args:
        hidden: float [n, D], what the head reads; gets a gradient.
        head: [Vd, D], the frozen rows of the target's head, in the dtype of the products.
        sparse: the target's probabilities at these positions.
        kind: which loss.
        totals: gets the sums of these positions added.

    Raises:
        InvalidRequest: no such loss.
    """
    if kind not in LOSSES:
        raise InvalidRequest.of("loss", kind, f"one of {', '.join(LOSSES)}")
    loss: Tensor = _Distil.apply(hidden, head, sparse, kind, totals)  # type: ignore[no-untyped-call]
    return loss
