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

from trimtab.kernels.reference.filters import check_ids, inverse_temperature
from trimtab.kernels.types import Blend, RowPick

__all__ = ["INTS", "REALS", "Plan", "pack"]

# Columns and bits: see ``rows``, which holds the same numbers for the kernels.
INTS, REALS = 12, 6
_SAMPLED, _FILTERED, _EDITED, _SCALED, _MIXED, _DEFERRED = 1, 2, 4, 8, 16, 32


class Plan(NamedTuple):
    """How each row is mixed and drawn from, on the device of the logits.

    Attributes:
        ints: int64 [R, INTS], keys, positions, kinds, places in the lists below.
        reals: float32 [R, REALS + M], temperatures, thresholds, the weights of M models.
        ids: int32 [N], tokens seen (each once), biased and banned, of all rows.
        values: float32 [N], the bias of the biased ones.
        edited: number of rows whose logits are edited.
        filtered: whether some row is under top-k, top-p or min-p.
        limited: whether top-k binds for some row.
        deferred: whether some row's mixture is gated or masked.
    """

    ints: torch.Tensor
    reals: torch.Tensor
    ids: torch.Tensor
    values: torch.Tensor
    edited: int
    filtered: bool
    limited: bool
    deferred: bool


def pack(rows: Sequence[RowPick], vocabulary: int, device: torch.device, blends: Sequence[Blend] | None = None) -> Plan:
    """The plan of a batch.

    Args:
        rows: R of them.
        vocabulary: V.
        blends: R of them, for mixtures.

    Raises:
        ValueError: a token id outside the vocabulary.
    """
    models = len(blends[0].weights) if blends else 1
    ints: list[tuple[int, ...]] = []
    reals: list[tuple[float, ...]] = []
    ids: list[NDArray[np.int64]] = []
    values: list[NDArray[np.float32]] = []
    filled = edited = 0
    filtered = limited = deferred = False

    def add(found: NDArray[np.int64], bias: NDArray[np.float32] | None = None) -> tuple[int, int]:
        nonlocal filled
        ids.append(found)
        values.append(np.zeros(len(found), np.float32) if bias is None else bias)
        filled += len(found)
        return filled - len(found), filled

    for i, row in enumerate(rows):
        filters = row.filters
        sampled = filters.temperature > 0
        top_k = filters.top_k if sampled and 0 < filters.top_k < vocabulary else 0
        kind = _SAMPLED * sampled
        slot = 0
        seen = bias = banned = (0, 0)
        if row.edits:
            kind, slot, edited = kind | _EDITED, edited, edited + 1
            if filters.repetition_penalty != 1.0 and len(row.seen):
                seen = add(np.unique(check_ids("seen", row.seen, vocabulary)))
            if filters.bias:
                bias = add(check_ids("bias", filters.bias_ids, vocabulary), filters.bias_values)
            if len(row.banned):
                banned = add(check_ids("banned", row.banned, vocabulary))
        if sampled and row.restricts(vocabulary):
            kind, filtered = kind | _FILTERED, True
        if sampled and (filters.temperature != 1 or top_k or row.edits):
            kind |= _SCALED
        limited |= top_k > 0
        min_p = filters.temperature * math.log(filters.min_p) if sampled and filters.min_p > 0 else -math.inf
        gate, limit, plausible = 0, 0.0, -math.inf
        weights: tuple[float, ...] = (1.0,)
        if blends:
            blend = blends[i]
            weights = blend.weights
            if not blend.plain:
                kind |= _MIXED
            if blend.gate is not None:
                gate, limit = (2 if blend.gate.kind == "top_prob" else 1), float(blend.gate.limit)
            if blend.plausibility:
                plausible = math.log(blend.plausibility)
            if kind & _MIXED and (gate or blend.plausibility):
                kind, deferred = kind | _DEFERRED, True
        bits = row.key.bits
        bits -= bits >> 63 << 64
        ints.append((bits, row.position, kind, top_k, slot, *seen, *bias, *banned, gate))
        scale = float(inverse_temperature(filters)) if sampled else 1.0
        reals.append((scale, filters.top_p, min_p, filters.repetition_penalty, limit, plausible, *weights))
    flat = np.concatenate(ids).astype(np.int32) if ids else np.zeros(1, np.int32)
    bonus = np.concatenate(values) if values else np.zeros(1, np.float32)

    def moved(part: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(part)
        # From pinned memory, so that the host doesn't wait for the device to get there.
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

    numbers = np.array(reals, np.float32).reshape(-1, REALS + models)
    return Plan(
        moved(np.array(ints, np.int64).reshape(-1, INTS)),
        moved(numbers),
        moved(flat),
        moved(bonus),
        edited,
        filtered,
        limited,
        deferred,
    )
