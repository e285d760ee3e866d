"""The operations, each on the path that ``paths`` chooses; arguments are checked here, for every path alike.

An operation has one name: that of the function here, of those in ``cpu`` and ``triton``, and in ``paths.record``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from trimtab.kernels.checks import (
    check_attend,
    check_count,
    check_logits,
    check_mixture,
    check_rows,
    check_tokens,
    check_windows,
    check_write,
)
from trimtab.kernels.cpu.operations import CPU
from trimtab.kernels.paging import Schedule, Spans
from trimtab.kernels.paths import Path, resolve
from trimtab.kernels.results import Picked, Stats, Verified
from trimtab.kernels.types import Blend, Pick, Window

__all__ = ["blend", "mix", "paged_attend", "paged_write", "pick", "stats", "top_logprobs", "verify"]


def _run(op: str, path: Path, device: torch.device, *args: object) -> Any:
    """The operation on the path that ``path`` comes to; Triton is imported only where it runs."""
    if resolve(op, path, device) == "torch":
        return CPU[op](*args)
    from trimtab.kernels.triton.operations import TRITON

    return TRITON[op](*args)


def stats(logits: torch.Tensor, tokens: torch.Tensor | None = None, *, path: Path = "auto") -> Stats:
    """Statistics of softmax(logits), one pass over the vocabulary.

    Args:
        logits: [R, V], float32, bfloat16 or float16, any strides; -inf bans a token; NaN and +inf count as -inf and
            set ``FLAG_UNCLEAN``. The path ``torch`` works on the CPU and returns results to the device of the logits.
        tokens: int64 [R], whose ln p is wanted; -1 for none.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, or (on the CPU) a token outside the vocabulary.
        PathUnavailable: ``path`` names one that can't run here; likewise below.
    """
    check_logits(logits)
    if tokens is not None:
        check_tokens(tokens, logits)
    return cast(Stats, _run("stats", path, logits.device, logits, tokens))


def top_logprobs(logits: torch.Tensor, n: int, *, path: Path = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """The n most likely tokens of softmax(logits) and their ln p, most likely first, ties by the lower id.

    Args:
        logits: as in ``stats``.
        n: in [1, V].

    Returns:
        ids int64 [R, n] and logprobs float32 [R, n]; where fewer than n logits are finite, id -1 and -inf.
    """
    check_logits(logits)
    check_count(n, logits.shape[1])
    return cast(tuple[torch.Tensor, torch.Tensor], _run("top_logprobs", path, logits.device, logits, n))


def pick(logits: torch.Tensor, rows: Sequence[Pick], *, path: Path = "auto") -> Picked:
    """Pick one token from every row, by the scheme of ``cpu.races``.

    Args:
        logits: as in ``stats``; not changed.
        rows: R of them.

    Raises:
        TypeError, ValueError: a wrong dtype or shape, a token id outside the vocabulary, a position outside 32 bits.
    """
    check_logits(logits)
    check_rows(rows, logits.shape[0])
    return cast(Picked, _run("pick", path, logits.device, logits, rows))


def mix(
    logits: Sequence[torch.Tensor], blends: Sequence[Blend], rows: Sequence[Pick], *, path: Path = "auto"
) -> Picked:
    """Mix and pick one token from every row, with ``pick``'s scheme on the mixture; see ``cpu.mix``.

    Args:
        logits: one matrix [R, V] per model, the base first; each as in ``pick``. Not changed.
        blends: R of them.
        rows: R of them; penalties, bias and bans apply to the weighted sum of the models' logits.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, matrices on different devices, numbers of weights that differ
            from the number of models, and what ``pick`` raises.
    """
    check_mixture(logits, blends)
    check_rows(rows, logits[0].shape[0])
    return cast(Picked, _run("mix", path, logits[0].device, logits, blends, rows))


def blend(logits: Sequence[torch.Tensor], blends: Sequence[Blend], *, path: Path = "auto") -> torch.Tensor:
    """The mixture itself for operations that take logits: float32 [R, V], weighted sums of the models'; see ``mix``."""
    check_mixture(logits, blends)
    return cast(torch.Tensor, _run("blend", path, logits[0].device, logits, blends))


def verify(logits: torch.Tensor, windows: Sequence[Window], *, path: Path = "auto") -> Verified:
    """Verify R windows of drafted tokens against the target's logits; see ``cpu.verify``.

    Args:
        logits: [sum(K + 1), V], the windows' rows one after the other, as in ``pick``.
        windows: R of them; on a GPU drafts are beside the logits.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or lengths, a token id outside the vocabulary, a position outside
            32 bits.
    """
    check_windows(logits, windows)
    return cast(Verified, _run("verify", path, logits.device, logits, windows))


def paged_write(pool: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor, *, path: Path = "auto") -> None:
    """Store the keys and values of new tokens on their pages.

    Args:
        pool: [2, pages, Hkv, page_tokens, D], keys before values; changed.
        kv: [T, 2 * Hkv, D], keys before values; rounded to the pool's dtype.
        slots: int32 [T], page * page_tokens + offset; -1 is not stored.

    Raises:
        ValueError: shapes or devices that don't fit.
    """
    check_write(pool, kv, slots)
    _run("paged_write", path, pool.device, pool, kv, slots)


def paged_attend(
    q: torch.Tensor,
    pool: torch.Tensor,
    batch: Spans,
    work: Schedule,
    scale: float,
    softcap: float = 0.0,
    *,
    path: Path = "auto",
) -> torch.Tensor:
    """Attention of ragged queries over their sequences' pages: a query sees itself and what is before it.

    Args:
        q: [T, Hq, D] in the pool's dtype; query head h reads KV head h // group.
        pool: [2, pages, Hkv, page_tokens, D], which holds the batch's own keys and values already.
        batch: the queries' places.
        work: its schedule; says the window.
        scale: factor of the scores, > 0.
        softcap: scores become softcap * tanh(score / softcap); 0: they stay.

    Returns:
        [T, Hq, D]; padding rows hold anything.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or numbers that don't fit.
    """
    check_attend(q, pool, batch, work, scale, softcap)
    return cast(torch.Tensor, _run("paged_attend", path, q.device, q, pool, batch, work, scale, softcap))
