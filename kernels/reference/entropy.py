"""Log-sum-exp, entropy, top probability and argmax of rows of logits in one pass over the vocabulary."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.reference import tiles
from trimtab.kernels.reference.filters import support
from trimtab.kernels.reference.row_scan import RowScan
from trimtab.kernels.types import Filters

__all__ = [
    "Collected",
    "Nucleus",
    "Stats",
    "Summary",
    "check_tokens",
    "nucleus_entropy",
    "stats",
    "summarise",
    "top_logprobs",
]

Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]


class Stats(NamedTuple):
    """What a step reports of each row's distribution softmax(logits), temperature 1, nothing filtered. All [R].

    Attributes:
        lse: float32, ln of the sum of exp(logits); -inf for an empty row.
        entropy: float32, nats; exp of it is the branching factor. 0 for an empty row.
        top_prob: float32, the largest probability; 0 for an empty row.
        argmax: int64, the lowest id of the largest logit; -1 for an empty row.
        logprob: float32, ln p of the given tokens (of ``argmax`` where none were given); -inf for token -1 and for
            banned tokens.
        flags: uint8, ``FLAG_EMPTY`` (no finite logit) and ``FLAG_UNCLEAN`` (NaN or +inf were read as -inf).
    """

    lse: torch.Tensor
    entropy: torch.Tensor
    top_prob: torch.Tensor
    argmax: torch.Tensor
    logprob: torch.Tensor
    flags: torch.Tensor


class Nucleus(NamedTuple):
    """The nucleus of each row: the fewest tokens, most likely first, that hold top_p of the mass. All [R].

    Attributes:
        entropy: float32, nats, of the distribution renormalised over the nucleus; exp of it is the branching factor. 0
            for an empty row.
        size: int64, number of tokens; those equal to the last one are in. 0 for an empty row.
        mass: float32, what they hold together before renormalisation; 0 for an empty row.
    """

    entropy: torch.Tensor
    size: torch.Tensor
    mass: torch.Tensor


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
    flags = (empty * tiles.FLAG_EMPTY + parts.unclean * tiles.FLAG_UNCLEAN).astype(np.uint8)
    return Summary(top, mass, log_mass, entropy, argmax, flags)


class Collected:
    """Rows of ``Stats`` filled in chunk by chunk."""

    __slots__ = ("_argmax", "_entropy", "_flags", "_log_mass", "_logprob", "_top", "_top_prob")

    def __init__(self, rows: int) -> None:
        self._top, self._log_mass, self._entropy, self._top_prob, self._logprob = np.empty((5, rows))
        self._argmax = np.empty(rows, np.int64)
        self._flags = np.empty(rows, np.uint8)

    def put(self, start: int, rows: Summary) -> None:
        """Store a chunk; logprob becomes that of the argmax."""
        at = slice(start, start + len(rows.top))
        self._top[at], self._log_mass[at] = rows.top, rows.log_mass
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
            self._logprob = value - self._top - self._log_mass
        else:
            self._logprob = np.full(len(ids), -np.inf)
            self._logprob[usable] = value[usable] - self._top[usable] - self._log_mass[usable]

    def stats(self, device: torch.device) -> Stats:
        """The rows as tensors."""
        reals = np.stack([self._top + self._log_mass, self._entropy, self._top_prob, self._logprob])
        lse, entropy, top_prob, logprob = reals.astype(np.float32)
        found = Stats(*map(torch.from_numpy, (lse, entropy, top_prob, self._argmax, logprob, self._flags)))
        return found if device.type == "cpu" else Stats(*(part.to(device) for part in found))


def check_tokens(tokens: torch.Tensor, logits: torch.Tensor, values: bool = True) -> None:
    """Raise TypeError or ValueError unless tokens is int64 [R], beside the logits, with (``values``) all in [-1, V)."""
    if tokens.dtype != torch.int64:
        raise TypeError(f"tokens.dtype = {tokens.dtype}: accepted: torch.int64")
    rows, vocabulary = logits.shape
    if tuple(tokens.shape) != (rows,):
        raise ValueError(f"tokens.shape = {tuple(tokens.shape)}: accepted: ({rows},), one per row of logits")
    if tokens.device != logits.device:
        raise ValueError(f"tokens.device = {tokens.device}: accepted: {logits.device}, that of logits")
    if rows and values:
        low, high = tokens.aminmax()
        if int(low) < -1 or int(high) >= vocabulary:
            bad = int(low) if int(low) < -1 else int(high)
            raise ValueError(f"tokens holds {bad}: accepted: token ids below {vocabulary}, or -1 for none")


def stats(logits: torch.Tensor, tokens: torch.Tensor | None = None) -> Stats:
    """Statistics of softmax(logits), one pass in tiles.

    Args:
        logits: [R, V], float32, bfloat16 or float16, any strides, any device (the work is done on the CPU).
            -inf bans a token; NaN and +inf count as -inf and set ``FLAG_UNCLEAN``.
        tokens: int64 [R], whose ln p is wanted; -1 for none.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, or a token outside the vocabulary.
    """
    tiles.check_logits(logits)
    if tokens is not None:
        check_tokens(tokens, logits)
    host = logits.detach().to("cpu")
    rows, vocabulary = host.shape
    found = Collected(rows)
    space = tiles.Workspace(rows, vocabulary)
    for start in range(0, rows, space.step):
        z = space.load(host[start : start + space.step])
        found.put(start, summarise(z, tiles.partials(z, vocabulary, space.scratch(len(z)))))
    if tokens is not None:
        found.choose(host, tokens.to("cpu").numpy())
    return found.stats(logits.device)


def top_logprobs(logits: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n most likely tokens of softmax(logits) and their ln p, most likely first, ties by the lower id.

    Args:
        logits: as in ``stats``.
        n: in [1, V].

    Returns:
        ids int64 [R, n] and logprobs float32 [R, n]; where fewer than n logits are finite, id -1 and -inf.
    """
    tiles.check_logits(logits)
    rows, vocabulary = logits.shape
    if not 1 <= n <= vocabulary:
        raise ValueError(f"n = {n}: accepted: 1 to the size of the vocabulary, {vocabulary}")
    ids = torch.full((rows, n), -1, dtype=torch.int64)
    values = torch.full((rows, n), float("-inf"), dtype=torch.float32)
    host = logits.detach().to("cpu")
    space = tiles.Workspace(1, vocabulary)
    for row in range(rows):
        z = space.load(host[row : row + 1])
        parts = tiles.partials(z, vocabulary, space.scratch(1))
        whole = summarise(z, parts)
        if whole.argmax[0] < 0:
            continue
        scan = RowScan(z[0].numpy(), parts.groups[0], vocabulary)
        found = scan.at_least(scan.bound_of_largest(n))
        value = scan.values(found)
        order = np.lexsort((found, -value))[:n]
        ids[row, : len(order)] = torch.from_numpy(found[order])
        values[row, : len(order)] = torch.from_numpy(value[order] - whole.top[0] - whole.log_mass[0])
    return ids.to(logits.device), values.to(logits.device)


def nucleus_entropy(logits: torch.Tensor, top_p: float) -> Nucleus:
    """Entropy of softmax(logits) renormalised over its nucleus: what branching-factor estimators average.

    Args:
        logits: as in ``stats``.
        top_p: mass of the nucleus, in (0, 1].

    Raises:
        TypeError, ValueError: a wrong dtype or shape, or top_p outside its range.
    """
    tiles.check_logits(logits)
    filters = Filters(1.0, top_p=top_p)
    rows, vocabulary = logits.shape
    entropy, mass = np.zeros((2, rows), np.float32)
    size = np.zeros(rows, np.int64)
    host = logits.detach().to("cpu")
    space = tiles.Workspace(rows, vocabulary)
    for start in range(0, rows, space.step):
        z = space.load(host[start : start + space.step])
        parts = tiles.partials(z, vocabulary, space.scratch(len(z)))
        whole = summarise(z, parts)
        for k in np.flatnonzero(whole.argmax >= 0):
            scan = RowScan(z[k].numpy(), parts.groups[k], vocabulary)
            shifted = scan.values(support(scan, float(whole.top[k]), filters, float(whole.mass[k]))) - whole.top[k]
            weights = np.exp(shifted)
            held = float(weights.sum())
            i = start + int(k)
            size[i], mass[i] = len(shifted), min(held / whole.mass[k], 1.0)
            entropy[i] = max(np.log(held) - float(weights @ shifted) / held, 0.0)
    return Nucleus(*(torch.from_numpy(part).to(logits.device) for part in (entropy, size, mass)))
