"""The Triton kernels for statistics, picking and mixing against their torch twins, compiled or through the interpreter.

Without a GPU every case runs on CPU tensors through Triton's interpreter; ``-m gpu`` runs the same cases on CUDA.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from typing import Any

import kernel_oracles as oracles
import logit_rows as lr
import numpy as np
import pytest
import test_mix as MIX
import torch
import triton_where as tw
from numpy.typing import NDArray
from triton_where import Where

from trimtab.kernels import dispatch, rng
from trimtab.kernels.results import FLAG_EMPTY, FLAG_UNCLEAN, Picked, Stats
from trimtab.kernels.types import Blend, Filters, Key, Pick, Stream

INF = float("inf")
NAN = float("nan")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


CPU, CUDA, where, host = tw.CPU, tw.CUDA, tw.where, tw.host

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]  # NumPy's, of overflow that is meant


def close(a: Any, b: Any) -> None:
    """Statistics agree but for rounding, and all that is discrete exactly."""
    for field in ("lse", "entropy", "top_prob", "logprob"):
        x, y = getattr(a, field), getattr(b, field)
        torch.testing.assert_close(x, y, atol=4e-6, rtol=2e-6)
    assert torch.equal(a.flags, b.flags)


def same(a: Any, b: Any, rows: Sequence[int] | slice = slice(None)) -> bool:
    """Bitwise: rows ``rows`` of a are the rows of b."""
    return MIX.same(a, b, rows)  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------------------------------------- numbers


if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    from trimtab.kernels.triton.rng import exponential, uniform, word

    @triton.jit
    def numbers(words, us, clocks, keys, positions, first, STREAM: tl.constexpr, N: tl.constexpr):  # type: ignore
        i = tl.arange(0, N)
        key, position = tl.load(keys), tl.load(positions)
        tl.store(words + i, word(key, position, STREAM, i + first).to(tl.int32, bitcast=True))
        u = uniform(key, position, STREAM, i + first)
        tl.store(us + i, u)
        tl.store(clocks + i, exponential(u))


@pytest.mark.parametrize("key", [Key(0), Key(2**64 - 1, 2**63 + 5)])
@pytest.mark.parametrize("position", [0, 2**32 - 1])
def test_random_numbers_are_those_of_numpy(where: Where, key: Key, position: int) -> None:
    n = 4096
    bits = np.array([key.bits], np.uint64)
    words = torch.empty(n, dtype=torch.int32, device=where.device)
    us, clocks = torch.empty((2, n), device=where.device)
    keys = torch.from_numpy(bits.view(np.int64)).to(where.device)
    at = torch.tensor([position], device=where.device)
    for stream, first in ((Stream.TILE, 0), (Stream.TOKEN, 250_001)):
        numbers[(1,)](words, us, clocks, keys, at, first, int(stream), n)
        index = np.arange(first, first + n)
        u = rng.uniform(bits, np.array([position]), stream, index)[0]
        assert (us.cpu().numpy() == u).all()
        np.testing.assert_allclose(clocks.cpu().numpy(), rng.exponential(u), rtol=3e-7)
        counter = [np.array(value, np.uint64) for value in (position, stream, index >> 2, 0)]
        blocks = rng.philox(bits, *counter)
        assert (words.cpu().numpy().view(np.uint32) == np.choose(index & 3, blocks).astype(np.uint32)).all()


# -------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("vocabulary", "dtype"), list(zip([1, 2, 64, 65, 4095, 4096, 4097, 50257], itertools.cycle(DTYPES), strict=False))
)
def test_statistics_against_float64(where: Where, vocabulary: int, dtype: torch.dtype) -> None:
    for name, raw in lr.families(2, vocabulary).items():
        logits = raw.to(dtype)
        tokens = torch.tensor([vocabulary - 1, -1])
        got = host(dispatch.stats(logits.to(where.device), tokens.to(where.device), path=where.path))
        lse, entropy, logp = oracles.statistics(logits)
        eager = logits.float().log_softmax(-1)
        wanted = {"lse": lse, "entropy": entropy, "top_prob": logp.amax(-1).exp()}
        rough = {
            "lse": logits.float().logsumexp(-1),
            "entropy": -(eager.exp() * eager).sum(-1),
            "top_prob": eager.amax(-1).exp(),
        }
        for field, truth in wanted.items():
            value = getattr(got, field)
            assert value.dtype == torch.float32
            error = (value.double() - truth).abs()
            scale = truth.abs().clamp(min=1)
            assert (error <= 2e-6 * scale).all(), (name, field, error)
            naive = (rough[field].double() - truth).abs()
            assert (error <= naive + 1e-6 * scale).all(), (name, field, error, naive)
        assert abs(float(got.logprob[0]) - float(logp[0, -1])) <= 2e-6 * max(1, abs(float(logp[0, -1])))
        assert float(got.logprob[1]) == -INF
        assert torch.equal(got.argmax, torch.from_numpy(logits.float().numpy().argmax(-1)))
        assert (got.flags == 0).all()


def test_statistics_of_a_large_vocabulary(where: Where) -> None:
    logits = lr.families(1, 262_144, 1)["wide"].bfloat16()
    close(host(dispatch.stats(logits.to(where.device), path=where.path)), dispatch.stats(logits))


def test_statistics_do_not_degrade_with_an_offset(where: Where) -> None:
    logits = torch.randn(2, 10_000, generator=torch.Generator().manual_seed(2)) + 1e4
    got = host(dispatch.stats(logits.to(where.device), path=where.path))
    assert (got.entropy - oracles.statistics(logits)[1]).abs().max() < 1e-5
    assert (got.top_prob - logits.double().softmax(-1).amax(-1)).abs().max() < 1e-8


# ------------------------------------------------------------------------------------------------------------- picks


def agree(where: Where, logits: torch.Tensor, rows: Sequence[Pick], least: float = 0.97) -> Picked:
    """Both paths draw the same tokens, but where a race is within rounding; the Triton path's result.

    Args:
        least: share of rows whose race is clear, so that the comparison means something.
    """
    got = host(dispatch.pick(logits.to(where.device), rows, path=where.path))
    wanted = dispatch.pick(logits, rows, path="torch")
    different = (got.token != wanted.token).nonzero()[:, 0].tolist()
    for i in different:
        assert rows[i].filters.temperature > 0
        clean = torch.nan_to_num(logits[i].float(), nan=-INF, posinf=-INF)
        _, margin = oracles.token(clean, rows[i])
        assert margin < 1e-4, (i, rows[i], int(got.token[i]), int(wanted.token[i]), margin)
    assert len(different) <= (1 - least) * len(rows)
    alike = got.token == wanted.token
    close(Stats(*(part[alike] for part in got.stats)), Stats(*(part[alike] for part in wanted.stats)))
    assert torch.equal(got.stats.argmax, wanted.stats.argmax)
    return got  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    list(zip([1, 2, 64, 500, 4095, 4097, 13_000], itertools.cycle(DTYPES), strict=False)),
)
def test_tokens_are_those_of_torch(where: Where, vocabulary: int, dtype: torch.dtype) -> None:
    count = 40 if where.device.type == "cuda" else 12
    logits = torch.cat([f[: count // 4] for f in lr.families(count // 4, vocabulary, 11).values()]).to(dtype)
    logits[1, ::7] = -INF
    if vocabulary > 2:
        logits[2, 1] = NAN
        logits[3, 0] = INF
    agree(where, logits, lr.mixed(count, vocabulary, vocabulary))


def test_tokens_of_a_large_vocabulary(where: Where) -> None:
    logits = torch.cat([f[:1] for f in lr.families(1, 151_936, 12).values()])[1:].bfloat16()
    agree(where, logits, [Pick(Filters(0.9), Key(1)), Pick(Filters(1.0, top_p=0.9), Key(2)), Pick()])


def test_odd_rows(where: Where) -> None:
    logits = torch.randn(8, 4100, generator=torch.Generator().manual_seed(3))
    logits[0] = -INF
    logits[1, 1:] = -INF
    logits[2] = NAN
    logits[3] = INF
    logits[4] = torch.finfo(torch.float32).min
    logits[5, :4096] = -INF
    logits[6] = 0.0
    logits[6, ::2] = -0.0
    kinds = [
        Filters(),
        Filters(1.0),
        Filters(0.5),
        Filters(1.0, top_k=3),
        Filters(1.0, top_p=0.5),
        Filters(1, min_p=0.1),
    ]
    for number, filters in enumerate(kinds):
        if where.device.type == "cpu" and number % 2:
            continue
        got = agree(where, logits, [Pick(filters, Key(i, number)) for i in range(8)])
        assert [int(got.token[i]) for i in range(3)] == [-1, 0, -1]
        flags = [FLAG_EMPTY, 0, FLAG_EMPTY | FLAG_UNCLEAN, FLAG_EMPTY | FLAG_UNCLEAN, 0, 0, 0, 0]
        assert got.stats.flags.tolist() == flags
        assert not any(part.isnan().any() for part in got.stats)


def test_edits(where: Where) -> None:
    """Long lists, ids given twice, ids in every tile, everything banned, logits that leave float32."""
    vocabulary = 9000
    logits = lr.families(6, vocabulary, 13)["wide"]
    seen = np.random.default_rng(1).integers(0, vocabulary, 700)
    everything = np.arange(vocabulary)
    best = logits.argmax(-1).tolist()
    rows = [
        Pick(Filters(1.0, repetition_penalty=1.3), Key(1), seen=[*seen, *seen]),
        Pick(Filters(0.0, repetition_penalty=50.0), seen=[best[1], best[1]]),
        Pick(Filters(1.0, bias={int(i): float(i % 7) for i in seen}), Key(2), banned=[best[2], best[2]]),
        Pick(Filters(0.7, top_p=0.8), Key(3), banned=everything[:8990]),
        Pick(Filters(1.0), Key(4), banned=everything),
        Pick(Filters(0.0, bias={0: 3e38, 1: 1e300, 2: -1e300, best[5]: -INF}), banned=[1]),
    ]
    got = agree(where, logits, rows, least=1.0)
    assert int(got.token[1]) != best[1]
    assert int(got.token[3]) >= 8990
    assert int(got.token[4]) == -1
    assert int(got.token[5]) == 0
    assert (got.stats.argmax == logits.argmax(-1)).all()


def test_filters_however_flat_or_peaked(where: Where) -> None:
    """Lists that are too long, guesses that miss the nucleus, k beyond what a list holds, ties at the cut."""
    g = torch.Generator().manual_seed(14)
    vocabulary = 6000
    flat = 0.01 * torch.randn(1, vocabulary, generator=g)
    ties = torch.randint(0, 3, (1, vocabulary), generator=g).float()
    peaked = torch.full((1, vocabulary), -40.0) + 0.1 * torch.randn(1, vocabulary, generator=g)
    peaked[0, 77] = 5.0
    cases = [
        (flat, Filters(1.0, top_p=0.9)),  # the nucleus is longer than a list
        (flat, Filters(1.0, top_k=5000, top_p=0.5)),
        (flat, Filters(1.0, min_p=0.9)),
        (ties, Filters(1.0, top_k=10)),
        (ties, Filters(1.0, top_p=0.3, min_p=0.2)),
        (peaked, Filters(1.0, top_p=0.999)),
        (peaked, Filters(5.0, top_p=0.9)),
        (peaked, Filters(1e-3, top_p=0.9)),
        (peaked, Filters(1e-30, top_k=4)),
    ]
    if where.device.type == "cpu":
        cases = [case for i, case in enumerate(cases) if i not in (1, 7)]
    logits = torch.cat([z for z, _ in cases])
    agree(where, logits, [Pick(f, Key(50 + i), i) for i, (_, f) in enumerate(cases)], least=1.0)


def test_a_nucleus_below_the_first_guess(where: Where) -> None:
    """Half of the mass on one token, the rest spread so thin that the list holds nothing of it."""
    vocabulary = 30_000
    logits = -10.3 + 0.01 * torch.randn(2, vocabulary, generator=torch.Generator().manual_seed(25))
    logits[:, 9] = 0.0
    rows = [Pick(Filters(1.0, top_p=0.9), Key(3), 8), Pick(Filters(1.0, top_p=0.4), Key(3), 2)]
    got = agree(where, logits, rows, least=1.0)
    assert got.token.tolist() == [int(got.token[0]), 9]
    assert int(got.token[0]) != 9  # this key draws from the thin part


def test_the_most_likely_tokens(where: Where) -> None:
    g = torch.Generator().manual_seed(24)
    logits = torch.randint(-3, 4, (5, 700), generator=g).float()  # many ties
    logits[1, torch.randperm(700, generator=g)[:695]] = -INF
    logits[2] = NAN
    logits[3] = torch.where(logits[3] == 0, -0.0, logits[3])
    logits[4, 3] = INF
    ids, values = map(host, dispatch.top_logprobs(logits.to(where.device), 150, path=where.path))
    wanted_ids, wanted = dispatch.top_logprobs(logits, 150)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(values, wanted, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("vocabulary", [pytest.param(500, marks=pytest.mark.full), 4097])
def test_rows_do_not_depend_on_the_batch(where: Where, vocabulary: int) -> None:
    count = 8
    logits = torch.cat([f[:2] for f in lr.families(2, vocabulary, 16).values()]).bfloat16().to(where.device)
    logits[1, ::7] = -INF
    logits[2, 1] = NAN
    rows = lr.mixed(count, vocabulary, 5)

    def pick(z: torch.Tensor, chosen: Sequence[Pick]) -> Any:
        return host(dispatch.pick(z, chosen, path=where.path))

    whole = pick(logits, rows)
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    assert same(whole, pick(logits[order], [rows[i] for i in order]), order)
    for i in (2, 5):
        assert same(whole, pick(logits[i : i + 1], [rows[i]]), [i])
    padded = torch.full((count, vocabulary + 13), 99.0, dtype=logits.dtype, device=where.device)
    padded[:, :vocabulary] = logits
    spread = torch.full((count, 2 * vocabulary), 99.0, dtype=logits.dtype, device=where.device)
    spread[:, ::2] = logits
    assert same(whole, pick(spread[:, ::2][3:6], rows[3:6]), slice(3, 6))
    for view in (padded[:, :vocabulary], logits.float()):
        found = pick(view[3:6], rows[3:6])
        # Compiled, the width of loads decides which numbers a thread adds first.
        if where.path == "interpret":
            assert same(whole, found, slice(3, 6))
        else:
            assert torch.equal(whole.token[3:6], found.token)
            close(Stats(*(part[3:6] for part in whole.stats)), found.stats)
    alone = host(dispatch.stats(logits, whole.token.to(where.device), path=where.path))
    assert same(whole.stats, alone)


@pytest.mark.parametrize("models", [1, 2])
def test_the_launch_grid_changes_nothing(where: Where, models: int) -> None:
    from trimtab.kernels.triton import logits as launch
    from trimtab.kernels.triton import pack

    vocabulary = 20_001
    logits = [m.to(where.device) for m in MIX.models(models, 4, vocabulary, 17)]
    blends = [Blend((1.0, 0.5)[:models])] * 4
    rows = [Pick(f, Key(i)) for i, f in enumerate([Filters(), Filters(0.7), Filters(1.0, top_p=0.9), Filters(1.0)])]
    plan = pack.pack(rows, vocabulary, where.device, blends if models > 1 else None)
    found = [launch.run(logits, plan, span=span)[0] for span in (1, 2, 4, 8)]
    assert all(same(found[0], other) for other in found[1:])
    assert [launch.span_of(n) for n in (1, 4096, 8192, 40_000, 10**7)] == [1, 1, 2, 8, 8]


# ------------------------------------------------------------------------------------------------------------ mixing


def mixed_agree(where: Where, logits: Sequence[torch.Tensor], blends: Sequence[Blend], rows: Sequence[Pick]) -> Picked:
    got = host(dispatch.mix([m.to(where.device) for m in logits], blends, rows, path=where.path))
    wanted = dispatch.mix(logits, blends, rows, path="torch")
    blended = dispatch.blend(logits, blends)
    for i in (got.token != wanted.token).nonzero()[:, 0].tolist():
        _, margin = oracles.token(blended[i], rows[i])
        assert margin < 1e-4, i
    alike = got.token == wanted.token
    assert alike.float().mean() > 0.97
    close(Stats(*(part[alike] for part in got.stats)), Stats(*(part[alike] for part in wanted.stats)))
    return got  # type: ignore[no-any-return]


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2, torch.float32), (500, torch.float16), (4097, torch.bfloat16)])
def test_mixtures_are_those_of_torch(where: Where, vocabulary: int, dtype: torch.dtype) -> None:
    count = 48 if where.device.type == "cuda" else 10
    logits = [model.to(dtype) for model in MIX.models(3, count, vocabulary, 18)]
    blends, rows = MIX.kinds(count, vocabulary, 3 + vocabulary)
    mixed_agree(where, logits, blends, rows)
    ours = host(dispatch.blend([m.to(where.device) for m in logits], blends, path=where.path))
    torch.testing.assert_close(ours, dispatch.blend(logits, blends), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    "kind", ["contrast", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("expert", "plausible"))]
)
def test_mixtures_of_what_is_not_finite(where: Where, kind: str) -> None:
    base, expert, anti = MIX.models(3, 12, 300, 6)
    base[0, 3:9] = -INF
    base[1] = -INF
    base[2, 5] = NAN
    expert[3, 7] = -INF
    expert[4, 7] = INF
    anti[5, 7] = -INF
    expert[6, 7] = anti[6, 7] = -INF
    expert[7] = NAN
    expert[8] = -INF
    base[9, 7], anti[9, 7] = -INF, -INF
    expert[10] = NAN
    base[11, 9] = INF
    models = [base, expert, anti]
    blend = Blend((1.0, 1.0, -1.0))
    blends = {
        "contrast": [blend] * 10 + [Blend((1.0, 0.0, -1.0)), blend],
        "expert": [Blend((0.0, 1.0, 0.0))] * 12,
        "plausible": [Blend((1.5, -0.5, 0.2), plausibility=0.05)] * 12,
    }[kind]
    got = mixed_agree(where, models, blends, [Pick(Filters(1.0), Key(i)) for i in range(12)])
    wanted = dispatch.blend(models, blends)
    ours = dispatch.blend([m.to(where.device) for m in models], blends, path=where.path).cpu()
    assert torch.equal(ours == -INF, wanted == -INF)
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-6)
    assert not any(part.isnan().any() for part in got.stats)


def test_mixtures_do_not_depend_on_the_batch(where: Where) -> None:
    count, vocabulary = 6, 4500
    logits = [m.to(where.device) for m in MIX.models(2, count, vocabulary, 19)]
    logits[1][2, 1] = NAN
    blends = [
        Blend((1.0, 0.5)),
        Blend((1.0, -0.5), plausibility=0.1),
        Blend((0.0, 1.0)),
        Blend((0.0, 1.0), plausibility=0.5),
        Blend((1.0, 0.0)),
        Blend((2.0, 1.0)),
    ]
    rows = [Pick(Filters(1.0, top_p=0.9 if i % 2 else 1.0), Key(i)) for i in range(count)]

    def mix(chosen: Sequence[int]) -> Any:
        models = [m[list(chosen)] for m in logits]
        return host(dispatch.mix(models, [blends[i] for i in chosen], [rows[i] for i in chosen], path=where.path))

    whole = mix(range(count))
    for chosen in ([5, 3, 1, 0, 2, 4], [2]):
        assert same(whole, mix(chosen), chosen)


def test_models_of_different_dtypes(where: Where) -> None:
    base, other = MIX.models(2, 2, 700, 20)
    rows = [Pick(Filters(1.0), Key(i)) for i in range(2)]
    mixed_agree(where, [base, other.bfloat16()], [Blend((1.0, 0.5))] * 2, rows)
    five = [base, other, base.roll(1), other.roll(1), base.roll(2)]
    mixed_agree(where, five, [Blend((1.0, 0.5, -0.2, 0.1, 0.3))] * 2, rows)


def test_no_rows(where: Where) -> None:
    x = torch.empty(0, 50, device=where.device)
    assert dispatch.pick(x, [], path=where.path).token.shape == (0,)
    assert dispatch.stats(x, path=where.path).lse.shape == (0,)
    assert dispatch.top_logprobs(x, 3, path=where.path)[0].shape == (0, 3)
    assert dispatch.mix([x, x], [], [], path=where.path).token.shape == (0,)
    assert dispatch.blend([x, x], [], path=where.path).shape == (0, 50)


# ------------------------------------------------------------------------------------------------------ distribution


def counts(where: Where, logits: torch.Tensor, filters: Filters, draws: int) -> NDArray[np.int64]:
    rows = [Pick(filters, Key(4321), position) for position in range(draws)]
    tokens = dispatch.pick(logits.to(where.device).expand(draws, -1), rows, path=where.path).token.cpu()
    return np.bincount(tokens.numpy(), minlength=logits.shape[-1])


@pytest.mark.full
@pytest.mark.parametrize("filters", [Filters(1.0), Filters(0.7, top_p=0.8), Filters(1.0, top_k=9)])
def test_tokens_follow_their_law(where: Where, filters: Filters) -> None:
    """On CUDA a million draws, which tell two percent of temperature; interpreted a few hundred: gross errors."""
    cuda = where.device.type == "cuda"
    draws, error = (1_000_000, 1.02) if cuda else (400, 2.5)
    logits = lr.families(1, 60, 5)["normal"] * 1.5
    found = counts(where, logits, filters, draws)
    assert lr.chi_square(found, lr.expected(logits, filters)) > 1e-4
    hotter = lr.expected(logits / error, filters) + 1e-12
    assert lr.chi_square(found, hotter) < 1e-4
    if filters.top_k or filters.top_p < 1:
        assert lr.chi_square(found, lr.expected(logits, Filters(filters.temperature))) < 1e-4
