"""Tensors behind the pages of one model instance: keys and values of every layer, and attention over them.

A CPU attends as ``attention`` plans it; on a GPU the paged kernels of ``trimtab.kernels`` read the pages, and where
Triton is missing the CPU's way serves there too.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from trimtab.decode.engine.attention import AttentionPlan, plan
from trimtab.decode.engine.batch import RaggedBatch
from trimtab.decode.engine.pages import Copy
from trimtab.kernels import dispatch, paging
from trimtab.kernels.paths import Path, resolve

__all__ = ["Step", "Storage"]

_LARGEST_KEY = 256  # numbers in a key that the kernels can hold


class Storage:
    """One pool per layer, [2, pages, Hkv, page_tokens, D], keys before values.

    Sliding-window layers keep all positions too: a rewind or fork stays exact however long the window.

    Args:
        layers: number of attention layers.
        pages, page_tokens: size of the pool.
        kv_heads, head_dim: shape of a key.
        dtype, device: of the pool.
        path: which implementation attends; see ``kernels.paths``.

    The pool is zero-filled, because masked positions take part in products and 0 * NaN is NaN. On a CPU the operating
    system commits its memory at the first write (``_zeros``), so a large pool costs nothing until it is used.
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
        path: Path = "auto",
    ) -> None:
        self.page_tokens, self.kv_heads, self.head_dim = page_tokens, kv_heads, head_dim
        self.dtype, self.device, self.path = dtype, device, path
        self._all = _zeros((layers, 2, pages, kv_heads, page_tokens, head_dim), dtype, device)
        self.pools = list(self._all.unbind())
        self._flat = [pool.view(-1, head_dim) for pool in self.pools]
        # Row of the flat pool of (key or value, head) relative to the slot's page.
        heads = torch.arange(2 * kv_heads, device=device)
        self._head_rows = heads % kv_heads * page_tokens + heads // kv_heads * (pages * kv_heads * page_tokens)

    def release(self) -> None:
        """Free the pool."""
        self._all = self._all.new_empty(0)
        self.pools, self._flat = [], []

    def copy(self, copies: Sequence[Copy]) -> None:
        """Carry out page copies, in order."""
        for source, target, tokens in copies:
            self._all[:, :, target, :, :tokens] = self._all[:, :, source, :, :tokens]

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


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU memory that is untouched, where ``torch.zeros`` writes all of it at once.

    In pages of the usual size: a prompt's keys lie in two places of every layer, so with the huge ones that NumPy asks
    for, the first one takes 120 MB (SmolLM2-135M), and 30 ms to several seconds where the system must look for them.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # where there are no huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.from_numpy(np.frombuffer(memory, np.uint8)).view(dtype).view(shape)


class Step:
    """Attention of one forward pass: plans are made once per window and used by all layers that have it."""

    def __init__(self, storage: Storage, batch: RaggedBatch) -> None:
        self.storage, self.batch = storage, batch
        self._longest = max(span.end for span in batch.spans)
        self._path = resolve("paged", storage.path, storage.device, kernels=storage.head_dim <= _LARGEST_KEY)
        if self._path == "torch":
            self._rows = storage.rows(torch.from_numpy(batch.slots).to(storage.device))
            self._plans: dict[int | None, AttentionPlan] = {}
            return
        spans = batch.spans
        self._spans = paging.spans(
            [span.start for span in spans],
            [len(span.tokens) for span in spans],
            [span.pages for span in spans],
            storage.page_tokens,
            storage.device,
        )
        self._schedules: dict[int | None, paging.Schedule] = {}

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
        if window is not None and window >= self._longest:
            window = None
        if self._path != "torch":
            return self._attend_pages(layer, q, kv, scale, window)
        storage = self.storage
        storage.write(layer, self._rows, kv)
        found = self._plans.get(window)
        if found is None:
            group = q.shape[1] // storage.kv_heads
            found = plan(
                self.batch, storage.page_tokens, window, storage.kv_heads, group, storage.dtype, storage.device
            )
            self._plans[window] = found
        return found.run(q, storage.pools[layer], scale)

    def _attend_pages(self, layer: int, q: Tensor, kv: Tensor, scale: float, window: int | None) -> Tensor:
        """``attend`` by the paged kernels."""
        storage, pool = self.storage, self.storage.pools[layer]
        found = self._schedules.get(window)
        if found is None:
            group, key_bytes = q.shape[1] // storage.kv_heads, storage.head_dim * storage.dtype.itemsize
            found = self._schedules[window] = paging.schedule(self._spans, window, group, key_bytes)
        path: Path = "triton" if self._path == "triton" else "interpret"
        dispatch.paged_write(pool, kv, self._spans.slots, path=path)
        return dispatch.paged_attend(q.to(storage.dtype), pool, self._spans, found, scale, path=path).to(q.dtype)
