"""Keys and values on pages, and attention over them, in plain PyTorch: the twin of ``triton.paged``.

It follows the definition, one span after the other, and gathers each sequence's pages. On a CPU the engine attends with
``decode.engine.attention``, which gathers nothing.
"""

from __future__ import annotations

import torch

from trimtab.kernels.paging import Schedule, Spans

__all__ = ["attend", "check", "check_write", "write"]


def check(q: torch.Tensor, pool: torch.Tensor, batch: Spans, work: Schedule, scale: float, softcap: float) -> None:
    """Raise TypeError or ValueError, naming the argument, unless these can be attended together: see ``attend``."""
    if pool.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"pool.dtype = {pool.dtype}: accepted: torch.float32, torch.bfloat16, torch.float16")
    if pool.ndim != 5 or pool.shape[0] != 2 or not pool.is_contiguous():
        raise ValueError(
            f"pool.shape = {tuple(pool.shape)}: accepted: contiguous [2, pages, KV heads, page_tokens, head_dim]"
        )
    if q.dtype != pool.dtype:
        raise TypeError(f"q.dtype = {q.dtype}: accepted: {pool.dtype}, as the pool")
    rows, heads, dim = len(batch.slots), pool.shape[2] * work.group, pool.shape[4]
    if tuple(q.shape) != (rows, heads, dim) or q.stride(-1) != 1:
        raise ValueError(
            f"q.shape = {tuple(q.shape)}: accepted: ({rows}, {heads}, {dim}), rows of the batch, query heads, "
            "head_dim, the last contiguous"
        )
    for name, tensor in (("pool", pool), ("batch", batch.buffer), ("work", work.buffer)):
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}: accepted: {q.device}, where q is")
    if not scale > 0:
        raise ValueError(f"scale = {scale}: accepted: a number > 0")
    if not softcap >= 0:
        raise ValueError(f"softcap = {softcap}: accepted: a number > 0, or 0 for none")


def check_write(pool: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> None:
    """Raise ValueError, naming the argument, unless these can be written together: see ``write``."""
    expected = (len(slots), 2 * pool.shape[2], pool.shape[4])
    if tuple(kv.shape) != expected or kv.stride(-1) != 1:
        raise ValueError(f"kv.shape = {tuple(kv.shape)}: accepted: {expected}, the last dimension contiguous")
    for name, tensor in (("kv", kv), ("slots", slots)):
        if tensor.device != pool.device:
            raise ValueError(f"{name} is on {tensor.device}: accepted: {pool.device}, where the pool is")


def write(pool: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> None:
    """Store the keys and values of new tokens.

    Args:
        pool: [2, pages, Hkv, page_tokens, D], keys before values; changed.
        kv: [T, 2 * Hkv, D], keys before values; rounded to the pool's dtype.
        slots: int32 [T], page * page_tokens + offset; -1 is not stored.

    Raises:
        ValueError: shapes or devices that don't fit.
    """
    check_write(pool, kv, slots)
    page_tokens = pool.shape[3]
    real = torch.nonzero(slots >= 0)[:, 0]
    at = slots[real].long()
    keys, values = kv[real].to(pool.dtype).chunk(2, 1)
    pool[0, at // page_tokens, :, at % page_tokens] = keys
    pool[1, at // page_tokens, :, at % page_tokens] = values


def attend(
    q: torch.Tensor, pool: torch.Tensor, batch: Spans, work: Schedule, scale: float, softcap: float = 0.0
) -> torch.Tensor:
    """Attention of ragged queries over their sequences' pages: a query sees itself and what is before it.

    Args:
        q: [T, Hq, D] in the pool's dtype; query head h reads KV head h // group.
        pool: [2, pages, Hkv, page_tokens, D], which holds the batch's own keys and values already.
        batch: the queries' places.
        work: its schedule; says the window.
        scale: factor of the scores, > 0.
        softcap: scores become softcap * tanh(score / softcap); 0: they stay.

    Returns:
        [T, Hq, D]; padding rows hold anything.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or numbers that don't fit.
    """
    check(q, pool, batch, work, scale, softcap)
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
