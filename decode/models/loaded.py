"""A model ready to run, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from trimtab.decode.engine.storage import Step, Storage
from trimtab.decode.models.acceptance import AcceptanceHead, HiddenForward
from trimtab.decode.text.vocabulary import Vocabulary

__all__ = ["Forward", "LoadedModel"]


class Forward(Protocol):
    """tokens, positions int64 [T], rows int64 [n] -> logits [n, V]."""

    def __call__(self, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, and the shapes that its cache needs.

    Attributes:
        generation_config: that of transformers, or its fields as they were remembered.
        labels: names of the outputs of a reward model's head, which ``forward`` then gives in place of logits.
        draft_ids: int64 [Vd], of a draft with a reduced vocabulary: the id that each of its logits stands for.
        acceptance: of a draft with a trained head: its states [n, S], and which of them are decoded greedily,
            -> the probability, float32 [n], that the target accepts a token drawn from them.
        forward_hidden: as ``forward``, but it gives these states too; without a head, the hidden states [n, D].
    """

    name: str
    source: str
    architecture: str
    forward: Forward
    vocabulary: Vocabulary
    generation_config: Any
    vocab_size: int
    context: int
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    device: torch.device
    labels: tuple[str, ...] | None = None
    draft_ids: Tensor | None = None
    acceptance: AcceptanceHead | None = None
    forward_hidden: HiddenForward | None = None

    @property
    def bytes_per_token(self) -> int:
        """Memory that one position takes in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_dtype.itemsize

    def storage(self, pages: int, page_tokens: int) -> Storage:
        return Storage(self.layers, pages, page_tokens, self.kv_heads, self.head_dim, self.kv_dtype, self.device)
