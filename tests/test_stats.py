"""Statistics and the most likely tokens: against float64, and of rows that are not finite."""

from __future__ import annotations

import kernel_oracles as oracles
import logit_rows as lr
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.kernels import dispatch
from trimtab.kernels.results import FLAG_EMPTY, FLAG_UNCLEAN
from trimtab.kernels.types import Filters, Key, Pick

pytestmark = pytest.mark.usefixtures("one_thread")


INF = float("inf")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 2, 63, 64, 65, 4095, 4096, 4097, 50257]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", SIZES)
def test_stats_against_float64(vocabulary: int, dtype: torch.dtype) -> None:
    for name, raw in lr.families(3, vocabulary).items():
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
        picked = dispatch.pick(base, [Pick(filters, Key(i)) for i in range(7)])
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
    tokens = dispatch.pick(logits.expand(2, -1), [Pick(Filters(1.0, top_k=5000), Key(i)) for i in range(2)]).token
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
