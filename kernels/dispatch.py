"""The operations of this package, each on the path that ``paths`` chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trimtab.kernels.paging import Schedule, Spans
from trimtab.kernels.paths import Call, Path, PathUnavailable, record, resolve
from trimtab.kernels.reference import entropy, paged
from trimtab.kernels.reference import lm_head as heads
from trimtab.kernels.reference import mix as mixing
from trimtab.kernels.reference import pick as picking
from trimtab.kernels.reference import verify as verification
from trimtab.kernels.reference.entropy import Nucleus, Stats
from trimtab.kernels.reference.mix import Blended, Mixed
from trimtab.kernels.reference.pick import Picked
from trimtab.kernels.reference.verify import Draft, Verified, Window
from trimtab.kernels.types import Blend, RowPick

__all__ = [
    "Blended",
    "Call",
    "Draft",
    "Mixed",
    "Nucleus",
    "Path",
    "PathUnavailable",
    "Picked",
    "Stats",
    "Verified",
    "Window",
    "blend",
    "filtered_logprobs",
    "lm_head",
    "mix",
    "nucleus_entropy",
    "paged_attend",
    "paged_write",
    "pick",
    "record",
    "stats",
    "top_logprobs",
    "verify",
]


def stats(logits: torch.Tensor, tokens: torch.Tensor | None = None, *, path: Path = "auto") -> Stats:
    """Statistics of every row: see ``reference.entropy.stats``."""
    if resolve("stats", path, _device([logits])) == "torch":
        return entropy.stats(logits, tokens)
    from trimtab.kernels.triton import launch

    return launch.stats(logits, tokens)


def nucleus_entropy(logits: torch.Tensor, top_p: float, *, path: Path = "auto") -> Nucleus:
    """Entropy renormalised over the nucleus: see ``reference.entropy.nucleus_entropy``."""
    if resolve("nucleus_entropy", path, _device([logits])) == "torch":
        return entropy.nucleus_entropy(logits, top_p)
    from trimtab.kernels.triton import launch

    return launch.nucleus(logits, top_p)


def top_logprobs(logits: torch.Tensor, n: int, *, path: Path = "auto") -> tuple[torch.Tensor, torch.Tensor]:
    """The n most likely tokens of every row: see ``reference.entropy.top_logprobs``."""
    if resolve("top_logprobs", path, _device([logits])) == "torch":
        return entropy.top_logprobs(logits, n)
    from trimtab.kernels.triton import launch

    return launch.top_logprobs(logits, n)


def pick(logits: torch.Tensor, rows: Sequence[RowPick], *, path: Path = "auto") -> Picked:
    """One token from every row: see ``reference.pick.pick``."""
    if resolve("pick", path, _device([logits])) == "torch":
        return picking.pick(logits, rows)
    from trimtab.kernels.triton import launch

    return launch.pick(logits, rows)


def mix(
    logits: Sequence[torch.Tensor], blends: Sequence[Blend], rows: Sequence[RowPick], *, path: Path = "auto"
) -> Mixed:
    """One token from every row of a mixture of models: see ``reference.mix.mix``."""
    if resolve("mix", path, _device(logits)) == "torch":
        return mixing.mix(logits, blends, rows)
    from trimtab.kernels.triton import launch

    return launch.mix(logits, blends, rows)


def blend(logits: Sequence[torch.Tensor], blends: Sequence[Blend], *, path: Path = "auto") -> Blended:
    """The mixed logits themselves: see ``reference.mix.blend``."""
    if resolve("blend", path, _device(logits)) == "torch":
        return mixing.blend(logits, blends)
    from trimtab.kernels.triton import launch

    return launch.blend(logits, blends)


def filtered_logprobs(logits: torch.Tensor, rows: Sequence[RowPick], *, path: Path = "auto") -> torch.Tensor:
    """The distribution ``pick`` draws from: see ``reference.pick.filtered_logprobs``."""
    resolve("filtered_logprobs", path, _device([logits]), kernels=False)
    return picking.filtered_logprobs(logits, rows)


def verify(logits: torch.Tensor, windows: Sequence[Window], *, path: Path = "auto") -> Verified:
    """Speculation verified: see ``reference.verify.verify``."""
    if resolve("verify", path, logits.device) == "torch":
        return verification.verify(logits, windows)
    from trimtab.kernels.triton import verify as kernels

    return kernels.verify(logits, windows)


def lm_head(
    hidden: torch.Tensor,
    head: torch.Tensor,
    rows: Sequence[RowPick],
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
    *,
    path: Path = "auto",
) -> Picked:
    """The last product of a model and a token from every row of its logits.

    Up to 64 rows that ask for no filters, penalties or bans can be fused. The others take the product and ``pick``,
    which draw the same tokens up to the rounding of the product.

    Args:
        hidden, head, bias, scale, softcap: as in ``reference.lm_head.project``.
        rows: R of them.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or numbers that don't fit.
        PathUnavailable: kernels are asked for by name, and the rows can't be fused.
    """
    heads.check(hidden, head, rows, bias, scale, softcap)
    if resolve("lm_head", path, hidden.device, kernels=heads.fusable(rows, head.shape[0])) == "torch":
        return pick(heads.project(hidden, head, bias, scale, softcap), rows, path=path)
    from trimtab.kernels.triton import lm_head as kernels

    return kernels.lm_head(hidden, head, rows, bias, scale, softcap)


def paged_write(pool: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor, *, path: Path = "auto") -> None:
    """Store the keys and values of new tokens on their pages: see ``reference.paged.write``."""
    if resolve("paged_write", path, pool.device) == "torch":
        paged.write(pool, kv, slots)
        return
    from trimtab.kernels.triton import paged as kernels

    kernels.write(pool, kv, slots)


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
    """Attention of ragged queries over pages: see ``reference.paged.attend``."""
    if resolve("paged_attend", path, q.device) == "torch":
        return paged.attend(q, pool, batch, work, scale, softcap)
    from trimtab.kernels.triton import paged as kernels

    return kernels.attend(q, pool, batch, work, scale, softcap)


def _device(logits: Sequence[torch.Tensor]) -> torch.device:
    mixing.check_logits(logits)
    return logits[0].device
