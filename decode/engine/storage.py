"""Tensors behind the pages of one model view: keys and values of every layer, and attention over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.decode.engine.attention import AttentionPlan, plan
from trimtab.decode.engine.batch import RaggedBatch
from trimtab.decode.engine.pages import Copy

__all__ = ["Step", "Storage"]


class Storage:
    """One pool per layer, [2, pages, Hkv, page_tokens, D], keys before values.

    Sliding-window layers keep all positions too: a rewind or fork stays exact however long the window.

    Args:
        layers: number of attention layers.
        pages, page_tokens: size of the pool.
        kv_heads, head_dim: shape of a key.
        dtype, device: of the pool.

    The pool is zero-filled, because masked positions take part in products and 0 * NaN is NaN. On a CPU the operating
    system commits a page of memory at its first write, so a large pool costs nothing until it is used.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        page_tokens: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_tokens, self.kv_heads, self.head_dim = page_tokens, kv_heads, head_dim
        self.dtype, self.device = dtype, device
        shape = (2, pages, kv_heads, page_tokens, head_dim)
        self.pools = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._flat = [pool.view(-1, head_dim) for pool in self.pools]
        # Row of the flat pool of (key or value, head) relative to the slot's page.
        heads = torch.arange(2 * kv_heads, device=device)
        self._head_rows = heads % kv_heads * page_tokens + heads // kv_heads * (pages * kv_heads * page_tokens)

    def copy(self, copies: Sequence[Copy]) -> None:
        """Carry out page copies, in order."""
        for source, target, tokens in copies:
            for pool in self.pools:
                pool[:, target, :, :tokens] = pool[:, source, :, :tokens]

    def begin(self, batch: RaggedBatch) -> Step:
        """The state of one forward pass over ``batch``."""
        return Step(self, batch)

    def rows(self, slots: Tensor) -> Tensor:
        """Where the keys and values of slots [T] go: rows of the flat pool, int64 [T * 2 * Hkv]."""
        page, offset = slots // self.page_tokens, slots % self.page_tokens
        base = page * (self.kv_heads * self.page_tokens) + offset
        return (base.unsqueeze(1) + self._head_rows).view(-1)

    def write(self, layer: int, rows: Tensor, kv: Tensor) -> None:
        """Store kv [T, 2 * Hkv, D] of a layer at ``rows`` [T * 2 * Hkv]."""
        self._flat[layer].index_copy_(0, rows, kv.reshape(-1, self.head_dim).to(self.dtype))


class Step:
    """Attention of one forward pass: plans are made once per window and used by all layers that have it."""

    def __init__(self, storage: Storage, batch: RaggedBatch) -> None:
        self.storage, self.batch = storage, batch
        self._rows = storage.rows(torch.from_numpy(batch.slots).to(storage.device))
        self._longest = max(span.end for span in batch.spans)
        self._plans: dict[int | None, AttentionPlan] = {}

    def attend(self, layer: int, q: Tensor, kv: Tensor, scale: float, window: int | None) -> Tensor:
        """Write this layer's new keys and values, then attend.

        Args:
            q: [T, Hq, D] after RoPE.
            kv: [T, 2 * Hkv, D], keys (after RoPE) before values.
            scale: factor of the scores.
            window: positions a query sees, itself included; None: all.

        Returns:
            [T, Hq, D].
        """
        storage = self.storage
        storage.write(layer, self._rows, kv)
        if window is not None and window >= self._longest:
            window = None
        found = self._plans.get(window)
        if found is None:
            group = q.shape[1] // storage.kv_heads
            found = plan(
                self.batch, storage.page_tokens, window, storage.kv_heads, group, storage.dtype, storage.device
            )
            self._plans[window] = found
        return found.run(q, storage.pools[layer], scale)
