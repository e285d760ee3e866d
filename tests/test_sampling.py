"""Statistics of logits and picking: against float64, against Hugging Face's filters, by distribution, bit by bit."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trimtab.kernels import dispatch, paths
from trimtab.kernels.cpu.tiles import TILE
from trimtab.kernels.results import FLAG_EMPTY, FLAG_UNCLEAN, Picked
from trimtab.kernels.types import Filters, Key, RowPick


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracles = _load("kernel_oracles")

INF = float("inf")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 2, 63, 64, 65, 4095, 4096, 4097, 50257]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small work: a second thread gains little here and waits for its turn on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def families(rows: int, vocabulary: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Logit families of the FlashInfer tests, whose shapes differ in how many tokens matter."""
    g = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, vocabulary, generator=g)
    gumbel = -torch.log(-torch.log(torch.rand(rows, vocabulary, generator=g).clamp(1e-9, 1 - 1e-7)))
    return {"normal": normal, "wide": 5 * normal, "gumbel0.1": gumbel / 0.1, "gumbel1": gumbel}


# ------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", SIZES)
def test_stats_against_float64(vocabulary: int, dtype: torch.dtype) -> None:
    for name, raw in families(3, vocabulary).items():
        logits = raw.to(dtype)
        tokens = torch.randint(0, vocabulary, (3,), generator=torch.Generator().manual_seed(1))
        got = dispatch.stats(logits, tokens)
        lse, entropy, logp = oracles.statistics(logits)
        wanted = {
            "lse": lse,
            "entropy": entropy,
            "top_prob": logp.amax(-1).exp(),
            "logprob": logp.gather(1, tokens[:, None])[:, 0],
        }
        eager = logits.float().log_softmax(-1)
        rough = {
            "lse": logits.float().logsumexp(-1),
            "entropy": -(eager.exp() * eager).sum(-1),
            "top_prob": eager.amax(-1).exp(),
            "logprob": eager.gather(1, tokens[:, None])[:, 0],
        }
        for field, truth in wanted.items():
            value = getattr(got, field)
            assert value.dtype == torch.float32
            allowed = 2e-6 * truth.abs().clamp(min=1)
            error = (value.double() - truth).abs()
            assert (error <= allowed).all(), (name, field, error)
            # Never worse than the naive formula in the same type, but for the rounding of the result.
            naive = (rough[field].double() - truth).abs()
            assert (error <= naive + 2e-7 * truth.abs().clamp(min=1)).all(), (name, field, error, naive)
        assert torch.equal(got.argmax, torch.from_numpy(logits.float().numpy().argmax(-1)))
        assert (got.flags == 0).all()
        assert torch.equal(dispatch.stats(logits).logprob, dispatch.stats(logits, got.argmax).logprob)


def test_stats_do_not_degrade_with_an_offset() -> None:
    logits = torch.randn(4, 10_000, generator=torch.Generator().manual_seed(2)) + 1e4
    entropy = oracles.statistics(logits)[1]
    assert (dispatch.stats(logits).entropy - entropy).abs().max() < 1e-5
    # The control: the unshifted moment in float32.
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    mass = weights.sum(-1)
    unshifted = logits.amax(-1) + mass.log() - (weights * logits).sum(-1) / mass
    assert (unshifted - entropy).abs().max() > 1e-4


@pytest.mark.parametrize("vocabulary", [1, 2, 64, 4097, 9000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_finite(vocabulary: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    base = torch.randn(7, vocabulary, generator=g).to(dtype)
    base[0] = -INF
    base[1] = -INF
    base[1, -1] = 2.0
    base[2] = float("nan")
    base[3, 0] = float("nan")
    base[4, 0] = INF
    base[5, 0] = -INF
    clean = base.clone()
    clean[(clean.isnan()) | (clean == INF)] = -INF
    got = dispatch.stats(base, torch.zeros(7, dtype=torch.int64))
    empty = [bool((row == -INF).all()) for row in clean]
    unclean = [False, False, True, True, True, False, False]
    assert empty[0]
    assert empty[2]
    for row in range(7):
        flags = FLAG_EMPTY * empty[row] + FLAG_UNCLEAN * unclean[row]
        assert int(got.flags[row]) == flags, row
        if empty[row]:
            assert int(got.argmax[row]) == -1
            assert (float(got.lse[row]), float(got.entropy[row]), float(got.top_prob[row])) == (-INF, 0.0, 0.0)
            assert float(got.logprob[row]) == -INF
        else:
            lse, entropy, logp = oracles.statistics(clean[row : row + 1])
            assert abs(float(got.lse[row] - lse)) < 2e-6
            assert abs(float(got.entropy[row] - entropy)) < 1e-5
            assert int(got.argmax[row]) == int(clean[row].float().numpy().argmax())
            assert float(got.logprob[row]) == pytest.approx(float(logp[0, 0]), abs=3e-6)
    assert not any(part.isnan().any() for part in got)
    kinds = [
        Filters(),
        Filters(1.0),
        Filters(0.5),
        Filters(1.0, top_k=3),
        Filters(1.0, top_p=0.9),
        Filters(1, min_p=0.1),
    ]
    for filters in kinds:
        picked = dispatch.pick(base, [RowPick(filters, Key(i)) for i in range(7)])
        for row in range(7):
            token = int(picked.token[row])
            assert (token == -1) == empty[row]
            assert token == -1 or float(clean[row, token]) > -INF
            assert float(picked.stats.logprob[row]) > -INF or token == -1


def test_lowest_float_is_a_logit_like_another() -> None:
    """Masks made of the lowest finite number, as transformers makes them, in a vocabulary with a ragged last tile."""
    low = torch.finfo(torch.float32).min
    logits = torch.full((2, 4100), low)
    logits[1, 4099] = 0.0
    got = dispatch.stats(logits)
    assert got.argmax.tolist() == [0, 4099]
    assert float(got.entropy[0]) == pytest.approx(np.log(4100), rel=1e-6)
    assert float(got.entropy[1]) == 0.0
    tokens = dispatch.pick(logits.expand(2, -1), [RowPick(Filters(1.0, top_k=5000), Key(i)) for i in range(2)]).token
    assert 0 <= int(tokens[0]) < 4100
    assert int(tokens[1]) == 4099


@settings(deadline=None, max_examples=40)
@given(data=st.data(), vocabulary=st.sampled_from([1, 7, 64, 300, 5000]), levels=st.sampled_from([2, 10, 1000]))
def test_top_logprobs_are_the_sorted_row(data: st.DataObject, vocabulary: int, levels: int) -> None:
    seed = data.draw(st.integers(0, 1000))
    n = data.draw(st.integers(1, vocabulary))
    g = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, levels, (2, vocabulary), generator=g).float() / levels * 8
    logits[torch.rand(logits.shape, generator=g) < 0.1] = -INF
    ids, values = dispatch.top_logprobs(logits, n)
    for row in range(2):
        z = logits[row].numpy()
        order = np.lexsort((np.arange(vocabulary), -z))[:n]
        order = order[z[order] > -np.inf]
        assert ids[row].tolist() == [*order.tolist(), *[-1] * (n - len(order))]
        if len(order):
            truth = oracles.statistics(logits[row : row + 1])[2][0].numpy()
            np.testing.assert_allclose(values[row].numpy()[: len(order)], truth[order], atol=3e-6)
        assert (values[row].numpy()[len(order) :] == -np.inf).all()


# ---------------------------------------------------------------------------------------------------------- filters

FILTERS = st.builds(
    Filters,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 2, 5, 20, 70, 10_000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.1, 1e-6]),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    bias=st.dictionaries(st.integers(0, 6), st.sampled_from([-INF, -2.0, 0.5, 30.0]), max_size=3),
)


def transformers_scores(logits: torch.Tensor, row: RowPick) -> torch.Tensor:
    """float64 [V]: what transformers would hand to its softmax."""
    f = row.filters
    scores = logits.double()[None].clone()
    ids = torch.as_tensor([list(row.seen)], dtype=torch.int64)
    if f.repetition_penalty != 1 and len(row.seen):
        scores = RepetitionPenaltyLogitsProcessor(f.repetition_penalty)(ids, scores)
    for token, value in f.bias.items():
        scores[0, token] += value
    for token in row.banned:
        scores[0, token] = -INF
    chain: list[LogitsProcessor] = [TemperatureLogitsWarper(float(f.temperature))]
    if f.top_k:
        chain.append(TopKLogitsWarper(f.top_k))
    if f.top_p < 1:
        chain.append(TopPLogitsWarper(f.top_p))
    if f.min_p > 0:
        chain.append(MinPLogitsWarper(f.min_p))
    for processor in chain:
        scores = processor(ids, scores)
    return scores[0]


def only_at_an_edge(tokens: Sequence[int], logits: torch.Tensor, row: RowPick) -> bool:
    """Whether every one of the tokens sits within rounding of a threshold, or ties with the last one kept."""
    f = row.filters
    before = transformers_scores(logits, row._replace(filters=replace(f, top_p=1.0, min_p=0.0)))
    p = before.softmax(-1)
    nucleus = transformers_scores(logits, row._replace(filters=replace(f, min_p=0.0)))
    kept = nucleus[nucleus > -INF]
    for token in tokens:
        above = float(p[before > before[token]].sum())
        upto = float(p[before >= before[token]].sum())
        near_p = min(abs(above - f.top_p), abs(upto - f.top_p)) < 1e-5
        near_min = abs(float(p[token] / p.max()) - f.min_p) < 1e-5
        ties = bool((kept - before[token]).abs().min() < 1e-9)
        if not (near_p or near_min or ties):
            return False
    return True


def replace(filters: Filters, **changes: Any) -> Filters:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "bias")
    return Filters(**({name: getattr(filters, name) for name in names} | changes))


@settings(deadline=None, max_examples=250)
@given(
    filters=FILTERS,
    vocabulary=st.sampled_from([8, 100, 700, 5000]),
    family=st.sampled_from(["normal", "wide", "gumbel0.1", "gumbel1"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10_000),
    seen=st.lists(st.integers(0, 7), max_size=6),
    banned=st.lists(st.integers(0, 3), max_size=2),
)
def test_filters_are_those_of_transformers(
    filters: Filters,
    vocabulary: int,
    family: str,
    dtype: torch.dtype,
    seed: int,
    seen: list[int],
    banned: list[int],
) -> None:
    logits = families(1, vocabulary, seed)[family][0].to(dtype)
    row = RowPick(filters, Key(seed), 0, seen, banned)
    ours = oracles.cpu_logprobs(logits[None], [row])[0].double()
    theirs = transformers_scores(logits, row)
    mine, other = set(np.flatnonzero(ours > -INF)), set(np.flatnonzero(theirs > -INF))
    assert mine
    if mine == other:
        np.testing.assert_allclose(ours, theirs.log_softmax(-1), atol=2e-5)
    else:
        assert only_at_an_edge(sorted(mine ^ other), logits, row), sorted(mine ^ other)
    token = int(dispatch.pick(logits[None], [row]).token[0])
    assert token in mine


def test_ties_at_the_cut_are_kept() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0, -1.0]])
    for filters in (Filters(1.0, top_k=2), Filters(1.0, top_p=0.75)):
        kept = oracles.cpu_logprobs(logits, [RowPick(filters)])[0] > -INF
        assert kept.tolist() == [True, True, True, True, False, False]


def test_top_p_weighs_what_top_k_kept() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Of the two kept by top-k the first has 4/7 of the mass, so 0.5 keeps it alone; jointly both would stay.
    kept = oracles.cpu_logprobs(logits, [RowPick(Filters(1.0, top_k=2, top_p=0.5))])[0] > -INF
    assert kept.tolist() == [True, False, False, False]
    joint = oracles.cpu_logprobs(logits, [RowPick(Filters(1.0, top_p=0.5))])[0] > -INF
    assert joint.tolist() == [True, True, False, False]


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.999])
@pytest.mark.parametrize("vocabulary", [5000, 40_000])
def test_nucleus_however_flat_or_peaked(vocabulary: int, top_p: float) -> None:
    """The search for the nucleus looks at few logits first; a flat row makes it look at all."""
    logits = torch.cat(list(families(2, vocabulary, 21).values()))
    rows = [RowPick(Filters(1.0, top_p=top_p), Key(i)) for i in range(len(logits))]
    kept = oracles.cpu_logprobs(logits, rows) > -INF
    p = logits.double().softmax(-1)
    for row in range(len(logits)):
        ordered, order = p[row].sort(descending=True)
        wanted = (ordered.cumsum(0) - ordered) < top_p
        differ = kept[row][order] != wanted
        # Only where float32 masses cannot tell.
        assert (((ordered.cumsum(0) - ordered)[differ] - top_p).abs() < 1e-6).all()
    sizes = kept.sum(-1)
    assert int(sizes.max()) > 20 * int(sizes.min())  # both kinds were seen


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 5e-324])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = families(5, 5000)["wide"] * 10
    greedy = dispatch.pick(logits, [RowPick()] * 5).token
    for filters in (Filters(temperature), Filters(temperature, top_p=0.9), Filters(temperature, top_k=4)):
        tokens = dispatch.pick(logits, [RowPick(filters, Key(i)) for i in range(5)]).token
        assert torch.equal(tokens, greedy)


def test_greedy_takes_the_lowest_of_equals_after_edits() -> None:
    logits = torch.zeros(4, 5000)
    logits[:, [4990, 17, 300]] = 5.0
    rows = [
        RowPick(),
        RowPick(banned=[17]),
        RowPick(Filters(bias={4990: 0.5})),
        RowPick(Filters(repetition_penalty=2.0), seen=[17, 300, 17]),
    ]
    assert dispatch.pick(logits, rows).token.tolist() == [17, 300, 4990, 4990]


def test_logprob_is_of_the_raw_logits() -> None:
    logits = families(3, 6000)["normal"]
    rows = [
        RowPick(Filters(0.4, top_k=3), Key(1)),
        RowPick(Filters(2.0, bias={5: 60.0}), Key(2)),
        RowPick(Filters(0.0, bias={7: 60.0})),
    ]
    before = logits.clone()
    picked = dispatch.pick(logits, rows)
    assert torch.equal(logits, before)
    assert picked.token.tolist()[1:] == [5, 7]
    raw = dispatch.stats(logits, picked.token)
    for got, wanted in zip(picked.stats, raw, strict=True):
        assert torch.equal(got, wanted)


def test_edits_that_overflow_stay_finite_or_ban() -> None:
    logits = torch.tensor([[1.0, 2.0, -3.0, 0.5]])
    rows = [RowPick(Filters(1.0, bias={0: 3e38, 1: 1e300, 2: -1e300}), Key(1))]
    kept = oracles.cpu_logprobs(logits, rows)[0]
    assert not kept.isnan().any()
    assert int(dispatch.pick(logits, rows).token[0]) in (0, 1)
    everything = [
        RowPick(Filters(1.0), Key(1), banned=[0, 1, 2, 3]),
        RowPick(Filters(bias=dict.fromkeys(range(4), -INF))),
    ]
    picked = dispatch.pick(logits.expand(2, -1), everything)
    assert picked.token.tolist() == [-1, -1]
    assert (picked.stats.logprob == -INF).all()
    assert picked.stats.argmax.tolist() == [1, 1]


# ----------------------------------------------------------------------------------------------------- distribution


def chi_square(counts: NDArray[np.int64], p: NDArray[np.float64], bins: int | None = None) -> float:
    """p-value, bins pooled in order of probability until each is expected 10 times, or until so many are left."""
    draws = counts.sum()
    least = 10 if bins is None else draws / bins
    order = np.argsort(p)
    observed: list[float] = []
    expected: list[float] = []
    have = want = 0.0
    for i in order:
        have, want = have + counts[i], want + p[i] * draws
        if want >= least:
            observed.append(have)
            expected.append(want)
            have = want = 0.0
    if expected:
        observed[-1] += have
        expected[-1] += want
    o, e = np.array(observed), np.array(expected)
    if len(e) < 2:
        return 1.0
    statistic = torch.tensor(((o - e) ** 2 / e).sum(), dtype=torch.float64)
    return float(torch.special.gammaincc(torch.tensor((len(e) - 1) / 2, dtype=torch.float64), statistic / 2))


def draw(logits: torch.Tensor, filters: Filters, draws: int, **extra: Any) -> NDArray[np.int64]:
    """Counts [V] of tokens of one row at as many positions."""
    key = Key(1234, 77)
    rows = [RowPick(filters, key, position, **extra) for position in range(draws)]
    tokens = dispatch.pick(logits.expand(draws, -1), rows).token
    return np.bincount(tokens.numpy(), minlength=logits.shape[-1])


def law(logits: torch.Tensor, filters: Filters, **extra: Any) -> NDArray[np.float64]:
    """float64 [V]: transformers' distribution, independent of ours."""
    scores = transformers_scores(logits[0], RowPick(filters, **extra))
    return np.asarray(scores.softmax(-1).numpy())


# Logits without ties and with no token at an edge of these filters, so that both sides have the same support.
ROW = families(1, 200, 5)["normal"] * 1.5
# Most of the mass on 200 tokens, unevenly over three tiles.
WIDE_ROW = families(1, 9200, 6)["normal"] * 0.3 - 6
WIDE_ROW[0, [*range(40, 4000, 33), *range(4100, 8100, 70), *range(8200, 9200, 45)]] += 6


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
def test_distribution_in_one_tile(temperature: float) -> None:
    filters = Filters(temperature)
    counts = draw(ROW * temperature, filters, 150_000)
    p = law(ROW * temperature, filters)
    assert chi_square(counts, p) > 1e-4
    assert chi_square(counts, p, bins=20) > 1e-4
    # The controls: two percent in the temperature; every other token ten percent too likely.
    assert chi_square(counts, law(ROW * temperature, Filters(temperature * 1.02)), bins=20) < 1e-4
    tilted = p * np.where(np.arange(len(p)) % 2, 1.1, 1.0)
    assert chi_square(counts, tilted / tilted.sum()) < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_distribution_over_several_tiles(temperature: float) -> None:
    filters = Filters(temperature)
    counts = draw(WIDE_ROW, filters, 20_000)
    p = law(WIDE_ROW, filters)
    tile = np.arange(len(p)) // TILE
    mass = np.bincount(tile, weights=p)
    by_tile = np.bincount(tile, weights=counts).astype(np.int64)
    assert chi_square(counts, p) > 1e-4
    assert chi_square(by_tile, mass) > 1e-4
    # The controls: tiles drawn evenly with the right tokens inside, and the right tiles with tokens drawn evenly.
    assert chi_square(counts, p / mass[tile] / len(mass)) < 1e-4
    assert chi_square(counts, mass[tile] / np.bincount(tile)[tile]) < 1e-4


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
    p = law(ROW, filters, seen=seen, banned=[9])
    assert counts[p == 0].sum() == 0
    assert chi_square(counts, p) > 1e-4
    ours = oracles.cpu_logprobs(ROW, [RowPick(filters, seen=seen, banned=[9])])[0].double().exp().numpy()
    np.testing.assert_allclose(ours, p, atol=1e-6)
    # The controls: each filter dropped.
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for name, value in off.items():
        if getattr(filters, name) != value and filters is not FILTERED[-1]:
            wrong = draw(ROW, replace(filters, **{name: value}), draws // 5, seen=seen, banned=[9])
            assert wrong[p == 0].sum() > 0
            assert chi_square(wrong, p + 1e-12) < 1e-4
    if filters.repetition_penalty != 1:
        assert chi_square(counts, law(ROW, filters, banned=[9])) < 1e-4


def test_outcomes_at_different_positions_and_seeds_are_independent() -> None:
    logits = torch.zeros(1, 2)
    n = 20_000
    rows = [RowPick(Filters(1.0), Key(5), p) for p in range(n)]
    by_position = dispatch.pick(logits.expand(n, -1), rows).token.numpy()
    pairs = np.bincount(2 * by_position[:-1] + by_position[1:], minlength=4)
    assert chi_square(pairs, np.full(4, 0.25)) > 1e-4
    rows = [RowPick(Filters(1.0), Key(s), 9) for s in range(n)]
    by_seed = dispatch.pick(logits.expand(n, -1), rows).token.numpy()
    agree = int((by_seed == by_position).sum())
    assert chi_square(np.array([agree, n - agree]), np.full(2, 0.5)) > 1e-4


# ----------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("vocabulary", [2, 300, 4096, 4097, 13_000])
def test_tokens_are_those_of_the_documented_scheme(vocabulary: int) -> None:
    kinds = [Filters(1.0), Filters(0.7), Filters(1.0, top_p=0.9), Filters(1.3, top_k=20), Filters(0.8, min_p=0.05)]
    logits = torch.cat([f[:5] for f in families(5, vocabulary, 9).values()])
    rows = [RowPick(f, Key(40 + i, i), 1000 + i) for i, f in enumerate(itertools.islice(itertools.cycle(kinds), 20))]
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
    rows = [RowPick(f, Key(3, 4), p) for p in range(3) for f in (Filters(1.0), Filters(0.5), Filters(1.0, top_k=97))]
    assert dispatch.pick(ramp.expand(9, -1), rows).token.tolist() == GOLDEN_TOKENS


def mixed(rows: int, vocabulary: int, seed: int) -> list[RowPick]:
    """Rows of all kinds: greedy, plain, scaled, filtered, edited."""
    kinds = [
        Filters(),
        Filters(1.0),
        Filters(0.7),
        Filters(1.0, top_p=0.9),
        Filters(0.8, top_k=5),
        Filters(1.1, min_p=0.1),
        Filters(0.9, top_k=30, top_p=0.8, min_p=0.01),
        Filters(0.0, repetition_penalty=1.5),
        Filters(1.0, bias={0: 3.0, vocabulary - 1: -INF}),
        Filters(1.0, top_k=vocabulary + 5),
    ]
    r = np.random.default_rng(seed)
    result = []
    for i in range(rows):
        seen = r.integers(0, vocabulary, 5) if r.random() < 0.5 else ()
        banned = r.integers(0, max(1, vocabulary // 2), 2).tolist() if vocabulary > 2 and r.random() < 0.3 else ()
        result.append(
            RowPick(kinds[int(r.integers(len(kinds)))], Key(int(r.integers(9)), i), int(r.integers(99)), seen, banned)
        )
    return result


def same(a: Picked, b: Picked, where: Sequence[int] | slice = slice(None)) -> bool:
    """Bitwise: rows ``where`` of a are the rows of b."""
    return all(torch.equal(x[where], y) for x, y in zip((a.token, *a.stats), (b.token, *b.stats), strict=True))


@pytest.mark.parametrize("vocabulary", [2, 500, 4097, 20_000, 270_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_do_not_depend_on_the_batch(vocabulary: int, dtype: torch.dtype) -> None:
    count = 24 if vocabulary < 100_000 else 5
    logits = torch.cat([f[: count // 4 + 1] for f in families(count // 4 + 1, vocabulary, 11).values()])[:count].to(
        dtype
    )
    logits[1, ::7] = -INF  # a row of the slow path among the others
    if vocabulary > 2:
        logits[2, 1] = float("nan")
    rows = mixed(count, vocabulary, vocabulary)
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
    logits = families(4, 60_000)["normal"]
    rows = mixed(4, 60_000, 1)
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
    logits = families(1, 9000)["wide"]
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
BIASED = RowPick(Filters(bias={12: 1.0}))
SEEN = RowPick(Filters(repetition_penalty=2.0), seen=[-1])


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
        (lambda: dispatch.pick(X, [RowPick()]), ValueError, r"rows: 1 of them: accepted: 2"),
        (lambda: dispatch.pick(X, [RowPick(position=-1)] * 2), ValueError, r"position = -1: accepted: an unsigned 32"),
        (
            lambda: dispatch.pick(X, [RowPick(banned=[10])] * 2),
            ValueError,
            r"banned = 10: accepted: token ids in \[0, 10\)",
        ),
        (
            lambda: dispatch.pick(X, [RowPick(Filters(bias={12: 1.0}))] * 2),
            ValueError,
            r"bias = 12: accepted: token ids",
        ),
        (
            lambda: dispatch.pick(X, [RowPick(Filters(repetition_penalty=2.0), seen=[-1])] * 2),
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
            dispatch.pick(X, [RowPick()] * 2)
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
