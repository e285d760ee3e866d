"""Drawing the token after a rejection: from max(p - q, 0), by the races of ``races`` under ``Key.residual``.

The scheme follows the target's row alone. Where its filters leave tokens out, the residual lies within its support: one
race over that (stream TOKEN). Otherwise three, over the residual masses of tiles, of the columns of one tile, of the
lines of one column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.cpu import tiles
from trimtab.kernels.cpu.distribution import Distribution, RowBuffer
from trimtab.kernels.cpu.races import Keys, clocks, keys_of, race
from trimtab.kernels.types import Pick

__all__ = ["Columns", "Proposal", "Rejection", "Residuals"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

# Tokens of supports held back before their race is run, as in ``races``.
_WAITING = 1 << 14


class Columns(NamedTuple):
    """How a draft's vocabulary lies in the target's.

    Attributes:
        ids: int64 [Vd], id in the target's vocabulary of every column.
        column: int64 [V], the column of a token; -1 where the draft has none.
    """

    ids: Ids
    column: Ids


class Proposal(NamedTuple):
    """What a token was drafted from; ``q`` None where nothing was finite, ``source`` None where q = 1."""

    source: torch.Tensor | None
    row: Pick
    q: Distribution | None
    columns: Columns | None
    buffer: RowBuffer | None


class Rejection(NamedTuple):
    """A drafted token that the target refused.

    Attributes:
        source: the target's logits [V] at its position.
        row: how the target draws there.
        p: the target's distribution.
        token: the refused one.
        certain: whether q(token) > 0, so that p(token) < q(token) and nothing of it is left.
        proposal: what it was drawn from.
    """

    source: torch.Tensor
    row: Pick
    p: Distribution
    token: int
    certain: bool
    proposal: Proposal


class Residuals:
    """The draws of one call; all share one call of the generator.

    Args:
        buffer: of the target's vocabulary; overwritten.
    """

    def __init__(self, rejections: Sequence[Rejection], buffer: RowBuffer) -> None:
        self._rejections, self._buffer = rejections, buffer

    def draw(self) -> Ids:
        """The tokens, int64 [n]."""
        vocabulary = len(self._buffer.z)
        token = np.empty(len(self._rejections), np.int64)
        filtered = [i for i, r in enumerate(self._rejections) if r.row.restricts(vocabulary)]
        waiting: list[tuple[int, Ids, Floats]] = []
        for i in filtered:
            waiting.append((i, *self._support(self._rejections[i])))
            if sum(len(ids) for _, ids, _ in waiting) > _WAITING:
                self._race(waiting, token)
                waiting = []
        if waiting:
            self._race(waiting, token)
        self._three_races([i for i in range(len(token)) if i not in set(filtered)], token)
        return token

    def _keys(self, which: Sequence[int]) -> Keys:
        rows = [self._rejections[i].row for i in which]
        return keys_of((row.key.residual, row.position) for row in rows)

    def _support(self, rejection: Rejection) -> tuple[Ids, Floats]:
        self._buffer.load(rejection.source, rejection.row)
        ids = np.flatnonzero(self._buffer.z >= rejection.p.bound)
        p = rejection.p.prob(self._buffer.z[ids])
        left = p.copy()
        q, inside = _proposed(rejection.proposal, ids)
        left[inside] -= q
        if rejection.certain:
            left[ids == rejection.token] = 0
        return ids, left if left.max() > 0 else p

    def _race(self, waiting: Sequence[tuple[int, Ids, Floats]], token: Ids) -> None:
        which, ids, weights = zip(*waiting, strict=True)
        token[list(which)] = race(self._keys(which), ids, weights)

    def _three_races(self, which: Sequence[int], token: Ids) -> None:
        if not which:
            return
        vocabulary = len(self._buffer.z)
        count, width = tiles.tiling(vocabulary)
        all_clocks = clocks(self._keys(which), vocabulary)
        left = np.zeros((count, width), np.float32)
        for k, i in enumerate(which):
            self._whole(self._rejections[i], left.reshape(-1)[:vocabulary])
            of_tile, of_column, of_line = (clock[k] for clock in all_clocks)
            tile = int(np.argmax(torch.from_numpy(left).sum(-1).numpy() / of_tile))
            lines = left[tile].reshape(-1, tiles.GROUP)
            column = int(np.argmax(lines.sum(0) / of_column))
            line = int(np.argmax(lines[:, column] / of_line))
            token[i] = tile * tiles.TILE + line * tiles.GROUP + column

    def _whole(self, rejection: Rejection, out: Floats) -> None:
        """What is left of every token of the vocabulary, float32 [V]."""
        self._buffer.load(rejection.source, rejection.row)
        p = rejection.p.prob(self._buffer.z)
        out[:] = p
        q, inside = _proposed(rejection.proposal, None)
        out[inside] -= q
        if rejection.certain:
            out[rejection.token] = 0
        np.maximum(out, 0, out=out)
        if not out.any():
            out[:] = p


def _proposed(proposal: Proposal, ids: Ids | None) -> tuple[Floats, Ids | NDArray[np.bool_] | slice]:
    """q at the target's ids (None: all), and where among them these are; q is 0 elsewhere."""
    nothing = np.empty(0, np.float32), slice(0, 0)
    source, row, distribution, columns, buffer = proposal
    if source is None or distribution is None or buffer is None:
        return nothing
    buffer.load(source, row)
    z = buffer.z
    if ids is None:
        return distribution.prob(z), slice(0, len(z)) if columns is None else columns.ids
    if columns is None:
        inside = ids < len(z)
        return distribution.prob(z[ids[inside]]), inside
    column = columns.column[ids]
    inside = column >= 0
    return distribution.prob(z[column[inside]]), inside
