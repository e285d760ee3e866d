"""Picking one token per row: greedy, sampled, or sampled under filters. The scheme is that of ``races``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from trimtab.kernels.reference import tiles
from trimtab.kernels.reference.entropy import Collected, Stats, summarise
from trimtab.kernels.reference.filters import check_rows, edit, exponents, inverse_temperature, support
from trimtab.kernels.reference.races import Races, needs_mass, tile_masses
from trimtab.kernels.reference.row_scan import RowScan
from trimtab.kernels.types import RowPick

__all__ = ["Picked", "filtered_logprobs", "pick"]

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
    check_rows(rows, logits.shape[0])
    host = logits.detach().to("cpu")
    vocabulary = host.shape[1]
    found = Collected(len(rows))
    token = np.empty(len(rows), np.int64)
    races = Races(rows, vocabulary)
    space = tiles.Workspace(len(rows), vocabulary)
    for start in range(0, len(rows), space.step):
        z = space.load(host[start : start + space.step])
        scratch = space.scratch(len(z))
        parts = tiles.partials(z, vocabulary, scratch)
        whole = summarise(z, parts)
        found.put(start, whole)
        token[start : start + len(z)] = whole.argmax
        races.enter(start, z, parts, whole, scratch[0], token)
    races.finish(token)
    if races.touched:
        found.choose(host, token)
    return Picked(torch.from_numpy(token).to(logits.device), found.stats(logits.device))


def filtered_logprobs(logits: torch.Tensor, rows: Sequence[RowPick]) -> torch.Tensor:
    """The distribution that ``pick`` draws from: float32 [R, V] on the CPU, ln p, -inf outside the support.

    Temperature 0 puts all mass on the token that greedy takes. A row with nothing finite is -inf throughout.
    """
    tiles.check_logits(logits)
    if len(rows) != logits.shape[0]:
        raise ValueError(f"rows: {len(rows)} of them: accepted: {logits.shape[0]}, one per row of logits")
    vocabulary = logits.shape[1]
    result = torch.full(logits.shape, _NEG_INF, dtype=torch.float32)
    space = tiles.Workspace(1, vocabulary)
    scratch = space.scratch(1)
    for i, row in enumerate(rows):
        z = space.load(logits[i : i + 1].detach().to("cpu"))
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
            if needs_mass(row, vocabulary):
                mass = float(tile_masses(z, [0], top, scale, scratch[0]).sum(-1, dtype=np.float64)[0])
            scan = RowScan(z[0].numpy(), tiles.column_maxima(z)[0].numpy(), vocabulary)
            ids = support(scan, float(top[0]), row.filters, mass)
        else:
            ids = np.arange(vocabulary)
        y = exponents(flat[ids], top[0], scale[0]).astype(np.float64)
        result[i, torch.from_numpy(ids)] = torch.from_numpy(y - np.log(np.exp(y).sum())).float()
    return result
