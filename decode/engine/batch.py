"""A ragged batch: the new tokens of several sequences, packed into one row of T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["RaggedBatch", "Span"]

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """The part of one sequence that a batch computes.

    Attributes:
        tokens: ids of the new tokens, at positions [start, start + len(tokens)).
        start: number of positions whose keys and values are already in ``pages``.
        pages: page ids of the sequence, enough for start + len(tokens) positions.
        reads: for how many of the last tokens logits are wanted.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    reads: int

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """Spans and the index arrays derived from them.

    Attributes:
        spans: in a stable order.
        tokens: int64 [T].
        positions: int64 [T], each token's position in its own sequence.
        slots: int64 [T], page * page_tokens + offset: where each token's key and value go.
        rows: int64 [n], indices into T of the tokens whose logits are wanted.
        offsets: int64 [len(spans) + 1], span i owns tokens [offsets[i], offsets[i + 1]).
    """

    spans: tuple[Span, ...]
    tokens: Int
    positions: Int
    slots: Int
    rows: Int
    offsets: Int

    @classmethod
    def pack(cls, spans: Sequence[Span], page_tokens: int) -> RaggedBatch:
        """Lay spans end to end. Raises ValueError for an empty span or one that its pages can't hold."""
        lengths = np.fromiter((len(s.tokens) for s in spans), np.int64, len(spans))
        offsets = np.zeros(len(spans) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        tokens = np.empty(offsets[-1], np.int64)
        positions = np.empty_like(tokens)
        slots = np.empty_like(tokens)
        rows: list[int] = []
        for span, begin, end in zip(spans, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            if begin == end or span.end > len(span.pages) * page_tokens:
                raise ValueError(f"span of {end - begin} tokens at {span.start} does not fit {len(span.pages)} pages")
            if end - begin == 1:
                page, offset = divmod(span.start, page_tokens)
                tokens[begin] = span.tokens[0]
                positions[begin] = span.start
                slots[begin] = span.pages[page] * page_tokens + offset
            else:
                tokens[begin:end] = span.tokens
                at = np.arange(span.start, span.end)
                positions[begin:end] = at
                slots[begin:end] = np.asarray(span.pages, np.int64)[at // page_tokens] * page_tokens + at % page_tokens
            rows.extend(range(end - span.reads, end))
        return cls(tuple(spans), tokens, positions, slots, np.asarray(rows, np.int64), offsets)
