"""What the operations accept: each check raises TypeError or ValueError that names the argument."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.paging import Schedule, Spans
from trimtab.kernels.types import Blend, Draft, Pick, Window

__all__ = [
    "check_attend",
    "check_count",
    "check_ids",
    "check_logits",
    "check_mixture",
    "check_rows",
    "check_tokens",
    "check_windows",
    "check_write",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in _DTYPES:
        raise TypeError(f"{name}.dtype = {dtype}: accepted: {', '.join(map(str, _DTYPES))}")


def check_logits(logits: torch.Tensor) -> None:
    """A float32, bfloat16 or float16 matrix [R, V] with V >= 1."""
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"logits is a {type(logits).__name__}: accepted: a torch.Tensor")
    _check_dtype("logits", logits.dtype)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits.shape = {tuple(logits.shape)}: accepted: [rows, vocabulary], vocabulary >= 1")


def check_ids(name: str, values: Sequence[int] | NDArray[np.int64], vocabulary: int) -> NDArray[np.int64]:
    """int64 ids, all in the vocabulary."""
    ids = np.asarray(values, np.int64)
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < vocabulary):
        bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(f"{name} = {bad}: accepted: token ids in [0, {vocabulary})")
    return ids


def _check_position(where: str, row: Pick) -> None:
    if not 0 <= row.position < 1 << 32:
        raise ValueError(f"{where}position = {row.position}: accepted: an unsigned 32-bit integer")


def check_rows(rows: Sequence[Pick], count: int) -> None:
    """``count`` rows, all with positions of 32 bits."""
    if len(rows) != count:
        raise ValueError(f"rows: {len(rows)} of them: accepted: {count}, one per row of logits")
    for row in rows:
        _check_position("", row)


def check_count(n: int, vocabulary: int) -> None:
    """A number of most likely tokens."""
    if not 1 <= n <= vocabulary:
        raise ValueError(f"n = {n}: accepted: 1 to the size of the vocabulary, {vocabulary}")


def check_tokens(tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """int64 [R], beside the logits; on the CPU, where looking waits for nothing, all in [-1, V)."""
    if tokens.dtype != torch.int64:
        raise TypeError(f"tokens.dtype = {tokens.dtype}: accepted: torch.int64")
    rows, vocabulary = logits.shape
    if tuple(tokens.shape) != (rows,):
        raise ValueError(f"tokens.shape = {tuple(tokens.shape)}: accepted: ({rows},), one per row of logits")
    if tokens.device != logits.device:
        raise ValueError(f"tokens.device = {tokens.device}: accepted: {logits.device}, that of logits")
    if rows and tokens.device.type == "cpu":
        low, high = tokens.aminmax()
        if int(low) < -1 or int(high) >= vocabulary:
            bad = int(low) if int(low) < -1 else int(high)
            raise ValueError(f"tokens holds {bad}: accepted: token ids below {vocabulary}, or -1 for none")


def check_mixture(logits: Sequence[torch.Tensor], blends: Sequence[Blend]) -> None:
    """Matrices [R, V] of one shape and device, one per model, and R blends of as many weights."""
    if isinstance(logits, torch.Tensor) or not logits:
        raise TypeError("logits: accepted: a sequence of matrices [rows, vocabulary], one per model, the base first")
    for i, model in enumerate(logits):
        check_logits(model)
        if model.shape != logits[0].shape:
            wanted = tuple(logits[0].shape)
            raise ValueError(f"logits[{i}].shape = {tuple(model.shape)}: accepted: {wanted}, that of the base")
        if model.device != logits[0].device:
            raise ValueError(f"logits[{i}].device = {model.device}: accepted: {logits[0].device}, that of the base")
    if len(blends) != logits[0].shape[0]:
        raise ValueError(f"blends: {len(blends)} of them: accepted: {logits[0].shape[0]}, one per row of logits")
    for row in blends:
        if len(row.weights) != len(logits):
            raise ValueError(f"weights = {row.weights!r}: accepted: {len(logits)} numbers, one per model")


def check_windows(logits: torch.Tensor, windows: Sequence[Window]) -> None:
    """Logits of as many rows as the windows have, and windows that are sound."""
    check_logits(logits)
    rows, vocabulary = logits.shape
    for i, window in enumerate(windows):
        where = f"windows[{i}]"
        count = len(window.tokens)
        if len(window.rows) != count + 1:
            raise ValueError(
                f"{where}.rows: {len(window.rows)} of them: accepted: {count + 1}, one per token and one after them"
            )
        for y in window.tokens:
            if not 0 <= y < vocabulary:
                raise ValueError(f"{where}.tokens holds {y}: accepted: token ids in [0, {vocabulary})")
        for row in window.rows:
            _check_position(f"{where}.rows: ", row)
        if window.draft is not None and window.draft.logits is not None:
            _check_draft(f"{where}.draft", window.draft, window.draft.logits, count, vocabulary)
    wanted = sum(len(window.rows) for window in windows)
    if rows != wanted:
        raise ValueError(f"logits.shape = {tuple(logits.shape)}: accepted: {wanted} rows, K + 1 per window")


def _check_draft(where: str, draft: Draft, logits: torch.Tensor, count: int, vocabulary: int) -> None:
    _check_dtype(f"{where}.logits", logits.dtype)
    if logits.ndim != 2 or logits.shape[0] != count or not 1 <= logits.shape[1] <= vocabulary:
        raise ValueError(
            f"{where}.logits.shape = {tuple(logits.shape)}: accepted: [{count}, Vd], a row per token and 1 to "
            f"{vocabulary} columns"
        )
    if len(draft.rows) != count:
        raise ValueError(f"{where}.rows: {len(draft.rows)} of them: accepted: {count}, one per token")
    if draft.top_probs is not None and len(draft.top_probs) != count:
        raise ValueError(f"{where}.top_probs: {len(draft.top_probs)} of them: accepted: {count}, one per token")
    if draft.ids is not None:
        if draft.ids.dtype != torch.int64:
            raise TypeError(f"{where}.ids.dtype = {draft.ids.dtype}: accepted: torch.int64")
        if tuple(draft.ids.shape) != (logits.shape[1],):
            raise ValueError(f"{where}.ids.shape = {tuple(draft.ids.shape)}: accepted: ({logits.shape[1]},)")


def check_write(pool: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> None:
    """A pool, and the keys and values of new tokens for it."""
    expected = (len(slots), 2 * pool.shape[2], pool.shape[4])
    if tuple(kv.shape) != expected or kv.stride(-1) != 1:
        raise ValueError(f"kv.shape = {tuple(kv.shape)}: accepted: {expected}, the last dimension contiguous")
    for name, tensor in (("kv", kv), ("slots", slots)):
        if tensor.device != pool.device:
            raise ValueError(f"{name} is on {tensor.device}: accepted: {pool.device}, where the pool is")


def check_attend(
    q: torch.Tensor, pool: torch.Tensor, batch: Spans, work: Schedule, scale: float, softcap: float
) -> None:
    """Queries, a pool and a schedule that belong together."""
    _check_dtype("pool", pool.dtype)
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
