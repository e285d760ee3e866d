"""Paged attention equals dense attention over each sequence's own keys and values, whatever else is in the batch.

The oracle keeps each sequence's keys and values as one plain list and computes in float64. Kernels run through Triton's
interpreter, and on a GPU (``-m gpu``) as they are.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.decode.config import ModelConfig
from trimtab.decode.engine.batch import RaggedBatch, Span
from trimtab.decode.engine.storage import Storage
from trimtab.decode.models.load import load
from trimtab.kernels import dispatch, paging, paths
from trimtab.kernels.paging import LONG_SPLIT, SHORT_SPAN, SHORT_SPLIT
from trimtab.kernels.paths import Path as KernelPath
from trimtab.kernels.paths import available

CPU = torch.device("cpu")
# What a kernel's error may exceed eager's own in the same dtype by; values of the tests are of size 1.
SLACK = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["interpret", pytest.param("triton", marks=pytest.mark.gpu)])
def path(request: pytest.FixtureRequest) -> KernelPath:
    """The path that runs the kernels on this machine."""
    found: KernelPath = request.param
    if found not in available(_device(found)):
        pytest.skip(
            f"the path {found!r} needs Triton and a {_device(found).type} device, with TRITON_INTERPRET to suit"
        )
    return found


def _device(path: str) -> torch.device:
    return torch.device("cuda" if path == "triton" else "cpu")


@dataclass(frozen=True)
class Shape:
    """One case. ``spans`` are (cached positions, new tokens)."""

    spans: tuple[tuple[int, int], ...]
    window: int | None = None
    heads: int = 2
    group: int = 3
    dim: int = 16
    page: int = 64
    softcap: float = 0.0
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        own = {k: v for k, v in vars(self).items() if v != Shape.__dataclass_fields__[k].default}
        return "-".join(f"{k}={v}" for k, v in own.items()).replace("torch.", "").replace(" ", "")


class Case:
    """Sequences on scattered pages of a pool that holds NaN wherever nothing was written."""

    def __init__(self, shape: Shape, path: str = "interpret", seed: int = 0) -> None:
        self.shape, self.device = shape, _device(path)
        rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
        needed = [-(-(start + new) // shape.page) for start, new in shape.spans]
        free = rng.sample(range(sum(needed) + 2), sum(needed))
        self.pages = [[free.pop() for _ in range(n)] for n in needed]
        self.keys, self.values = (
            [
                torch.randn(start + new, shape.heads, shape.dim, generator=g).to(shape.dtype)
                for start, new in shape.spans
            ]
            for _ in range(2)
        )
        total = sum(new for _, new in shape.spans)
        self.q = (2 * torch.randn(total, shape.heads * shape.group, shape.dim, generator=g)).to(shape.dtype)
        size = (2, sum(needed) + 2, shape.heads, shape.page, shape.dim)
        self.pool = torch.full(size, float("nan"), dtype=shape.dtype, device=self.device)
        self.scale = shape.dim**-0.5
        old = [start for start, _ in shape.spans]
        self._write([0] * len(old), old, "torch")

    def _kv(self, starts: list[int], lengths: list[int]) -> Tensor:
        both = [
            torch.cat((k[s : s + n], v[s : s + n]), 1)
            for k, v, s, n in zip(self.keys, self.values, starts, lengths, strict=True)
        ]
        return torch.cat(both).to(self.device) if both else self.q.new_empty(0, 2 * self.shape.heads, self.shape.dim)

    def _write(self, starts: list[int], lengths: list[int], path: KernelPath) -> None:
        some = [i for i, n in enumerate(lengths) if n]
        batch = paging.spans(
            [starts[i] for i in some],
            [lengths[i] for i in some],
            [self.pages[i] for i in some],
            self.shape.page,
            self.device,
        )
        dispatch.paged_write(self.pool, self._kv(starts, lengths), batch.slots, path=path)

    def spans(self, rows: int | None = None) -> paging.Spans:
        starts, lengths = ([s[i] for s in self.shape.spans] for i in (0, 1))
        return paging.spans(starts, lengths, self.pages, self.shape.page, self.device, rows)

    def attend(self, path: KernelPath, window: int | None = -1, rows: int | None = None) -> Tensor:
        """Write the new keys and values and attend; ``window`` -1 is the shape's own."""
        shape, batch = self.shape, self.spans(rows)
        new, q = self._kv(*([s[i] for s in shape.spans] for i in (0, 1))), self.q.to(self.device)
        if rows is not None:
            padding = rows - len(q)
            new = torch.cat((new, new.new_full((padding, *new.shape[1:]), 1e4)))
            q = torch.cat((q, q.new_full((padding, *q.shape[1:]), 1e4)))
        dispatch.paged_write(self.pool, new, batch.slots, path=path)
        window = shape.window if window == -1 else window
        work = paging.schedule(batch, window, shape.group, shape.dim * shape.dtype.itemsize)
        out = dispatch.paged_attend(q, self.pool, batch, work, self.scale, shape.softcap, path=path)
        return out[: len(self.q)].cpu()

    def dense(self) -> Tensor:
        """By definition, in float64, one query at a time."""
        shape, rows, row = self.shape, [], 0
        for (start, new), k, v in zip(shape.spans, self.keys, self.values, strict=True):
            for position in range(start, start + new):
                low = 0 if shape.window is None else max(0, position - shape.window + 1)
                keys, values = (x[low : position + 1].double().repeat_interleave(shape.group, 1) for x in (k, v))
                scores = torch.einsum("hd,lhd->hl", self.q[row].double(), keys) * self.scale
                if shape.softcap:
                    scores = shape.softcap * torch.tanh(scores / shape.softcap)
                rows.append(torch.einsum("hl,lhd->hd", scores.softmax(-1), values))
                row += 1
        return torch.stack(rows)


def error(found: Tensor, truth: Tensor) -> float:
    assert found.isfinite().all()
    return float((found.double() - truth).abs().max())


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
    seen_spans = {False: set(), True: set()}
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
        paging.spans(*lists, CPU, rows)


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


# ---------------------------------------------------------------------------------------------- in engine and compiler


@pytest.mark.parametrize("kind", ["gemma3", "gpt2"])
def test_a_whole_model_on_the_paged_kernels(kind: str, tiny_folder: Callable[..., Path], path: KernelPath) -> None:
    """The engine's storage on this path gives the logits of the torch path: prefill, then verification and decode."""
    device = _device(path)
    model = load("tiny", ModelConfig(source=str(tiny_folder(kind)), device=device.type, dtype="float32"))
    logits: dict[str, list[Tensor]] = {}
    for way in ("torch", path):
        shape = (model.layers, 8, 64, model.kv_heads, model.head_dim, model.kv_dtype, device)
        storage = Storage(*shape, path=way)
        found = logits[way] = []
        for spans in ([(0, 70), (0, 3)], [(70, 5), (3, 1)]):
            batch = RaggedBatch.pack(
                [
                    Span([(7 * i + 31 * k) % 200 for i in range(start, start + new)], start, pages, min(new, 5))
                    for k, ((start, new), pages) in enumerate(zip(spans, ([5, 2], [4]), strict=True))
                ],
                64,
            )
            tensors = (torch.from_numpy(x).to(device) for x in (batch.tokens, batch.positions, batch.rows))
            tokens, positions, rows = tensors
            with torch.inference_mode(), paths.record() as calls:
                found.append(model.forward(tokens, positions, storage.begin(batch), rows))
            assert ("paged", way) in calls
            assert [c.op for c in calls].count("paged_attend") == (0 if way == "torch" else model.layers)
    for expected, got in zip(logits["torch"], logits[path], strict=True):
        assert float((expected - got).abs().max() / expected.std()) < 1e-4


def test_torch_compile_sees_whole_operators(path: KernelPath) -> None:
    case = Case(Shape(((70, 1), (10, 20)), heads=1), path)
    expected = case.attend(path)
    batch = case.spans()
    work = paging.schedule(batch, None, 3, 64)
    new, q = case._kv([70, 10], [1, 20]), case.q.to(case.device)

    def step(q: Tensor, pool: Tensor, new: Tensor) -> Tensor:
        dispatch.paged_write(pool, new, batch.slots, path=path)
        return dispatch.paged_attend(q, pool, batch, work, case.scale, path=path) * 1

    found = torch.compile(step, backend="aot_eager", fullgraph=True)(q, case.pool, new)
    assert torch.equal(found.cpu(), expected)


def test_the_operators_keep_what_they_promise(path: KernelPath) -> None:
    from trimtab.kernels.triton import paged

    case = Case(Shape(((70, 1), (300, 2)), heads=1), path)
    case.attend(path)
    batch = case.spans()
    work = paging.schedule(batch, None, 3, 64)
    pool, q, new = case.pool.nan_to_num(), case.q.to(case.device), case._kv([70, 300], [1, 2])
    lists = (batch.table, batch.pages, work.short, work.long, work.merges)
    torch.library.opcheck(paged._write_op, (pool, new, batch.slots))
    torch.library.opcheck(paged._attend_op, (q, pool, *lists, work.slots, *work.rows, 0, case.scale, 0.0))


@pytest.mark.gpu
def test_a_captured_graph_follows_its_buffers() -> None:
    """One capture serves another batch of its bucket; nothing waits for the host."""
    first = Case(Shape(((70, 1), (300, 1))), "triton", 0)
    second = Case(Shape(((40, 1), (290, 1))), "triton", 1)
    truth = second.dense()
    batch, other = first.spans(), second.spans()
    works = [paging.schedule(b, None, 3, 64) for b in (batch, other)]
    pool = torch.zeros(2, 16, *first.pool.shape[2:], device="cuda")
    q, new = first.q.cuda(), first._kv([70, 300], [1, 1])

    def step() -> Tensor:
        dispatch.paged_write(pool, new, batch.slots, path="triton")
        return dispatch.paged_attend(q, pool, batch, works[0], first.scale, path="triton")

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    pool[:, : second.pool.shape[1]].copy_(second.pool.nan_to_num())
    batch.buffer.copy_(other.buffer)
    works[0].buffer.copy_(works[1].buffer)
    q.copy_(second.q)
    new.copy_(second._kv([40, 290], [1, 1]))
    graph.replay()
    assert error(out.cpu(), truth) < 5e-6


def compiled(name: str) -> dict[str, dict[str, Any]]:
    """What ``sm90.py`` says of these kernels."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("sm90.py")
    done = subprocess.run([sys.executable, script, name], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def test_compiled_for_hopper() -> None:
    """Without spills, with 16-byte loads, asynchronous ones for keys and values, and on the tensor cores."""
    found = compiled("paged")
    for kernel in found.values():
        assert kernel["spilled"] == 0
    for name, mma in (("decode", "HMMA"), ("prefill", "HGMMA")):
        counts = found[name]["instructions"]
        assert any(op.startswith(mma) for op in counts)
        assert counts["LDGSTS.E.BYPASS.128"] > 0
        assert not any(op.startswith("LDG") and op.endswith((".U16", ".U8")) for op in counts)
    assert found["merge"]["instructions"]["LDG.E.128"] > 0
    assert found["write"]["instructions"]["STG.E.128"] > 0


@pytest.mark.full
def test_all_head_shapes_compile_for_hopper() -> None:
    for name, kernel in compiled("paged-all").items():
        assert kernel["shared"] <= 227 * 1024, name
        assert kernel["spilled"] == 0 or name == "fp32 256", name
