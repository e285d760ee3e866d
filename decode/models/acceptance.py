"""The head that predicts, from a draft's state, whether the target will accept what the draft draws from it.

SpecDec++ (Huang et al., 2024): residual blocks x + SiLU(W x + b), each with weights of its own, then the odds. It
reads the hidden state that the draft's logits come from, so it costs no forward pass, and it runs on the device for
all rows of a batch at once. Beside it, it reads the draft's highest probability, which a small head can't work out from
the hidden state: without it, the head predicts worse than that one number alone (docs/drafts.md).

Its two outputs are the probabilities of acceptance under sampling at temperature 1 and under greedy decoding. They
differ: two flat distributions with the same first token always agree greedily and overlap in a part only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.decode.engine.storage import Step

__all__ = ["AcceptanceHead", "HiddenForward", "confidence", "head_states", "with_confidence"]

HiddenForward = Callable[[Tensor, Tensor, Step, Tensor], tuple[Tensor, Tensor]]
_EPS = 1e-6


def confidence(top: Tensor) -> Tensor:
    """The highest probability [n] as log odds, within +-14."""
    return torch.logit(top.float(), _EPS)


def head_states(logits: Tensor, hidden: Tensor) -> Tensor:
    """What the head reads: hidden [n, D] and the confidence of logits [n, Vd] -> float32 [n, D + 1]."""
    top = torch.softmax(logits.float(), -1).amax(-1)
    return torch.cat((hidden.float(), confidence(top).unsqueeze(-1)), -1)


def with_confidence(forward: HiddenForward) -> HiddenForward:
    """A forward pass whose second result is what the head reads."""

    def run(tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits, hidden = forward(tokens, positions, step, rows)
        return logits, head_states(logits, hidden)

    return run


class AcceptanceHead(nn.Module):
    """Probability of acceptance.

    Args:
        states: numbers that it reads of a position, D + 1 for hidden states of size D.
        blocks: residual blocks.
        width: of the blocks; the states are first projected to it, unless they have that size.
    """

    def __init__(self, states: int, blocks: int, width: int) -> None:
        super().__init__()
        self.project = nn.Identity() if width == states else nn.Linear(states, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.out = nn.Linear(width, 2)

    def logits(self, states: Tensor) -> Tensor:
        """states [n, D + 1] -> log odds, float32 [n, 2]: sampled, greedy."""
        x = self.project(states.to(self.out.weight.dtype))
        for block in self.blocks:
            x = x + functional.silu(block(x))
        odds: Tensor = self.out(x)
        return odds.float()

    def forward(self, states: Tensor, greedy: Tensor | None = None) -> Tensor:
        """Probability that a token drawn from these states is accepted.

        Args:
            states: [n, D + 1], see ``head_states``.
            greedy: bool [n], the rows that are decoded greedily; None: none of them.

        Returns:
            float32 [n].
        """
        odds = self.logits(states)
        return torch.sigmoid(odds[:, 0] if greedy is None else torch.where(greedy, odds[:, 1], odds[:, 0]))
