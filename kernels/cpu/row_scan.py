"""Finding the few largest logits of one row without sorting the vocabulary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.kernels.cpu.tiles import GROUP, TILE

__all__ = ["RowScan"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

# The lowest finite float32: a bound that every finite logit meets.
_LOWEST = float(np.finfo(np.float32).min)


class RowScan:
    """One row of clean logits with its column maxima.

    The k-th largest of the column maxima bounds the k-th largest logit from below, since k columns hold a logit at
    least as large; so a look at one number in 64 tells which columns matter.

    Args:
        z: float32 [NT, width], no NaN, no +inf; padding is large and negative, or -inf.
        groups: float32 [NT, GROUP], largest value of every column of a tile.
        vocabulary: V.
    """

    __slots__ = ("_columns", "_flat", "_groups", "_z", "vocabulary")

    def __init__(self, z: Floats, groups: Floats, vocabulary: int) -> None:
        self._z = z.reshape(len(z), -1, GROUP)
        self._flat = z.reshape(-1)[:vocabulary]
        self._groups = groups
        self._columns = groups.size
        self.vocabulary = vocabulary

    def bound_of_largest(self, k: int) -> float:
        """A value that at least k logits meet (or all finite ones), and few more."""
        if k > self._columns // 4:
            return _LOWEST if k >= self.vocabulary else max(self.largest(k), _LOWEST)
        nth = self._columns - k
        return max(float(np.partition(self._groups.reshape(-1), nth)[nth]), _LOWEST)

    def largest(self, k: int) -> float:
        """The k-th largest logit, k in [1, V]; selects over the whole row."""
        nth = self.vocabulary - k
        return float(np.partition(self._flat, nth)[nth])

    def at_least(self, bound: float) -> Ids:
        """Ids of logits >= bound, ascending; int64 [n]."""
        threshold = np.float32(bound)
        columns = np.flatnonzero(self._groups >= threshold)  # one-dimensional: np.nonzero is ten times slower
        if 4 * columns.size > self._columns:
            return np.flatnonzero(self._flat >= threshold)
        tile, column = columns // GROUP, columns % GROUP
        lines = self._z.shape[1]
        found = np.flatnonzero(self._z[tile, :, column] >= threshold)
        which = found // lines
        ids: Ids = (tile * TILE + column)[which] + (found - which * lines) * GROUP
        ids.sort()
        return ids[: np.searchsorted(ids, self.vocabulary)]

    def values(self, ids: Ids) -> Floats:
        """Logits at ids."""
        return self._flat[ids]
