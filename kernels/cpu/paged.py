"""Keys and values on pages, and attention over them, in plain PyTorch: the twin of ``triton.paged``.

It follows the definition, one span after the other, and gathers each sequence's pages. On a CPU the engine attends with
``decode.engine.attention``, which gathers nothing.
"""

from __future__ import annotations

import torch

from trimtab.kernels.paging import Schedule, Spans

__all__ = ["paged_attend", "paged_write"]


def paged_write(pool: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> None:
    """See ``dispatch.paged_write``."""
    page_tokens = pool.shape[3]
    real = torch.nonzero(slots >= 0)[:, 0]
    at = slots[real].long()
    keys, values = kv[real].to(pool.dtype).chunk(2, 1)
    pool[0, at // page_tokens, :, at % page_tokens] = keys
    pool[1, at // page_tokens, :, at % page_tokens] = values


def paged_attend(
    q: torch.Tensor, pool: torch.Tensor, batch: Spans, work: Schedule, scale: float, softcap: float
) -> torch.Tensor:
    """See ``dispatch.paged_attend``."""
    _, _, kv_heads, page_tokens, dim = pool.shape
    out = torch.zeros_like(q)
    table = batch.table.cpu()
    for first, length, start, begin in table[: len(batch.lengths)].tolist():
        end = start + length
        pages = batch.pages[begin : begin + -(-end // page_tokens)].long()
        keys, values = pool[:, pages].transpose(1, 2).reshape(2, kv_heads, -1, dim)[:, :, :end]
        queries = q[first : first + length].reshape(length, kv_heads, work.group, dim)
        scores = torch.einsum("thgd,hld->hgtl", queries, keys).float() * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        position = torch.arange(start, end, device=q.device)[:, None]
        at = torch.arange(end, device=q.device)
        visible = at <= position
        if work.window is not None:
            visible &= at > position - work.window
        weights = scores.masked_fill_(~visible, float("-inf")).softmax(-1).to(pool.dtype)
        out[first : first + length] = torch.einsum("hgtl,hld->thgd", weights, values).reshape(length, -1, dim)
    return out
