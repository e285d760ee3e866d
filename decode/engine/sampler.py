"""From rows of output to what methods read: dispatched kernel calls over all rows at once.

What is read goes by windows: the rows after some drafted tokens, which are verified, and the token after those that
stand. One pick is the verification of no draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.decode.ops import Given, Read
from trimtab.decode.request.result import TokenDraw, TopLogprob
from trimtab.kernels import dispatch, types
from trimtab.kernels.results import Stats
from trimtab.kernels.types import Blend, Draft, Pick

__all__ = ["CERTAIN", "Row", "Window", "read", "seeing"]

Piece = Callable[[int], bytes]

CERTAIN = Draft(None, (), None)  # of tokens that no distribution stands behind

_STATISTICS_ONLY = Pick()


@dataclass(frozen=True, slots=True)
class Row:
    """How one row is read.

    Attributes:
        pick: how to draw, with the tokens before it; None reads the statistics of the most likely token.
        top: number of most likely tokens to report.
    """

    pick: Pick | Given | None
    top: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """K + 1 rows of output, of which a prefix is read.

    Attributes:
        rows: how each is read; a given token has a window for itself.
        tokens: K drafted ones.
        draft: how these were drawn; None: coupled.
        blend: how the models are mixed, where there are several.
    """

    rows: Sequence[Row]
    tokens: Sequence[int] = ()
    draft: Draft | None = CERTAIN
    blend: Blend | None = None

    @property
    def given(self) -> bool:
        """Whether the token to be read is known."""
        return isinstance(self.rows[0].pick, Given)


def seeing(pick: Pick, seen: Sequence[int]) -> Pick:
    """The pick after these tokens; they are copied where it matters, as they may be a sequence that grows."""
    return pick if pick.filters.repetition_penalty == 1.0 else pick._replace(seen=tuple(seen))


def read(logits: Sequence[Tensor], windows: Sequence[Window], piece: Piece) -> list[list[Read]]:
    """Accept a prefix of each window's drafted tokens and draw the one after it.

    Args:
        logits: of each model, the base first, [sum of len(window.rows), V].
        windows: in the order of their rows; either all or none are ``given``.
        piece: bytes of a token, for the most likely ones.

    Returns:
        for each window, accepted + 1 reads; ``token`` is -1 where a row has no finite logit.
    """
    rows = [row for window in windows for row in window.rows]
    blends = [window.blend for window in windows if window.blend is not None for _ in window.rows]
    accepted, tokens, stats, mixed = _drawn(logits, _drawable(logits, blends, rows), windows, rows)
    tops = _tops(mixed, [row.top for row in rows], piece)
    columns = (stats.logprob.tolist(), stats.entropy.tolist(), stats.top_prob.tolist(), stats.argmax.tolist())
    reads = list(map(Read, tokens, *columns, tops))
    if not any(accepted) and len(rows) == len(windows):
        return [[found] for found in reads]
    result, start = [], 0
    for window, count in zip(windows, accepted, strict=True):
        own = [replace(found, draw=TokenDraw.ACCEPTED) for found in reads[start : start + count]]
        last = reads[start + count]
        if window.tokens:
            last = replace(last, draw=TokenDraw.BONUS if count == len(window.tokens) else TokenDraw.CORRECTED)
        result.append([*own, last])
        start += len(window.rows)
    return result


def _drawn(
    logits: Sequence[Tensor], blends: Sequence[Blend], windows: Sequence[Window], rows: Sequence[Row]
) -> tuple[list[int], list[int], Stats, Tensor]:
    """Tokens accepted in each window; a token for each row, as far as it was reached; statistics; and their logits.

    Where nothing is drafted the kernels for a single token give the same for less: 0.1 ms a call on a CPU core,
    with 1 to 8 rows of 49,152 ids.
    """
    drafted = any(window.tokens for window in windows)
    mixed = logits[0]
    if blends and (drafted or windows[0].given or any(row.top for row in rows)):
        mixed = dispatch.blend(logits, blends)
    if windows[0].given:
        given = [row.pick.token for row in rows if isinstance(row.pick, Given)]
        return [0] * len(rows), given, dispatch.stats(mixed, torch.tensor(given, device=mixed.device)), mixed
    picks = [row.pick if isinstance(row.pick, Pick) else _STATISTICS_ONLY for row in rows]
    if not drafted:
        found = dispatch.mix(logits, blends, picks) if blends else dispatch.pick(mixed, picks)
        return [0] * len(rows), found.token.tolist(), found.stats, mixed
    left = iter(picks)
    verified = dispatch.verify(
        mixed, [types.Window(window.tokens, [next(left) for _ in window.rows], window.draft) for window in windows]
    )
    tokens: list[int] = []
    accepted = verified.accepted.tolist()
    for window, count, token in zip(windows, accepted, verified.token.tolist(), strict=True):
        tokens += [*window.tokens[:count], token, *[-1] * (len(window.tokens) - count)]
    return accepted, tokens, verified.stats, mixed


def _drawable(logits: Sequence[Tensor], blends: Sequence[Blend], rows: Sequence[Row]) -> Sequence[Blend]:
    """The blends, without the bound on plausibility where bans leave no plausible token: then all others compete."""
    bounded = {
        i: row.pick
        for i, (blend, row) in enumerate(zip(blends, rows, strict=False))
        if blend.plausibility and isinstance(row.pick, Pick) and (row.pick.banned or row.pick.filters.bias)
    }
    if not bounded:
        return blends
    masked = dispatch.blend([part[list(bounded)] for part in logits], [blends[i] for i in bounded])
    found = dispatch.pick(masked, list(bounded.values())).token.tolist()
    empty = {i for i, token in zip(bounded, found, strict=True) if token < 0}
    return [replace(blend, plausibility=0.0) if i in empty else blend for i, blend in enumerate(blends)]


def _tops(logits: Tensor, wanted: Sequence[int], piece: Piece) -> list[tuple[TopLogprob, ...]]:
    tops: list[tuple[TopLogprob, ...]] = [()] * len(wanted)
    rows = [i for i, n in enumerate(wanted) if n]
    if rows:
        ids, logprobs = dispatch.top_logprobs(logits[rows], min(max(wanted), logits.shape[1]))
        for i, row_ids, row_logprobs in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            pairs = zip(row_ids[: wanted[i]], row_logprobs, strict=False)
            # A plausibility mask may leave fewer tokens than are wanted; -1 stands for those that there are not.
            tops[i] = tuple(TopLogprob(token, piece(token), logprob) for token, logprob in pairs if token >= 0)
    return tops
