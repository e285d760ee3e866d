"""Which tokens may be drawn: edits of the logits, then filters, in the order of Hugging Face transformers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trimtab.kernels.checks import check_ids
from trimtab.kernels.cpu.row_scan import RowScan
from trimtab.kernels.types import Filters, Pick

__all__ = [
    "edit",
    "exponents",
    "inverse_temperature",
    "support",
]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_MAX_SCALE = 3.0e38
_LARGEST = np.finfo(np.float32).max
# Tokens outside the nucleus are first taken to be as few as this; language models are seldom less sure.
_FIRST_GUESS = 512


def _refuse(name: str, value: object, accepted: str) -> ValueError:
    return ValueError(f"{name} = {value!r}: accepted: {accepted}")


def edit(z: Floats, row: Pick) -> None:
    """Apply repetition penalty, bias and bans to one row of clean logits, float32 [V], in place.

    A logit that grows out of float32 stays at the largest number, or is banned at the other end.

    Raises:
        ValueError: a token id outside the vocabulary.
    """
    filters = row.filters
    if filters.repetition_penalty != 1.0 and len(row.seen):
        seen = check_ids("seen", row.seen, z.size)
        value = z[seen]  # a copy: an id given twice is penalised once
        penalty = np.float32(filters.repetition_penalty)
        with np.errstate(over="ignore"):
            z[seen] = np.minimum(np.where(value < 0, value * penalty, value / penalty), _LARGEST)
    if filters.bias:
        ids = check_ids("bias", filters.bias_ids, z.size)
        with np.errstate(over="ignore"):
            z[ids] = np.minimum(z[ids] + filters.bias_values, _LARGEST)
    if len(row.banned):
        z[check_ids("banned", row.banned, z.size)] = -np.inf


def inverse_temperature(filters: Filters) -> np.float32:
    """1 / temperature as float32, bounded so that 0 times it is 0: differences to the maximum are scaled by it."""
    return np.float32(min(1 / filters.temperature, _MAX_SCALE) if filters.temperature else _MAX_SCALE)


def exponents(z: Floats, top: Floats | np.float32, scale: Floats | np.float32) -> Floats:
    """(z - top) / temperature, operands broadcast. Too far below for float32 becomes -inf: no mass either way."""
    with np.errstate(over="ignore"):
        result: Floats = (z - top) * scale
    return result


def support(scan: RowScan, top: float, filters: Filters, mass: float | None) -> Ids:
    """Ids a token may be drawn from, ascending; int64 [n], n >= 1.

    All three filters cut at a value, so the support is {z >= the largest of three thresholds}. Order matters only in
    that top-p weighs what top-k kept; min-p compares with the maximum, which both keep.

    Args:
        scan: edited logits, at least one finite.
        top: their maximum.
        mass: sum of exp((z - top) / temperature) over the row, wanted where top_p < 1 and top_k does not bind.
    """
    scale = inverse_temperature(filters)
    bound = float(np.finfo(np.float32).min)
    if filters.min_p > 0:
        bound = max(bound, top + filters.temperature * math.log(filters.min_p))
    limited = 0 < filters.top_k < scan.vocabulary
    if limited or filters.top_p < 1:
        if limited:
            values = scan.values(scan.at_least(scan.bound_of_largest(filters.top_k)))
            if values.size > filters.top_k:
                kth = np.partition(values, values.size - filters.top_k)[values.size - filters.top_k]
                values = values[values >= kth]
            bound = max(bound, float(values.min()))
        else:
            assert mass is not None, "mass is given where top_p < 1 and top_k does not bind"
            values = _nucleus_candidates(scan, top, scale, filters.top_p, mass)
        if filters.top_p < 1:
            bound = max(bound, _nucleus_bound(values, top, scale, filters.top_p, mass if not limited else None))
    return scan.at_least(bound)


def _nucleus_candidates(scan: RowScan, top: float, scale: np.float32, top_p: float, mass: float) -> Floats:
    """All logits above some value, the nucleus among them; looks further down until they hold enough mass.

    Tokens that each weigh less than (1 - p) mass / n, n of them or fewer, weigh less than (1 - p) mass together. So
    with n = V none of them is in the nucleus; smaller n are a guess, checked by the mass found.
    """
    n = _FIRST_GUESS
    while True:
        n = min(n, scan.vocabulary)
        least = (1 - top_p) * mass / n
        if n == scan.vocabulary:
            least *= 0.5  # against rounding
        values = scan.values(scan.at_least(top + math.log(least) / float(scale)))
        if n == scan.vocabulary or float(_weights(values, top, scale).sum()) > top_p * mass * (1 + 1e-6):
            return values
        n *= 8


def _weights(values: Floats, top: float, scale: np.float32) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(exponents(values, np.float32(top), scale)).astype(np.float64)
    return weights


def _nucleus_bound(values: Floats, top: float, scale: np.float32, top_p: float, mass: float | None) -> float:
    """The smallest logit with less than top_p of the mass strictly above it; mass None takes that of values."""
    ordered = np.sort(values)[::-1]
    weights = _weights(ordered, top, scale)
    upto = np.cumsum(weights)
    total = float(upto[-1]) if mass is None else mass
    # Mass before a token, not strictly above it: equal for the first of a tie, and a tie is kept by its value.
    kept = int(np.count_nonzero(upto - weights < top_p * total))
    return float(ordered[max(kept, 1) - 1])
