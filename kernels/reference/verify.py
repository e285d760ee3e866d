"""Speculation verified: how many drafted tokens stand, and the token after them.

*Speculative sampling* (Leviathan, Kalman, Matias 2023, algorithm 1; Chen et al. 2023, algorithm 2). A token y drafted
from q stands with probability min(1, p(y) / q(y)); at the first that does not, the token is drawn from max(p - q, 0),
normalised, instead; after K that do, one more is drawn from p. Each token written then has the law p, whatever q was: p
and q are the distributions after edits, temperature and filters. The number that decides at a position has its own
stream (ACCEPT), and what is drawn after a rejection its own key (``residual``).

*Coupled* windows, and positions at temperature 0, ask for more than the law: the target's token is picked at every
position exactly as without speculation, and a drafted token stands while it equals it.

On the CPU a draft's row is read only while its window stands: after a rejection nothing more is asked of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.kernels.reference import tiles
from trimtab.kernels.reference.entropy import Collected, Stats, summarise
from trimtab.kernels.reference.filters import inverse_temperature
from trimtab.kernels.reference.law import Law, RowBuffer, law_of
from trimtab.kernels.reference.races import Races
from trimtab.kernels.reference.residual import Columns, Proposal, Rejection, Residuals
from trimtab.kernels.types import RowPick, Stream

__all__ = ["Draft", "Verified", "Window", "check", "columns_of", "picks_of", "verify"]

Ids = NDArray[np.int64]

_NOTHING = RowPick()  # greedy: asks for no more than the statistics


class Draft(NamedTuple):
    """How the tokens of a window were drawn.

    Attributes:
        logits: [K, Vd], float32, bfloat16 or float16: the raw logits that each was drawn from; NaN and +inf count as
            -inf. None: each was certain, q = 1 (copied from the text, say).
        rows: K, the filters and so on under which each was drawn, in the draft's own ids; not read where logits is
            None. Keys and positions are not read.
        ids: int64 [Vd], distinct: id in the target's vocabulary of every column of logits. None: column = id. Tokens
            that are not among them have q = 0. On the CPU, where it is checked; on another device its kernels take it
            as it is.
        top_probs: K, the largest probability of each raw row, ``Stats.top_prob`` of drawing it: with it the CPU need
            not sum rows at temperature 1 again.
    """

    logits: torch.Tensor | None
    rows: Sequence[RowPick]
    ids: torch.Tensor | None = None
    top_probs: Sequence[float] | None = None


class Window(NamedTuple):
    """The part of one request in a ragged batch.

    Attributes:
        tokens: K >= 0 drafted ids of the target's vocabulary.
        rows: K + 1: how the target draws at each position.
        draft: how the tokens were drawn; None: coupled.
    """

    tokens: Sequence[int]
    rows: Sequence[RowPick]
    draft: Draft | None


class Verified(NamedTuple):
    """Attributes:
    accepted: int64 [R], how many drafted tokens stand, 0 to K.
    token: int64 [R], the one after them; -1 where nothing finite is left.
    stats: of all sum(K + 1) rows of raw logits (temperature 1, nothing edited or filtered); ``logprob`` is that of
        the drafted token at accepted positions, of ``token`` at the position after them, -inf beyond.
    """

    accepted: torch.Tensor
    token: torch.Tensor
    stats: Stats


def verify(logits: torch.Tensor, windows: Sequence[Window]) -> Verified:
    """Verify R windows against the target's logits.

    Args:
        logits: [sum(K + 1), V], the windows' rows one after the other, float32, bfloat16 or float16, any strides;
            -inf bans, NaN and +inf count as -inf. Not changed. Work is done on the CPU; results go back to the device
            of the logits.
        windows: R of them.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or lengths, a token id outside the vocabulary, a position outside
            32 bits.
    """
    check(logits, windows)
    host = logits.detach().to("cpu")
    target = _Target(host, windows)
    scan = _Scan(target, windows)
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
    target.found.choose(host, chosen)
    device = logits.device
    return Verified(
        torch.from_numpy(accepted).to(device), torch.from_numpy(token).to(device), target.found.stats(device)
    )


def picks_of(windows: Sequence[Window]) -> list[RowPick]:
    """How each row is picked whatever the draft says: after the drafted tokens, where coupled, at temperature 0.

    The others ask for no more than their statistics.
    """
    return [
        row if window.draft is None or row.filters.temperature == 0 or j == len(window.tokens) else _NOTHING
        for window in windows
        for j, row in enumerate(window.rows)
    ]


class _Target:
    """The target's rows: statistics of all, a pick where one is wanted whatever the draft says.

    Attributes:
        found: the statistics.
        token: int64 [N], what the target picks at coupled and greedy positions and after each window.
        top, mass: float64 [N], of the raw rows.
    """

    def __init__(self, host: torch.Tensor, windows: Sequence[Window]) -> None:
        self.host = host
        picks = picks_of(windows)
        count, vocabulary = host.shape
        self.found = Collected(count)
        self.token = np.empty(count, np.int64)
        self.top, self.mass = np.empty((2, count))
        races = Races(picks, vocabulary)
        space = tiles.Workspace(count, vocabulary)
        for start in range(0, count, space.step):
            z = space.load(host[start : start + space.step])
            scratch = space.scratch(len(z))
            parts = tiles.partials(z, vocabulary, scratch)
            whole = summarise(z, parts)
            at = slice(start, start + len(z))
            self.found.put(start, whole)
            self.token[at], self.top[at], self.mass[at] = whole.argmax, whole.top, whole.mass
            races.enter(start, z, parts, whole, scratch[0], self.token)
        races.finish(self.token)


class _Scan:
    """Walks through windows until a token falls."""

    def __init__(self, target: _Target, windows: Sequence[Window]) -> None:
        self._target = target
        self._vocabulary = target.host.shape[1]
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
                if self._target.token[start + j] != y:
                    return j, int(self._target.token[start + j])
                continue
            after = self._test(window.draft, j, y, row, start + j)
            if after is not None:
                return j, after
        return len(window.tokens), int(self._target.token[start + len(window.tokens)])

    def _test(self, draft: Draft, j: int, y: int, row: RowPick, i: int) -> int | Rejection | None:
        """None where token y stands at row i; else the refusal, or -1 where the target has nothing finite."""
        source = self._target.host[i]
        law = self._law(source, row, i)
        if law is None:
            return -1
        log_p = law.logprob(self._logit(source, row, y))
        proposal, log_q = self._proposal(draft, j, y)
        if log_q > -math.inf and log_p > -math.inf:
            u = row.key.uniform(row.position, Stream.ACCEPT)
            if log_p >= log_q or math.log(u) < log_p - log_q:
                return None
        return Rejection(source, row, law, y, log_q > -math.inf, proposal)

    def _law(self, source: torch.Tensor, row: RowPick, i: int) -> Law | None:
        if row.edits or row.filters.temperature != 1 or row.restricts(self._vocabulary):
            return law_of(self.buffer, source, row, float(self._target.mass[i]))
        top = self._target.top[i]
        if top == -math.inf:
            return None
        return Law(np.float32(top), inverse_temperature(row.filters), np.float32(-np.inf), float(self._target.mass[i]))

    def _logit(self, source: torch.Tensor, row: RowPick, y: int) -> np.float32:
        if row.edits:
            return np.float32(self.buffer.z[y])  # ``_law`` has left the edited row there
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
        law = law_of(buffer, source, row, 1 / known if known > 0 else None)
        columns = self._columns[id(draft.ids)] if draft.ids is not None else None
        column = y if columns is None else int(columns.column[y])
        log_q = law.logprob(buffer.z[column]) if law is not None and 0 <= column < size else -math.inf
        return Proposal(source, row, law, columns, buffer), log_q


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


def check(logits: torch.Tensor, windows: Sequence[Window]) -> None:
    """Raise TypeError or ValueError where logits and windows do not fit each other; see ``verify``."""
    tiles.check_logits(logits)
    rows, vocabulary = logits.shape
    for i, window in enumerate(windows):
        where = f"windows[{i}]"
        count = len(window.tokens)
        if len(window.rows) != count + 1:
            raise ValueError(
                f"{where}.rows: {len(window.rows)} of them: accepted: {count + 1}, one per token and one after them"
            )
        for y in window.tokens:
            if not 0 <= y < vocabulary:
                raise ValueError(f"{where}.tokens holds {y}: accepted: token ids in [0, {vocabulary})")
        for row in window.rows:
            if not 0 <= row.position < 1 << 32:
                raise ValueError(f"{where}.rows: position = {row.position}: accepted: an unsigned 32-bit integer")
        if window.draft is not None and window.draft.logits is not None:
            _check_draft(f"{where}.draft", window.draft, window.draft.logits, count, vocabulary)
    wanted = sum(len(window.rows) for window in windows)
    if rows != wanted:
        raise ValueError(f"logits.shape = {tuple(logits.shape)}: accepted: {wanted} rows, K + 1 per window")


def _check_draft(where: str, draft: Draft, logits: torch.Tensor, count: int, vocabulary: int) -> None:
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(
            f"{where}.logits.dtype = {logits.dtype}: accepted: torch.float32, torch.bfloat16, torch.float16"
        )
    if logits.ndim != 2 or logits.shape[0] != count or not 1 <= logits.shape[1] <= vocabulary:
        raise ValueError(
            f"{where}.logits.shape = {tuple(logits.shape)}: accepted: [{count}, Vd], a row per token and 1 to "
            f"{vocabulary} columns"
        )
    if len(draft.rows) != count:
        raise ValueError(f"{where}.rows: {len(draft.rows)} of them: accepted: {count}, one per token")
    if draft.top_probs is not None and len(draft.top_probs) != count:
        raise ValueError(f"{where}.top_probs: {len(draft.top_probs)} of them: accepted: {count}, one per token")
    if draft.ids is not None:
        if draft.ids.dtype != torch.int64:
            raise TypeError(f"{where}.ids.dtype = {draft.ids.dtype}: accepted: torch.int64")
        if tuple(draft.ids.shape) != (logits.shape[1],):
            raise ValueError(f"{where}.ids.shape = {tuple(draft.ids.shape)}: accepted: ({logits.shape[1]},)")
