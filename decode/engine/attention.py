"""Attention over pages in plain PyTorch: the CPU's production path.

Layout: keys and values of one layer live in one tensor [2, pages, Hkv, page_tokens, D], keys first. PyTorch's fused
attention can't follow a page table, and gathering pages would copy the whole cache at every layer and step. So decode
steps turn the problem around: *pages* are the batch. All pages of a batch that lie side by side in memory are one
strided view [n * Hkv, L, D] of the pool, each attended by the query rows that need it, and the partial results of a
sequence's pages are merged by their log-sum-exp. A page shared by several sequences is read once, with all their
queries stacked. Query heads of one KV head are stacked as query rows (grouped-query attention without copies).

On a CPU the pool is float32 whatever the model's dtype: batched float32 products over such views take 18, 46 and 81 us
for 4 rows x 64, 16 x 64 and 16 x 128 positions (3 KV heads of 64, 2 cores) where the fused bfloat16 kernel takes 26, 87
and 133, and scores keep float32 precision.

Long spans (prefill chunks) attend their own sequence in one fused call; there a gather of the pages costs little beside
the products.

A plan depends on the batch and the layer's window only, so it is made once per step and window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from trimtab.decode.engine.batch import RaggedBatch, Span

__all__ = ["AttentionPlan", "partial_attention", "plan", "reading"]

_SHORT = 16  # spans of at most this many tokens are batched by page; longer ones attend alone
# What one more call costs, in positions of one page: about 40 us against 0.05 us (2 cores; SmolLM2 and Gemma 3 270M).
_CALL_COST = 800
# What a position costs beside one that a single query row reads, by query rows: its keys and values are read once.
# (8 pages of 250 positions: 75, 99, 142 and 247 us for 1, 2, 4 and 8 rows.)
_SHARED, _EACH = 0.64, 0.36
_MERGED = 64  # pages; with more, those of unlike widths aren't tried together, since that would take too long to find


def reading(queries: float) -> float:
    """What a position costs that so many query rows of a sequence read, in those that one reads."""
    return _SHARED + _EACH * queries


def partial_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, want_sums: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention and, if wanted, its log-sum-exp, for merging with attention over other keys.

    Args:
        q: float [N, Q, D].
        k, v: float [N, L, D], any batch and row stride.
        mask: additive, broadcastable to [N, Q, L], or None.
        scale: factor of the scores.
        want_sums: whether to compute the log-sum-exp.

    Returns:
        Output [N, Q, D] and log-sum-exp of the scores [N, Q] or None.
    """
    keys = k.transpose(1, 2)
    scores = torch.bmm(q, keys).mul_(scale) if mask is None else torch.baddbmm(mask, q, keys, alpha=scale)
    if not want_sums:
        return torch.bmm(torch.softmax(scores, -1), v), None
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    return torch.bmm(weights, v).div_(total), (top + total.log()).squeeze(-1)


@dataclass(slots=True)
class _PageCall:
    """Query rows against the pages [first, first + n) of the pool, up to ``length`` positions each."""

    first: int
    n: int
    length: int
    rows: Tensor  # int64 [n * width]: index into T of each query row; holes and padding repeat a real row
    identity: bool  # rows are 0, 1, 2, …: the queries are used as they lie
    width: int  # query rows per page
    mask: Tensor | None  # additive [n * Hkv, 1 or width * group, L]; None: all positions are visible


@dataclass(slots=True)
class _SpanCall:
    """All queries of one long span against its own sequence."""

    begin: int
    end: int
    pages: Tensor  # int64
    first: int  # first page where they lie side by side, else -1
    offset: int  # position of the first key
    length: int  # keys
    causal: bool
    mask: Tensor | None  # additive [1, 1, T, L]


@dataclass(slots=True)
class AttentionPlan:
    """How one batch attends under one window.

    Attributes:
        pages: calls over pages.
        spans: calls over long spans.
        pick: int64 [M] or [M, parts]: for each short query row, where its partial results are; None: as they come.
        targets: int64 [M], the rows of T that these are; None: all, in order.
        absent: bool [M, parts], padding of ``pick``; None if every row has one part.
    """

    pages: list[_PageCall]
    spans: list[_SpanCall]
    pick: Tensor | None
    targets: Tensor | None
    absent: Tensor | None

    def run(self, q: Tensor, pool: Tensor, scale: float) -> Tensor:
        """Attend.

        Args:
            q: [T, Hq, D] after RoPE; its keys and values are already in the pool.
            pool: [2, pages, Hkv, page_tokens, D] of the layer.

        Returns:
            [T, Hq, D] in q's dtype.
        """
        short = self._short(q, pool, scale) if self.pages else None
        if short is not None and not self.spans:
            return short
        result = torch.empty_like(q)
        if short is not None and self.targets is not None:
            result.index_copy_(0, self.targets, short)
        for span in self.spans:
            result[span.begin : span.end] = _attend_span(span, q[span.begin : span.end], pool, scale)
        return result

    def _short(self, q: Tensor, pool: Tensor, scale: float) -> Tensor:
        """Attention of all short rows, [M, Hq, D]."""
        _, q_heads, dim = q.shape
        kv_heads, size = pool.shape[2], pool.shape[3]
        group = q_heads // kv_heads
        merging = self.absent is not None
        wide = q if q.dtype == pool.dtype else q.to(pool.dtype)
        parts: list[Tensor] = []
        sums: list[Tensor] = []
        for call in self.pages:
            n, width = call.n, call.width
            view = pool[:, call.first : call.first + n].view(2, n * kv_heads, size, dim)[:, :, : call.length]
            rows = wide[: n * width] if call.identity else wide.index_select(0, call.rows)
            stacked = rows.view(n, width, kv_heads, group, dim)
            if width > 1:
                stacked = stacked.transpose(1, 2)
            stacked = stacked.reshape(n * kv_heads, width * group, dim)
            out, lse = partial_attention(stacked, view[0], view[1], call.mask, scale, merging)
            if width > 1:
                out = out.view(n, kv_heads, width, group, dim).transpose(1, 2)
            parts.append(out.reshape(n * width, q_heads, dim))
            if lse is not None:
                lse = lse.view(n, kv_heads, width, group).transpose(1, 2)
                sums.append(lse.reshape(n * width, q_heads))
        short = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.absent is not None and self.pick is not None:
            lse = (sums[0] if len(sums) == 1 else torch.cat(sums))[self.pick]  # [M, parts, Hq]
            weights = torch.softmax(lse.masked_fill_(self.absent.unsqueeze(-1), float("-inf")), dim=1)
            short = (short[self.pick] * weights.unsqueeze(-1)).sum(1)
        elif self.pick is not None:
            short = short.index_select(0, self.pick)
        return short if short.dtype == q.dtype else short.to(q.dtype)


def _attend_span(span: _SpanCall, q: Tensor, pool: Tensor, scale: float) -> Tensor:
    """q [T, Hq, D] of one sequence against its own pages -> [T, Hq, D]."""
    _, q_heads, dim = q.shape
    kv_heads, size = pool.shape[2], pool.shape[3]
    group, n = q_heads // kv_heads, len(span.pages)
    pages = pool[:, span.first : span.first + n] if span.first >= 0 else pool.index_select(1, span.pages)
    # [2, n, Hkv, P, D] -> [2, 1, Hkv, n * P, D]; a view where there is one page
    flat = pages.transpose(1, 2).reshape(2, 1, kv_heads, n * size, dim)[..., span.offset : span.offset + span.length, :]
    queries = q.to(pool.dtype).view(-1, kv_heads, group, dim).permute(2, 1, 0, 3)
    # The group is the batch and the keys are broadcast over it: no copy per query head.
    k, v = flat[0].expand(group, -1, -1, -1), flat[1].expand(group, -1, -1, -1)
    out = torch.nn.functional.scaled_dot_product_attention(
        queries, k, v, attn_mask=span.mask, is_causal=span.causal, scale=scale
    )
    return out.permute(2, 1, 0, 3).reshape(-1, q_heads, dim).to(q.dtype)


def plan(
    batch: RaggedBatch,
    page_tokens: int,
    window: int | None,
    kv_heads: int,
    group: int,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionPlan:
    """How ``batch`` attends where each query sees itself and the ``window - 1`` positions before it (None: all).

    Args:
        kv_heads, group: number of KV heads, and of query heads for each.
        dtype: of the pool, for the masks.
    """
    return _Planner(page_tokens, window, kv_heads, group, dtype, device).plan(batch)


@dataclass(slots=True)
class _Use:
    """One query row that reads positions [low, high) of a page."""

    target: int
    row: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Planner:
    size: int
    window: int | None
    kv_heads: int
    group: int
    dtype: torch.dtype
    device: torch.device

    def plan(self, batch: RaggedBatch) -> AttentionPlan:
        spans: list[_SpanCall] = []
        uses: dict[int, list[_Use]] = defaultdict(list)
        targets: list[int] = []
        offsets = batch.offsets.tolist()
        for span, begin, end in zip(batch.spans, offsets[:-1], offsets[1:], strict=True):
            if end - begin > _SHORT:
                spans.append(self._span_call(span, begin))
                continue
            for row in range(begin, end):
                position = span.start + row - begin
                low = self._low(position)
                for index in range(low // self.size, position // self.size + 1):
                    base = index * self.size
                    visible = (max(0, low - base), min(self.size, position + 1 - base))
                    uses[span.pages[index]].append(_Use(len(targets), row, *visible))
                targets.append(row)
        calls, places = self._page_calls(uses, len(targets))
        pick, absent = self._merge(places, sum(call.n * call.width for call in calls))
        return AttentionPlan(calls, spans, pick, self._index(targets) if spans and targets else None, absent)

    def _low(self, position: int) -> int:
        return 0 if self.window is None else max(0, position - self.window + 1)

    def _index(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _additive(self, visible: Tensor) -> Tensor:
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~visible, float("-inf"))

    def _span_call(self, span: Span, begin: int) -> _SpanCall:
        low = self._low(span.start)
        first_page = low // self.size
        pages = list(span.pages[first_page : -(-span.end // self.size)])
        contiguous = all(b == a + 1 for a, b in pairwise(pages))
        length = span.end - low
        causal = span.start == 0 and (self.window is None or self.window >= length)
        mask: Tensor | None = None
        if not causal:
            queries = torch.arange(span.start, span.end, device=self.device).unsqueeze(1)
            keys = torch.arange(low, span.end, device=self.device).unsqueeze(0)
            visible = keys <= queries
            if self.window is not None:
                visible &= keys > queries - self.window
            mask = self._additive(visible)[None, None]
        return _SpanCall(
            begin=begin,
            end=begin + len(span.tokens),
            pages=self._index(pages),
            first=pages[0] if contiguous else -1,
            offset=low - first_page * self.size,
            length=length,
            causal=causal,
            mask=mask,
        )

    def _page_calls(self, uses: dict[int, list[_Use]], n_targets: int) -> tuple[list[_PageCall], list[list[int]]]:
        """Group pages into views; ``places[target]`` are the indices of its partial results, in call order."""
        places: list[list[int]] = [[] for _ in range(n_targets)]
        calls: list[_PageCall] = []
        done = 0
        # Pages read by about as many queries go together, so that queries are padded to at most twice their number.
        widths: dict[int, list[int]] = defaultdict(list)
        for page, readers in uses.items():
            widths[1 << (len(readers) - 1).bit_length()].append(page)
        highs = {page: max(use.high for use in readers) for page, readers in uses.items()}
        for width, runs in _groups(widths, highs):
            for run in runs:
                call = self._page_call(run, width, uses, places, done)
                done += call.n * width
                calls.append(call)
        return calls, places

    def _page_call(
        self, run: Sequence[int], width: int, uses: dict[int, list[_Use]], places: list[list[int]], done: int
    ) -> _PageCall:
        first, n = run[0], run[-1] - run[0] + 1
        length = max(use.high for page in run for use in uses[page])
        rows = [uses[first][0].row] * (n * width)
        lows, highs = [0] * (n * width), [length] * (n * width)
        for page in run:
            for k, use in enumerate(uses[page]):
                slot = (page - first) * width + k
                rows[slot], lows[slot], highs[slot] = use.row, use.low, use.high
                places[use.target].append(done + slot)
        mask: Tensor | None = None
        if any(lows) or min(highs) < length:
            at = torch.arange(length, device=self.device)
            low, high = self._index(lows).view(n, width, 1), self._index(highs).view(n, width, 1)
            mask = self._additive((at >= low) & (at < high)).repeat_interleave(self.kv_heads, dim=0)
            if width > 1:
                mask = mask.repeat_interleave(self.group, dim=1)
        return _PageCall(first, n, length, self._index(rows), rows == list(range(len(rows))), width, mask)

    def _merge(self, places: list[list[int]], results: int) -> tuple[Tensor | None, Tensor | None]:
        """Index of each row's partial results, padded; and which of them are padding."""
        parts = max(map(len, places), default=0)
        if parts <= 1:
            flat = [p[0] for p in places]
            return (None if flat == list(range(results)) else self._index(flat)), None
        pick = [p + [p[0]] * (parts - len(p)) for p in places]
        absent = [[False] * len(p) + [True] * (parts - len(p)) for p in places]
        return self._index(pick), self._index(absent)


def _groups(widths: dict[int, list[int]], highs: dict[int, int]) -> list[tuple[int, list[Sequence[int]]]]:
    """Runs of pages to be read at a width each, at the least cost.

    Pages read by fewer queries may go with ones read by more, padded: rows that verify blocks of unlike lengths are
    read in one call, unless that costs more than another call.

    Args:
        widths: pages by their width.
        highs: positions that are read of each page.
    """
    order = sorted(widths)
    count = len(order) if sum(map(len, widths.values())) <= _MERGED else 1
    best: list[float] = [0.0]  # of the first i widths
    last: list[tuple[int, list[Sequence[int]]]] = []  # where its last group begins, and the runs of that
    for end in range(1, len(order) + 1):
        weight = reading(order[end - 1])
        least = float("inf")
        found: tuple[int, list[Sequence[int]]] = (end - 1, [])
        for begin in range(end - 1, max(-1, end - 1 - count), -1):
            pages = sorted(page for width in order[begin:end] for page in widths[width])
            cost, runs = _runs(pages, [weight * highs[page] for page in pages])
            if best[begin] + cost < least:
                least, found = best[begin] + cost, (begin, runs)
        best.append(least)
        last.append(found)
    groups: list[tuple[int, list[Sequence[int]]]] = []
    end = len(order)
    while end:
        begin, runs = last[end - 1]
        groups.append((order[end - 1], runs))
        end = begin
    return groups[::-1]


def _runs(pages: Sequence[int], lengths: Sequence[float]) -> tuple[float, list[Sequence[int]]]:
    """Split sorted pages into runs, each covered by one view, at the least cost; that cost, and the runs.

    A run costs its extent times its longest page, whether the pages inside it are read or not, and a constant per call.
    The best split is found by dynamic programming over where the last run begins.
    """
    best = [0.0]  # of the first i pages
    begins: list[int] = []
    for end in range(1, len(pages) + 1):
        longest, least, first = 0.0, float("inf"), end - 1
        for begin in range(end - 1, -1, -1):
            longest = max(longest, lengths[begin])
            cost = best[begin] + _CALL_COST + (pages[end - 1] - pages[begin] + 1) * longest
            if cost < least:
                least, first = cost, begin
        best.append(least)
        begins.append(first)
    runs: list[Sequence[int]] = []
    end = len(pages)
    while end:
        runs.append(pages[begins[end - 1] : end])
        end = begins[end - 1]
    return best[-1], runs[::-1]
