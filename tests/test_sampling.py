"""Statistics of logits and picking: against float64, against Hugging Face's filters, by distribution, bit by bit."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import kernel_oracles as oracles
import logit_rows as lr
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trimtab.kernels import dispatch, paths
from trimtab.kernels.cpu.tiles import TILE
from trimtab.kernels.results import Picked
from trimtab.kernels.types import Filters, Key, Pick

pytestmark = pytest.mark.usefixtures("one_thread")


INF = float("inf")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 2, 63, 64, 65, 4095, 4096, 4097, 50257]


# ----------------------------------------------------------------------------------------------------- distribution


def draw(logits: torch.Tensor, filters: Filters, draws: int, **extra: Any) -> NDArray[np.int64]:
    """Counts [V] of tokens of one row at as many positions."""
    key = Key(1234, 77)
    rows = [Pick(filters, key, position, **extra) for position in range(draws)]
    tokens = dispatch.pick(logits.expand(draws, -1), rows).token
    return np.bincount(tokens.numpy(), minlength=logits.shape[-1])


# Logits without ties and with no token at an edge of these filters, so that both sides have the same support.
ROW = lr.families(1, 200, 5)["normal"] * 1.5
# Most of the mass on 200 tokens, unevenly over three tiles.
WIDE_ROW = lr.families(1, 9200, 6)["normal"] * 0.3 - 6
WIDE_ROW[0, [*range(40, 4000, 33), *range(4100, 8100, 70), *range(8200, 9200, 45)]] += 6


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
def test_distribution_in_one_tile(temperature: float) -> None:
    filters = Filters(temperature)
    counts = draw(ROW * temperature, filters, 150_000)
    p = lr.expected(ROW * temperature, filters)
    assert lr.chi_square(counts, p) > 1e-4
    assert lr.chi_square(counts, p, bins=20) > 1e-4
    # The controls: two percent in the temperature; every other token ten percent too likely.
    assert lr.chi_square(counts, lr.expected(ROW * temperature, Filters(temperature * 1.02)), bins=20) < 1e-4
    tilted = p * np.where(np.arange(len(p)) % 2, 1.1, 1.0)
    assert lr.chi_square(counts, tilted / tilted.sum()) < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_distribution_over_several_tiles(temperature: float) -> None:
    filters = Filters(temperature)
    counts = draw(WIDE_ROW, filters, 20_000)
    p = lr.expected(WIDE_ROW, filters)
    tile = np.arange(len(p)) // TILE
    mass = np.bincount(tile, weights=p)
    by_tile = np.bincount(tile, weights=counts).astype(np.int64)
    assert lr.chi_square(counts, p) > 1e-4
    assert lr.chi_square(by_tile, mass) > 1e-4
    # The controls: tiles drawn evenly with the right tokens inside, and the right tiles with tokens drawn evenly.
    assert lr.chi_square(counts, p / mass[tile] / len(mass)) < 1e-4
    assert lr.chi_square(counts, mass[tile] / np.bincount(tile)[tile]) < 1e-4


FILTERED = [
    Filters(1.0, top_k=7),
    Filters(0.7, top_p=0.8),
    Filters(1.2, min_p=0.08),
    Filters(0.9, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.4, bias={3: 1.0, 10: -INF}),
]


@pytest.mark.parametrize("filters", FILTERED, ids=["top_k", "top_p", "min_p", "all"])
@pytest.mark.parametrize("draws", [15_000, pytest.param(300_000, marks=pytest.mark.full)])
def test_distribution_under_filters(filters: Filters, draws: int) -> None:
    seen = list(range(0, 200, 3))
    counts = draw(ROW, filters, draws, seen=seen, banned=[9])
    p = lr.expected(ROW, filters, seen=seen, banned=[9])
    assert counts[p == 0].sum() == 0
    assert lr.chi_square(counts, p) > 1e-4
    ours = oracles.cpu_logprobs(ROW, [Pick(filters, seen=seen, banned=[9])])[0].double().exp().numpy()
    np.testing.assert_allclose(ours, p, atol=1e-6)
    # The controls: each filter dropped.
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for name, value in off.items():
        if getattr(filters, name) != value and filters is not FILTERED[-1]:
            wrong = draw(ROW, replace(filters, **{name: value}), draws // 5, seen=seen, banned=[9])
            assert wrong[p == 0].sum() > 0
            assert lr.chi_square(wrong, p + 1e-12) < 1e-4
    if filters.repetition_penalty != 1:
        assert lr.chi_square(counts, lr.expected(ROW, filters, banned=[9])) < 1e-4


def test_outcomes_at_different_positions_and_seeds_are_independent() -> None:
    logits = torch.zeros(1, 2)
    n = 20_000
    rows = [Pick(Filters(1.0), Key(5), p) for p in range(n)]
    by_position = dispatch.pick(logits.expand(n, -1), rows).token.numpy()
    pairs = np.bincount(2 * by_position[:-1] + by_position[1:], minlength=4)
    assert lr.chi_square(pairs, np.full(4, 0.25)) > 1e-4
    rows = [Pick(Filters(1.0), Key(s), 9) for s in range(n)]
    by_seed = dispatch.pick(logits.expand(n, -1), rows).token.numpy()
    agree = int((by_seed == by_position).sum())
    assert lr.chi_square(np.array([agree, n - agree]), np.full(2, 0.5)) > 1e-4


# ----------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("vocabulary", [2, 300, 4096, 4097, 13_000])
def test_tokens_are_those_of_the_documented_scheme(vocabulary: int) -> None:
    kinds = [Filters(1.0), Filters(0.7), Filters(1.0, top_p=0.9), Filters(1.3, top_k=20), Filters(0.8, min_p=0.05)]
    logits = torch.cat([f[:5] for f in lr.families(5, vocabulary, 9).values()])
    rows = [Pick(f, Key(40 + i, i), 1000 + i) for i, f in enumerate(itertools.islice(itertools.cycle(kinds), 20))]
    tokens = dispatch.pick(logits, rows).token.tolist()
    checked = 0
    for i, row in enumerate(rows):
        token, margin = oracles.token(logits[i], row)
        if margin > 1e-4:
            assert tokens[i] == token
            checked += 1
    assert checked >= 18


GOLDEN_TOKENS = [2302, 3006, 193, 7998, 7998, 5043, 6689, 6689, 9214]


def test_tokens_are_frozen() -> None:
    """Stored answers depend on these: exact arithmetic in, so only a change of the contract changes them."""
    ramp = (torch.arange(10_000) % 97).float() / 16
    rows = [Pick(f, Key(3, 4), p) for p in range(3) for f in (Filters(1.0), Filters(0.5), Filters(1.0, top_k=97))]
    assert dispatch.pick(ramp.expand(9, -1), rows).token.tolist() == GOLDEN_TOKENS


def same(a: Picked, b: Picked, where: Sequence[int] | slice = slice(None)) -> bool:
    """Bitwise: rows ``where`` of a are the rows of b."""
    return all(torch.equal(x[where], y) for x, y in zip((a.token, *a.stats), (b.token, *b.stats), strict=True))


@pytest.mark.parametrize("vocabulary", [2, 500, 4097, 20_000, 270_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_depend_on_the_batch(vocabulary: int, dtype: torch.dtype) -> None:
    count = 24 if vocabulary < 100_000 else 5
    logits = torch.cat([f[: count // 4 + 1] for f in lr.families(count // 4 + 1, vocabulary, 11).values()])[:count].to(
        dtype
    )
    logits[1, ::7] = -INF  # a row of the slow path among the others
    if vocabulary > 2:
        logits[2, 1] = float("nan")
    rows = lr.mixed(count, vocabulary, vocabulary)
    whole = dispatch.pick(logits, rows)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
    assert same(whole, dispatch.pick(logits[order], [rows[i] for i in order]), order)
    for i in range(count):
        assert same(whole, dispatch.pick(logits[i : i + 1], [rows[i]]), [i])
    for lo, hi in ((0, 3), (1, count)):
        assert same(whole, dispatch.pick(logits[lo:hi], rows[lo:hi]), slice(lo, hi))
    padded = torch.full((count, vocabulary + 13), 99.0, dtype=dtype)
    padded[:, :vocabulary] = logits
    spread = torch.full((count, 2 * vocabulary), 99.0, dtype=dtype)
    spread[:, ::2] = logits
    for view in (padded[:, :vocabulary], spread[:, ::2], logits.t().contiguous().t(), logits.float()):
        assert same(whole, dispatch.pick(view, rows))
    alone = dispatch.stats(logits, whole.token)
    assert all(torch.equal(x, y) for x, y in zip(alone, whole.stats, strict=True))


def test_threads_do_not_change_a_bit() -> None:
    logits = lr.families(4, 60_000)["normal"]
    rows = lr.mixed(4, 60_000, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = dispatch.pick(logits, rows)
        torch.set_num_threads(2)
        assert same(one, dispatch.pick(logits, rows))
    finally:
        torch.set_num_threads(before)


def test_a_dirty_neighbour_of_a_clean_row_is_cleaned_alone() -> None:
    """The slow path gives a clean row the bits of the fast one."""
    logits = lr.families(1, 9000)["wide"]
    fast = dispatch.stats(logits)
    banned = logits.clone()
    banned[0, 5] = -INF
    low = logits.clone()
    low[0, 5] = -1e4  # no mass either, but on the fast path
    assert all(torch.equal(a, b) for a, b in zip(dispatch.stats(banned), dispatch.stats(low), strict=True))
    assert not torch.equal(fast.lse, dispatch.stats(logits + 1).lse)


def test_no_rows() -> None:
    for logits in (torch.empty(0, 7), torch.empty(0, 5000, dtype=torch.bfloat16)):
        picked = dispatch.pick(logits, [])
        assert picked.token.shape == (0,)
        assert picked.token.dtype == torch.int64
        assert all(part.shape == (0,) for part in picked.stats)
        assert dispatch.stats(logits, torch.empty(0, dtype=torch.int64)).lse.shape == (0,)
        assert dispatch.top_logprobs(logits, 3)[0].shape == (0, 3)


# ---------------------------------------------------------------------------------------------- errors and dispatch

X = torch.zeros(2, 10)
BIASED = Pick(Filters(bias={12: 1.0}))
SEEN = Pick(Filters(repetition_penalty=2.0), seen=[-1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dispatch.stats(X.double()), TypeError, r"logits.dtype = torch.float64: accepted: torch.float32"),
        (lambda: dispatch.stats(X[0]), ValueError, r"logits.shape = \(10,\): accepted: \[rows, vocabulary\]"),
        (lambda: dispatch.stats(X[:, :0]), ValueError, r"logits.shape = \(2, 0\)"),
        (lambda: dispatch.stats([1.0]), TypeError, r"logits is a list: accepted: a torch.Tensor"),
        (lambda: dispatch.stats(X, torch.zeros(2)), TypeError, r"tokens.dtype = torch.float32: accepted: torch.int64"),
        (lambda: dispatch.stats(X, torch.zeros(3).long()), ValueError, r"tokens.shape = \(3,\): accepted: \(2,\)"),
        (
            lambda: dispatch.stats(X, torch.tensor([0, 10])),
            ValueError,
            r"tokens holds 10: accepted: token ids below 10",
        ),
        (lambda: dispatch.stats(X, torch.tensor([0, -2])), ValueError, r"tokens holds -2"),
        (lambda: dispatch.top_logprobs(X, 11), ValueError, r"n = 11: accepted: 1 to the size of the vocabulary, 10"),
        (lambda: dispatch.top_logprobs(X, 0), ValueError, r"n = 0"),
        (lambda: dispatch.pick(X, [Pick()]), ValueError, r"rows: 1 of them: accepted: 2"),
        (lambda: dispatch.pick(X, [Pick(position=-1)] * 2), ValueError, r"position = -1: accepted: an unsigned 32"),
        (
            lambda: dispatch.pick(X, [Pick(banned=[10])] * 2),
            ValueError,
            r"banned = 10: accepted: token ids in \[0, 10\)",
        ),
        (
            lambda: dispatch.pick(X, [Pick(Filters(bias={12: 1.0}))] * 2),
            ValueError,
            r"bias = 12: accepted: token ids",
        ),
        (
            lambda: dispatch.pick(X, [Pick(Filters(repetition_penalty=2.0), seen=[-1])] * 2),
            ValueError,
            r"seen = -1: accepted: token ids in \[0, 10\)",
        ),
        (lambda: Filters(-0.1), ValueError, r"temperature = -0.1: accepted: a finite number >= 0"),
        (lambda: Filters(float("nan")), ValueError, r"temperature = nan"),
        (lambda: Filters(INF), ValueError, r"temperature = inf"),
        (lambda: Filters(top_k=-1), ValueError, r"top_k = -1: accepted: an integer >= 1, or 0"),
        (lambda: Filters(top_p=0.0), ValueError, r"top_p = 0.0: accepted: a number in \(0, 1\]"),
        (lambda: Filters(top_p=float("nan")), ValueError, r"top_p = nan"),
        (lambda: Filters(min_p=1.0), ValueError, r"min_p = 1.0: accepted: a number in \[0, 1\)"),
        (
            lambda: Filters(repetition_penalty=0.0),
            ValueError,
            r"repetition_penalty = 0.0: accepted: a finite number > 0",
        ),
        (lambda: Filters(bias={-3: 1.0}), ValueError, r"bias = -3: accepted: token ids >= 0"),
        (lambda: Filters(bias={3: INF}), ValueError, r"bias\[3\] = inf: accepted: a finite number, or -inf"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_calls_are_recorded_where_they_are_made() -> None:
    with paths.record() as outer:
        dispatch.stats(X)
        with paths.record() as inner:
            dispatch.pick(X, [Pick()] * 2)
        thread = threading.Thread(target=dispatch.stats, args=(X,))
        thread.start()
        thread.join()
        dispatch.top_logprobs(X, 1, path="torch")
    dispatch.stats(X)
    assert outer == [("stats", "torch"), ("top_logprobs", "torch")]
    assert inner == [("pick", "torch")]


def test_an_explicit_path_never_falls_back() -> None:
    with (
        paths.record() as calls,
        pytest.raises(paths.PathUnavailable, match="path = 'triton': accepted for stats"),
    ):
        dispatch.stats(X, path="triton")
    assert calls == []
