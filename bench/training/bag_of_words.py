"""The baseline that a reward model has to beat beside length: one weight per token, wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimtab.bench.training.preferences import Answered, by_instruction

__all__ = ["BagOfWords", "pair_loss"]


def pair_loss(values: Tensor, logits: Tensor) -> Tensor:
    """Mean cross-entropy between what rewards and preferences say of every pair of answers to one instruction.

    Args:
        values: [n], rewards.
        logits: [n], log-odds of the preferences.

    Returns:
        A scalar: over i < j, of -p ln sigmoid(v_i - v_j) - (1 - p) ln sigmoid(v_j - v_i) with p = sigmoid(l_i - l_j).
    """
    first, second = torch.triu_indices(len(values), len(values), 1)
    target = torch.sigmoid(logits[first] - logits[second])
    return nn.functional.binary_cross_entropy_with_logits(values[first] - values[second], target)


class BagOfWords:
    """Linear over ln(1 + count) of every token, fitted to pairs by gradient descent with weight decay.

    Args:
        rows: what it learns from.
        tokens: ids of each answer.
        vocab_size: number of ids.
        decay: of the weights, towards 0.
        steps: of Adam, over all pairs each.
    """

    def __init__(
        self,
        rows: Sequence[Answered],
        tokens: Sequence[Sequence[int]],
        vocab_size: int,
        decay: float = 1e-3,
        steps: int = 200,
    ) -> None:
        self.vocab_size = vocab_size
        counts = self._counts(tokens)
        weight = torch.zeros(vocab_size, 1, requires_grad=True)
        logits = torch.tensor([row.logit for row in rows])
        place = {id(row): i for i, row in enumerate(rows)}
        groups = [
            torch.tensor([place[id(row)] for row in group]) for group in by_instruction(rows).values() if len(group) > 1
        ]
        adam = torch.optim.Adam([weight], lr=0.02)
        for _ in range(steps):
            values = torch.sparse.mm(counts, weight)[:, 0]
            loss = torch.stack([pair_loss(values[group], logits[group]) for group in groups]).mean()
            loss = loss + decay * weight.square().sum()
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        self.weight = weight.detach()

    def rate(self, tokens: Sequence[Sequence[int]]) -> list[float]:
        """One number per answer."""
        values: list[float] = torch.sparse.mm(self._counts(tokens), self.weight)[:, 0].tolist()
        return values

    def _counts(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        rows = torch.tensor([i for i, ids in enumerate(tokens) for _ in ids], dtype=torch.int64)
        columns = torch.tensor([token for ids in tokens for token in ids], dtype=torch.int64)
        ones = torch.ones(len(rows))
        counted = torch.sparse_coo_tensor(torch.stack((rows, columns)), ones, (len(tokens), self.vocab_size)).coalesce()
        return torch.sparse_coo_tensor(counted.indices(), counted.values().log1p(), counted.shape).coalesce()
