"""Edits and filters: those of transformers, whatever the row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import kernel_oracles as oracles
import logit_rows as lr
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.kernels import dispatch
from trimtab.kernels.types import Filters, Key, Pick

pytestmark = pytest.mark.usefixtures("one_thread")


INF = float("inf")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


FILTERS = st.builds(
    Filters,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 2, 5, 20, 70, 10_000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.1, 1e-6]),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    bias=st.dictionaries(st.integers(0, 6), st.sampled_from([-INF, -2.0, 0.5, 30.0]), max_size=3),
)


def only_at_an_edge(tokens: Sequence[int], logits: torch.Tensor, row: Pick) -> bool:
    """Whether every one of the tokens sits within rounding of a threshold, or ties with the last one kept."""
    f = row.filters
    before = lr.transformers_scores(logits, row._replace(filters=replace(f, top_p=1.0, min_p=0.0)))
    p = before.softmax(-1)
    nucleus = lr.transformers_scores(logits, row._replace(filters=replace(f, min_p=0.0)))
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
    logits = lr.families(1, vocabulary, seed)[family][0].to(dtype)
    row = Pick(filters, Key(seed), 0, seen, banned)
    ours = oracles.cpu_logprobs(logits[None], [row])[0].double()
    theirs = lr.transformers_scores(logits, row)
    mine, other = (set(np.flatnonzero(row > -INF).tolist()) for row in (ours, theirs))
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
        kept = oracles.cpu_logprobs(logits, [Pick(filters)])[0] > -INF
        assert kept.tolist() == [True, True, True, True, False, False]


def test_top_p_weighs_what_top_k_kept() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Of the two kept by top-k the first has 4/7 of the mass, so 0.5 keeps it alone; jointly both would stay.
    kept = oracles.cpu_logprobs(logits, [Pick(Filters(1.0, top_k=2, top_p=0.5))])[0] > -INF
    assert kept.tolist() == [True, False, False, False]
    joint = oracles.cpu_logprobs(logits, [Pick(Filters(1.0, top_p=0.5))])[0] > -INF
    assert joint.tolist() == [True, True, False, False]


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.999])
@pytest.mark.parametrize("vocabulary", [5000, 40_000])
def test_nucleus_however_flat_or_peaked(vocabulary: int, top_p: float) -> None:
    """The search for the nucleus looks at few logits first; a flat row makes it look at all."""
    logits = torch.cat(list(lr.families(2, vocabulary, 21).values()))
    rows = [Pick(Filters(1.0, top_p=top_p), Key(i)) for i in range(len(logits))]
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
    logits = lr.families(5, 5000)["wide"] * 10
    greedy = dispatch.pick(logits, [Pick()] * 5).token
    for filters in (Filters(temperature), Filters(temperature, top_p=0.9), Filters(temperature, top_k=4)):
        tokens = dispatch.pick(logits, [Pick(filters, Key(i)) for i in range(5)]).token
        assert torch.equal(tokens, greedy)


def test_greedy_takes_the_lowest_of_equals_after_edits() -> None:
    logits = torch.zeros(4, 5000)
    logits[:, [4990, 17, 300]] = 5.0
    rows = [
        Pick(),
        Pick(banned=[17]),
        Pick(Filters(bias={4990: 0.5})),
        Pick(Filters(repetition_penalty=2.0), seen=[17, 300, 17]),
    ]
    assert dispatch.pick(logits, rows).token.tolist() == [17, 300, 4990, 4990]


def test_logprob_is_of_the_raw_logits() -> None:
    logits = lr.families(3, 6000)["normal"]
    rows = [
        Pick(Filters(0.4, top_k=3), Key(1)),
        Pick(Filters(2.0, bias={5: 60.0}), Key(2)),
        Pick(Filters(0.0, bias={7: 60.0})),
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
    rows = [Pick(Filters(1.0, bias={0: 3e38, 1: 1e300, 2: -1e300}), Key(1))]
    kept = oracles.cpu_logprobs(logits, rows)[0]
    assert not kept.isnan().any()
    assert int(dispatch.pick(logits, rows).token[0]) in (0, 1)
    everything = [
        Pick(Filters(1.0), Key(1), banned=[0, 1, 2, 3]),
        Pick(Filters(bias=dict.fromkeys(range(4), -INF))),
    ]
    picked = dispatch.pick(logits.expand(2, -1), everything)
    assert picked.token.tolist() == [-1, -1]
    assert (picked.stats.logprob == -INF).all()
    assert picked.stats.argmax.tolist() == [1, 1]
