"""The last product of a model and the pick from its logits in one: the twin of ``triton.lm_head``.

Logits are rounded to the dtype of the hidden states, as the model's own product rounds them, so that a token does not
depend on whether the two were fused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trimtab.kernels.types import RowPick

__all__ = ["MOST_ROWS", "check", "fusable", "project"]

# Above this the product is bound by arithmetic soon, and a vendor's GEMM is better at that.
MOST_ROWS = 64


def check(
    hidden: torch.Tensor,
    head: torch.Tensor,
    rows: Sequence[RowPick],
    bias: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> None:
    """Raise TypeError or ValueError, naming the argument, unless these fit together: see ``project``."""
    if hidden.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"hidden.dtype = {hidden.dtype}: accepted: torch.float32, torch.bfloat16, torch.float16")
    if hidden.ndim != 2 or hidden.shape[1] == 0:
        raise ValueError(f"hidden.shape = {tuple(hidden.shape)}: accepted: [rows, size], size >= 1")
    if head.ndim != 2 or head.shape[0] == 0 or head.shape[1] != hidden.shape[1]:
        raise ValueError(f"head.shape = {tuple(head.shape)}: accepted: [vocabulary, {hidden.shape[1]}]")
    if bias is not None and tuple(bias.shape) != (head.shape[0],):
        raise ValueError(f"bias.shape = {tuple(bias.shape)}: accepted: ({head.shape[0]},)")
    for name, tensor in (("head", head), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise TypeError(f"{name}.dtype = {tensor.dtype}: accepted: {hidden.dtype}, as hidden")
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} is on {tensor.device}: accepted: {hidden.device}, where hidden is")
    if len(rows) != len(hidden):
        raise ValueError(f"rows: {len(rows)} of them: accepted: {len(hidden)}, one per row of hidden")
    for row in rows:
        if not 0 <= row.position < 1 << 32:
            raise ValueError(f"position = {row.position}: accepted: an unsigned 32-bit integer")
    if not scale > 0:
        raise ValueError(f"scale = {scale}: accepted: a number > 0")
    if not softcap >= 0:
        raise ValueError(f"softcap = {softcap}: accepted: a number > 0, or 0 for none")


def fusable(rows: Sequence[RowPick], vocabulary: int) -> bool:
    """Whether the kernel can draw these rows: few, nothing edited, and no filter on those that are not greedy."""
    return len(rows) <= MOST_ROWS and not any(
        row.edits or (row.filters.temperature > 0 and row.restricts(vocabulary)) for row in rows
    )


def project(
    hidden: torch.Tensor,
    head: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """Logits [R, V] in hidden's dtype.

    Args:
        hidden: [R, D] after the last norm; float32, bfloat16 or float16.
        head: [V, D], of the same dtype.
        bias: [V], or None.
        scale: factor of the product, > 0.
        softcap: logits become softcap * tanh(logit / softcap), after the scale; 0: they stay.
    """
    logits = torch.nn.functional.linear(hidden, head, bias if scale == 1 else None)
    if scale != 1:
        logits = logits * scale if bias is None else logits * scale + bias
    if softcap:
        logits = (softcap * torch.tanh(logits.float() / softcap)).to(hidden.dtype)
    return logits
