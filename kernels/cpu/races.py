"""Drawing tokens by races of exponential clocks.

A race draws index i with probability w_i / sum w: the largest w_i / E_i wins, ties to the lowest index (the Gumbel
trick without its logarithm). Weights are exp((z - max) / temperature), with max over the row.

*Unfiltered rows* race three times: tiles of the vocabulary by their mass (stream TILE, index: tile), the columns of the
winning tile (stream COLUMN, index: token id mod 64), the lines of the winning column (stream LINE, index: line, so that
token = 4096 tile + 64 line + column). The product of the three probabilities is the token's own. It takes
V / 4096 + 128 random numbers: with a number per token of the tile instead, making them would be half the cost of a row.
None depends on an earlier step, so all rows' numbers are made at once.

*Filtered rows* race once, over their support (stream TOKEN, index: token id). Top-k, top-p and min-p each keep
{z >= threshold}, so the support is one comparison, and the outcome depends on the support and on the clocks of its
tokens alone, however the thresholds were found: here by looking at column maxima, on a GPU by bisection over the tiles
that survive. Rejection (draw, test for membership, draw again) gives the same distribution but ties the token to the
number of rounds, and needs a further pass in each.

Which of the two applies is decided by the row's own filters and the vocabulary, never by the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels import rng
from trimtab.kernels.cpu import tiles
from trimtab.kernels.cpu.filters import edit, exponents, inverse_temperature, support
from trimtab.kernels.cpu.row_scan import RowScan
from trimtab.kernels.cpu.stats import Chunk
from trimtab.kernels.types import Key, Pick, Stream

__all__ = ["Races", "clocks", "keys_of", "needs_mass", "race", "tile_masses"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Keys = tuple[NDArray[np.uint64], NDArray[np.int64]]

# Tokens of supports held back before their race is run: enough rows to share the fixed cost of the generator, few
# enough to stay in the caches.
_WAITING = 1 << 14


class Races:
    """The draws of one call, chunk by chunk.

    Args:
        rows: all rows of the call.
        vocabulary: V.

    Attributes:
        touched: whether some row's token may not be its argmax.
    """

    def __init__(self, rows: Sequence[Pick], vocabulary: int) -> None:
        self._rows = rows
        self._vocabulary = vocabulary
        self._edits = [row.edits for row in rows]
        sampled = [i for i, row in enumerate(rows) if row.filters.temperature > 0]
        self.touched = bool(sampled) or any(self._edits)
        self._filtered = {i for i in sampled if rows[i].restricts(vocabulary)}
        self._tiled = {i: n for n, i in enumerate(i for i in sampled if i not in self._filtered)}
        self._scale = np.array([inverse_temperature(row.filters) for row in rows], np.float32)
        self._clocks: list[Floats] = []
        if self._tiled:
            self._clocks = clocks(self._keys(list(self._tiled)), vocabulary)
        self._supports: list[tuple[int, Ids, Floats]] = []  # row, ids, (z - max) / temperature
        self._waiting = 0

    def _keys(self, which: Sequence[int]) -> Keys:
        return keys_of((self._rows[i].key, self._rows[i].position) for i in which)

    def enter(self, chunk: Chunk, token: Ids) -> None:
        """Take one chunk of rows while it is in the caches.

        Writes to ``token`` (int64, of the whole call) for the rows whose token is not the argmax; those under filters
        may wait until ``finish``. Edits the logits and column maxima of the chunk in place, and overwrites its scratch.
        """
        start, z, parts, whole, scratch = chunk
        here = range(start, start + len(whole.top))
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
        scale = self._scale[start : start + len(whole.top)]
        weighed = scaled + [k for k in filtered if needs_mass(self._rows[start + k], self._vocabulary)]
        masses = tile_masses(z, weighed, top, scale, scratch[0])
        if plain or scaled:
            both = plain + scaled
            m, s = parts.m[plain], parts.s[plain]
            of_plain = np.exp(m - top[plain][:, None]) * s
            chosen = np.concatenate([of_plain, masses[: len(scaled)]])
            token[[start + k for k in both]] = self._three_races(start, both, z.numpy(), chosen, top, scale)
        mass = dict(zip(weighed[len(scaled) :], masses[len(scaled) :].sum(-1, dtype=np.float64), strict=True))
        for k in filtered:
            scan = RowScan(z[k].numpy(), parts.groups[k], self._vocabulary)
            ids = support(scan, float(top[k]), self._rows[start + k].filters, mass.get(k))
            self._supports.append((start + k, ids, exponents(scan.values(ids), top[k], scale[k])))
            self._waiting += len(ids)
        if self._waiting > _WAITING:
            self.finish(token)

    def _three_races(self, start: int, which: list[int], z: Floats, masses: Floats, top: Floats, scale: Floats) -> Ids:
        """Tokens int64 [n] of the unfiltered rows ``which`` of a chunk, by their tile masses [n, NT]."""
        of_tile, of_column, of_line = (clock[[self._tiled[start + k] for k in which]] for clock in self._clocks)
        each = np.arange(len(which))
        tile = np.argmax(masses / of_tile, axis=-1)
        inside = exponents(z[which, tile], top[which][:, None], scale[which][:, None])
        weights = np.exp(inside).reshape(len(which), -1, tiles.GROUP)
        column = np.argmax(weights.sum(1) / of_column, axis=-1)
        line = np.argmax(weights[each, :, column] / of_line, axis=-1)
        token: Ids = tile * tiles.TILE + line * tiles.GROUP + column
        return token

    def finish(self, token: Ids) -> None:
        """Run the races that wait, and store their winners."""
        if not self._supports:
            return
        which, ids, logs = zip(*self._supports, strict=True)
        token[list(which)] = race(self._keys(which), ids, [np.exp(log) for log in logs])
        self._supports, self._waiting = [], 0


def keys_of(rows: Iterable[tuple[Key, int]]) -> Keys:
    """Keys uint64 [n] and positions int64 [n] of the generator."""
    keys, positions = zip(*rows, strict=True)
    return np.array([key.bits for key in keys], np.uint64), np.array(positions, np.int64)


def clocks(keys: Keys, vocabulary: int) -> list[Floats]:
    """Clocks of the three races of unfiltered rows: float32 [n, NT], [n, GROUP] and [n, lines of a tile]."""
    count, width = tiles.tiling(vocabulary)
    runs = [(Stream.TILE, count), (Stream.COLUMN, tiles.GROUP), (Stream.LINE, width // tiles.GROUP)]
    return [rng.exponential(u) for u in rng.uniform_runs(*keys, runs)]


def race(keys: Keys, ids: Sequence[Ids], weights: Sequence[Floats]) -> Ids:
    """Winners int64 [n] of n races, each among the tokens of a support; all share one call of the generator."""
    sizes = [len(support) for support in ids]
    index = np.concatenate(ids)
    u = rng.uniform_ragged(np.repeat(keys[0], sizes), np.repeat(keys[1], sizes), Stream.TOKEN, index)
    ratio = np.concatenate(weights) / rng.exponential(u)
    winners, end = np.empty(len(ids), np.int64), 0
    for n, own in enumerate(ids):
        winners[n] = own[np.argmax(ratio[end : end + len(own)])]
        end += len(own)
    return winners


def needs_mass(row: Pick, vocabulary: int) -> bool:
    """Whether ``support`` wants the mass of the whole row."""
    return row.filters.top_p < 1 and not 0 < row.filters.top_k < vocabulary


def tile_masses(z: torch.Tensor, which: list[int], top: Floats, scale: Floats, scratch: torch.Tensor) -> Floats:
    """[n, NT] masses sum exp((z - max) / temperature) of the tiles of rows ``which`` of z [R, NT, width].

    top and scale are [R]; scratch is float32 of z's shape and overwritten.
    """
    if not which:
        return np.empty((0, z.shape[1]), np.float32)
    out = scratch[: len(which)]
    source = z if which == list(range(len(z))) else z[which]
    torch.sub(source, torch.from_numpy(top[which])[:, None, None], out=out)
    out.mul_(torch.from_numpy(scale[which])[:, None, None]).exp_()
    return out.sum(-1).numpy()
