"""Verification of speculation: the target's law whatever the draft, equality where it is promised, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import kernel_oracles as oracles
import numpy as np
import pytest
import torch
import windows as ws
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab.kernels import dispatch, paths
from trimtab.kernels.results import FLAG_EMPTY, FLAG_UNCLEAN, Verified
from trimtab.kernels.types import Draft, Filters, Key, Pick, Window

pytestmark = pytest.mark.usefixtures("one_thread")


INF = float("inf")
Doubles = NDArray[np.float64]
Counts = NDArray[np.int64]


# -------------------------------------------------------------------------------------------------------- equality


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**30), vocabulary=st.sampled_from([1, 2, 40, 4100]))
def test_where_the_target_picks_itself_it_is_pick(seed: int, vocabulary: int) -> None:
    """Coupled windows and temperature 0: token for token what plain decoding writes."""
    logits, windows = ws.batch(seed, vocabulary, 6)
    got = dispatch.verify(logits, windows)
    for i, (mine, window) in enumerate(zip(ws.split(logits, windows), windows, strict=True)):
        picked = dispatch.pick(mine, window.rows).token.tolist()
        k = len(window.tokens)
        assert 0 <= int(got.accepted[i]) <= k
        if window.draft is None or window.rows[0].filters.temperature == 0:
            equal = [a == b for a, b in zip(window.tokens, picked, strict=False)]
            stand = equal.index(False) if False in equal else k
            assert int(got.accepted[i]) == stand
            assert int(got.token[i]) == picked[stand]
        elif int(got.accepted[i]) == k:
            assert int(got.token[i]) == picked[k]


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**30), vocabulary=st.sampled_from([1, 2, 40, 4100]))
def test_statistics_are_those_of_stats(seed: int, vocabulary: int) -> None:
    logits, windows = ws.batch(seed, vocabulary, 5)
    got = dispatch.verify(logits, windows)
    chosen: list[int] = []
    for window, stand, token in zip(windows, got.accepted.tolist(), got.token.tolist(), strict=True):
        beyond = len(window.tokens) - stand
        chosen += [*window.tokens[:stand], token, *[-1] * beyond]
    wanted = dispatch.stats(logits, torch.tensor(chosen))
    assert all(torch.equal(a, b) for a, b in zip(got.stats, wanted, strict=True))


def same(a: Verified, b: Verified) -> bool:
    return all(torch.equal(x, y) for x, y in zip((*a[:2], *a.stats), (*b[:2], *b.stats), strict=True))


@pytest.mark.parametrize("vocabulary", [2, 50, 4097, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_do_not_depend_on_the_batch(vocabulary: int, dtype: torch.dtype) -> None:
    logits, windows = ws.batch(vocabulary, vocabulary, 24 if vocabulary < 10_000 else 12)
    logits = logits.to(dtype)
    logits[3, ::2] = -INF
    whole = dispatch.verify(logits, windows)
    parts = ws.split(logits, windows)
    assert len({int(x) for x in whole.accepted}) > 2
    stats = list(zip(*(part.split([len(w.rows) for w in windows]) for part in whole.stats), strict=True))
    for i, (mine, window) in enumerate(zip(parts, windows, strict=True)):
        alone = dispatch.verify(mine, [window])
        assert torch.equal(alone.accepted, whole.accepted[i : i + 1])
        assert torch.equal(alone.token, whole.token[i : i + 1])
        assert all(torch.equal(a, b) for a, b in zip(alone.stats, stats[i], strict=True))
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(1)).tolist()
    mixed = dispatch.verify(torch.cat([parts[i] for i in order]), [windows[i] for i in order])
    assert torch.equal(mixed.token, whole.token[order])
    assert torch.equal(mixed.accepted, whole.accepted[order])
    padded = torch.full((len(logits), vocabulary + 13), 99.0, dtype=dtype)
    padded[:, :vocabulary] = logits
    for view in (padded[:, :vocabulary], logits.t().contiguous().t(), logits.float()):
        assert same(whole, dispatch.verify(view, windows))
    torch.set_num_threads(2)
    try:
        assert same(whole, dispatch.verify(logits, windows))
    finally:
        torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("vocabulary", [2, 300, 4097, 9000])
def test_decisions_are_those_of_the_documented_scheme(vocabulary: int) -> None:
    checked = refused = 0
    for seed in range(8):
        logits, windows = ws.batch(1000 + seed, vocabulary, 10)
        chosen = [
            (mine, window)
            for mine, window in zip(ws.split(logits, windows), windows, strict=True)
            if window.draft is not None and window.draft.logits is not None and window.rows[0].filters.temperature > 0
        ]
        if not chosen:
            continue
        got = dispatch.verify(torch.cat([mine for mine, _ in chosen]), [window for _, window in chosen])
        for i, (mine, window) in enumerate(chosen):
            stand, token, margin = oracles.window(mine, window)
            if margin > 1e-4:
                assert (int(got.accepted[i]), int(got.token[i])) == (stand, token)
                checked += 1
                refused += stand < len(window.tokens)
    assert checked > 15
    assert refused > 2


GOLDEN = [(2, 6689), (1, 1839), (0, 2712), (2, 468), (2, 468), (0, 8141)]
GOLDEN += [(2, 4254), (2, 4254), (0, 2422), (1, 4927), (1, 4927), (0, 9889)]


def test_decisions_are_frozen() -> None:
    """Stored answers depend on these: exact arithmetic in, so only a change of the contract changes them."""
    ramp = (torch.arange(10_000) % 97).float() / 16
    other = (torch.arange(10_000) % 89).float() / 16
    windows = [
        Window(
            [95 + 97 * n, 88 + 89 * n],
            [Pick(f, Key(3, 4), p) for p in (n, n + 1, n + 2)],
            Draft(other.expand(2, -1), [Pick(f)] * 2),
        )
        for n in range(4)
        for f in (Filters(1.0), Filters(0.5), Filters(1.0, top_k=970))
    ]
    got = dispatch.verify(ramp.expand(36, -1), windows)
    assert list(zip(got.accepted.tolist(), got.token.tolist(), strict=True)) == GOLDEN


# ------------------------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("filters", [f for f in ws.KINDS if f.temperature > 0], ids=str)
def test_a_draft_equal_to_the_target_always_stands(filters: Filters) -> None:
    logits = ws.normal(5, 5000, seed=8, scale=2.0)
    for seed in range(20):
        rows = [Pick(filters, Key(seed).drafting, j) for j in range(4)]
        tokens = dispatch.pick(logits[:4], rows).token.tolist()
        window = ws.speculative(logits, logits[:4], tokens, filters, seed)
        assert int(dispatch.verify(logits, [window]).accepted[0]) == 4


@pytest.mark.parametrize("filters", [Filters(1.0), Filters(0.7, top_p=0.9)])
def test_supports_without_a_common_token_never_stand(filters: Filters) -> None:
    target, draft = ws.normal(3, 200, seed=9), ws.normal(2, 200, seed=10)
    target[:, :100] = -INF
    draft[:, 100:] = -INF
    for seed in range(30):
        window = ws.speculative(target, draft, [3, 4], filters, seed)
        got = dispatch.verify(target, [window])
        assert int(got.accepted[0]) == 0
        assert int(got.token[0]) >= 100
        assert got.stats.logprob[1:].tolist() == [-INF, -INF]


@pytest.mark.parametrize("filters", [Filters(1.0), Filters(1.0, top_k=3)])
def test_a_token_that_the_draft_cannot_have_drawn_is_refused(filters: Filters) -> None:
    """q(y) = 0: whatever p says; where nothing is left of p the token comes from p itself."""
    target = ws.normal(2, 20, seed=11)
    best = int(target[0].argmax())
    banned = target[:1].clone()
    banned[0, best] = -INF
    nothing = torch.full((1, 20), -INF)
    unclean = torch.full((1, 20), float("nan"))
    peaked = torch.full((2, 20), -INF)
    peaked[:, best] = 0.0
    for seed in range(10):
        for draft in (banned, nothing, unclean):
            got = dispatch.verify(target, [ws.speculative(target, draft, [best], filters, seed)])
            assert int(got.accepted[0]) == 0
            assert float(target[0, got.token[0]]) > -INF
        # p and q agree, yet the token is another: the residual is empty.
        got = dispatch.verify(peaked, [ws.speculative(peaked, peaked[:1], [(best + 1) % 20], filters, seed)])
        assert (int(got.accepted[0]), int(got.token[0])) == (0, best)
    # Without a draft's row for the token either.
    ids = torch.tensor([t for t in range(20) if t != best])
    window = ws.speculative(target, target[:1, ids], [best], filters)
    assert window.draft is not None
    short = window._replace(draft=window.draft._replace(ids=ids))
    assert int(dispatch.verify(target, [short]).accepted[0]) == 0
    cut = ws.normal(2, 20, seed=12)
    assert int(dispatch.verify(cut, [ws.speculative(cut, cut[:1, :7], [7], filters)]).accepted[0]) == 0


@pytest.mark.parametrize("filters", ws.KINDS, ids=str)
def test_rows_that_are_not_finite(filters: Filters) -> None:
    target = ws.normal(4, 4100, seed=13)
    target[1] = -INF
    target[2, 5] = float("nan")
    target[2, 6] = INF
    draft = ws.normal(3, 4100, seed=13)
    tokens = [int(target[0].argmax()), 4, 5]
    certain = Window([tokens[0]], [Pick(filters, Key(1), j) for j in range(2)], Draft(None, []))
    for seed in range(10):
        windows = [
            ws.speculative(target, draft, tokens, filters, seed),
            ws.speculative(target[1:3], draft[:1], [4], filters, seed),
            ws.speculative(target[2:], draft[2:], [6], filters, seed),
            certain,
        ]
        everything = torch.cat([target, target[1:3], target[2:], target[:2]])
        got = dispatch.verify(everything, windows)
        assert int(got.accepted[0]) <= 1
        assert (int(got.accepted[1]), int(got.token[1])) == (0, -1)
        assert int(got.accepted[2]) == 0
        assert int(got.token[2]) not in (-1, 5, 6)
        if int(got.accepted[0]) == 1:
            assert int(got.token[0]) == -1
        assert int(got.accepted[3]) == 0 or int(got.token[3]) == -1
        assert not any(part.isnan().any() for part in got.stats)
        assert got.stats.flags.tolist()[:4] == [0, FLAG_EMPTY, FLAG_UNCLEAN, 0]
    coupled = Window([4], [Pick(filters, Key(1), j) for j in range(2)], None)
    got = dispatch.verify(target[1:3], [coupled])
    assert (int(got.accepted[0]), int(got.token[0])) == (0, -1)


def test_everything_banned() -> None:
    logits = torch.zeros(2, 3)
    for draft in (Draft(None, []), Draft(torch.zeros(1, 3), [Pick(Filters(1.0))]), None):
        rows = [Pick(Filters(1.0), Key(1), j, banned=[0, 1, 2]) for j in range(2)]
        got = dispatch.verify(logits, [Window([1], rows, draft)])
        assert (int(got.accepted[0]), int(got.token[0])) == (0, -1)
        assert got.stats.logprob.tolist() == [-INF, -INF]


def test_no_windows_no_drafts_one_token() -> None:
    for vocabulary in (1, 7, 5000):
        got = dispatch.verify(torch.empty(0, vocabulary), [])
        assert got.accepted.shape == got.token.shape == (0,)
        assert got.accepted.dtype == got.token.dtype == torch.int64
        assert all(part.shape == (0,) for part in got.stats)
        logits = ws.normal(3, vocabulary, seed=14)
        rows = [Pick(f, Key(4), 9) for f in (Filters(), Filters(1.0), Filters(1.0, top_p=0.9))]
        empty = torch.empty(0, vocabulary)
        drafts = [None, Draft(None, []), Draft(empty, [])]
        for draft in drafts:
            got = dispatch.verify(logits, [Window([], [row], draft) for row in rows])
            assert got.accepted.tolist() == [0, 0, 0]
            picked = dispatch.pick(logits, rows)
            assert torch.equal(got.token, picked.token)
            assert all(torch.equal(a, b) for a, b in zip(got.stats, picked.stats, strict=True))
    one = torch.zeros(3, 1)
    got = dispatch.verify(one, [ws.speculative(one, one[:2], [0, 0], Filters(1.0))])
    assert (got.accepted.tolist(), got.token.tolist()) == ([2], [0])


@pytest.mark.parametrize("filters", [Filters(1.0), Filters(1.0, top_p=0.9), Filters(0.7), Filters(1.0, bias={3: 4.0})])
def test_known_top_probabilities_change_nothing(filters: Filters) -> None:
    target, draft = ws.normal(3, 5000, seed=15, scale=2.0), ws.normal(2, 5000, seed=16, scale=2.0)
    accepted = 0
    for seed in range(20):
        rows = [Pick(filters, Key(seed).drafting, j) for j in range(2)]
        picked = dispatch.pick(draft, rows)
        window = ws.speculative(target, draft, picked.token.tolist(), filters, seed)
        assert window.draft is not None
        known = window._replace(draft=window.draft._replace(top_probs=picked.stats.top_prob.tolist()))
        got = dispatch.verify(target, [window])
        assert same(got, dispatch.verify(target, [known]))
        accepted += int(got.accepted[0])
    assert accepted > 0
    wrong = window._replace(draft=window.draft._replace(top_probs=[1e-9, 1e-9]))
    if filters == Filters(1.0):  # the control: they are read where they serve
        assert int(dispatch.verify(target, [wrong]).accepted[0]) == 2


def test_nothing_is_changed() -> None:
    logits, windows = ws.batch(77, 300, 12)
    logits[2, 3] = float("nan")
    before = logits.clone()
    drafts = [w.draft.logits.clone() if w.draft is not None and w.draft.logits is not None else None for w in windows]
    dispatch.verify(logits, windows)
    assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))
    for window, draft in zip(windows, drafts, strict=True):
        if draft is not None:
            assert window.draft is not None
            assert window.draft.logits is not None
            assert torch.equal(window.draft.logits, draft)


# ------------------------------------------------------------------------------------------------------------- errors

X = torch.zeros(2, 10)
ROWS = [Pick(Filters(1.0))] * 2


def one(tokens: Sequence[int] = (3,), rows: Sequence[Pick] = ROWS, draft: Draft | None = None) -> Verified:
    return dispatch.verify(X, [Window(tokens, rows, draft)])


def drawn(logits: torch.Tensor = X[:1], rows: Sequence[Pick] = ROWS[:1], **more: Any) -> Verified:
    return one(draft=Draft(logits, rows, **more))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dispatch.verify(X.double(), []), TypeError, r"logits.dtype = torch.float64: accepted: torch.float32"),
        (lambda: dispatch.verify(X, []), ValueError, r"logits.shape = \(2, 10\): accepted: 0 rows, K \+ 1 per window"),
        (lambda: one([3, 3]), ValueError, r"windows\[0\].rows: 2 of them: accepted: 3, one per token and one after"),
        (lambda: one([10]), ValueError, r"windows\[0\].tokens holds 10: accepted: token ids in \[0, 10\)"),
        (lambda: one([-1]), ValueError, r"windows\[0\].tokens holds -1"),
        (
            lambda: one(rows=[Pick(position=-1)] * 2),
            ValueError,
            r"windows\[0\].rows: position = -1: accepted: an",
        ),
        (lambda: drawn(X[:1].long()), TypeError, r"windows\[0\].draft.logits.dtype = torch.int64: accepted: torch.flo"),
        (lambda: drawn(X), ValueError, r"windows\[0\].draft.logits.shape = \(2, 10\): accepted: \[1, Vd\]"),
        (lambda: drawn(X[0]), ValueError, r"windows\[0\].draft.logits.shape = \(10,\)"),
        (
            lambda: drawn(torch.zeros(1, 11)),
            ValueError,
            r"draft.logits.shape = \(1, 11\): .* 1 to 10 columns",
        ),
        (lambda: drawn(rows=[]), ValueError, r"windows\[0\].draft.rows: 0 of them: accepted: 1, one per token"),
        (lambda: drawn(ids=torch.arange(9)), ValueError, r"windows\[0\].draft.ids.shape = \(9,\): accepted: \(10,\)"),
        (
            lambda: drawn(ids=torch.zeros(10)),
            TypeError,
            r"windows\[0\].draft.ids.dtype = torch.float32: accepted",
        ),
        (lambda: drawn(ids=torch.arange(10) + 1), ValueError, r"draft.ids holds 10: accepted: ids of the target's voc"),
        (lambda: drawn(ids=torch.arange(10) - 1), ValueError, r"draft.ids holds -1"),
        (lambda: drawn(ids=torch.arange(10) // 2), ValueError, r"draft.ids holds 0 twice: accepted: distinct ids"),
        (lambda: drawn(top_probs=[]), ValueError, r"draft.top_probs: 0 of them: accepted: 1, one per token"),
        (lambda: drawn(rows=[Pick(banned=[10])]), ValueError, r"banned = 10: accepted: token ids in \[0, 10\)"),
        (lambda: one(rows=[Pick(banned=[10])] * 2), ValueError, r"banned = 10: accepted: token ids in \[0, 10\)"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_calls_are_recorded_and_an_explicit_path_never_falls_back() -> None:
    with paths.record() as calls:
        one()
        with pytest.raises(paths.PathUnavailable, match="path = 'triton': accepted for verify"):
            dispatch.verify(X, [Window([3], ROWS, None)], path="triton")
    assert calls == [("verify", "torch")]
