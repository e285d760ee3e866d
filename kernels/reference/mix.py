"""Log-linear mixtures of several models' logits: z = sum of w_i x_i, drawn from without writing softmaxes down.

ln p = sum of w_i ln p_i + constant, and ln p_i = x_i - lse_i; so the log-sum-exps of the models join the constant, and
sums of raw logits serve. A scale common to all weights stays: doubling them halves the temperature.

Where a logit is not finite, the base decides: its -inf bans a token; NaN and +inf count as -inf and are flagged. What
the other models add together is bounded by 1e4 either way: their -inf (NaN and +inf count as it and are flagged) cannot
undo a ban, nor become NaN where two of them meet with opposite weights. A model whose weight is 0 is not read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.reference import tiles
from trimtab.kernels.reference.entropy import Collected, Stats, Summary, summarise
from trimtab.kernels.reference.filters import check_rows
from trimtab.kernels.reference.races import Races
from trimtab.kernels.reference.row_scan import RowScan
from trimtab.kernels.types import Blend, RowPick

__all__ = ["DELTA", "Blended", "Mixed", "blend", "check_blends", "check_logits", "mix"]

_NEG_INF = float("-inf")
_LARGEST = float(torch.finfo(torch.float32).max)
# Bound on what the other models add to a logit.
DELTA = 1.0e4
# Stands for a logit of another model that is not finite: far beyond DELTA, and no weight makes it overflow.
_FAR = 1.0e30
# A plausible set of less than one token in so many is worked on by itself.
_SPARSE = 16

Bools = NDArray[np.bool_]


def _refuse(name: str, value: object, accepted: str) -> ValueError:
    return ValueError(f"{name} = {value!r}: accepted: {accepted}")


class Mixed(NamedTuple):
    """Attributes:
    token: int64 [R]; -1 where nothing finite is left.
    stats: of the mixture, gated and masked, at temperature 1, nothing edited or filtered; ``logprob`` is of ``token``.
    base: of the base's raw logits; ``logprob`` is of its argmax.
    decided: uint8 [R], 0 where the base alone applied, 1 where the mixture did.
    """

    token: torch.Tensor
    stats: Stats
    base: Stats
    decided: torch.Tensor


class Blended(NamedTuple):
    """Attributes:
    logits: float32 [R, V], the mixture, gated and masked; a row's offset is arbitrary.
    base: of the base's raw logits; ``logprob`` is of its argmax.
    decided: uint8 [R], as in ``Mixed``.
    """

    logits: torch.Tensor
    base: Stats
    decided: torch.Tensor


def check_logits(logits: Sequence[torch.Tensor]) -> None:
    """Raise TypeError or ValueError unless logits are matrices [R, V] of one shape and device, one per model."""
    if isinstance(logits, torch.Tensor) or not logits:
        raise TypeError("logits: accepted: a sequence of matrices [rows, vocabulary], one per model, the base first")
    for i, model in enumerate(logits):
        tiles.check_logits(model)
        if model.shape != logits[0].shape:
            wanted = tuple(logits[0].shape)
            raise ValueError(f"logits[{i}].shape = {tuple(model.shape)}: accepted: {wanted}, that of the base")
        if model.device != logits[0].device:
            raise ValueError(f"logits[{i}].device = {model.device}: accepted: {logits[0].device}, that of the base")


def check_blends(logits: Sequence[torch.Tensor], blends: Sequence[Blend]) -> None:
    """Raise TypeError or ValueError unless the logits are in order and blends fit them."""
    check_logits(logits)
    if len(blends) != logits[0].shape[0]:
        raise ValueError(f"blends: {len(blends)} of them: accepted: {logits[0].shape[0]}, one per row of logits")
    for row in blends:
        if len(row.weights) != len(logits):
            raise _refuse("weights", row.weights, f"{len(logits)} numbers, one per model")


class _Mixer:
    """Turns chunks of the base's logits into chunks of the mixture."""

    def __init__(self, logits: Sequence[torch.Tensor], blends: Sequence[Blend]) -> None:
        rows, vocabulary = logits[0].shape
        self._models = [model.detach().to("cpu") for model in logits]
        self._blends = blends
        self._vocabulary = vocabulary
        self.space = tiles.Workspace(rows, vocabulary)
        count, width = tiles.tiling(vocabulary)
        # What is read of another model, and what the others add; the padding is never written and stays 0.
        self._read, self._sum = torch.zeros((2, count * width), dtype=torch.float32)
        self._base = Collected(rows)
        self._decided = np.zeros(rows, np.uint8)

    def load(self, start: int) -> tuple[torch.Tensor, tiles.Partials, Summary]:
        """Logits [r, NT, width] of the mixture for a chunk that starts at row ``start``, their partials and summary."""
        z = self.space.load(self._models[0][start : start + self.space.step])
        scratch = self.space.scratch(len(z))
        parts = tiles.partials(z, self._vocabulary, scratch)
        whole = summarise(z, parts)
        self._base.put(start, whole)
        changed = []
        for k, row in enumerate(self._blends[start : start + len(z)]):
            if whole.argmax[k] < 0:
                continue
            entropy, top_prob = np.float32(whole.entropy[k]), np.float32(1 / whole.mass[k])
            if row.gate is None or row.gate.fires(entropy, top_prob):
                self._decided[start + k] = 1
                if not row.plain:
                    changed.append(k)
        if not changed:
            return z, parts, whole
        unclean = np.zeros(len(z), np.bool_)
        dense = []
        for k in changed:
            blend, top = self._blends[start + k], float(whole.top[k])
            flat = z[k].view(-1)
            ids = None
            if blend.plausibility:
                scan = RowScan(z[k].numpy(), parts.groups[k], self._vocabulary)
                ids = scan.at_least(top + math.log(blend.plausibility))
            if ids is None or _SPARSE * len(ids) > self._vocabulary:
                unclean[k] = self._mix_row(start + k, flat, top, ids)
                dense.append(k)
            else:
                unclean[k] = self._mix_few(start + k, flat, ids)
                _partials_of_few(flat.numpy(), ids, parts, k)
        if len(dense) == len(z):
            parts = tiles.partials(z, self._vocabulary, scratch)
        else:
            for k in dense:
                ours = tiles.partials(z[k : k + 1], self._vocabulary, scratch[:, :1])
                for mine, theirs in zip(parts, ours, strict=True):
                    mine[k] = theirs[0]
        base_flags = whole.flags
        whole = summarise(z, parts)
        whole.flags[:] |= (base_flags & tiles.FLAG_UNCLEAN) | (unclean * tiles.FLAG_UNCLEAN).astype(np.uint8)
        return z, parts, whole

    def finish(self, device: torch.device) -> tuple[Stats, torch.Tensor]:
        """Statistics of the base, and which rows the mixture decided."""
        return self._base.stats(device), torch.from_numpy(self._decided).to(device)

    def _mix_row(self, i: int, z: torch.Tensor, top: float, kept: NDArray[np.int64] | None) -> bool:
        """Mix row i of the call in place, z being its base [NT * width]; whether another model's row was unclean.

        Where ``kept`` is given only these tokens stay.
        """
        row, size = self._blends[i], self._vocabulary
        dropped = None
        if kept is not None:
            dropped = torch.ones(size, dtype=torch.bool)
            dropped[torch.from_numpy(kept)] = False
            z[:size].masked_fill_(dropped, _NEG_INF)
        banned = None
        if row.weights[0] == 0 and not bool((z[:size] > _NEG_INF).all()):
            banned = z[:size] == _NEG_INF  # 0 * -inf is NaN
        low = float(z[-1])  # of the padding, if there is any
        if row.weights[0] == 0:
            z.zero_()
        elif row.weights[0] != 1:
            z.mul_(row.weights[0])
        others = [j for j, weight in enumerate(row.weights) if j and weight]
        unclean, reach = False, 0.0
        for n, j in enumerate(others):
            x = self._read
            x[:size].copy_(self._models[j][i])
            if dropped is not None:
                x[:size].masked_fill_(dropped, 0.0)
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
        if top * row.weights[0] + DELTA > _LARGEST:
            z.clamp_(max=_LARGEST)
        if banned is not None:
            z[:size].masked_fill_(banned, _NEG_INF)
        z[size:] = low
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


def mix(logits: Sequence[torch.Tensor], blends: Sequence[Blend], rows: Sequence[RowPick]) -> Mixed:
    """Mix and pick one token from every row, with ``pick``'s scheme on the mixture.

    Args:
        logits: one matrix [R, V] per model, the base first; each as in ``pick``. Not changed.
        blends: R of them.
        rows: R of them; penalties, bias and bans apply to the mixture.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, matrices on different devices, numbers of weights that differ
            from the number of models, and what ``pick`` raises.
    """
    check_blends(logits, blends)
    count, vocabulary = logits[0].shape
    check_rows(rows, count)
    mixer = _Mixer(logits, blends)
    found = Collected(count)
    token = np.empty(count, np.int64)
    value = np.empty(count, np.float64)
    races = Races(rows, vocabulary)
    for start in range(0, count, mixer.space.step):
        z, parts, whole = mixer.load(start)
        found.put(start, whole)
        here = range(start, start + len(z))
        token[here.start : here.stop] = whole.argmax
        raw = {i: z[i - start].clone() for i in here if rows[i].edits}
        races.enter(start, z, parts, whole, mixer.space.scratch(len(z))[0], token)
        races.finish(token)  # here, since the logit of each token is wanted before the next chunk takes its place
        for i in here:
            value[i] = raw.get(i, z[i - start]).view(-1)[max(int(token[i]), 0)]
    if races.touched:
        found.take(value, token)
    base, decided = mixer.finish(logits[0].device)
    return Mixed(torch.from_numpy(token).to(logits[0].device), found.stats(logits[0].device), base, decided)


def blend(logits: Sequence[torch.Tensor], blends: Sequence[Blend]) -> Blended:
    """The mixture itself, for operations that take logits: arguments and errors as in ``mix``."""
    check_blends(logits, blends)
    count, vocabulary = logits[0].shape
    mixer = _Mixer(logits, blends)
    result = torch.empty((count, vocabulary), dtype=torch.float32)
    for start in range(0, count, mixer.space.step):
        z, _, _ = mixer.load(start)
        result[start : start + len(z)] = z.flatten(1)[:, :vocabulary]
    device = logits[0].device
    return Blended(result.to(device), *mixer.finish(device))
