"""Mixtures of models: against float64, against pick on the mixed logits, by distribution, bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import kernel_oracles as oracles
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trimtab.kernels import dispatch
from trimtab.kernels.results import FLAG_EMPTY, FLAG_UNCLEAN
from trimtab.kernels.types import Blend, Filters, Key, Pick

pytestmark = pytest.mark.usefixtures("one_thread")


INF = float("inf")
NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def models(count: int, rows: int, vocabulary: int, seed: int = 0, width: float = 3.0) -> list[torch.Tensor]:
    """Logits of a base and others that mostly agree with it, each with an offset of its own."""
    g = torch.Generator().manual_seed(seed)
    base = width * torch.randn(rows, vocabulary, generator=g)
    return [base, *(base + torch.randn(rows, vocabulary, generator=g) + 7 * i for i in range(1, count))]


def entropy_of(logp: torch.Tensor) -> torch.Tensor:
    return -torch.where(logp == -INF, 0.0, logp.exp() * logp).sum(-1)


def same(a: Any, b: Any, where: Sequence[int] | slice = slice(None)) -> bool:
    """Bitwise: rows ``where`` of a are the rows of b."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a[where], b)
    return all(same(x, y, where) for x, y in zip(a, b, strict=True))


BLENDS = [
    Blend((1.0, 0.5, 0.0)),
    Blend((1.0, 1.0, -1.0)),
    Blend((1.5, 0.0, -0.5), plausibility=0.1),
    Blend((0.0, 1.0, 0.0)),
    Blend((0.3, 0.3, 0.4), plausibility=1e-6),
    Blend((1.0, 1.0, -1.0), plausibility=0.999),
    Blend((0.0, 0.6, 0.4), plausibility=1e-6),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [1, 2, 65, 4096, 4097, 50257])
def test_statistics_against_float64(vocabulary: int, dtype: torch.dtype) -> None:
    logits = [model.to(dtype) for model in models(3, len(BLENDS), vocabulary)]
    rows = [Pick(Filters(1.0), Key(i)) for i in range(len(BLENDS))]
    got = dispatch.mix(logits, BLENDS, rows)
    for i, blend in enumerate(BLENDS):
        logp = oracles.mixture([model[i : i + 1] for model in logits], blend)[0]
        token = int(got.token[i])
        assert logp[token] > -INF
        wanted = {"entropy": entropy_of(logp), "top_prob": logp.max().exp(), "logprob": logp[token]}
        # The naive formula in float32 over the same numbers.
        p = [model[i].float().log_softmax(-1) for model in logits]
        eager: Any = sum(weight * each for weight, each in zip(blend.weights, p, strict=True) if weight)
        eager = eager.masked_fill(logp == -INF, -INF).log_softmax(-1)
        naive = {"entropy": entropy_of(eager), "top_prob": eager.max().exp(), "logprob": eager[token]}
        for field, value in wanted.items():
            error = abs(float(getattr(got.stats, field)[i]) - float(value))
            allowed = 2e-6 * max(1.0, abs(float(value))) + 2e-7 * float(logits[0][i].abs().max())
            assert error <= allowed + abs(float(naive[field]) - float(value)), (blend, field, error)
        assert float(logp[got.stats.argmax[i]]) == pytest.approx(float(logp.max()), abs=1e-5)
    assert (got.stats.flags == 0).all()


def test_weights_on_the_base_alone_are_pick() -> None:
    logits = models(2, 8, 9000)
    rows = [Pick(f, Key(i)) for i, f in enumerate([Filters(), Filters(1.0), Filters(0.7, top_p=0.9)] * 3)][:8]
    mixed = dispatch.mix(logits, [Blend((1.0, 0.0))] * 8, rows)
    picked = dispatch.pick(logits[0], rows)
    assert same((mixed.token, mixed.stats), (picked.token, picked.stats))
    alone = dispatch.mix(logits[:1], [Blend((1.0,))] * 8, rows)
    assert same(alone, mixed)


def kinds(rows: int, vocabulary: int, seed: int) -> tuple[list[Blend], list[Pick]]:
    """Rows of all kinds under blends of all kinds."""
    r = np.random.default_rng(seed)
    filters = [
        Filters(),
        Filters(1.0),
        Filters(0.7),
        Filters(1.0, top_p=0.9),
        Filters(0.8, top_k=5),
        Filters(0.9, top_k=30, top_p=0.8, min_p=0.01, repetition_penalty=1.3),
        Filters(1.0, bias={0: 3.0, vocabulary - 1: -INF}),
        Filters(0.0, repetition_penalty=1.5),
    ]
    blends, picks = [], []
    for i in range(rows):
        blends.append(BLENDS[int(r.integers(len(BLENDS)))])
        seen = r.integers(0, vocabulary, 5) if r.random() < 0.5 else ()
        banned = r.integers(0, max(1, vocabulary // 2), 2).tolist() if vocabulary > 2 and r.random() < 0.3 else ()
        picks.append(Pick(filters[int(r.integers(len(filters)))], Key(int(r.integers(9)), i), i, seen, banned))
    return blends, picks


@pytest.mark.parametrize("vocabulary", [2, 500, 4097, 20_000])
def test_a_mixture_is_pick_on_mixed_logits(vocabulary: int) -> None:
    logits = models(3, 48, vocabulary, 3)
    blends, rows = kinds(48, vocabulary, vocabulary)
    got = dispatch.mix(logits, blends, rows)
    whole = dispatch.blend(logits, blends)
    picked = dispatch.pick(whole, rows)
    assert torch.equal(got.token, picked.token)
    for field in ("lse", "entropy", "top_prob", "logprob"):
        torch.testing.assert_close(getattr(got.stats, field), getattr(picked.stats, field), atol=2e-6, rtol=2e-6)
    assert torch.equal(got.stats.argmax, picked.stats.argmax)
    p = whole.log_softmax(-1)
    for i, blend in enumerate(blends):
        wanted = oracles.mixture([model[i : i + 1] for model in logits], blend)[0]
        edge = wanted == -INF
        if blend.plausibility:  # tokens within rounding of the bound may be on either side
            bound = logits[0][i].double().max() + np.log(blend.plausibility)
            edge |= (logits[0][i] - bound).abs() < 1e-5
            assert (p[i][wanted == -INF][(logits[0][i] - bound)[wanted == -INF] < -1e-5] == -INF).all()
        torch.testing.assert_close(p[i][~edge].double(), wanted[~edge], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("plausibility", [1e-4, 0.1, 0.9])
@pytest.mark.parametrize("vocabulary", [100, 6000])
def test_only_plausible_tokens_are_drawn(vocabulary: int, plausibility: float) -> None:
    """The anti-model hates what the base finds implausible most; without the mask such tokens win."""
    base, anti = models(2, 200, vocabulary, 5)
    anti = anti + 3 * base
    rows = [Pick(Filters(1.0), Key(i)) for i in range(200)]
    ratio = (base - base.amax(-1, keepdim=True)).exp()
    masked = dispatch.mix([base, anti], [Blend((1.0, -1.0), plausibility=plausibility)] * 200, rows)
    assert (ratio.gather(1, masked.token[:, None]) >= plausibility * (1 - 1e-5)).all()
    free = dispatch.mix([base, anti], [Blend((1.0, -1.0))] * 200, rows)
    assert (ratio.gather(1, free.token[:, None]) < plausibility).any()
    for i in range(0, 200, 40):
        logp = oracles.mixture([base[i : i + 1], anti[i : i + 1]], Blend((1.0, -1.0), plausibility=plausibility))[0]
        assert float(masked.stats.entropy[i]) == pytest.approx(float(entropy_of(logp)), abs=1e-5)


def test_what_is_not_finite() -> None:
    base, expert, anti = models(3, 12, 5000, 6)
    base[0, 3:9] = -INF
    base[1] = -INF
    base[2, 5] = NAN
    expert[3, 7] = -INF
    expert[4, 7] = INF
    anti[5, 7] = -INF  # the anti-model says impossible: as much in favour as can be
    expert[6, 7] = anti[6, 7] = -INF  # both: the base decides
    expert[7] = NAN
    expert[8] = -INF
    base[9, 7], anti[9, 7] = -INF, -INF
    expert[10] = NAN
    anti[11, 9] = torch.finfo(torch.float32).min
    blend = Blend((1.0, 1.0, -1.0))
    blends = [blend] * 10 + [Blend((1.0, 0.0, -1.0)), blend]
    logits = dispatch.blend([base, expert, anti], blends)
    assert not logits.isnan().any()
    assert (logits < INF).all()
    delta = logits - base
    assert (logits[0, 3:9] == -INF).all()
    assert (logits[1] == -INF).all()
    assert logits[2, 5] == -INF
    for row, bound in ((3, -1e4), (4, -1e4), (5, 1e4), (11, 1e4)):
        column = 9 if row == 11 else 7
        assert float(delta[row, column]) == pytest.approx(bound, abs=1)
        assert delta[row, torch.arange(5000) != column].abs().max() < 100
    assert float(delta[6, 7]) == 0
    assert (delta[7] + 1e4).abs().max() < 1
    assert logits[9, 7] == -INF
    torch.testing.assert_close(logits[10], base[10] - anti[10])
    rows = [Pick(Filters(1.0), Key(i)) for i in range(12)]
    got = dispatch.mix([base, expert, anti], blends, rows)
    flags = [0, FLAG_EMPTY, FLAG_UNCLEAN, 0, FLAG_UNCLEAN, 0, 0, FLAG_UNCLEAN, 0, 0, 0, 0]
    assert got.stats.flags.tolist() == flags
    assert int(got.token[1]) == -1
    assert int(got.token[5]) == 7
    assert all(not part.isnan().any() for part in got.stats)
    assert torch.equal(got.token, dispatch.pick(logits, rows).token)
    # Weight 0 on the base: what it bans stays banned.
    only = dispatch.blend([base, expert, anti], [Blend((0.0, 1.0, 0.0))] * 12)
    assert (only[0, 3:9] == -INF).all()
    torch.testing.assert_close(only[0, 9:], expert[0, 9:])


def test_a_plausible_set_under_bans_and_unclean_models() -> None:
    base, other = models(2, 3, 9000, 7)
    best = int(base[0].argmax())
    base[0, best] = NAN
    other[1, int(base[1].argmax())] = NAN
    other[2, int(base[2].argmin())] = NAN  # not plausible, so not read
    for plausibility in (0.01, 1e-9):  # few tokens and most of them
        got = dispatch.mix([base, other], [Blend((1.0, -0.5), plausibility=plausibility)] * 3, [Pick(Filters(1.0))] * 3)
        assert got.stats.flags.tolist() == [FLAG_UNCLEAN, FLAG_UNCLEAN, 0]
        assert int(got.token[1]) == int(base[1].argmax())  # as much in favour as can be


def draw(logits: list[torch.Tensor], blend: Blend, filters: Filters, draws: int) -> NDArray[np.int64]:
    rows = [Pick(filters, Key(99), position) for position in range(draws)]
    tokens = dispatch.mix([model.expand(draws, -1) for model in logits], [blend] * draws, rows).token
    return np.bincount(tokens.numpy(), minlength=logits[0].shape[1])


def p_value(counts: NDArray[np.int64], p: NDArray[np.float64]) -> float:
    """Chi-square, bins pooled in order of probability until each is expected 10 times."""
    draws, order = counts.sum(), np.argsort(p)
    expected = p[order] * draws
    bins = np.minimum((np.cumsum(expected) / 10).astype(np.int64), int(draws // 10))
    o, e = np.bincount(bins, weights=counts[order]), np.bincount(bins, weights=expected)
    o, e = o[e > 0], e[e > 0]
    statistic = torch.tensor(((o - e) ** 2 / e).sum(), dtype=torch.float64)
    return float(torch.special.gammaincc(torch.tensor((len(e) - 1) / 2, dtype=torch.float64), statistic / 2))


@pytest.mark.parametrize("draws", [20_000, pytest.param(400_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("blend", [Blend((1.0, 0.7, -0.7)), Blend((1.5, 0.0, -0.5), plausibility=0.02)])
def test_tokens_follow_the_mixture(blend: Blend, draws: int) -> None:
    logits = models(3, 1, 120, 8, width=1.0)
    counts = draw(logits, blend, Filters(1.0), draws)
    assert p_value(counts, oracles.mixture(logits, blend)[0].exp().numpy()) > 1e-4
    # The controls: a weight and the temperature off, the mask left out.
    off = Blend((blend.weights[0], blend.weights[1] + (0.1 if draws < 100_000 else 0.02), *blend.weights[2:]))
    wrong = [Blend(off.weights, plausibility=blend.plausibility)]
    wrong += [Blend(blend.weights)] if blend.plausibility else []
    wrong += [Blend(tuple(w * (1.1 if draws < 100_000 else 1.02) for w in blend.weights), blend.plausibility)]
    for other in wrong:
        p = oracles.mixture(logits, other)[0].exp().numpy()
        assert p_value(counts, p / p.sum()) < 1e-4, other


def test_a_scale_of_all_weights_is_a_temperature() -> None:
    logits = models(2, 20, 5000, 9)
    rows = [Pick(Filters(1.0, top_p=0.9), Key(i)) for i in range(20)]
    halved = [row._replace(filters=Filters(0.5, top_p=0.9)) for row in rows]
    doubled = dispatch.mix(logits, [Blend((2.0, 1.0))] * 20, rows)
    assert torch.equal(doubled.token, dispatch.mix(logits, [Blend((1.0, 0.5))] * 20, halved).token)


@pytest.mark.parametrize("vocabulary", [2, 500, 4097, 20_000, 140_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_depend_on_the_batch(vocabulary: int, dtype: torch.dtype) -> None:
    count = 24 if vocabulary < 100_000 else 5
    logits = [model.to(dtype) for model in models(3, count, vocabulary, 10)]
    logits[0][1, ::7] = -INF
    if vocabulary > 2:
        logits[1][2, 1] = NAN
    blends, rows = kinds(count, vocabulary, 1)
    whole = dispatch.mix(logits, blends, rows)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1)).tolist()
    assert same(
        whole,
        dispatch.mix([model[order] for model in logits], [blends[i] for i in order], [rows[i] for i in order]),
        order,
    )
    for i in range(count):
        assert same(whole, dispatch.mix([m[i : i + 1] for m in logits], [blends[i]], [rows[i]]), [i])
    spread = []
    for model in logits:
        wide = torch.full((count, 2 * vocabulary), 99.0, dtype=dtype)
        wide[:, ::2] = model
        spread.append(wide[:, ::2])
    assert same(whole, dispatch.mix(spread, blends, rows))
    assert same(whole, dispatch.mix([logits[0], logits[1].float(), spread[2]], blends, rows))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert same(whole, dispatch.mix(logits, blends, rows))
    finally:
        torch.set_num_threads(before)


def test_logits_are_left_alone_and_logprob_is_of_the_mixture() -> None:
    logits = models(2, 3, 6000, 11)
    before = [model.clone() for model in logits]
    blends = [Blend((1.0, 0.5))] * 3
    rows = [
        Pick(Filters(0.4, top_k=3), Key(1)),
        Pick(Filters(2.0, bias={5: 90.0}), Key(2)),
        Pick(Filters(0.0, bias={7: 90.0})),
    ]
    got = dispatch.mix(logits, blends, rows)
    assert all(torch.equal(a, b) for a, b in zip(logits, before, strict=True))
    assert got.token.tolist()[1:] == [5, 7]
    raw = dispatch.stats(dispatch.blend(logits, blends), got.token)
    assert same(got.stats, raw)


def test_no_rows() -> None:
    got = dispatch.mix([torch.empty(0, 7)] * 2, [], [])
    assert got.token.shape == (0,)
    assert got.token.dtype == torch.int64
    assert dispatch.blend([torch.empty(0, 7)] * 2, []).shape == (0, 7)


# ----------------------------------------------------------------------------------------------------------- errors

X = torch.zeros(2, 10)
B = Blend((1.0, 1.0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Blend(()), ValueError, r"weights = \(\): accepted: one number per model"),
        (lambda: Blend((-1.0, 1.0)), ValueError, r"weights\[0\] = -1.0: accepted: a number in \[0, 1e\+06\]"),
        (lambda: Blend((1.0, NAN)), ValueError, r"weights\[1\] = nan"),
        (lambda: Blend((1.0, 1e7)), ValueError, r"weights\[1\] = 10000000.0: accepted: a number in \[-1e\+06, 1e"),
        (lambda: Blend((1.0,), plausibility=1.0), ValueError, r"plausibility = 1.0: accepted: a number in \[0, 1\)"),
        (lambda: dispatch.mix(X, [B] * 2, [Pick()] * 2), TypeError, r"logits: accepted: a sequence of matrices"),
        (lambda: dispatch.mix([], [], []), TypeError, r"logits: accepted: a sequence of matrices"),
        (lambda: dispatch.mix([X, X[:, :9]], [B] * 2, [Pick()] * 2), ValueError, r"logits\[1\].shape = \(2, 9\)"),
        (lambda: dispatch.mix([X, X.double()], [B] * 2, [Pick()] * 2), TypeError, r"dtype = torch.float64"),
        (lambda: dispatch.mix([X, X.to("meta")], [B] * 2, [Pick()] * 2), ValueError, r"logits\[1\].device = meta"),
        (lambda: dispatch.mix([X, X], [B], [Pick()] * 2), ValueError, r"blends: 1 of them: accepted: 2"),
        (lambda: dispatch.mix([X, X], [B] * 2, [Pick()]), ValueError, r"rows: 1 of them: accepted: 2"),
        (lambda: dispatch.mix([X], [B] * 2, [Pick()] * 2), ValueError, r"weights = \(1.0, 1.0\): accepted: 1 numb"),
        (
            lambda: dispatch.mix([X, X], [B] * 2, [Pick(position=-1)] * 2),
            ValueError,
            r"position = -1: accepted: an unsigned 32",
        ),
        (lambda: dispatch.mix([X, X], [B] * 2, [Pick(banned=[10])] * 2), ValueError, r"banned = 10: accepted: tok"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
