"""The operations on the CPU, under the names that ``dispatch`` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trimtab.kernels.cpu.mix import blend, mix
from trimtab.kernels.cpu.paged import paged_attend, paged_write
from trimtab.kernels.cpu.pick import pick
from trimtab.kernels.cpu.stats import stats, top_logprobs
from trimtab.kernels.cpu.verify import verify

__all__ = ["CPU"]

CPU: Mapping[str, Callable[..., Any]] = {
    operation.__name__: operation
    for operation in (stats, top_logprobs, pick, mix, blend, verify, paged_write, paged_attend)
}
