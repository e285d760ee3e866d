"""The head that predicts, from a draft's hidden state, whether the target will accept what the draft draws from it.

SpecDec++ (Huang et al., 2024): residual blocks x + SiLU(W x + b), each with weights of its own, then the odds. It
reads the hidden state that the draft's logits come from, so it costs no forward pass, and it runs on the device for
all rows of a batch at once.

Its two outputs are the probabilities of acceptance under sampling at temperature 1 and under greedy decoding. They
differ: two flat distributions with the same first token always agree greedily and overlap in a part only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AcceptanceHead"]


class AcceptanceHead(nn.Module):
    """Probability of acceptance.

    Args:
        hidden_size: of the draft, D.
        blocks: residual blocks.
        width: of the blocks; the hidden state is first projected to it, unless it is D itself.
    """

    def __init__(self, hidden_size: int, blocks: int, width: int) -> None:
        super().__init__()
        self.project = nn.Identity() if width == hidden_size else nn.Linear(hidden_size, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.out = nn.Linear(width, 2)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, D] -> log odds, float32 [n, 2]: sampled, greedy."""
        x = self.project(hidden.to(self.out.weight.dtype))
        for block in self.blocks:
            x = x + functional.silu(block(x))
        odds: Tensor = self.out(x)
        return odds.float()

    def forward(self, hidden: Tensor, greedy: Tensor | None = None) -> Tensor:
        """Probability that a token drawn from these states is accepted.

        Args:
            hidden: [n, D], any floating dtype.
            greedy: bool [n], the rows that are decoded greedily; None: none of them.

        Returns:
            float32 [n].
        """
        odds = self.logits(hidden)
        return torch.sigmoid(odds[:, 0] if greedy is None else torch.where(greedy, odds[:, 1], odds[:, 0]))
