"""The fused last product draws the tokens of the unfused one, and its statistics err no more than eager's.

Some tests multiply small integers: sums of their products are exact in any order, so both ways see the same logits and
must agree wholly, ties included. Kernels run through Triton's interpreter, and on a GPU (``-m gpu``) as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.kernels import dispatch
from trimtab.kernels.dispatch import PathUnavailable, Picked
from trimtab.kernels.paths import Path as KernelPath
from trimtab.kernels.paths import available
from trimtab.kernels.reference.lm_head import project
from trimtab.kernels.reference.tiles import FLAG_EMPTY, FLAG_UNCLEAN
from trimtab.kernels.types import Filters, Key, RowPick

INF = float("inf")
# What an error may exceed eager's own by: the largest of a few rows' errors is partly chance.
SLACK = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-3}
DTYPES = list(SLACK)


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
        pytest.skip(f"{found!r} needs Triton, a {_device(found).type} device, and TRITON_INTERPRET to suit")
    return found


def _device(path: str) -> torch.device:
    return torch.device("cuda" if path == "triton" else "cpu")


def normal(rows: int, size: int, vocabulary: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, size, generator=g)
    return hidden.to(dtype), (torch.randn(vocabulary, size, generator=g) * 2 * size**-0.5).to(dtype)


def integral(rows: int, size: int, vocabulary: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are multiples of 1/16 in [-8, 8]: exact in every dtype, and full of ties."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randint(-2, 3, (rows, size), generator=g) * (torch.rand(rows, size, generator=g) < 32 / size)
    return hidden.to(dtype), (torch.randint(-2, 3, (vocabulary, size), generator=g) / 16).to(dtype)


def draws(rows: int, temperature: float = 1.0) -> list[RowPick]:
    return [RowPick(Filters(temperature=temperature), Key(i // 3), 11 * i) for i in range(rows)]


def run(
    path: KernelPath,
    hidden: Tensor,
    head: Tensor,
    rows: Sequence[RowPick],
    bias: Tensor | None = None,
    **options: float,
) -> Picked:
    device = _device(path)
    bias = None if bias is None else bias.to(device)
    picked = dispatch.lm_head(hidden.to(device), head.to(device), rows, bias, **options, path=path)
    return Picked(picked.token.cpu(), type(picked.stats)(*(part.cpu() for part in picked.stats)))


def assert_same(found: Picked, expected: Picked) -> None:
    """Tokens and flags equal, statistics up to the rounding of sums."""
    assert torch.equal(found.token, expected.token)
    assert torch.equal(found.stats.argmax, expected.stats.argmax)
    assert torch.equal(found.stats.flags, expected.stats.flags)
    for name in ("lse", "entropy", "top_prob", "logprob"):
        a, b = getattr(found.stats, name), getattr(expected.stats, name)
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "vocabulary", "size", "temperature"),
    [(1, 1, 16, 1.0), (1, 2, 48, 1.0), (2, 127, 16, 0.7), (3, 129, 40, 0.0), (17, 700, 32, 1.3)],
)
def test_tokens_are_those_of_pick(
    dtype: torch.dtype, rows: int, vocabulary: int, size: int, temperature: float, path: KernelPath
) -> None:
    hidden, head = integral(rows, size, vocabulary, dtype)
    picks = draws(rows, temperature)
    with dispatch.record() as calls:
        found = run(path, hidden, head, picks)
    assert calls == [("lm_head", path)]
    assert_same(found, dispatch.pick(project(hidden, head), picks))


def test_two_tiles_and_all_rows(path: KernelPath) -> None:
    for rows, vocabulary in ((2, 4097), (64, 130)):
        hidden, head = integral(rows, 16, vocabulary, torch.bfloat16)
        assert_same(run(path, hidden, head, draws(rows)), dispatch.pick(project(hidden, head), draws(rows)))


@pytest.mark.full
@pytest.mark.parametrize(("vocabulary", "dtype"), [(50257, torch.bfloat16), (262144, torch.float32)])
def test_large_vocabularies(vocabulary: int, dtype: torch.dtype, path: KernelPath) -> None:
    hidden, head = integral(3, 16, vocabulary, dtype)
    picks = [*draws(2), RowPick(Filters(), Key(0), 0)]
    assert_same(run(path, hidden, head, picks), dispatch.pick(project(hidden, head), picks))


def test_tokens_of_real_numbers(path: KernelPath) -> None:
    """In float32 rounding moves no token here; in bfloat16 a logit may round to its neighbour, and a token follow."""
    for dtype, allowed in ((torch.float32, 0), (torch.bfloat16, 1)):
        hidden, head = normal(32, 48, 700, dtype)
        picks = draws(32, 0.9)
        expected = dispatch.pick(project(hidden, head), picks).token
        assert int((run(path, hidden, head, picks).token != expected).sum()) <= allowed
        # Negative controls: what should move tokens does.
        assert int((dispatch.pick(project(hidden, head), draws(32, 0.8)).token != expected).sum()) > 1
        other = [RowPick(p.filters, p.key, p.position + 1) for p in picks]
        assert int((dispatch.pick(project(hidden, head), other).token != expected).sum()) > 24


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_err_no_more_than_eagers(dtype: torch.dtype, path: KernelPath) -> None:
    hidden, head = normal(8, 64, 500, dtype)
    bias = torch.randn(500, generator=torch.Generator().manual_seed(1)).to(dtype)
    for options in ({}, {"softcap": 3.0}, {"scale": 0.25}):
        exact = hidden.double() @ head.double().T * options.get("scale", 1.0) + bias.double()
        if "softcap" in options:
            exact = 3.0 * torch.tanh(exact / 3.0)
        logp = exact.log_softmax(-1)
        truth = {"lse": exact.logsumexp(-1), "entropy": -(logp.exp() * logp).sum(-1), "top_prob": logp.exp().amax(-1)}
        picks = draws(8)
        eager = dispatch.pick(project(hidden, head, bias, **options), picks).stats
        found = run(path, hidden, head, picks, bias, **options).stats
        for name, value in truth.items():
            error, own = (float((getattr(s, name).double() - value).abs().max()) for s in (found, eager))
            assert error <= own + SLACK[dtype], (name, options)


def test_greedy_and_sampled_rows_mix(path: KernelPath) -> None:
    hidden, head = integral(6, 32, 700, torch.float32)
    picks = [RowPick(Filters(temperature=t, top_k=k), Key(5), i) for i, (t, k) in enumerate(
        [(0.0, 0), (1.0, 0), (0.0, 3), (0.5, 700), (1e-6, 0), (1e6, 0)])]  # fmt: skip
    assert_same(run(path, hidden, head, picks), dispatch.pick(project(hidden, head), picks))


def test_a_row_does_not_depend_on_the_others(path: KernelPath) -> None:
    """Bit for bit: among 17 rows, in another order, alone."""
    hidden, head = integral(17, 32, 900, torch.bfloat16)
    picks = draws(17, 0.8)
    together = run(path, hidden, head, picks)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    shuffled = run(path, hidden[order], head, [picks[i] for i in order.tolist()])
    for a, b in zip((together.token, *together.stats), (shuffled.token, *shuffled.stats), strict=True):
        assert torch.equal(a[order], b)
    for row in (0, 16):
        alone = run(path, hidden[row : row + 1], head, picks[row : row + 1])
        for a, b in zip((together.token, *together.stats), (alone.token, *alone.stats), strict=True):
            assert torch.equal(a[row : row + 1], b)


def test_bans_and_broken_numbers(path: KernelPath) -> None:
    """A bias of -inf bans; NaN and +inf are read as -inf and flagged; a row with nothing left has no token."""
    hidden, head = integral(3, 32, 300, torch.float32)
    bias = torch.zeros(300)
    bias[:299] = -INF
    only = run(path, hidden, head, draws(3), bias)
    assert only.token.tolist() == [299] * 3
    assert_same(only, dispatch.pick(project(hidden, head, bias), draws(3)))
    nothing = run(path, hidden, head, draws(3), torch.full((300,), -INF))
    assert nothing.token.tolist() == [-1] * 3
    assert nothing.stats.flags.tolist() == [FLAG_EMPTY] * 3
    assert_same(nothing, dispatch.pick(torch.full((3, 300), -INF), draws(3)))
    bias = torch.zeros(300)
    bias[7], bias[200] = float("nan"), INF
    broken = run(path, hidden, head, draws(3), bias)
    assert broken.stats.flags.tolist() == [FLAG_UNCLEAN] * 3
    assert_same(broken, dispatch.pick(project(hidden, head, bias), draws(3)))
    hidden = hidden.clone()
    hidden[1] = float("nan")
    one = run(path, hidden, head, draws(3))
    assert one.token[1] == -1
    assert one.stats.flags.tolist() == [0, FLAG_EMPTY | FLAG_UNCLEAN, 0]
    assert_same(one, dispatch.pick(project(hidden, head), draws(3)))


def test_strides_do_not_matter(path: KernelPath) -> None:
    hidden, head = integral(5, 32, 300, torch.float32)
    expected = run(path, hidden, head, draws(5))
    wide = torch.zeros(5, 70)
    wide[:, :32] = hidden
    for h, w in ((wide[:, :32], head), (hidden.T.contiguous().T, head), (hidden, head.T.contiguous().T)):
        found = run(path, h, w, draws(5))
        assert torch.equal(found.token, expected.token)
        assert torch.equal(found.stats.lse, expected.stats.lse)


def test_no_rows(path: KernelPath) -> None:
    hidden, head = integral(0, 32, 300, torch.float32)
    found = run(path, hidden, head, [])
    assert all(part.shape == (0,) for part in (found.token, *found.stats))


@pytest.mark.parametrize(
    "rows",
    [
        [RowPick(Filters(temperature=1.0, top_p=0.9), Key(0), 0)],
        [RowPick(Filters(temperature=1.0, top_k=5), Key(0), 0)],
        [RowPick(Filters(temperature=0.0, repetition_penalty=1.1), Key(0), 0, seen=[1])],
        [RowPick(Filters(), Key(0), 0, banned=[1])],
        [RowPick()] * 65,
    ],
    ids=["top_p", "top_k", "penalty", "ban", "65 rows"],
)
def test_rows_that_cannot_be_fused_take_the_plain_way(rows: list[RowPick], path: KernelPath) -> None:
    hidden, head = integral(len(rows), 32, 300, torch.float32)
    with pytest.raises(PathUnavailable, match="lm_head"):
        run(path, hidden, head, rows)
    with dispatch.record() as calls:
        found = dispatch.lm_head(hidden.to(_device(path)), head.to(_device(path)), rows)
    assert [call.op for call in calls] == ["lm_head", "pick"]
    assert torch.equal(found.token.cpu(), dispatch.pick(project(hidden, head), rows).token)


def test_wrong_arguments_are_refused_by_name() -> None:
    hidden, head = integral(2, 32, 300, torch.float32)
    rows = draws(2)
    for arguments, kind, named in (
        ((hidden.double(), head, rows), TypeError, "hidden.dtype"),
        ((hidden[0], head, rows), ValueError, "hidden.shape"),
        ((hidden, head[:, :31], rows), ValueError, "head.shape"),
        ((hidden, head[:0], rows), ValueError, "head.shape"),
        ((hidden, head.half(), rows), TypeError, "head.dtype"),
        ((hidden, head.to("meta"), rows), ValueError, "head is on meta"),
        ((hidden, head, rows[:1]), ValueError, "rows: 1"),
        ((hidden, head, [RowPick(position=-1)] * 2), ValueError, "position = -1"),
        ((hidden, head, rows, torch.zeros(299)), ValueError, "bias.shape"),
        ((hidden, head, rows, None, 0.0), ValueError, "scale = 0.0"),
        ((hidden, head, rows, None, 1.0, -1.0), ValueError, "softcap = -1.0"),
    ):
        with pytest.raises(kind, match=named):
            dispatch.lm_head(*arguments)


def test_the_operator_keeps_what_it_promises(path: KernelPath) -> None:
    from trimtab.kernels.triton import lm_head

    hidden, head = (x.to(_device(path)) for x in integral(3, 32, 300, torch.float32))
    keys, sharpness = lm_head.pack(draws(3), hidden.device)
    torch.library.opcheck(lm_head._op, (hidden, head, None, keys, sharpness, 1.0, 0.0))

    def step(hidden: Tensor) -> Tensor:
        ids, _, _ = lm_head._op(hidden, head, None, keys, sharpness, 1.0, 0.0)
        return ids + 0

    call = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(call(hidden)[0].cpu(), run(path, hidden, head, draws(3)).token)


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
    """Without spills, with asynchronous 16-byte loads of the head, and on the tensor cores."""
    found = compiled("lm_head")
    assert all(kernel["spilled"] == 0 for kernel in found.values())
    counts = found["project"]["instructions"]
    assert counts["LDGSTS.E.BYPASS.128"] > 0
    assert any(op.startswith("HGMMA") for op in counts)
    assert not any(op.startswith("LDG") and op.endswith((".U16", ".U8")) for op in counts)


@pytest.mark.full
def test_all_row_counts_compile_for_hopper() -> None:
    for name, kernel in compiled("lm_head-all").items():
        assert kernel["spilled"] == 0, name
        assert kernel["shared"] <= 227 * 1024, name
