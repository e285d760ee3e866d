"""Picking one token per row: greedy, sampled, or sampled under filters, without a sort and without per-token noise.

A race of exponential clocks draws index i with probability w_i / sum w: the largest w_i / E_i wins, ties to the lowest
index (the Gumbel trick without its logarithm).

*Unfiltered rows* race twice: tiles by their mass (stream TILE, index: tile number), then the tokens of the winning
tile (stream TOKEN, index: token id). The product of the two probabilities is the token's own. It takes 4,096 + V / 4096
random numbers, not V.

*Filtered rows* race once, over their support (stream TOKEN, index: token id). Top-k, top-p and min-p each keep
{z >= threshold}, so the support is one comparison, and the outcome depends on the support and on the clocks of its
tokens alone, however the thresholds were found: here by looking at column maxima, on a GPU by bisection over tiles that
survive. Rejection (draw, test for membership, draw again) gives the same distribution but ties the token to the number
of rounds, and needs a further pass in each.

Which of the two applies is decided by the row's own filters and the vocabulary, never by the rest of the batch.
Weights are exp((z - max) / temperature), with max over the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels import rng
from trimtab.kernels.reference import tiles
from trimtab.kernels.reference.entropy import Collected, Stats, Summary, summarise
from trimtab.kernels.reference.filters import RowPick, edit, inverse_temperature, support
from trimtab.kernels.reference.row_scan import RowScan

__all__ = ["Picked", "filtered_logprobs", "pick"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
_NEG_INF = float("-inf")


class Picked(NamedTuple):
    """Attributes:
    token: int64 [R]; -1 where nothing finite is left.
    stats: of the raw logits (temperature 1, nothing edited or filtered); ``logprob`` is that of ``token``.
    """

    token: torch.Tensor
    stats: Stats


def pick(logits: torch.Tensor, rows: Sequence[RowPick]) -> Picked:
    """Pick one token from every row.

    Args:
        logits: [R, V], float32, bfloat16 or float16, any strides; -inf bans, NaN and +inf count as -inf. Not changed.
            Work is done on the CPU; results go back to the device of the logits.
        rows: R of them.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, a token id outside the vocabulary, a position outside 32 bits.
    """
    tiles.check_logits(logits)
    if len(rows) != logits.shape[0]:
        raise ValueError(f"rows: {len(rows)} of them: accepted: {logits.shape[0]}, one per row of logits")
    for row in rows:
        if not 0 <= row.position < 1 << 32:
            raise ValueError(f"position = {row.position}: accepted: an unsigned 32-bit integer")
    host = logits.detach().to("cpu")
    vocabulary = host.shape[1]
    found = Collected(len(rows))
    token = np.empty(len(rows), np.int64)
    races = _Races(rows, vocabulary)
    step = tiles.chunk_rows(vocabulary)
    scratch: torch.Tensor | None = None
    for start in range(0, len(rows), step):
        z = tiles.load(host[start : start + step])
        if scratch is None or scratch.shape[1] != z.shape[0]:
            scratch = torch.empty((2, *z.shape), dtype=torch.float32)
        parts = tiles.partials(z, vocabulary, scratch)
        whole = summarise(z, parts)
        found.put(start, whole)
        token[start : start + step] = whole.argmax
        races.enter(start, z, parts, whole, scratch[0], token)
    races.finish(token)
    if races.touched:
        found.choose(host, token)
    return Picked(torch.from_numpy(token).to(logits.device), found.stats(logits.device))


class _Races:
    """The draws of one call. Weights are gathered while a chunk of rows is in the caches, clocks made for all rows
    at once: a call of the generator costs 60 us however little it makes.

    Attributes:
        touched: whether some row's token may not be its argmax.
    """

    def __init__(self, rows: Sequence[RowPick], vocabulary: int) -> None:
        self._rows = rows
        self._vocabulary = vocabulary
        self._edits = [row.edits for row in rows]
        sampled = [i for i, row in enumerate(rows) if row.filters.temperature > 0]
        self.touched = bool(sampled) or any(self._edits)
        self._filtered = {i for i in sampled if rows[i].restricts(vocabulary)}
        tiled = [i for i in sampled if i not in self._filtered]
        self._clocks = dict(zip(tiled, self._tile_clocks(tiled), strict=True))
        self._scale = np.array([inverse_temperature(row.filters) for row in rows], np.float32)
        self._tiles: list[tuple[int, int, Floats]] = []  # row, first token of its tile, (z - max) / temperature
        self._supports: list[tuple[int, Ids, Floats]] = []  # row, ids, (z - max) / temperature

    def _tile_clocks(self, which: list[int]) -> Floats:
        tiles_, _ = tiles.tiling(self._vocabulary)
        if not which or tiles_ == 1:
            return np.ones((len(which), tiles_), np.float32)
        keys, position = self._keys(which)
        zero = np.zeros(len(which), np.int64)
        return rng.exponential(rng.uniform_run(keys, position, rng.Stream.TILE, zero, tiles_))

    def _keys(self, which: list[int]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        bits = np.array([self._rows[i].key.bits for i in which], np.uint64)
        return bits, np.array([self._rows[i].position for i in which], np.int64)

    def enter(
        self,
        start: int,
        z: torch.Tensor,
        parts: tiles.Partials,
        whole: Summary,
        scratch: torch.Tensor,
        token: Ids,
    ) -> None:
        """Take one chunk of rows, the first of which is row ``start``. Edits z in place, and ``parts.groups``.

        Rows that are edited and greedy, or empty once edited, get their token at once.
        """
        count = len(whole.top)
        here = range(start, start + count)
        if not any(self._edits[i] or self._rows[i].filters.temperature > 0 for i in here):
            return
        top = whole.top.astype(np.float32)
        flat = z.flatten(1).numpy()[:, : self._vocabulary]
        plain: list[int] = []  # temperature 1 and nothing else: the masses of the statistics serve
        scaled: list[int] = []
        filtered: list[int] = []
        for k, i in enumerate(here):
            if self._edits[i]:
                edit(flat[k], self._rows[i])
                best = int(np.argmax(flat[k]))
                top[k] = flat[k, best]
                token[i] = best if top[k] > -np.inf else -1
            filters = self._rows[i].filters
            if filters.temperature == 0 or top[k] == -np.inf:
                continue
            if i in self._filtered:
                filtered.append(k)
                if self._edits[i]:
                    parts.groups[k] = tiles.column_maxima(z[k : k + 1])[0].numpy()
            elif self._edits[i] or filters.temperature != 1:
                scaled.append(k)
            else:
                plain.append(k)
        scale = self._scale[start : start + count]
        weighed = scaled + [k for k in filtered if _needs_mass(self._rows[start + k], self._vocabulary)]
        masses = _tile_masses(z, weighed, top, scale, scratch)
        for k, row_masses in zip(weighed[: len(scaled)], masses, strict=False):
            self._enter_tile(start + k, row_masses, z[k].numpy(), top[k], scale[k])
        for k, row_masses in zip(plain, _plain_masses(parts, plain, top), strict=True):
            self._enter_tile(start + k, row_masses, z[k].numpy(), top[k], scale[k])
        mass = dict(zip(weighed[len(scaled) :], masses[len(scaled) :].sum(-1, dtype=np.float64), strict=True))
        for k in filtered:
            scan = RowScan(z[k].numpy(), parts.groups[k], self._vocabulary)
            ids = support(scan, float(top[k]), self._rows[start + k].filters, mass.get(k))
            self._supports.append((start + k, ids, (scan.values(ids) - top[k]) * scale[k]))

    def _enter_tile(self, row: int, masses: Floats, z: Floats, top: np.float32, scale: np.float32) -> None:
        tile = int(np.argmax(masses / self._clocks[row]))
        self._tiles.append((row, tile * tiles.TILE, (z[tile] - top) * scale))

    def finish(self, token: Ids) -> None:
        """Run the races over tokens and store the winners."""
        if self._tiles:
            which, first, logs = zip(*self._tiles, strict=True)
            start = np.array(first)
            width = min(tiles.TILE, self._vocabulary)
            weights = np.exp(np.stack(logs)[:, :width])
            keys, position = self._keys(list(which))
            clocks = rng.exponential(rng.uniform_run(keys, position, rng.Stream.TOKEN, start, width))
            token[list(which)] = start + np.argmax(weights / clocks, axis=-1)
        if self._supports:
            which, ids, logs = zip(*self._supports, strict=True)
            sizes = np.array([len(row) for row in ids])
            keys, position = self._keys(list(which))
            index = np.concatenate(ids)
            clocks = rng.exponential(
                rng.uniform_ragged(np.repeat(keys, sizes), np.repeat(position, sizes), rng.Stream.TOKEN, index)
            )
            ratio = np.exp(np.concatenate(logs)) / clocks
            end = 0
            for i, row in zip(which, ids, strict=True):
                token[i] = row[np.argmax(ratio[end : end + len(row)])]
                end += len(row)


def _needs_mass(row: RowPick, vocabulary: int) -> bool:
    return row.filters.top_p < 1 and not 0 < row.filters.top_k < vocabulary


def _plain_masses(parts: tiles.Partials, which: list[int], top: Floats) -> Floats:
    """[n, NT] masses sum exp(z - max) at temperature 1, from the partials."""
    m, s = parts.m[which], parts.s[which]
    masses: Floats = np.exp(m - top[which][:, None]) * s
    return masses


def _tile_masses(z: torch.Tensor, which: list[int], top: Floats, scale: Floats, scratch: torch.Tensor) -> Floats:
    """[n, NT] masses sum exp((z - max) / temperature) of the tiles of some rows."""
    if not which:
        return np.empty((0, z.shape[1]), np.float32)
    out = scratch[: len(which)]
    source = z if len(which) == z.shape[0] and which == list(range(len(which))) else z[which]
    torch.sub(source, torch.from_numpy(top[which])[:, None, None], out=out)
    out.mul_(torch.from_numpy(scale[which])[:, None, None]).exp_()
    return out.sum(-1).numpy()


def filtered_logprobs(logits: torch.Tensor, rows: Sequence[RowPick]) -> torch.Tensor:
    """The distribution that ``pick`` draws from: float32 [R, V] on the CPU, ln p, -inf outside the support.

    Temperature 0 puts all mass on the token that greedy takes. A row with nothing finite is -inf throughout.
    """
    tiles.check_logits(logits)
    if len(rows) != logits.shape[0]:
        raise ValueError(f"rows: {len(rows)} of them: accepted: {logits.shape[0]}, one per row of logits")
    vocabulary = logits.shape[1]
    result = torch.full(logits.shape, _NEG_INF, dtype=torch.float32)
    for i, row in enumerate(rows):
        z = tiles.load(logits[i : i + 1].detach().to("cpu"))
        scratch = torch.empty((2, *z.shape), dtype=torch.float32)
        tiles.partials(z, vocabulary, scratch)
        flat = z.view(-1).numpy()[:vocabulary]
        edit(flat, row)
        best = int(np.argmax(flat))
        top = flat[best : best + 1].copy()
        if top[0] == _NEG_INF:
            continue
        if row.filters.temperature == 0:
            result[i, best] = 0.0
            continue
        scale = np.array([inverse_temperature(row.filters)])
        if row.restricts(vocabulary):
            mass = None
            if _needs_mass(row, vocabulary):
                mass = float(_tile_masses(z, [0], top, scale, scratch[0]).sum(-1, dtype=np.float64)[0])
            scan = RowScan(z[0].numpy(), tiles.column_maxima(z)[0].numpy(), vocabulary)
            ids = support(scan, float(top[0]), row.filters, mass)
        else:
            ids = np.arange(vocabulary)
        y = ((flat[ids] - top[0]) * scale[0]).astype(np.float64)
        result[i, torch.from_numpy(ids)] = torch.from_numpy(y - np.log(np.exp(y).sum())).float()
    return result
