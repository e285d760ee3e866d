"""The vocabulary in tiles of 4096 tokens: what every kernel over logits shares.

TILE is part of the contract: sums are taken inside a tile and then over tiles in index order, so neither the batch nor
the launch changes the last bit of a result, and with it a token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = [
    "GROUP",
    "TILE",
    "Partials",
    "Workspace",
    "column_maxima",
    "partials",
    "tiling",
]

Floats = NDArray[np.float32]

TILE = 4096
# A tile is also read as 64 rows of GROUP columns. The maximum of a column stands for its 64 tokens when a few large
# logits are looked for; taking it costs the same pass as the maximum of the tile.
GROUP = 64

_NEG_INF = float("-inf")
# Stands after the last token of the vocabulary. Finite, so that 0 * (pad - max) is 0 and no clamp is needed; no
# finite logit is below it, so it never wins; and it has no mass beside a maximum above _LOW.
_PAD = float(torch.finfo(torch.float32).min)
_LOW = -1.0e30
# exp of it is 0 in float32, and 0 times it is 0.
_FLOOR = -1000.0
# float32 values per pass. Rows are worked on a few at a time so that the buffers of a pass stay in the caches.
_CHUNK = 1 << 19


class Partials(NamedTuple):
    """Per tile of clean logits z, on the host: float32 unless said otherwise.

    Attributes:
        groups: [R, NT, GROUP], the largest z of every column of a tile.
        m: [R, NT], the largest z of the tile; -inf if all of it is banned.
        s: [R, NT], sum of exp(z - m).
        t: [R, NT], sum of exp(z - m) (z - m).
        unclean: bool [R], whether the row held NaN or +inf.
    """

    groups: Floats
    m: Floats
    s: Floats
    t: Floats
    unclean: NDArray[np.bool_]


def tiling(vocabulary: int) -> tuple[int, int]:
    """Number of tiles and their width: TILE, or for a smaller vocabulary its own size rounded up to full columns."""
    if vocabulary <= TILE:
        return 1, -(-vocabulary // GROUP) * GROUP
    return -(-vocabulary // TILE), TILE


class Workspace:
    """Buffers for a chunk of rows, used again for every chunk of a call: fresh pages cost more than a pass over them.

    Attributes:
        step: rows in a chunk.
    """

    def __init__(self, rows: int, vocabulary: int) -> None:
        tiles, width = tiling(vocabulary)
        self.step = max(1, min(rows, _CHUNK // (tiles * width)))
        self._vocabulary = vocabulary
        self._z = torch.empty((self.step, tiles, width), dtype=torch.float32)
        self._scratch = torch.empty((2, self.step, tiles, width), dtype=torch.float32)

    def load(self, logits: torch.Tensor) -> torch.Tensor:
        """A chunk of logits [r, V], r <= step, as float32 [r, NT, width], padded with a large negative number.

        The result is valid until the next call and may be written to.
        """
        z = self._z[: logits.shape[0]]
        flat = z.flatten(1)
        flat[:, : self._vocabulary].copy_(logits)
        if self._vocabulary < flat.shape[1]:
            flat[:, self._vocabulary :] = _PAD  # each time: cleaning a row changes its padding
        return z

    def scratch(self, rows: int) -> torch.Tensor:
        """float32 [2, rows, NT, width] to write to."""
        return self._scratch[:, :rows]


def column_maxima(z: torch.Tensor) -> torch.Tensor:
    """[R, NT, TILE] -> [R, NT, GROUP]: the largest value of every column of a tile."""
    rows, tiles, width = z.shape
    return z.view(rows, tiles, width // GROUP, GROUP).amax(2)


def partials(z: torch.Tensor, vocabulary: int, scratch: torch.Tensor) -> Partials:
    """Maxima, masses and first moments of every tile (the shifted form: its error does not grow with an offset).

    Args:
        z: from ``Workspace.load``; where a row holds NaN or an infinity it is cleaned in place.
        vocabulary: V, the number of real tokens.
        scratch: float32 of the shape [2, *z.shape], overwritten.
    """
    shifted, weights = scratch[0], scratch[1]
    groups = column_maxima(z)
    m = groups.amax(-1, keepdim=True)
    torch.sub(z, m, out=shifted)
    torch.exp(shifted, out=weights)
    s = weights.sum(-1)
    t = weights.mul_(shifted).sum(-1)
    parts = Partials(groups.numpy(), m.numpy()[..., 0], s.numpy(), t.numpy(), np.zeros(z.shape[0], np.bool_))
    # Any NaN or infinity makes t of its tile NaN (0 * -inf, inf - inf), so clean rows pay one look at [R, NT].
    suspect = np.isnan(parts.t)
    suspect |= parts.m < _LOW
    if suspect.any():
        _clean(z, vocabulary, np.flatnonzero(suspect.any(-1)), parts)
    return parts


def _clean(z: torch.Tensor, vocabulary: int, rows: NDArray[np.int64], parts: Partials) -> None:
    """Partials of rows with NaN, infinities or nothing but huge negatives; both the rows and theirs are rewritten.

    Where nothing is banned the result is that of the fast path, bit for bit.
    """
    which = torch.from_numpy(rows)
    dirty = z[which]
    parts.unclean[rows] = (dirty.isnan() | (dirty == float("inf"))).flatten(1).any(-1).numpy()
    dirty.nan_to_num_(nan=_NEG_INF, posinf=_NEG_INF, neginf=_NEG_INF)
    dirty.flatten(1)[:, vocabulary:] = _NEG_INF
    z[which] = dirty
    groups = column_maxima(dirty)
    m = groups.amax(-1)
    # z - m is NaN where a whole tile is banned, and has no mass there either.
    shifted = (dirty - m[..., None]).nan_to_num_(nan=_FLOOR, neginf=_FLOOR).clamp_(min=_FLOOR)
    weights = torch.exp(shifted)
    parts.groups[rows], parts.m[rows], parts.s[rows] = groups.numpy(), m.numpy(), weights.sum(-1).numpy()
    parts.t[rows] = weights.mul_(shifted).sum(-1).numpy()
