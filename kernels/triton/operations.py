"""The operations in Triton, under the names that ``dispatch`` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trimtab.kernels.triton.logits import blend, mix, pick, stats, top_logprobs
from trimtab.kernels.triton.paged import paged_attend, paged_write
from trimtab.kernels.triton.verify import verify

__all__ = ["TRITON"]

TRITON: Mapping[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (stats, top_logprobs, pick, mix, blend, verify, paged_write, paged_attend)
}
