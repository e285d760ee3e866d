"""From rows of output to what methods read: dispatched kernel calls over all rows of a kind at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.decode.ops import Given, Pick, Read
from trimtab.decode.request.result import TokenDraw, TopLogprob
from trimtab.kernels import dispatch
from trimtab.kernels.dispatch import Stats
from trimtab.kernels.types import Blend, RowPick

__all__ = ["Row", "Span", "drawable", "mix", "row_pick", "sample", "verify"]

Piece = Callable[[int], bytes]

_STATISTICS_ONLY = RowPick()


@dataclass(frozen=True, slots=True)
class Row:
    """How one row is read.

    Attributes:
        pick: how to draw; None reads the statistics of the most likely token.
        seen: tokens before it, for the repetition penalty; as they were when the row was made.
        top: number of most likely tokens to report.
    """

    pick: Pick | Given | None
    seen: tuple[int, ...] = ()
    top: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """The K + 1 rows of one verification: K drafted tokens, and how they were drawn (None: coupled)."""

    rows: Sequence[Row]
    tokens: Sequence[int]
    draft: dispatch.Draft | None


def row_pick(pick: Pick | Given | None, seen: Sequence[int]) -> RowPick:
    """The kernels' form of a pick; ``seen`` is copied where it matters, as it may be a sequence that grows."""
    if not isinstance(pick, Pick):
        return _STATISTICS_ONLY
    penalised = pick.filters.repetition_penalty != 1.0
    return RowPick(pick.filters, pick.key, pick.position, tuple(seen) if penalised else (), pick.banned)


def sample(logits: Tensor, rows: Sequence[Row], piece: Piece) -> list[Read]:
    """Statistics and a token for every row.

    Args:
        logits: [R, V] of the model.
        rows: R of them.
        piece: bytes of a token, for the most likely ones.

    Returns:
        R reads; ``token`` is -1 where a row has no finite logit.
    """
    given = [i for i, row in enumerate(rows) if isinstance(row.pick, Given)]
    if len(given) == len(rows):
        return _reads(_given(logits, rows), _ids(rows), logits, rows, piece)
    picked = dispatch.pick(logits, [row_pick(row.pick, row.seen) for row in rows])
    reads = _reads(picked.stats, picked.token.tolist(), logits, rows, piece)
    if given:
        chosen = [rows[i] for i in given]
        part = logits[given]
        for i, read in zip(given, _reads(_given(part, chosen), _ids(chosen), part, chosen, piece), strict=True):
            reads[i] = read
    return reads


def mix(logits: Sequence[Tensor], blends: Sequence[Blend], rows: Sequence[Row], piece: Piece) -> list[Read]:
    """As ``sample``, from the mixture of several models' logits, each [R, V]; one blend per row."""
    blends = drawable(logits, blends, rows)
    given = [i for i, row in enumerate(rows) if isinstance(row.pick, Given)]
    if given:  # for scores, which nobody waits for
        mixed = dispatch.blend(logits, blends).logits
        return sample(mixed, rows, piece)
    found = dispatch.mix(logits, blends, [row_pick(row.pick, row.seen) for row in rows])
    if any(row.top for row in rows):
        mixed = dispatch.blend(logits, blends).logits
        return _reads(found.stats, found.token.tolist(), mixed, rows, piece)
    return _reads(found.stats, found.token.tolist(), logits[0], rows, piece)


def drawable(logits: Sequence[Tensor], blends: Sequence[Blend], rows: Sequence[Row]) -> Sequence[Blend]:
    """The blends, without the bound on plausibility where bans leave no plausible token: then all others compete."""
    bounded = [
        i
        for i, (blend, row) in enumerate(zip(blends, rows, strict=True))
        if blend.plausibility and isinstance(row.pick, Pick) and (row.pick.banned or row.pick.filters.bias)
    ]
    if not bounded:
        return blends
    masked = dispatch.blend([part[bounded] for part in logits], [blends[i] for i in bounded]).logits
    found = dispatch.pick(masked, [row_pick(rows[i].pick, rows[i].seen) for i in bounded]).token.tolist()
    empty = {i for i, token in zip(bounded, found, strict=True) if token < 0}
    return [replace(blend, plausibility=0.0) if i in empty else blend for i, blend in enumerate(blends)]


def verify(logits: Tensor, spans: Sequence[Span], piece: Piece) -> list[list[Read]]:
    """Accept a prefix of each span's drafted tokens and draw the one after it.

    Args:
        logits: [sum of len(span.rows), V].
        spans: in the order of their rows.
        piece: as for ``sample``.

    Returns:
        for each span, accepted + 1 reads.
    """
    windows = [
        dispatch.Window(span.tokens, [row_pick(row.pick, row.seen) for row in span.rows], span.draft) for span in spans
    ]
    found = dispatch.verify(logits, windows)
    rows = [row for span in spans for row in span.rows]
    tokens: list[int] = []
    accepted = found.accepted.tolist()
    for span, count, token in zip(spans, accepted, found.token.tolist(), strict=True):
        tokens += [*span.tokens[:count], token, *(-1 for _ in range(len(span.tokens) - count))]
    reads = _reads(found.stats, tokens, logits, rows, piece)
    result, start = [], 0
    for span, count in zip(spans, accepted, strict=True):
        last = TokenDraw.BONUS if count == len(span.tokens) else TokenDraw.CORRECTED
        if not span.tokens:
            last = TokenDraw.PLAIN
        own = reads[start : start + count + 1]
        result.append([*(replace(read, draw=TokenDraw.ACCEPTED) for read in own[:-1]), replace(own[-1], draw=last)])
        start += len(span.rows)
    return result


def _ids(rows: Sequence[Row]) -> list[int]:
    return [row.pick.token for row in rows if isinstance(row.pick, Given)]


def _given(logits: Tensor, rows: Sequence[Row]) -> Stats:
    return dispatch.stats(logits, torch.tensor(_ids(rows), device=logits.device))


def _reads(stats: Stats, tokens: Sequence[int], logits: Tensor, rows: Sequence[Row], piece: Piece) -> list[Read]:
    tops = _tops(logits, [row.top for row in rows], piece)
    return [
        Read(token, logprob, entropy, top_prob, argmax, top)
        for token, logprob, entropy, top_prob, argmax, top in zip(
            tokens,
            stats.logprob.tolist(),
            stats.entropy.tolist(),
            stats.top_prob.tolist(),
            stats.argmax.tolist(),
            tops,
            strict=True,
        )
    ]


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
