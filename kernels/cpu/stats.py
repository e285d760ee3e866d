"""Log-sum-exp, entropy, top probability and argmax of rows of logits in one pass over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.cpu import tiles
from trimtab.kernels.cpu.row_scan import RowScan
from trimtab.kernels.results import FLAG_EMPTY, FLAG_UNCLEAN, Stats

__all__ = ["Chunk", "Collected", "Summary", "chunks", "stats", "summarise", "top_logprobs"]

Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]


class Summary(NamedTuple):
    """A row from its tiles, on the host; float64 [R] unless said otherwise, tiles added in index order."""

    top: Doubles  # the largest logit
    mass: Doubles  # sum of exp(z - top)
    log_mass: Doubles
    entropy: Doubles
    argmax: Ids  # int64
    flags: NDArray[np.uint8]


def summarise(z: torch.Tensor, parts: tiles.Partials) -> Summary:
    """Merge tiles: S = sum w s and T = sum w (t + (m - M) s) with w = exp(m - M); lse = M + ln S, H = ln S - T / S.

    An empty row gets top -inf, mass 1, entropy 0 and argmax -1.
    """
    m = parts.m.astype(np.float64)
    top = m.max(-1)
    empty = top == -np.inf
    some_empty = bool(empty.any())
    # An empty tile has no mass, however small the floor; an empty row is put right below.
    gap = np.maximum(m - (np.where(empty, 0.0, top) if some_empty else top)[:, None], -1000.0)
    held = np.exp(gap) * parts.s
    mass = held.sum(-1)
    moment = (np.exp(gap) * parts.t + gap * held).sum(-1)
    tile = parts.m.argmax(-1)
    argmax = tile * tiles.TILE + z.numpy()[np.arange(len(tile)), tile].argmax(-1)
    if some_empty:
        mass[empty], moment[empty], argmax[empty] = 1.0, 0.0, -1
    log_mass = np.log(mass)
    # Rounding can leave -1e-9 for a row with one finite logit.
    entropy = np.maximum(log_mass - moment / mass, 0.0)
    flags = (empty * FLAG_EMPTY + parts.unclean * FLAG_UNCLEAN).astype(np.uint8)
    return Summary(top, mass, log_mass, entropy, argmax, flags)


class Chunk(NamedTuple):
    """A few rows at work; valid until the next ones take their place.

    Attributes:
        start: the first row's number in the call.
        z: float32 [r, NT, width], their clean logits; may be written to.
        parts, whole: their partials and summary.
        scratch: float32 [2, r, NT, width] to write to.
    """

    start: int
    z: torch.Tensor
    parts: tiles.Partials
    whole: Summary
    scratch: torch.Tensor


def chunks(host: torch.Tensor) -> Iterator[Chunk]:
    """Logits [R, V] on the CPU, a few rows at a time."""
    rows, vocabulary = host.shape
    space = tiles.Workspace(rows, vocabulary)
    for start in range(0, rows, space.step):
        z = space.load(host[start : start + space.step])
        scratch = space.scratch(len(z))
        parts = tiles.partials(z, vocabulary, scratch)
        yield Chunk(start, z, parts, summarise(z, parts), scratch)


class Collected:
    """Rows of ``Stats`` filled in chunk by chunk.

    Attributes:
        top, mass: float64 [R], of ``Summary``.
    """

    __slots__ = ("_argmax", "_entropy", "_flags", "_log_mass", "_logprob", "_top_prob", "mass", "top")

    def __init__(self, rows: int) -> None:
        self.top, self.mass, self._log_mass, self._entropy, self._top_prob, self._logprob = np.empty((6, rows))
        self._argmax = np.empty(rows, np.int64)
        self._flags = np.empty(rows, np.uint8)

    def put(self, chunk: Chunk) -> None:
        """Store a chunk; logprob becomes that of the argmax."""
        rows = chunk.whole
        at = slice(chunk.start, chunk.start + len(rows.top))
        self.top[at], self.mass[at], self._log_mass[at] = rows.top, rows.mass, rows.log_mass
        self._entropy[at] = rows.entropy
        self._argmax[at] = rows.argmax
        self._flags[at] = rows.flags
        self._top_prob[at] = 1 / rows.mass
        self._logprob[at] = -rows.log_mass
        if rows.flags.any():
            empty = rows.argmax < 0
            self._top_prob[at][empty] = 0.0
            self._logprob[at][empty] = -np.inf

    def choose(self, logits: torch.Tensor, ids: Ids) -> None:
        """Make logprob that of the given tokens; -inf for token -1, for a logit that is not finite, in empty rows."""
        if len(ids):
            self.take(logits.gather(1, torch.from_numpy(np.maximum(ids, 0))[:, None])[:, 0].double().numpy(), ids)

    def take(self, value: Doubles, ids: Ids) -> None:
        """``choose`` by the logits of the tokens."""
        usable = (ids >= 0) & np.isfinite(value) & (self._argmax >= 0)
        if usable.all():
            self._logprob = value - self.top - self._log_mass
        else:
            self._logprob = np.full(len(ids), -np.inf)
            self._logprob[usable] = value[usable] - self.top[usable] - self._log_mass[usable]

    def stats(self, device: torch.device) -> Stats:
        """The rows as tensors."""
        reals = np.stack([self.top + self._log_mass, self._entropy, self._top_prob, self._logprob])
        lse, entropy, top_prob, logprob = reals.astype(np.float32)
        found = Stats(*map(torch.from_numpy, (lse, entropy, top_prob, self._argmax, logprob, self._flags)))
        return found if device.type == "cpu" else Stats(*(part.to(device) for part in found))


def stats(logits: torch.Tensor, tokens: torch.Tensor | None) -> Stats:
    """See ``dispatch.stats``."""
    host = logits.detach().to("cpu")
    found = Collected(len(host))
    for chunk in chunks(host):
        found.put(chunk)
    if tokens is not None:
        found.choose(host, tokens.to("cpu").numpy())
    return found.stats(logits.device)


def top_logprobs(logits: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``dispatch.top_logprobs``."""
    rows, vocabulary = logits.shape
    ids = torch.full((rows, n), -1, dtype=torch.int64)
    values = torch.full((rows, n), float("-inf"), dtype=torch.float32)
    for start, z, parts, whole, _ in chunks(logits.detach().to("cpu")):
        for k in np.flatnonzero(whole.argmax >= 0):
            scan = RowScan(z[k].numpy(), parts.groups[k], vocabulary)
            found = scan.at_least(scan.bound_of_largest(n))
            value = scan.values(found)
            order = np.lexsort((found, -value))[:n]
            ids[start + k, : len(order)] = torch.from_numpy(found[order])
            values[start + k, : len(order)] = torch.from_numpy(value[order] - whole.top[k] - whole.log_mass[k])
    return ids.to(logits.device), values.to(logits.device)
