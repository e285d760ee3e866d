"""What the rows of the benchmark ``kernels`` are called, for those that measure and those that read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from trimtab.decode.errors import InvalidRequest

__all__ = ["COMPILED", "COPY", "EAGER", "GRAPH", "OURS", "PLAIN", "TITLES", "Case", "share_of"]

# Subjects.
OURS, EAGER, COMPILED = "trimtab", "eager", "torch.compile"
# Metrics: how a call was made.
GRAPH, PLAIN = "graph replay", "plain call"
# In the place of a kernel: the device's copy of memory.
COPY = "copy"

TITLES: Mapping[str, str] = {
    "stats": "statistics",
    "greedy": "greedy",
    "sample": "sampled, T 0.8",
    "top-p": "sampled, T 0.8, top-p 0.9",
    "mixture": "mixture of 2, T 0.8, top-p 0.9",
    "mixture-flat": "the same of normal logits",
    "verify": "verification, K = 4",
    "mix3": "mixture of 3, sampled",
    "mix3-top-p": "mixture of 3, top-p 0.9",
    "mix3-plausible": "mixture of 3, plausibility 0.1",
}


class Case(NamedTuple):
    """What was timed on what; ``str`` and ``parse`` are inverses.

    Attributes:
        kernel: a key of ``TITLES``, or ``COPY``.
        rows, vocabulary: shape of the logits; for verification rows are windows.
        dtype: of the logits.
        threads: of torch's CPU kernels; 0 on a GPU.
    """

    kernel: str
    rows: int
    vocabulary: int
    dtype: str
    threads: int

    def __str__(self) -> str:
        where = f", {self.threads} threads" if self.threads else ""
        return f"{self.kernel}, {self.rows} x {self.vocabulary}, {self.dtype}{where}"

    @classmethod
    def parse(cls, text: str) -> Case:
        """Raises InvalidRequest."""
        found = re.fullmatch(r"([\w-]+), (\d+) x (\d+), (\w+)(?:, (\d+) threads)?", text)
        if found is None:
            raise InvalidRequest.of("result.case", text, "KERNEL, ROWS x VOCABULARY, DTYPE[, N threads]")
        kernel, rows, vocabulary, dtype, threads = found.groups()
        return cls(kernel, int(rows), int(vocabulary), dtype, int(threads or 0))


def share_of(how: str) -> str:
    """Metric: bytes that had to be read, over the time of ``how``, as a share of the rate of a copy."""
    return f"share of copy, {how}"
