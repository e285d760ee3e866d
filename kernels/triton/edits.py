"""Penalties, bias and bans on the device: the rows that have any are copied, and the copies changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.reference.filters import check_ids
from trimtab.kernels.types import RowPick

__all__ = ["ALIGN", "Edits"]

ALIGN = 16

_LARGEST = float(np.finfo(np.float32).max)


class Edits:
    """The edits of a batch, packed: three sparse lists (row among the edited ones, token id, number).

    Args:
        rows: R of them; None has none.
        vocabulary: V.
        device: where the lists go.

    Attributes:
        at: int64 [R] on the host: the row's number among the edited ones, or -1.
        which: int64 [E], the rows that are edited.

    Raises:
        ValueError: a token id outside the vocabulary.
    """

    def __init__(self, rows: Sequence[RowPick | None], vocabulary: int, device: torch.device) -> None:
        edited = [(i, row) for i, row in enumerate(rows) if row is not None and row.edits]
        self.at: NDArray[np.int64] = np.full(len(rows), -1, np.int64)
        self.at[[i for i, _ in edited]] = np.arange(len(edited))
        self.which = torch.tensor([i for i, _ in edited], dtype=torch.int64, device=device)
        penalised = [
            (i, row.seen, row.filters.repetition_penalty)
            for i, (_, row) in enumerate(edited)
            if row.filters.repetition_penalty != 1
        ]
        self._seen = _packed("seen", penalised, vocabulary, device)
        biased = [(i, row.filters.bias_ids, row.filters.bias_values) for i, (_, row) in enumerate(edited)]
        self._bias = _packed("bias", biased, vocabulary, device)
        self._banned = _packed(
            "banned", [(i, row.banned, 0.0) for i, (_, row) in enumerate(edited)], vocabulary, device
        )

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """float32 [E, V]: the edited rows of logits [R, V], clean, as ``reference.filters.edit`` leaves them.

        Rows begin at multiples of ALIGN numbers, so that kernels read them as wide as they can.
        """
        vocabulary = logits.shape[1]
        shape = len(self.which), -(-vocabulary // ALIGN) * ALIGN
        z = torch.empty(shape, dtype=torch.float32, device=logits.device)[:, :vocabulary]
        raw = logits.index_select(0, self.which).float()
        z.copy_(torch.where((raw > -torch.inf) & (raw < torch.inf), raw, -torch.inf))
        at, penalty = self._seen
        value = z[at]  # a copy: an id given twice is penalised once
        z[at] = torch.where(value < 0, value * penalty, value / penalty).clamp(max=_LARGEST)
        at, bias = self._bias
        z[at] = (z[at] + bias).clamp(max=_LARGEST)
        z[self._banned[0]] = -torch.inf
        return z


Packed = tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]


def _packed(
    name: str,
    lists: Iterable[tuple[int, Sequence[int] | NDArray[np.int64], float | NDArray[np.float32]]],
    vocabulary: int,
    device: torch.device,
) -> Packed:
    """Index (row, id) and float32 number of every entry."""
    row, ids, number = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for i, tokens, value in lists:
        mine = check_ids(name, tokens, vocabulary)
        row.append(np.full(len(mine), i))
        ids.append(mine)
        number.append(np.broadcast_to(np.asarray(value, np.float32), mine.shape))
    at, numbers = (torch.from_numpy(np.concatenate(part)).to(device) for part in (ids, number))
    return (torch.from_numpy(np.concatenate(row)).to(device), at), numbers
