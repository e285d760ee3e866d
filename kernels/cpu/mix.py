"""Log-linear mixtures of several models' logits: z = sum of w_i x_i, drawn from without writing softmaxes down.

ln p = sum of w_i ln p_i + constant, and ln p_i = x_i - lse_i; so the log-sum-exps of the models join the constant, and
sums of raw logits serve. The repetition penalty, which looks at signs, is applied to these sums, as in the code of
proxy tuning; where only the base weighs, it is the base's own. A scale common to all weights stays: doubling them
halves the temperature.

Where a logit is not finite, the base decides: its -inf bans a token; NaN and +inf count as -inf and are flagged. What
the other models add together is bounded by 1e4 either way: their -inf (NaN and +inf count as it and are flagged) cannot
undo a ban, nor become NaN where two of them meet with opposite weights. A model whose weight is 0 is not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.cpu import tiles
from trimtab.kernels.cpu.pick import draw
from trimtab.kernels.cpu.row_scan import RowScan
from trimtab.kernels.cpu.stats import Chunk, summarise
from trimtab.kernels.results import Picked
from trimtab.kernels.types import Blend, Pick

__all__ = ["DELTA", "blend", "mix"]

_NEG_INF = float("-inf")
_LARGEST = float(torch.finfo(torch.float32).max)
# Bound on what the other models add to a logit.
DELTA = 1.0e4
# Stands for a logit of another model that is not finite: far beyond DELTA, and no weight makes it overflow.
_FAR = 1.0e30
# A plausible set of less than one token in so many is worked on by itself.
_SPARSE = 16


class _Mixer:
    """Turns chunks of the base's logits into chunks of the mixture."""

    def __init__(self, logits: Sequence[torch.Tensor], blends: Sequence[Blend]) -> None:
        rows, vocabulary = logits[0].shape
        self._models = [model.detach().to("cpu") for model in logits]
        self._blends = blends
        self._vocabulary = vocabulary
        self._space = tiles.Workspace(rows, vocabulary)
        # What is read of another model, and what the others add.
        self._read, self._sum = torch.empty((2, vocabulary), dtype=torch.float32)

    def chunks(self) -> Iterator[Chunk]:
        """The mixture, a few rows at a time."""
        space = self._space
        for start in range(0, len(self._blends), space.step):
            z = space.load(self._models[0][start : start + space.step])
            scratch = space.scratch(len(z))
            here = range(start, start + len(z))
            if any(self._blends[i].plausibility for i in here):
                parts = self._plausible(here, z, scratch)
            else:
                unclean = [self._mix_row(i, row.view(-1), None) for i, row in zip(here, z, strict=True)]
                parts = tiles.partials(z, self._vocabulary, scratch)
                parts.unclean[:] |= unclean
            yield Chunk(start, z, parts, summarise(z, parts), scratch)

    def _plausible(self, here: range, z: torch.Tensor, scratch: torch.Tensor) -> tiles.Partials:
        """Mix a chunk in place, some of whose rows keep plausible tokens only; the mixture's partials."""
        parts = tiles.partials(z, self._vocabulary, scratch)
        unclean = parts.unclean.copy()
        dense = []
        for k, i in enumerate(here):
            bound, flat, top, ids = self._blends[i].plausibility, z[k].view(-1), float(parts.m[k].max()), None
            if bound and top > _NEG_INF:
                ids = RowScan(z[k].numpy(), parts.groups[k], self._vocabulary).at_least(top + math.log(bound))
            if ids is None or _SPARSE * len(ids) > self._vocabulary:
                unclean[k] |= self._mix_row(i, flat, ids)
                dense.append(k)
            else:
                unclean[k] |= self._mix_few(i, flat, ids)
                _partials_of_few(flat.numpy(), ids, parts, k)
        if len(dense) == len(z):
            parts = tiles.partials(z, self._vocabulary, scratch)
        else:
            for k in dense:
                ours = tiles.partials(z[k : k + 1], self._vocabulary, scratch[:, :1])
                for mine, theirs in zip(parts, ours, strict=True):
                    mine[k] = theirs[0]
        parts.unclean[:] |= unclean
        return parts

    def _mix_row(self, i: int, padded: torch.Tensor, kept: NDArray[np.int64] | None) -> bool:
        """Mix row i of the call in place, ``padded`` being its base [NT * width]; whether another model's row was
        unclean, or the base's where its weight is 0.

        Where ``kept`` is given only these tokens stay.
        """
        row, size = self._blends[i], self._vocabulary
        z = padded[:size]
        weight, others = row.weights[0], [j for j, weight in enumerate(row.weights) if j and weight]
        dropped, banned, unclean, reach = None, None, False, 0.0
        if kept is not None:
            dropped = torch.ones(size, dtype=torch.bool)
            dropped[torch.from_numpy(kept)] = False
            z.masked_fill_(dropped, _NEG_INF)
        # 0 * inf is NaN, and a weight above 1 may leave float32. Under other weights the partials find what is unclean.
        if (weight == 0 and not bool(z.isfinite().all())) or (weight > 1 and not float(z.amax()) * weight <= _LARGEST):
            unclean = bool((z.isnan() | (z == float("inf"))).any())
            z.nan_to_num_(nan=_NEG_INF, posinf=_NEG_INF, neginf=_NEG_INF)
            banned = z == _NEG_INF
        if weight == 0:
            z.zero_()
        elif weight != 1:
            z.mul_(weight)
        for n, j in enumerate(others):
            x = self._read.copy_(self._models[j][i])
            if dropped is not None:
                x.masked_fill_(dropped, 0.0)
            largest, dirty = _clean(x)
            unclean |= dirty
            reach += abs(row.weights[j]) * largest
            if n == 0:
                torch.mul(x, row.weights[j], out=self._sum)
            else:
                self._sum.add_(x, alpha=row.weights[j])
        if others:
            if not reach < DELTA:
                self._sum.clamp_(-DELTA, DELTA)
            z.add_(self._sum)
        if banned is not None:
            z.clamp_(max=_LARGEST).masked_fill_(banned, _NEG_INF)
        return unclean

    def _mix_few(self, i: int, z: torch.Tensor, kept: NDArray[np.int64]) -> bool:
        """``_mix_row`` where few tokens stay; others are not even read."""
        weights = self._blends[i].weights
        ids = torch.from_numpy(kept)
        value = z[ids] * weights[0]
        unclean, added = False, torch.zeros(len(ids))
        for model, weight in zip(self._models[1:], weights[1:], strict=True):
            if weight:
                x = model[i][ids].float()
                unclean |= _clean(x)[1]
                added.add_(x, alpha=weight)
        z.fill_(_NEG_INF)
        z[ids] = value.add_(added.clamp_(-DELTA, DELTA)).clamp_(-_LARGEST, _LARGEST)
        return unclean


def _partials_of_few(z: NDArray[np.float32], ids: NDArray[np.int64], parts: tiles.Partials, k: int) -> None:
    """Write the partials of row k, which is -inf but at ``ids``, ascending and at least one."""
    value = z[ids]
    tile = ids // tiles.TILE
    starts = np.flatnonzero(np.diff(tile, prepend=-1))
    held = tile[starts]
    for part, empty in zip(parts[:4], (_NEG_INF, _NEG_INF, 0.0, 0.0), strict=True):
        part[k] = empty
    np.maximum.at(parts.groups[k].reshape(-1), tile * tiles.GROUP + ids % tiles.GROUP, value)
    parts.m[k, held] = np.maximum.reduceat(value, starts)
    shifted = np.maximum(value - parts.m[k, tile], np.float32(-1000))
    weights = np.exp(shifted)
    parts.s[k, held] = np.add.reduceat(weights, starts)
    parts.t[k, held] = np.add.reduceat(weights * shifted, starts)


def _clean(x: torch.Tensor) -> tuple[float, bool]:
    """Make every number finite in place; their largest magnitude, and whether NaN or +inf was found."""
    low, high = (float(v) for v in x.aminmax())
    if low >= -_FAR and high <= _FAR:  # false for NaN
        return max(-low, high), False
    dirty = bool((x.isnan() | (x == float("inf"))).any())
    x.nan_to_num_(nan=-_FAR, posinf=-_FAR, neginf=-_FAR).clamp_(-_FAR, _FAR)
    return _FAR, dirty


def mix(logits: Sequence[torch.Tensor], blends: Sequence[Blend], rows: Sequence[Pick]) -> Picked:
    """See ``dispatch.mix``."""
    token, found = draw(_Mixer(logits, blends).chunks(), None, rows, logits[0].shape[1])
    return Picked(torch.from_numpy(token).to(logits[0].device), found.stats(logits[0].device))


def blend(logits: Sequence[torch.Tensor], blends: Sequence[Blend]) -> torch.Tensor:
    """See ``dispatch.blend``."""
    result = torch.empty(logits[0].shape, dtype=torch.float32)
    for chunk in _Mixer(logits, blends).chunks():
        result[chunk.start : chunk.start + len(chunk.z)] = chunk.z.flatten(1)[:, : result.shape[1]]
    return result.to(logits[0].device)
