"""Paged attention equals dense attention over each sequence's own keys and values, whatever else is in the batch.

The oracle keeps each sequence's keys and values as one plain list and computes in float64. Kernels run through Triton's
interpreter, and on a GPU (``-m gpu``) as they are.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import paged_cases as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_cases import Case, Shape
from torch import Tensor

from trimtab.kernels import dispatch, paging, paths
from trimtab.kernels.paging import LONG_SPLIT, SHORT_SPAN, SHORT_SPLIT
from trimtab.kernels.paths import Path as KernelPath
from trimtab.kernels.paths import available

pytestmark = pytest.mark.usefixtures("one_thread")


CPU, path, error = pc.CPU, pc.path, pc.error
_device = pc._device

# What a kernel's error may exceed eager's own in the same dtype by; values of the tests are of size 1.
SLACK = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


DECODE = ((0, 1), (63, 1), (64, 1), (255, 1), (256, 1), (600, 1))
VERIFY = ((60, 5), (253, 5), (0, 2), (300, 16))
PROMPTS = ((0, 90), (70, 40), (250, 17))
MIXED = ((300, 1), (0, 30), (40, 5), (513, 1))
SHAPES = [
    Shape(DECODE),
    Shape(DECODE, dtype=torch.bfloat16, dim=64),
    Shape(DECODE, window=100, group=1),
    Shape(VERIFY, group=4, heads=1, dtype=torch.float16),
    Shape(VERIFY, window=70, softcap=2.0),
    Shape(PROMPTS, dtype=torch.bfloat16),
    Shape(PROMPTS, window=50),
    Shape(PROMPTS, softcap=2.0, group=1),
    Shape(MIXED, dtype=torch.bfloat16, dim=32, heads=1, group=7),
    Shape(MIXED, page=16, window=9),
    Shape(MIXED, page=48, heads=1),  # no power of two, and not whole blocks
    Shape(MIXED, page=128, heads=1, group=16),
    Shape(((17 * SHORT_SPLIT, 1),), heads=1, group=2),  # more splits than are read at once
    Shape(((LONG_SPLIT - 20, 30),), heads=1, window=300),
    Shape(((1, 1), (5, 3)), window=1),
    Shape(((40, 3),), dim=80, heads=1),
    Shape(((40, 3), (10, 20)), dim=256, heads=1, group=2, dtype=torch.bfloat16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_stay_within_eagers_own(shape: Shape, path: KernelPath) -> None:
    case = Case(shape, path)
    truth = case.dense()
    eager = error(case.attend("torch"), truth)
    with paths.record() as calls:
        found = error(case.attend(path), truth)
    assert found <= eager + SLACK[shape.dtype], (found, eager)
    assert calls == [("paged_write", path), ("paged_attend", path)]


@pytest.mark.full
@pytest.mark.parametrize("seed", range(60))
def test_random_batches(seed: int, path: KernelPath) -> None:
    rng = random.Random(seed)
    starts, news = [0, 1, 63, 64, 255, rng.randrange(900)], [1, 1, 2, 5, 16, 17, rng.randrange(1, 150)]
    spans = [(rng.choice(starts), rng.choice(news)) for _ in range(rng.choice([1, 2, 5, 9]))]
    shape = Shape(
        tuple(spans),
        window=rng.choice([None, None, 1, 5, 64, 100, 257]),
        heads=rng.choice([1, 2]),
        group=rng.choice([1, 2, 3, 4, 5, 8]),
        dim=rng.choice([8, 12, 16, 40, 64]),
        page=rng.choice([8, 64, 64, 64, 128]),
        softcap=rng.choice([0.0, 0.0, 3.0]),
        dtype=rng.choice([torch.float32, torch.bfloat16, torch.float16]),
    )
    case = Case(shape, path, seed)
    truth = case.dense()
    assert error(case.attend(path), truth) <= error(case.attend("torch"), truth) + SLACK[shape.dtype], shape


def test_head_shapes_of_all_architectures(tiny: Any, path: KernelPath) -> None:
    shapes = set()
    for kind in tiny.KINDS:
        config = tiny.make(kind).config
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        shapes.add((kv_heads, heads // kv_heads, dim, getattr(config, "sliding_window", None)))
    assert len(shapes) >= 4
    for kv_heads, group, dim, window in shapes:
        case = Case(Shape(((70, 1), (10, 20)), heads=kv_heads, group=group, dim=dim, window=window), path)
        assert error(case.attend(path), case.dense()) < 5e-6


# ------------------------------------------------------------------------------------------------- negative controls


@pytest.mark.parametrize("new", [1, 5, 20])
def test_negative_control_a_window_off_by_one_shows(new: int, path: KernelPath) -> None:
    case = Case(Shape(((300, new), (17, new)), window=80, heads=1), path)
    truth = case.dense()
    assert error(case.attend(path), truth) < 5e-6
    for wrong in (79, 81, None):
        assert error(case.attend(path, window=wrong), truth) > 1e-3


@pytest.mark.parametrize("new", [1, 20])
def test_negative_control_a_wrong_page_shows(new: int, path: KernelPath) -> None:
    case = Case(Shape(((300, new), (300, new)), heads=1), path)
    truth = case.dense()
    assert error(case.attend(path), truth) < 5e-6
    case.pages[0][1] = case.pages[1][1]
    found = (case.attend(path).double() - truth).abs()
    assert float(found[:new].max()) > 1e-3
    assert float(found[new:].max()) < 5e-6  # the other sequence is as it was


def test_negative_control_page_order_shows(path: KernelPath) -> None:
    """Whole pages before the last are seen alike by a query, so only a window tells their order."""
    case = Case(Shape(((300, 1),), heads=1, window=100), path)
    truth = case.dense()
    case.pages[0][3:5] = reversed(case.pages[0][3:5])
    found = case.attend(path).double()  # NaN where a page's unwritten end comes before its turn
    assert not float((found - truth).abs().max()) < 1e-3


# -------------------------------------------------------------------------------------------------------- invariance


@pytest.mark.parametrize("window", [None, 90])
def test_a_row_does_not_depend_on_the_batch(window: int | None, path: KernelPath) -> None:
    """Bit for bit: alone, reversed, and padded."""
    shape = Shape(((520, 1), (0, 40), (300, 5)), window=window, heads=1, dtype=torch.bfloat16)
    case = Case(shape, path)
    together = case.attend(path)
    assert torch.equal(case.attend(path, rows=64), together)
    begin = 0
    for i, (start, new) in enumerate(shape.spans):
        alone = Case.__new__(Case)
        vars(alone).update(vars(case))
        alone.shape = replace(shape, spans=((start, new),))
        alone.pages, alone.keys, alone.values = [case.pages[i]], [case.keys[i]], [case.values[i]]
        alone.q = case.q[begin : begin + new]
        assert torch.equal(alone.attend(path), together[begin : begin + new])
        begin += new
    back = Case.__new__(Case)
    vars(back).update(vars(case))
    back.shape = replace(shape, spans=shape.spans[::-1])
    back.pages, back.keys, back.values = case.pages[::-1], case.keys[::-1], case.values[::-1]
    parts = case.q.split([new for _, new in shape.spans])
    back.q = torch.cat(parts[::-1])
    expected = torch.cat(together.split([new for _, new in shape.spans])[::-1])
    assert torch.equal(back.attend(path), expected)


@pytest.mark.parametrize("window", [None, 90])
def test_chunked_is_whole(window: int | None, path: KernelPath) -> None:
    """A prompt in chunks of any size equals the prompt at once: bit for bit where rows keep their places in the tiles
    (a BLAS that multiplies for the interpreter may round a tile's rows differently), else up to rounding."""
    total = 130
    whole = Case(Shape(((0, total),), window=window, heads=1), path)
    expected = whole.attend(path)
    for cuts, bitwise in (((0, 84, 130), True), ((0, 50, 130), False), ((0, 17, 90, 95, 96, 130), False)):
        case = Case(Shape(((0, total),), window=window, heads=1), path)
        case.pool.fill_(float("nan"))
        found = []
        for begin, end in itertools.pairwise(cuts):
            part = Case.__new__(Case)
            vars(part).update(vars(case))
            part.shape = replace(case.shape, spans=((begin, end - begin),))
            part.q = case.q[begin:end]
            found.append(part.attend(path))
        difference = float((torch.cat(found) - expected).abs().max())
        assert difference == 0 if bitwise else difference < 5e-6


def test_another_sequences_nan_stays_its_own(path: KernelPath) -> None:
    shape = Shape(((100, 1), (30, 20), (300, 2)), heads=1)
    clean, dirty = Case(shape, path), Case(shape, path)
    dirty.values[1].fill_(float("nan"))
    expected, found = clean.attend(path), dirty.attend(path)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[21:], expected[21:])
    assert found[1:21].isnan().all()


# ------------------------------------------------------------------------------------------------------------- writes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_writes_store_what_they_are_given_and_nothing_else(dtype: torch.dtype, path: KernelPath) -> None:
    heads, page, dim, device = 3, 8, 12, _device(path)
    g = torch.Generator().manual_seed(0)
    pool = torch.randn(2, 5, heads, page, dim, generator=g).to(device, dtype)
    wide = torch.randn(7, 2 * heads, 2 * dim, generator=g).to(device)
    kv = wide[:, :, :dim]  # strided
    slots = torch.tensor([0, 39, -1, 17, 8, -1, 7], dtype=torch.int32, device=device)
    expected = pool.clone()
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[0, slot // page, :, slot % page] = kv[row, :heads].to(dtype)
            expected[1, slot // page, :, slot % page] = kv[row, heads:].to(dtype)
    for way in ("torch", path):
        found = pool.clone()
        dispatch.paged_write(found, kv, slots, path=way)
        assert torch.equal(found, expected)
    assert not torch.equal(pool, expected)


def test_an_empty_batch(path: KernelPath) -> None:
    device = _device(path)
    pool = torch.zeros(2, 3, 2, 8, 16, device=device)
    batch = paging.spans([], [], [], 8, device)
    work = paging.schedule(batch, None, 2, 64)
    dispatch.paged_write(pool, torch.empty(0, 4, 16, device=device), batch.slots, path=path)
    out = dispatch.paged_attend(torch.empty(0, 4, 16, device=device), pool, batch, work, 1.0, path=path)
    assert out.shape == (0, 4, 16)


# --------------------------------------------------------------------------------------------------- lists of the work

_SPAN = st.tuples(st.integers(0, 3000), st.one_of(st.integers(1, 20), st.integers(1, 300)))


@given(
    st.lists(_SPAN, max_size=6),
    st.one_of(st.none(), st.integers(1, 2000)),
    st.integers(1, 20),
    st.sampled_from([32, 256, 1024]),
)
@settings(max_examples=60)
def test_every_row_meets_every_position_that_it_sees_once(
    lengths: list[tuple[int, int]], window: int | None, group: int, key_bytes: int
) -> None:
    """Splits cover what a row sees, slots are disjoint, and merges name the slots that were written."""
    starts, new = [s for s, _ in lengths], [n for _, n in lengths]
    pages = [list(range(-(-(s + n) // 64))) for s, n in lengths]
    batch = paging.spans(starts, new, pages, 64, CPU)
    work = paging.schedule(batch, window, group, key_bytes)
    written: dict[int, tuple[int, int]] = {}  # slot -> row of T, split
    direct: dict[int, int] = {}  # row of T -> split
    seen_spans: dict[bool, set[int]] = {False: set(), True: set()}
    for long, items, split in ((False, work.short, SHORT_SPLIT), (True, work.long, LONG_SPLIT)):
        fit = work.rows[long] // group
        assert fit >= 1
        assert len(items) == paging.bucket(int((items[:, 0] >= 0).sum()))
        for span, first, index, slot in items.tolist():
            if span < 0:
                continue
            seen_spans[long].add(span)
            for j in range(min(fit, new[span] - first)):
                row = int(batch.firsts[span]) + first + j
                if slot < 0:
                    assert row not in direct
                    direct[row] = index
                    position = starts[span] + first + j
                    low = 0 if window is None else max(0, position - window + 1)
                    assert index == position // split == low // split
                else:
                    assert slot + j not in written
                    assert slot + j < work.slots
                    written[slot + j] = row, index
    assert all(new[span] <= SHORT_SPAN for span in seen_spans[False])
    assert all(new[span] > SHORT_SPAN for span in seen_spans[True])
    merged = set()
    for row, slot, step, count in work.merges.tolist():
        if row < 0:
            continue
        span = int(np.searchsorted(batch.firsts, row, "right")) - 1
        split = LONG_SPLIT if new[span] > SHORT_SPAN else SHORT_SPLIT
        position = starts[span] + row - int(batch.firsts[span])
        low = 0 if window is None else max(0, position - window + 1)
        found = [written[slot + k * step] for k in range(count)]
        assert found == [(row, index) for index in range(low // split, position // split + 1)]
        assert row not in merged
        merged.add(row)
    assert merged.isdisjoint(direct)
    assert merged | direct.keys() == set(range(sum(new)))


def test_buckets_hide_the_data() -> None:
    """Batches of one bucket have buffers of one layout: a captured graph is refreshed by copying over them."""

    def layout(lengths: list[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
        pages = [list(range(-(-(s + n) // 64))) for s, n in lengths]
        batch = paging.spans([s for s, _ in lengths], [n for _, n in lengths], pages, 64, CPU, rows=16)
        work = paging.schedule(batch, None, 4, 256)
        tensors = (batch.buffer, batch.table, batch.pages, work.buffer, work.short, work.long, work.merges)
        return (*(tuple(t.shape) for t in tensors), (work.slots,))

    assert layout([(100, 1), (300, 1)]) == layout([(70, 1), (20, 1), (500, 1)])
    assert layout([(100, 1), (300, 1)]) != layout([(100, 1), (9000, 1)])


# ------------------------------------------------------------------------------------------------------ bad arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (([0], [1, 1], [[0]], 8), "starts, lengths, pages"),
        (([0], [0], [[0]], 8), "span 0: 0 tokens"),
        (([0, -1], [1, 1], [[0], [1]], 8), "span 1: 1 tokens at -1"),
        (([7], [2], [[0]], 8), "on 1 pages"),
        (([0], [9], [[0, 1]], 8, 5), "rows = 5"),
    ],
)
def test_spans_refuse(arguments: tuple[Any, ...], named: str) -> None:
    lists, rows = arguments[:4], arguments[4] if len(arguments) > 4 else None
    with pytest.raises(ValueError, match=named):
        paging.spans(lists[0], lists[1], lists[2], lists[3], CPU, rows)


@pytest.mark.parametrize("path", ["torch", "interpret"])
def test_wrong_tensors_are_refused_by_name(path: KernelPath) -> None:
    if path not in available(CPU):
        pytest.skip("Triton's interpreter is not available")
    batch = paging.spans([0], [3], [[1]], 8, CPU)
    work = paging.schedule(batch, None, 2, 64)
    pool, q = torch.zeros(2, 3, 2, 8, 16), torch.zeros(3, 4, 16)

    def attend(q: Tensor = q, pool: Tensor = pool, scale: float = 1.0, softcap: float = 0.0) -> Tensor:
        return dispatch.paged_attend(q, pool, batch, work, scale, softcap, path=path)

    assert attend().shape == q.shape
    for call, kind, named in (
        (lambda: attend(q=q.half()), TypeError, "q.dtype"),
        (lambda: attend(q=q[:2]), ValueError, "q.shape"),
        (lambda: attend(q=q[:, :3]), ValueError, "q.shape"),
        (lambda: attend(pool=pool.double()), TypeError, "pool.dtype"),
        (lambda: attend(pool=pool[0]), ValueError, "pool.shape"),
        (lambda: attend(pool=pool.transpose(2, 3)), ValueError, "pool.shape"),
        (lambda: attend(pool=pool.to("meta")), ValueError, "is on"),
        (lambda: attend(scale=0.0), ValueError, "scale = 0.0"),
        (lambda: attend(scale=float("nan")), ValueError, "scale = nan"),
        (lambda: attend(softcap=-1.0), ValueError, "softcap = -1.0"),
        (lambda: dispatch.paged_write(pool, torch.zeros(3, 2, 16), batch.slots, path=path), ValueError, "kv.shape"),
        (lambda: dispatch.paged_write(pool, torch.zeros(2, 4, 16), batch.slots, path=path), ValueError, "kv.shape"),
        (lambda: paging.schedule(batch, 0, 2, 64), ValueError, "window = 0"),
        (lambda: paging.schedule(batch, None, 129, 64), ValueError, "group = 129"),
    ):
        with pytest.raises(kind, match=named):
            call()
