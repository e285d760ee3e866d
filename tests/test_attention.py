"""Attention over pages equals dense attention over each sequence's own keys and values, however pages lie.

The oracle keeps every sequence's keys and values as one plain list and computes in float64.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from trimtab.decode.engine.attention import partial_attention
from trimtab.decode.engine.batch import RaggedBatch, Span
from trimtab.decode.engine.storage import Storage

TOLERANCE = 1e-5
CPU = torch.device("cpu")
GARBAGE = 1e4  # what positions hold that nobody may see


@dataclass(frozen=True)
class Shape:
    """One random case."""

    page_tokens: int
    window: int | None
    kv_heads: int
    group: int
    dim: int


@dataclass
class Sequence:
    """A sequence: its pages, and its keys and values in order, float64 [n, Hkv, D] each."""

    pages: list[int]
    keys: Tensor
    values: Tensor
    start: int
    new: int

    def span(self) -> Span:
        return Span([0] * self.new, self.start, self.pages, 0)


class Case:
    """Random sequences over scattered pages, some of them forks that share pages, with new tokens to attend.

    Args:
        shape: sizes.
        lengths: (start, new tokens) of each sequence.
        forks: how many of the sequences share the first one's whole pages.
        seed: of everything random.
    """

    def __init__(self, shape: Shape, lengths: list[tuple[int, int]], forks: int, seed: int, scatter: bool = True):
        rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.shape, size = shape, shape.page_tokens
        needed = sum(-(-(start + new) // size) for start, new in lengths) + 3
        free = rng.sample(range(needed), needed) if scatter else list(range(needed))
        self.storage = Storage(1, needed, size, shape.kv_heads, shape.dim, torch.float32, CPU)
        self.storage.pools[0].fill_(GARBAGE)
        self.sequences: list[Sequence] = []
        for index, (start, new) in enumerate(lengths):
            shared = 0
            if 0 < index <= forks:
                shared = min(lengths[0][0], start) // size
            first = self.sequences[0] if shared else None
            pages = list(first.pages[:shared]) if first else []
            pages += [free.pop(0) for _ in range(-(-(start + new) // size) - shared)]
            keys, values = self.random(start + new), self.random(start + new)
            if first:
                keys[: shared * size] = first.keys[: shared * size]
                values[: shared * size] = first.values[: shared * size]
            self.sequences.append(Sequence(pages, keys, values, start, new))
        for s in self.sequences:
            for i in range(s.start):
                page, at = s.pages[i // size], i % size
                self.storage.pools[0][0, page, :, at] = s.keys[i].float()
                self.storage.pools[0][1, page, :, at] = s.values[i].float()
        total = sum(new for _, new in lengths)
        self.q = torch.randn(total, shape.kv_heads * shape.group, shape.dim, generator=self.generator)
        self.scale = shape.dim**-0.5

    def random(self, n: int) -> Tensor:
        """Values that float32 holds exactly."""
        made = torch.randn(n, self.shape.kv_heads, self.shape.dim, generator=self.generator)
        return made.double()

    def attend(self, q: Tensor | None = None) -> Tensor:
        """What the engine computes: writes the new keys and values, then attends."""
        batch = RaggedBatch.pack([s.span() for s in self.sequences], self.shape.page_tokens)
        kv = torch.cat([torch.cat((s.keys[s.start :], s.values[s.start :]), 1) for s in self.sequences]).float()
        step = self.storage.begin(batch)
        return step.attend(0, self.q if q is None else q, kv, self.scale, self.shape.window)

    def dense(self, window: int | None) -> Tensor:
        """The same by definition, one query at a time."""
        rows, row = [], 0
        for s in self.sequences:
            for position in range(s.start, s.start + s.new):
                low = 0 if window is None else max(0, position - window + 1)
                keys = s.keys[low : position + 1].repeat_interleave(self.shape.group, 1)
                values = s.values[low : position + 1].repeat_interleave(self.shape.group, 1)
                scores = torch.einsum("hd,lhd->hl", self.q[row].double(), keys) * self.scale
                rows.append(torch.einsum("hl,lhd->hd", scores.softmax(-1), values))
                row += 1
        return torch.stack(rows)

    def error(self, window: int | None) -> float:
        return float((self.attend().double() - self.dense(window)).abs().max())


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    shape = Shape(
        page_tokens=rng.choice([1, 3, 4, 16, 32]),
        window=rng.choice([None, None, 1, 2, 5, 8, 17, 40]),
        kv_heads=rng.choice([1, 2, 3]),
        group=rng.choice([1, 2, 4]),
        dim=rng.choice([8, 16]),
    )
    count = rng.choice([1, 2, 5, 9])
    lengths = [(rng.choice([0, 1, 7, 16, rng.randrange(60)]), _new(rng)) for _ in range(count)]
    return Case(shape, lengths, rng.choice([0, count // 2, count]), seed, scatter=rng.random() < 0.7)


def _new(rng: random.Random) -> int:
    """Mostly decode steps; some verify windows, some prefill chunks, around the border between the two kinds."""
    return rng.choice([1, 1, 1, 2, 5, 15, 16, 17, rng.randrange(1, 50)])


@pytest.mark.parametrize("block", range(8))
def test_random_batches_equal_dense_attention(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        case = random_case(seed)
        assert case.error(case.shape.window) < TOLERANCE, (seed, case.shape)


def test_all_kinds_of_batches_are_among_the_random_ones() -> None:
    """The generator above reaches what the law is about."""
    cases = [random_case(seed) for seed in range(200)]
    spans = [[s.new for s in case.sequences] for case in cases]
    assert any(max(new) > 16 and min(new) == 1 for new in spans), "long and short spans in one batch"
    assert any(len(new) > 1 and max(new) == 1 for new in spans), "a plain decode step"
    shared = [len(set.intersection(*(set(s.pages) for s in c.sequences))) for c in cases if len(c.sequences) > 1]
    assert max(shared) > 1, "several pages shared by all sequences"
    assert any(c.shape.window is not None and c.shape.window > c.shape.page_tokens for c in cases), "windows over pages"
    assert any(s.start > 2 * c.shape.page_tokens and s.new == 1 for c in cases for s in c.sequences), (
        "rows of many pages"
    )


def test_many_readers_of_one_prefix() -> None:
    """Sixteen candidates behind one prompt, which is read once."""
    for window in (None, 9):
        shape = Shape(page_tokens=8, window=window, kv_heads=2, group=3, dim=16)
        case = Case(shape, [(24 + k, 1) for k in range(16)], forks=15, seed=1)
        assert len({page for s in case.sequences for page in s.pages}) < 16 * 4
        assert case.error(window) < TOLERANCE


@pytest.mark.parametrize("new", [1, 5, 20])
@pytest.mark.parametrize("window", [4, 8, 12])
def test_negative_control_a_window_off_by_one_shows(window: int, new: int) -> None:
    shape = Shape(page_tokens=4, window=window, kv_heads=2, group=2, dim=8)
    case = Case(shape, [(30, new), (17, new)], forks=0, seed=window)
    assert case.error(window) < TOLERANCE
    for wrong in (window - 1, window + 1, None):
        assert case.error(wrong) > 100 * TOLERANCE


@pytest.mark.parametrize("new", [1, 5, 20])
def test_negative_control_the_order_of_pages_shows(new: int) -> None:
    shape = Shape(page_tokens=4, window=10, kv_heads=1, group=2, dim=8)
    case = Case(shape, [(30, new)], forks=0, seed=3)
    truth = case.dense(10)
    case.sequences[0].pages[5:7] = reversed(case.sequences[0].pages[5:7])
    assert float((case.attend().double() - truth).abs().max()) > 100 * TOLERANCE


def test_negative_control_a_foreign_page_shows() -> None:
    shape = Shape(page_tokens=4, window=None, kv_heads=1, group=1, dim=8)
    case = Case(shape, [(12, 1), (12, 1)], forks=0, seed=4)
    truth = case.dense(None)
    case.sequences[0].pages[1] = case.sequences[1].pages[1]
    assert float((case.attend().double() - truth)[0].abs().max()) > 100 * TOLERANCE


def test_a_row_does_not_depend_on_the_batch() -> None:
    """Law 2 at the level of one layer: the same sequence alone and among others."""
    for seed in range(20):
        case = random_case(seed)
        together = case.attend()
        begin = 0
        for sequence in case.sequences:
            alone = Case.__new__(Case)
            alone.__dict__.update(case.__dict__)
            alone.sequences = [sequence]
            alone.q = case.q[begin : begin + sequence.new]
            assert float((alone.attend() - together[begin : begin + sequence.new]).abs().max()) < TOLERANCE
            begin += sequence.new


def test_the_pool_may_be_wider_than_the_queries() -> None:
    """bfloat16 queries over a float32 pool: the answer comes back in the queries' type, rounded once."""
    for lengths in ([(9, 1), (30, 1)], [(9, 20)], [(9, 1), (0, 20)]):
        shape = Shape(page_tokens=8, window=None, kv_heads=2, group=2, dim=16)
        case = Case(shape, lengths, forks=0, seed=5)
        case.q = case.q.bfloat16().float()
        found = case.attend(case.q.bfloat16())
        assert found.dtype is torch.bfloat16
        assert float((found.double() - case.dense(None)).abs().max()) < 0.02
        assert float((found.double() - case.dense(None)).abs().max()) > TOLERANCE  # rounded, so not the float32 path


def test_partial_results_merge_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, n, 8, generator=generator) for n in (4, 30, 30))
    whole, lse = partial_attention(q, k, v, None, 0.3, True)
    assert lse is not None
    truth = torch.softmax(q.double() @ k.double().transpose(1, 2) * 0.3, -1) @ v.double()
    assert float((whole.double() - truth).abs().max()) < TOLERANCE
    for cut in (1, 11, 29):
        (a, la), (b, lb) = (
            partial_attention(q, k[:, s], v[:, s], None, 0.3, True) for s in (slice(cut), slice(cut, None))
        )
        assert la is not None
        assert lb is not None
        weights = torch.softmax(torch.stack((la, lb)), 0).unsqueeze(-1)
        assert float((a * weights[0] + b * weights[1] - whole).abs().max()) < TOLERANCE
        assert float((torch.logaddexp(la, lb) - lse).abs().max()) < TOLERANCE


def test_copies_take_the_first_positions_of_all_layers() -> None:
    storage = Storage(2, 4, 4, 1, 2, torch.float32, CPU)
    for layer, pool in enumerate(storage.pools):
        pool.copy_(torch.arange(pool.numel()).view_as(pool) + 100 * layer)
    before = [pool.clone() for pool in storage.pools]
    storage.copy([(0, 3, 2), (3, 1, 1)])  # type: ignore[list-item]  # in order: the second reads what the first wrote
    for pool, old in zip(storage.pools, before, strict=True):
        assert torch.equal(pool[:, 3, :, :2], old[:, 0, :, :2])
        assert torch.equal(pool[:, 3, :, 2:], old[:, 3, :, 2:])
        assert torch.equal(pool[:, 1, :, :1], old[:, 0, :, :1])
        assert torch.equal(pool[:, 0], old[:, 0])


@pytest.mark.parametrize(
    "span", [Span([], 0, [0], 0), Span([1], 4, [0], 0), Span([1] * 5, 0, [0], 0), Span([1, 1], 7, [0, 1], 1)]
)
def test_a_batch_refuses_spans_that_do_not_fit(span: Span) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        RaggedBatch.pack([Span([1], 0, [2], 1), span], 4)


def test_a_batch_knows_where_everything_goes() -> None:
    spans = [Span([5, 6, 7], 3, [4, 1], 2), Span([8], 0, [2], 1), replace(Span([9], 4, [0, 3], 0), tokens=(9, 9))]
    batch = RaggedBatch.pack(spans, 4)
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9, 9]
    assert batch.positions.tolist() == [3, 4, 5, 0, 4, 5]
    assert batch.slots.tolist() == [19, 4, 5, 8, 12, 13]
    assert batch.rows.tolist() == [1, 2, 3]
    assert batch.offsets.tolist() == [0, 3, 4, 6]
    assert math.prod(batch.tokens.shape) == 6
