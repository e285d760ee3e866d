"""From rows of logits to reads: one dispatched kernel call for all rows of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from trimtab.decode.ops import Pick, Read
from trimtab.decode.types import TopLogprob
from trimtab.kernels import dispatch
from trimtab.kernels.dispatch import RowPick

__all__ = ["sample"]

_STATISTICS_ONLY = RowPick()


def sample(
    logits: Tensor, rows: Sequence[tuple[Pick | None, Sequence[int], int]], piece: Callable[[int], bytes]
) -> list[Read]:
    """Statistics and a token for every row.

    Args:
        logits: [R, V] of the model.
        rows: per row: how to pick (None: statistics only), the tokens seen so far, how many top tokens to report.
        piece: bytes of a token, for these.

    Returns:
        R reads; ``token`` is -1 where a row has no finite logit.
    """
    picked = dispatch.pick(logits, [_row(pick, seen) for pick, seen, _ in rows])
    stats = picked.stats
    tops = _tops(logits, [top for _, _, top in rows], piece)
    return [
        Read(token, logprob, entropy, top_prob, argmax, top)
        for token, logprob, entropy, top_prob, argmax, top in zip(
            picked.token.tolist(),
            stats.logprob.tolist(),
            stats.entropy.tolist(),
            stats.top_prob.tolist(),
            stats.argmax.tolist(),
            tops,
            strict=True,
        )
    ]


def _row(pick: Pick | None, seen: Sequence[int]) -> RowPick:
    if pick is None:
        return _STATISTICS_ONLY
    penalised = pick.filters.repetition_penalty != 1.0
    return RowPick(pick.filters, pick.key, pick.position, seen if penalised else (), pick.banned)


def _tops(logits: Tensor, wanted: Sequence[int], piece: Callable[[int], bytes]) -> list[tuple[TopLogprob, ...]]:
    tops: list[tuple[TopLogprob, ...]] = [()] * len(wanted)
    rows = [i for i, n in enumerate(wanted) if n]
    if rows:
        ids, logprobs = dispatch.top_logprobs(logits[rows], max(wanted))
        for i, row_ids, row_logprobs in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
            pairs = zip(row_ids[: wanted[i]], row_logprobs, strict=False)
            tops[i] = tuple(TopLogprob(token, piece(token), logprob) for token, logprob in pairs)
    return tops
