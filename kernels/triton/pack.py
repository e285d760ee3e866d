"""Rows' filters, keys and blends as tensors, so that a launch is a function of tensors and a few constants.

Packing is work on the host, once per step (positions move on) or, in a captured graph, into the tensors that the graph
reads. The kinds of rows in a batch (whether some are edited, filtered, ...) are constants of a launch: each says that a
kernel or a part of one is needed at all. A plan made for more kinds than the batch has gives the same results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.checks import check_ids
from trimtab.kernels.cpu.filters import inverse_temperature
from trimtab.kernels.triton.rows import EDITED, FILTERED, INTS, REALS, SAMPLED, SCALED, Lists
from trimtab.kernels.types import Blend, Pick

__all__ = ["Plan", "moved", "pack"]


class Plan(NamedTuple):
    """How each row is mixed and drawn from, on the device of the logits.

    Attributes:
        lists: ints int64 [R, INTS], keys, positions, kinds, places in the lists below; reals float32 [R, REALS + M],
            temperatures, thresholds, the weights of M models; ids int32 [N], tokens seen (each once), biased and
            banned, of all rows; biases float32 [N], the bias of the biased ones.
        edited: number of rows whose logits are edited.
        filtered: whether some row is under top-k, top-p or min-p.
        limited: whether top-k binds for some row.
        masked: whether some row's mixture is bounded by plausibility.
    """

    lists: Lists
    edited: int = 0
    filtered: bool = False
    limited: bool = False
    masked: bool = False

    @property
    def flat(self) -> tuple[list[torch.Tensor], list[int]]:
        """As operators take it."""
        return list(self.lists), list(map(int, self[1:]))

    @classmethod
    def of(cls, lists: Sequence[torch.Tensor], kinds: Sequence[int]) -> Plan:
        """From ``flat``."""
        edited, filtered, limited, masked = kinds
        return cls(Lists(*lists), edited, bool(filtered), bool(limited), bool(masked))


class _Ids:
    """The lists of all rows, one after the other."""

    def __init__(self) -> None:
        self.ids, self.values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        self._filled = 0

    def add(self, found: NDArray[np.int64], values: NDArray[np.float32] | None = None) -> tuple[int, int]:
        """Begin and end of what is added."""
        self.ids.append(found)
        self.values.append(np.zeros(len(found), np.float32) if values is None else values)
        self._filled += len(found)
        return self._filled - len(found), self._filled

    def edits(self, row: Pick, vocabulary: int) -> tuple[int, ...]:
        """Begin and end of what was seen, biased, banned."""
        filters = row.filters
        seen = check_ids("seen", row.seen if filters.repetition_penalty != 1 else (), vocabulary)
        bias = self.add(check_ids("bias", filters.bias_ids, vocabulary), filters.bias_values)
        return *self.add(np.unique(seen)), *bias, *self.add(check_ids("banned", row.banned, vocabulary))


def pack(rows: Sequence[Pick], vocabulary: int, device: torch.device, blends: Sequence[Blend] | None = None) -> Plan:
    """The plan of a batch: of R rows, and of R blends for mixtures.

    Raises:
        ValueError: a token id outside the vocabulary.
    """
    ints, reals, ids = [], [], _Ids()
    edited = filtered = limited = 0
    for i, row in enumerate(rows):
        filters = row.filters
        sampled = filters.temperature > 0
        top_k = filters.top_k if sampled and 0 < filters.top_k < vocabulary else 0
        kind = SAMPLED.value * sampled
        slot = 0
        edits: tuple[int, ...] = (0,) * 6
        if row.edits:
            kind, slot, edited = kind | EDITED.value, edited, edited + 1
            edits = ids.edits(row, vocabulary)
        if sampled and row.restricts(vocabulary):
            kind, filtered = kind | FILTERED.value, 1
        if sampled and (filters.temperature != 1 or top_k or row.edits):
            kind |= SCALED.value
        limited |= top_k > 0
        min_p = filters.temperature * math.log(filters.min_p) if sampled and filters.min_p > 0 else -math.inf
        bits = row.key.bits
        ints.append((bits - (bits >> 63 << 64), row.position, kind, top_k, slot, *edits))
        scale = float(inverse_temperature(filters)) if sampled else 1.0
        plausibility = blends[i].plausibility if blends else 0
        plausible = math.log(plausibility) if plausibility else -math.inf
        weights = blends[i].weights if blends else (1.0,)
        reals.append((scale, filters.top_p, min_p, filters.repetition_penalty, plausible, *weights))
    models = len(blends[0].weights) if blends else 1
    numbers = np.array(reals, np.float32).reshape(-1, REALS.value + models)
    lists = Lists(
        moved(np.array(ints, np.int64).reshape(-1, INTS.value), device),
        moved(numbers, device),
        moved(np.concatenate(ids.ids).astype(np.int32), device),
        moved(np.concatenate(ids.values), device),
    )
    return Plan(lists, edited, bool(filtered), bool(limited), any(blend.plausibility for blend in blends or ()))


def moved(part: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The tensor on the device; from pinned memory, so that the host doesn't wait for the device to get there."""
    tensor = torch.from_numpy(part)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
