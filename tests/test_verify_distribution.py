"""Verification of speculation: what is written follows the target, whatever the draft."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import kernel_oracles as oracles
import numpy as np
import pytest
import torch
import windows as ws
from numpy.typing import NDArray

from trimtab.kernels import dispatch
from trimtab.kernels.results import Verified
from trimtab.kernels.types import Draft, Filters, Key, Pick, Window

pytestmark = pytest.mark.usefixtures("one_thread")


INF = float("inf")
Doubles = NDArray[np.float64]
Counts = NDArray[np.int64]


def chi_square(counts: Counts, p: Doubles) -> float:
    """p-value, bins pooled in order of probability until each is expected 10 times."""
    draws = counts.sum()
    assert counts[p == 0].sum() == 0
    observed: list[float] = []
    expected: list[float] = []
    have = want = 0.0
    for i in np.argsort(p):
        have, want = have + counts[i], want + p[i] * draws
        if want >= 10:
            observed.append(have)
            expected.append(want)
            have = want = 0.0
    observed[-1] += have
    expected[-1] += want
    o, e = np.array(observed), np.array(expected)
    assert len(e) > 1
    statistic = torch.tensor(((o - e) ** 2 / e).sum(), dtype=torch.float64)
    return float(torch.special.gammaincc(torch.tensor((len(e) - 1) / 2, dtype=torch.float64), statistic / 2))


def fits(counts: Counts, p: Doubles) -> bool:
    """Whether counts may come from p; a token that p excludes settles it."""
    return bool(counts[p == 0].sum() == 0) and chi_square(counts, p) > 1e-4


PLAIN = Filters(1.0)


@dataclass
class Case:
    """A target's row, and a draft that is some way off."""

    target: torch.Tensor
    draft: torch.Tensor | None
    filters: Filters = PLAIN
    draft_filters: Filters | None = None
    ids: torch.Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    draft_extra: dict[str, Any] = field(default_factory=dict)

    def rows(self, n: int) -> list[Pick]:
        """The target's draws at position 5 of n requests."""
        return [Pick(self.filters, Key(seed, 9), 5, **self.extra) for seed in range(n)]

    def draft_rows(self, n: int) -> list[Pick]:
        filters = self.filters if self.draft_filters is None else self.draft_filters
        return [Pick(filters, Key(seed, 9).drafting, 5, **self.draft_extra) for seed in range(n)]

    def proposals(self, n: int) -> list[int]:
        """Tokens drawn from the draft, as the target's ids; without a draft always the same."""
        if self.draft is None:
            return [7] * n
        columns = dispatch.pick(self.draft.expand(n, -1), self.draft_rows(n)).token
        return (columns if self.ids is None else self.ids[columns]).tolist()

    def verify(self, n: int, proposals: Sequence[int], draft: Callable[[Pick], Draft]) -> Verified:
        """n windows of one token; what follows them does not matter here."""
        windows = [
            Window([y], [row, row._replace(position=6)], draft(mine))
            for y, row, mine in zip(proposals, self.rows(n), self.draft_rows(n), strict=True)
        ]
        return dispatch.verify(self.target.expand(2 * n, -1), windows)

    def source(self, row: Pick) -> Draft:
        """What the proposals really were drawn from."""
        if self.draft is None:
            return Draft(None, [])
        return Draft(self.draft[None], [row], self.ids)

    def count(self, tokens: torch.Tensor) -> Counts:
        return np.bincount(tokens.numpy(), minlength=len(self.target))


P, Q = ws.normal(14, seed=1, scale=1.5), ws.normal(14, seed=2, scale=1.5)
BROAD = ws.normal(9200, seed=6, scale=0.3) - 7
BROAD[[*range(40, 4000, 120), *range(4100, 8100, 200), *range(8200, 9200, 60)]] += 7
BROAD_DRAFT = BROAD + ws.normal(9200, seed=7, scale=1.5)
HOLED = torch.where(torch.arange(14) % 3 == 1, -INF, 1.4 * P - 0.8 * Q)

CASES = {
    "plain": Case(P, Q),
    "temperature": Case(P, Q, Filters(0.7), Filters(1.3)),
    "top_k": Case(P, Q, Filters(1.0, top_k=5)),
    "top_p": Case(P, Q, Filters(0.9, top_p=0.8)),
    "min_p": Case(P, Q, Filters(1.1, min_p=0.1)),
    "filters differ": Case(P, Q, Filters(1.0, top_p=0.9), Filters(1.4, min_p=0.02)),
    "only the draft is filtered": Case(P, Q, Filters(1.0), Filters(1.0, top_k=4)),
    "penalty, bias and bans": Case(
        P,
        Q,
        Filters(1.0, repetition_penalty=1.6, bias={3: 1.0, 4: -INF}),
        extra={"seen": [0, 1, 2, 2], "banned": [5]},
        draft_extra={"seen": [6, 7], "banned": [9, 2]},
    ),
    "penalty under filters": Case(P, Q, Filters(0.8, top_k=9, top_p=0.9, repetition_penalty=1.6), extra={"seen": [1]}),
    "reduced vocabulary": Case(P, Q[:6], ids=torch.tensor([11, 0, 7, 3, 12, 5])),
    "reduced vocabulary, filtered": Case(P, Q[:6], Filters(1.0, top_p=0.9), ids=torch.tensor([11, 0, 7, 3, 12, 5])),
    "shorter vocabulary": Case(P, Q[:9]),
    "shorter vocabulary, filtered": Case(P, Q[:9], Filters(1.2, top_k=10)),
    "certain": Case(P, None),
    "certain, filtered": Case(P, None, Filters(1.0, top_p=0.9)),
    "greedy draft": Case(P, P + Q, draft_filters=Filters()),
    "mixture": Case(HOLED, Q),
    "low precision": Case(P.bfloat16(), Q.half(), Filters(1.0, top_p=0.95)),
    "several tiles": Case(BROAD, BROAD_DRAFT),
    "several tiles, cut short": Case(BROAD, BROAD_DRAFT[:4100], Filters(0.9)),
}
MANY = [1200, pytest.param(25_000, marks=pytest.mark.full)]


@pytest.mark.parametrize("n", MANY)
@pytest.mark.parametrize("name", CASES)
def test_what_is_written_follows_the_target(name: str, n: int) -> None:
    case = CASES[name]
    proposals = case.proposals(n)
    got = case.verify(n, proposals, case.source)
    stands = got.accepted.bool()
    drafted = torch.tensor(proposals)
    p = oracles.distribution(case.target, case.rows(1)[0])
    assert chi_square(case.count(torch.where(stands, drafted, got.token)), p) > 1e-4
    # Acceptance is what theory says: the overlap of the two laws, or p of a certain token.
    if case.draft is None:
        expected = float(p[proposals].mean())
    else:
        columns = np.arange(len(case.draft)) if case.ids is None else case.ids.numpy()
        q = np.zeros(len(p))
        q[columns] = oracles.distribution(case.draft, case.draft_rows(1)[0])
        expected = float(np.minimum(p, q).sum())
    assert 0.05 < expected < 0.95
    assert abs(float(stands.double().mean()) - expected) < 5 * math.sqrt(0.25 / n)
    # Controls. Refused tokens replaced by draws from the target's whole law: the residual left out.
    whole = dispatch.pick(case.target.expand(n, -1), [r._replace(key=r.key.residual) for r in case.rows(n)]).token
    assert not fits(case.count(torch.where(stands, drafted, whole)), p)
    # Refused tokens written all the same: the acceptance counted one too far.
    assert not fits(case.count(drafted), p)


@pytest.mark.parametrize("name", ["temperature", "top_p", "only the draft is filtered"])
def test_a_draft_whose_filters_are_forgotten_is_found_out(name: str) -> None:
    case = CASES[name]
    n = 2500
    proposals = case.proposals(n)
    got = case.verify(n, proposals, lambda row: Draft(case.source(row).logits, [Pick(Filters(1.0))]))
    written = case.count(torch.where(got.accepted.bool(), torch.tensor(proposals), got.token))
    assert not fits(written, oracles.distribution(case.target, case.rows(1)[0]))


def test_a_drawn_token_may_be_taken_for_certain() -> None:
    """Nothing of q is needed for exactness: it only makes more tokens stand."""
    case = CASES["plain"]
    n = 2500
    proposals = case.proposals(n)
    got = case.verify(n, proposals, lambda row: Draft(None, []))
    written = case.count(torch.where(got.accepted.bool(), torch.tensor(proposals), got.token))
    assert fits(written, oracles.distribution(case.target, case.rows(1)[0]))
    assert int(got.accepted.sum()) < int(case.verify(n, proposals, case.source).accepted.sum())


def test_a_draft_that_shares_the_bits_of_the_residual_is_found_out() -> None:
    """Why ``Key.drafting`` and ``Key.residual`` are two keys."""
    case = CASES["plain"]
    n = 4000
    shared = [r._replace(key=Key(seed, 9).residual) for seed, r in enumerate(case.draft_rows(n))]
    assert case.draft is not None
    proposals = dispatch.pick(case.draft.expand(n, -1), shared).token.tolist()
    got = case.verify(n, proposals, case.source)
    written = case.count(torch.where(got.accepted.bool(), torch.tensor(proposals), got.token))
    assert not fits(written, oracles.distribution(case.target, case.rows(1)[0]))


# A model that looks at the last token only: 4 tokens, and a start.
TARGET_TABLE, DRAFT_TABLE = ws.normal(5, 4, seed=3, scale=1.4), ws.normal(5, 4, seed=4, scale=1.4)


def two_tokens(n: int, filters: Filters, shift: int = 0, length: int = 2) -> Counts:
    """Counts [16] of the first two tokens written by n requests, each by as many windows as it takes.

    A rejection at the first position leads to a second window, whose draft draws anew at a position that it has
    already drawn at. ``shift`` takes the target's rows from further on than they belong: a control.
    """
    written = np.full((n, 2), -1)
    keys = [Key(seed, 4) for seed in range(n)]
    at = np.zeros(n, int)
    while (at < 2).any():
        open_ = np.flatnonzero(at < 2)
        last = [int(written[i, at[i] - 1]) if at[i] else 4 for i in open_]
        drafts: list[list[int]] = [[] for _ in open_]
        q_rows: list[list[Pick]] = [[] for _ in open_]
        state = list(last)
        for k in range(length):
            rows = [Pick(filters, keys[i].drafting, int(at[i]) + k) for i in open_]
            tokens = dispatch.pick(DRAFT_TABLE[state], rows).token.tolist()
            for mine, q_row, token, row in zip(drafts, q_rows, tokens, rows, strict=True):
                mine.append(token)
                q_row.append(row)
            state = tokens
        contexts = [[start, *mine] for start, mine in zip(last, drafts, strict=True)]
        windows = [
            Window(
                mine,
                [Pick(filters, keys[i], int(at[i]) + k) for k in range(length + 1)],
                Draft(DRAFT_TABLE[context[:-1]], q_row),
            )
            for i, mine, q_row, context in zip(open_, drafts, q_rows, contexts, strict=True)
        ]
        seen_by_target = [context[min(k + shift, length)] for context in contexts for k in range(length + 1)]
        got = dispatch.verify(TARGET_TABLE[seen_by_target], windows)
        for i, mine, stand, token in zip(open_, drafts, got.accepted.tolist(), got.token.tolist(), strict=True):
            for new in [*mine[:stand], token][: 2 - int(at[i])]:
                written[i, at[i]] = new
                at[i] += 1
    return np.bincount(4 * written[:, 0] + written[:, 1], minlength=16)


@pytest.mark.parametrize("n", [1600, pytest.param(40_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("filters", [Filters(1.0), Filters(0.8, top_k=3)], ids=["plain", "top_k"])
def test_joint_law_of_two_tokens(filters: Filters, n: int) -> None:
    row = Pick(filters)
    first = oracles.distribution(TARGET_TABLE[4], row)
    joint = np.concatenate([first[x] * oracles.distribution(TARGET_TABLE[x], row) for x in range(4)])
    for length in (1, 2, 3) if filters.top_k == 0 else (2,):
        assert chi_square(two_tokens(n // 2, filters, length=length), joint) > 1e-4
    # The control: the target's rows taken one position too late.
    assert not fits(two_tokens(n // 2, filters, shift=1), joint)
