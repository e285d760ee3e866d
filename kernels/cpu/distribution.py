"""The distribution that one row's token is drawn from, in four numbers.

Top-k, top-p and min-p each keep {z >= bound}; so, whatever the filters, p(v) = exp((z_v - top) / temperature) / mass
for v with z_v >= bound, else 0. Two such distributions over the same tokens can be compared and subtracted a token at a
time, without ever being written down whole. (``pick`` draws from the same distributions, a batch at a time.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.cpu import tiles
from trimtab.kernels.cpu.filters import edit, exponents, inverse_temperature, support
from trimtab.kernels.cpu.races import needs_mass
from trimtab.kernels.cpu.row_scan import RowScan
from trimtab.kernels.types import Pick

__all__ = ["Distribution", "RowBuffer", "distribution_of"]

Floats = NDArray[np.float32]

_NEG_INF = np.float32(-np.inf)


class Distribution(NamedTuple):
    """Attributes:
    top: the largest edited logit.
    scale: 1 / temperature.
    bound: the smallest logit that may be drawn; -inf where nothing is filtered.
    mass: sum of exp((z - top) scale) over z >= bound, at least 1.
    """

    top: np.float32
    scale: np.float32
    bound: np.float32
    mass: float

    def logprob(self, z: np.float32) -> float:
        """ln p of the token whose edited logit is z."""
        if not z >= self.bound or z == _NEG_INF:
            return -math.inf
        with np.errstate(over="ignore"):
            return float((z - self.top) * self.scale) - math.log(self.mass)

    def prob(self, z: Floats) -> Floats:
        """p of the tokens whose edited logits are z, float32 of its shape, which is not changed."""
        p = exponents(z, self.top, self.scale)
        np.exp(p, out=p)
        np.multiply(p, np.float32(1 / self.mass), out=p)
        if self.bound > _NEG_INF:
            p[z < self.bound] = 0
        return p


class RowBuffer:
    """One row of logits at a time as float32, clean and edited, padded with -inf to whole tiles.

    Attributes:
        z: float32 [V], what ``load`` left; writable.
    """

    def __init__(self, vocabulary: int) -> None:
        count, width = tiles.tiling(vocabulary)
        self._grid = torch.full((1, count, width), -np.inf, dtype=torch.float32)
        self._work = np.empty((count, width), np.float32)
        self._row = self._grid.view(-1)[:vocabulary]
        self.z: Floats = self._row.numpy()

    def load(self, source: torch.Tensor, row: Pick) -> np.float32:
        """Take logits [V] of any accepted dtype; -inf bans, NaN and +inf count as -inf. Returns the largest.

        A row at temperature 0 keeps the logit that greedy takes and loses all others.
        """
        self._row.copy_(source)
        top = self.z.max()
        if not top < np.inf:  # NaN compares false, too
            self._row.nan_to_num_(nan=-np.inf, posinf=-np.inf, neginf=-np.inf)
        if row.edits:
            edit(self.z, row)
            top = self.z.max()
        elif not top < np.inf:
            top = self.z.max()
        if row.filters.temperature == 0:
            best = int(np.argmax(self.z))
            self.z[:], self.z[best] = _NEG_INF, top
        return np.float32(top)

    def mass(self, top: np.float32, scale: np.float32) -> float:
        """Sum of exp((z - top) scale), tiles added in index order."""
        work = self._work
        with np.errstate(over="ignore"):
            np.subtract(self._grid.numpy()[0], top, out=work)
            if scale != 1:
                np.multiply(work, scale, out=work)
        np.exp(work, out=work)
        return float(torch.from_numpy(work).sum(-1).numpy().sum(dtype=np.float64))

    def scan(self) -> RowScan:
        """The row for looking up its largest logits."""
        return RowScan(self._grid.numpy()[0], tiles.column_maxima(self._grid)[0].numpy(), len(self.z))


def distribution_of(
    buffer: RowBuffer, source: torch.Tensor, row: Pick, plain: float | None = None
) -> Distribution | None:
    """The distribution of logits [V] under a row's edits and filters.

    Args:
        buffer: of V; keeps the edited row.
        source: the raw logits.
        row: how a token is drawn from them.
        plain: the mass of the raw row at temperature 1, where it is known.

    Returns:
        None if nothing is finite.
    """
    top = buffer.load(source, row)
    if top == _NEG_INF:
        return None
    vocabulary = len(buffer.z)
    if row.filters.temperature == 0:
        return Distribution(top, np.float32(1), top, 1.0)
    scale = inverse_temperature(row.filters)
    if row.edits or row.filters.temperature != 1:
        plain = None
    whole = plain
    if whole is None and (not row.restricts(vocabulary) or needs_mass(row, vocabulary)):
        whole = buffer.mass(top, scale)
    if not row.restricts(vocabulary):
        assert whole is not None, "just made"
        return Distribution(top, scale, _NEG_INF, whole)
    scan = buffer.scan()
    kept = scan.values(support(scan, float(top), row.filters, whole))
    return Distribution(top, scale, kept.min(), float(np.exp(exponents(kept, top, scale)).sum(dtype=np.float64)))
