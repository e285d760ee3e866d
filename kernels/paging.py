"""What attention over pages reads besides tensors of numbers: ragged spans, their page tables, and a list of work.

A *span* is the new tokens of one sequence: 1 (decode), K + 1 (verification) or many (a chunk of a prompt), at positions
after the ``start`` positions that are cached already. A *tile* is a few whole tokens of a span with the query heads of
one KV head stacked as rows. A tile's keys are cut at fixed multiples of positions into *splits*, each a program of its
own (flash decoding), merged afterwards in index order. Short spans take small tiles and short splits, so that few rows
with long contexts still fill a GPU; long spans have rows enough and take large ones.

Where tiles and splits begin follows from the span alone, never from how many others run, so neither does the last bit
of a row's result.

Everything is int32 and padded to a bucket, a power of two: a grid follows from the bucket and not from the data, and a
captured CUDA graph is replayed on new data by refreshing one buffer (``Spans.buffer``, ``Schedule.buffer``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["LONG_SPLIT", "SHORT_SPAN", "SHORT_SPLIT", "Schedule", "Spans", "bucket", "schedule", "spans", "tile_rows"]

Ints = NDArray[np.int64]

SHORT_SPAN = 16  # spans of at most this many tokens are short
# Positions per split. A split of a short span reads 256 keys and values for each float32 partial result that it writes
# per query head: for four query heads to a KV head and bfloat16 pages, 1.6% of what it reads.
SHORT_SPLIT = 256
LONG_SPLIT = 4096

_MOST_ROWS = 128
_SHORT_TOKENS = 5  # a verification window of four drafted tokens should be one tile
_WIDE_KEY = 512  # bytes; tiles over larger keys (more than 128 float32 numbers) must be small to fit a multiprocessor
_SMALLEST_BUCKET = 16  # Triton compiles anew for sizes that 16 does not divide


def bucket(n: int) -> int:
    """The padded size for n entries: 0, or a power of two from 16."""
    return 0 if n == 0 else max(_SMALLEST_BUCKET, _power(n))


def tile_rows(group: int, key_bytes: int) -> tuple[int, int]:
    """Query rows in a tile of short and of long spans; powers of two.

    Args:
        group: query heads to a KV head.
        key_bytes: size of one key.

    Raises:
        ValueError: more than 128 query heads to a KV head.
    """
    if not 1 <= group <= _MOST_ROWS:
        raise ValueError(f"group = {group}: accepted: 1 to {_MOST_ROWS} query heads for each KV head")
    least = max(16, _power(group))
    short, long = (32, 32) if key_bytes > _WIDE_KEY else (64, _MOST_ROWS)
    return max(least, min(_power(_SHORT_TOKENS * group), short)), max(least, long)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Spans:
    """The ragged queries of one batch and where their sequences' pages are.

    Attributes:
        buffer: int32, holds all of the following.
        slots: int32 [T]: where each new token's key and value go, page * page_tokens + offset; -1 is padding.
        table: int32 [B, 4]: of each span its first row of T, its tokens, its start, its first entry in ``pages``.
            Padding has no tokens.
        pages: int32 [P]: the spans' page ids, one span after the other.
        lengths, starts, firsts: int64 [spans] on the host, without padding: tokens, start, first row of T.
    """

    buffer: torch.Tensor
    slots: torch.Tensor
    table: torch.Tensor
    pages: torch.Tensor
    lengths: Ints
    starts: Ints
    firsts: Ints


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is to be computed for a batch under one window.

    Attributes:
        buffer: int32, holds all of the following.
        short, long: int32 [W, 4]: of each split of a tile its span (-1 is padding), its first token in the span, the
            split (positions from split * positions per split), and the first slot of its partial results, one slot
            for each token of the tile; -1: it is the tile's only split and its result is final.
        merges: int32 [N, 4]: of each token with partial results its row of T (-1 is padding), the slot of its first
            split, the slots from one split to the next, the number of its splits.
        slots: of partial results, padded.
        window: positions a query sees, itself included; None: all.
        group: query heads for each KV head.
        rows: query rows in a tile of ``short`` and of ``long``.
    """

    buffer: torch.Tensor
    short: torch.Tensor
    long: torch.Tensor
    merges: torch.Tensor
    slots: int
    window: int | None
    group: int
    rows: tuple[int, int]


def spans(
    starts: Sequence[int],
    lengths: Sequence[int],
    pages: Sequence[Sequence[int]],
    page_tokens: int,
    device: torch.device,
    rows: int | None = None,
) -> Spans:
    """Lay out a batch: span i is ``lengths[i]`` tokens at position ``starts[i]`` of the sequence on ``pages[i]``.

    Args:
        rows: size of T after padding, at least the sum of the lengths, which is the default.

    Raises:
        ValueError: unequal numbers of spans, an empty span, a negative start, too few pages, too few rows.
    """
    start, length = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
    held = np.fromiter(map(len, pages), np.int64, len(pages))
    if not len(start) == len(length) == len(held):
        raise ValueError(f"starts, lengths, pages: {len(start)}, {len(length)}, {len(held)}: accepted: one per span")
    needed = -(-(start + length) // page_tokens)
    wrong = np.flatnonzero((length < 1) | (start < 0) | (held < needed))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"span {i}: {length[i]} tokens at {start[i]} on {held[i]} pages: accepted: at least one token, a start "
            f">= 0, a page for every {page_tokens} positions"
        )
    firsts = np.cumsum(length) - length
    total = int(length.sum())
    if rows is None:
        rows = total
    if rows < total:
        raise ValueError(f"rows = {rows}: accepted: at least the {total} tokens of the batch")
    flat = np.fromiter(itertools.chain.from_iterable(pages), np.int64, int(held.sum()))
    begins = np.cumsum(held) - held
    slots = np.full(rows, -1, np.int64)
    position = np.arange(total) - np.repeat(firsts - start, length)
    slots[:total] = flat[np.repeat(begins, length) + position // page_tokens] * page_tokens + position % page_tokens
    table = np.zeros((bucket(len(start)), 4), np.int64)
    table[: len(start)] = np.stack([firsts, length, start, begins], 1)
    padded = np.zeros(bucket(len(flat)), np.int64)
    padded[: len(flat)] = flat
    buffer, (slots_, table_, pages_) = _upload(device, slots, table, padded)
    return Spans(buffer, slots_, table_, pages_, length, start, firsts)


def schedule(batch: Spans, window: int | None, group: int, key_bytes: int) -> Schedule:
    """Cut a batch into work where each query sees itself and the ``window - 1`` positions before it (None: all).

    Args:
        group, key_bytes: as in ``tile_rows``.

    Raises:
        ValueError: window < 1, or too many query heads to a KV head.
    """
    if window is not None and window < 1:
        raise ValueError(f"window = {window}: accepted: at least 1 position, or None for all")
    rows = tile_rows(group, key_bytes)
    is_long = batch.lengths > SHORT_SPAN
    short, short_merges, slots = _cut(batch, np.flatnonzero(~is_long), window, rows[0] // group, SHORT_SPLIT, 0)
    long, long_merges, slots = _cut(batch, np.flatnonzero(is_long), window, rows[1] // group, LONG_SPLIT, slots)
    parts = [_padded(short), _padded(long), _padded(np.concatenate([short_merges, long_merges]))]
    buffer, (short_, long_, merges_) = _upload(batch.buffer.device, *parts)
    return Schedule(buffer, short_, long_, merges_, bucket(slots), window, group, rows)


def _cut(batch: Spans, which: Ints, window: int | None, fit: int, positions: int, slots: int) -> tuple[Ints, Ints, int]:
    """Work [W, 4] and merges [N, 4] of the spans ``which``, and the number of slots in use after them.

    A tile takes ``fit`` tokens, a split ``positions``; ``slots`` are in use already.
    """
    if not which.size:
        return np.empty((0, 4), np.int64), np.empty((0, 4), np.int64), slots
    tiles = -(-batch.lengths[which] // fit)
    span = np.repeat(which, tiles)
    first = _within(tiles) * fit
    tokens = np.minimum(fit, batch.lengths[span] - first)
    lowest = batch.starts[span] + first
    first_split = _low(lowest, window) // positions
    count = (lowest + tokens - 1) // positions - first_split + 1
    held = np.where(count > 1, tokens * count, 0)
    base = slots + np.cumsum(held) - held
    of_tile = np.repeat(np.arange(len(span)), count)
    split = _within(count)
    slot = np.where(count[of_tile] > 1, base[of_tile] + split * tokens[of_tile], -1)
    work = np.stack([span[of_tile], first[of_tile], first_split[of_tile] + split, slot], 1)
    several = np.flatnonzero(count > 1)
    tile, token = np.repeat(several, tokens[several]), _within(tokens[several])
    position = lowest[tile] + token
    own = _low(position, window) // positions
    merges = np.stack(
        [
            batch.firsts[span[tile]] + first[tile] + token,
            base[tile] + (own - first_split[tile]) * tokens[tile] + token,
            tokens[tile],
            position // positions - own + 1,
        ],
        1,
    )
    return work, merges, slots + int(held.sum())


def _low(position: Ints, window: int | None) -> Ints:
    """The first position that a query at ``position`` sees."""
    return np.zeros_like(position) if window is None else np.maximum(position - window + 1, 0)


def _within(counts: Ints) -> Ints:
    """0, 1, …, counts[0] - 1, 0, 1, …: the index inside each of several runs."""
    result: Ints = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return result


def _padded(entries: Ints) -> Ints:
    """Entries [n, 4] with a bucket's padding after them, whose first number is -1."""
    result = np.full((bucket(len(entries)), 4), -1, np.int64)
    result[: len(entries)] = entries
    return result


def _upload(device: torch.device, *arrays: Ints) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One int32 buffer on the device, filled by one copy that the host does not wait for, and views of the arrays."""
    flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays]).astype(np.int32))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    views, at = [], 0
    for array in arrays:
        views.append(flat[at : at + array.size].view(array.shape))
        at += array.size
    return flat, views
