"""Picking one token per row: greedy, sampled, or sampled under filters. The scheme is that of ``races``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.cpu.races import Races
from trimtab.kernels.cpu.stats import Chunk, Collected, chunks
from trimtab.kernels.results import Picked
from trimtab.kernels.types import Pick

__all__ = ["draw", "pick"]

Ids = NDArray[np.int64]


def draw(
    work: Iterable[Chunk], host: torch.Tensor | None, rows: Sequence[Pick], vocabulary: int
) -> tuple[Ids, Collected]:
    """Tokens int64 [R], and statistics with their logprobs.

    Args:
        work: all rows of the call.
        host: the logits, if they are what the chunks hold; None: chunks hold something that is nowhere else.
    """
    found = Collected(len(rows))
    token = np.empty(len(rows), np.int64)
    value = np.empty(len(rows), np.float64)
    races = Races(rows, vocabulary)
    for chunk in work:
        found.put(chunk)
        here = range(chunk.start, chunk.start + len(chunk.z))
        token[here.start : here.stop] = chunk.whole.argmax
        if host is not None:
            races.enter(chunk, token)
            continue
        raw = {i: chunk.z[i - chunk.start].clone() for i in here if rows[i].edits}
        races.enter(chunk, token)
        races.finish(token)  # here, since the logit of each token is wanted before the next chunk takes its place
        for i in here:
            value[i] = raw.get(i, chunk.z[i - chunk.start]).view(-1)[max(int(token[i]), 0)]
    races.finish(token)
    if races.touched and host is not None:
        found.choose(host, token)
    elif races.touched:
        found.take(value, token)
    return token, found


def pick(logits: torch.Tensor, rows: Sequence[Pick]) -> Picked:
    """See ``dispatch.pick``."""
    host = logits.detach().to("cpu")
    token, found = draw(chunks(host), host, rows, host.shape[1])
    return Picked(torch.from_numpy(token).to(logits.device), found.stats(logits.device))
