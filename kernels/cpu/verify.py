"""Speculation verified: how many drafted tokens stand, and the token after them.

*Speculative sampling* (Leviathan, Kalman, Matias 2023, algorithm 1; Chen et al. 2023, algorithm 2). A token y drafted
from q stands with probability min(1, p(y) / q(y)); at the first that does not, the token is drawn from max(p - q, 0),
normalised, instead; after K that do, one more is drawn from p. Each token written then follows p, whatever q was: p
and q are the distributions after edits, temperature and filters. The number that decides at a position has its own
stream (ACCEPT), and what is drawn after a rejection its own key (``residual``).

*Coupled* windows, and positions at temperature 0, ask for more than that: the target's token is picked at every
position exactly as without speculation, and a drafted token stands while it equals it.

On the CPU a draft's row is read only while its window stands: after a rejection nothing more is asked of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.cpu.distribution import Distribution, RowBuffer, distribution_of
from trimtab.kernels.cpu.filters import inverse_temperature
from trimtab.kernels.cpu.pick import draw
from trimtab.kernels.cpu.residual import Columns, Proposal, Rejection, Residuals
from trimtab.kernels.cpu.stats import Collected, chunks
from trimtab.kernels.results import Verified
from trimtab.kernels.types import Draft, Pick, Stream, Window

__all__ = ["columns_of", "verify"]

Ids = NDArray[np.int64]

_NOTHING = Pick()  # greedy: asks for no more than the statistics


def verify(logits: torch.Tensor, windows: Sequence[Window]) -> Verified:
    """See ``dispatch.verify``."""
    host = logits.detach().to("cpu")
    picked, found = draw(chunks(host), host, _picks_of(windows), host.shape[1])
    scan = _Scan(host, picked, found, windows)
    accepted = np.zeros(len(windows), np.int64)
    token = np.empty(len(windows), np.int64)
    rejections: list[tuple[int, Rejection]] = []
    start = 0
    for i, window in enumerate(windows):
        stand, after = scan.run(window, start)
        accepted[i] = stand
        if isinstance(after, Rejection):
            rejections.append((i, after))
        else:
            token[i] = after
        start += len(window.rows)
    if rejections:
        which, drawn = zip(*rejections, strict=True)
        token[list(which)] = Residuals(drawn, scan.buffer).draw()
    chosen = np.full(start, -1, np.int64)
    start = 0
    for window, stand, after in zip(windows, accepted.tolist(), token.tolist(), strict=True):
        chosen[start : start + stand] = window.tokens[:stand]
        chosen[start + stand] = after
        start += len(window.rows)
    found.choose(host, chosen)
    device = logits.device
    return Verified(torch.from_numpy(accepted).to(device), torch.from_numpy(token).to(device), found.stats(device))


def _picks_of(windows: Sequence[Window]) -> list[Pick]:
    """How each row is picked whatever the draft says: after the drafted tokens, where coupled, at temperature 0.

    The others ask for no more than their statistics.
    """
    return [
        row if window.draft is None or row.filters.temperature == 0 or j == len(window.tokens) else _NOTHING
        for window in windows
        for j, row in enumerate(window.rows)
    ]


class _Scan:
    """Walks through windows until a token falls.

    Args:
        host: the target's logits.
        picked: int64 [N], what the target picks at coupled and greedy positions and after each window.
        found: statistics of its rows.
    """

    def __init__(self, host: torch.Tensor, picked: Ids, found: Collected, windows: Sequence[Window]) -> None:
        self._host, self._picked, self._found = host, picked, found
        self._vocabulary = host.shape[1]
        self.buffer = RowBuffer(self._vocabulary)
        self._buffers: dict[int, RowBuffer] = {}
        self._columns: dict[int, Columns] = {}
        for window in windows:
            if window.draft is not None and window.draft.ids is not None and id(window.draft.ids) not in self._columns:
                self._columns[id(window.draft.ids)] = columns_of(window.draft.ids, self._vocabulary)

    def run(self, window: Window, start: int) -> tuple[int, int | Rejection]:
        """How many tokens of a window stand, whose rows begin at ``start``, and what comes after them."""
        for j, (y, row) in enumerate(zip(window.tokens, window.rows, strict=False)):
            if window.draft is None or row.filters.temperature == 0:
                if self._picked[start + j] != y:
                    return j, int(self._picked[start + j])
                continue
            after = self._test(window.draft, j, y, row, start + j)
            if after is not None:
                return j, after
        return len(window.tokens), int(self._picked[start + len(window.tokens)])

    def _test(self, draft: Draft, j: int, y: int, row: Pick, i: int) -> int | Rejection | None:
        """None where token y stands at row i; else the refusal, or -1 where the target has nothing finite."""
        source = self._host[i]
        p = self._target(source, row, i)
        if p is None:
            return -1
        log_p = p.logprob(self._logit(source, row, y))
        proposal, log_q = self._proposal(draft, j, y)
        if log_q > -math.inf and log_p > -math.inf:
            u = row.key.uniform(row.position, Stream.ACCEPT)
            if log_p >= log_q or math.log(u) < log_p - log_q:
                return None
        return Rejection(source, row, p, y, log_q > -math.inf, proposal)

    def _target(self, source: torch.Tensor, row: Pick, i: int) -> Distribution | None:
        if row.edits or row.filters.temperature != 1 or row.restricts(self._vocabulary):
            return distribution_of(self.buffer, source, row, float(self._found.mass[i]))
        top = self._found.top[i]
        if top == -math.inf:
            return None
        mass = float(self._found.mass[i])
        return Distribution(np.float32(top), inverse_temperature(row.filters), np.float32(-np.inf), mass)

    def _logit(self, source: torch.Tensor, row: Pick, y: int) -> np.float32:
        if row.edits:
            return np.float32(self.buffer.z[y])  # ``_target`` has left the edited row there
        z = source[y].item()
        return np.float32(z if math.isfinite(z) else -math.inf)

    def _proposal(self, draft: Draft, j: int, y: int) -> tuple[Proposal, float]:
        """What token y was drawn from, and ln q(y)."""
        if draft.logits is None:
            return Proposal(None, _NOTHING, None, None, None), 0.0
        size = draft.logits.shape[1]
        buffer = self._buffers.get(size)
        if buffer is None:
            buffer = self._buffers[size] = RowBuffer(size)
        source = draft.logits[j].detach().to("cpu")
        row = draft.rows[j]
        known = draft.top_probs[j] if draft.top_probs is not None else 0.0
        q = distribution_of(buffer, source, row, 1 / known if known > 0 else None)
        columns = self._columns[id(draft.ids)] if draft.ids is not None else None
        column = y if columns is None else int(columns.column[y])
        log_q = q.logprob(buffer.z[column]) if q is not None and 0 <= column < size else -math.inf
        return Proposal(source, row, q, columns, buffer), log_q


def columns_of(ids: torch.Tensor, vocabulary: int) -> Columns:
    """Both directions of a draft's ``ids``.

    Raises:
        ValueError: an id outside the target's vocabulary, or twice.
    """
    forward = ids.to("cpu").numpy()
    if forward.size and not (int(forward.min()) >= 0 and int(forward.max()) < vocabulary):
        bad = int(forward.min()) if int(forward.min()) < 0 else int(forward.max())
        raise ValueError(f"draft.ids holds {bad}: accepted: ids of the target's vocabulary, in [0, {vocabulary})")
    column = np.full(vocabulary, -1, np.int64)
    column[forward] = np.arange(len(forward))
    if int(np.count_nonzero(column >= 0)) != len(forward):
        twice = int(forward[np.flatnonzero(column[forward] != np.arange(len(forward)))[0]])
        raise ValueError(f"draft.ids holds {twice} twice: accepted: distinct ids")
    return Columns(forward, column)
