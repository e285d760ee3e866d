"""Triton kernels as operators of torch, behind the dispatcher, and compiled for sm_90."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import test_mix as MIX
import torch
import triton_where as tw
from triton_where import Where

from trimtab.kernels import dispatch, paths
from trimtab.kernels.types import Blend, Filters, Key, Pick

CUDA, no_cuda, where = tw.CUDA, tw.no_cuda, tw.where

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow that is meant


def plans(where: Where, vocabulary: int) -> tuple[Any, Any]:
    import trimtab.kernels.triton.logits  # noqa: F401  (importing it registers the operators)
    from trimtab.kernels.triton import pack

    rows = [Pick(Filters(1.0, top_p=0.9), Key(1)), Pick(Filters(0.5, top_k=3), Key(2), banned=[1])]
    blends = [Blend((1.0, 0.5)), Blend((1.0, -0.5), plausibility=0.1)]
    return pack.pack(rows, vocabulary, where.device), pack.pack(rows, vocabulary, where.device, blends)


def test_operators_are_sound(where: Where) -> None:
    """Schemas, fake implementations and gradients, as torch checks them."""
    x, y = (m.to(where.device) for m in MIX.models(2, 2, 130, 21))
    one, both = plans(where, 130)
    ops = torch.ops.trimtab
    torch.library.opcheck(ops.stats.default, (x, torch.tensor([1, -1], device=where.device)))
    torch.library.opcheck(ops.mix.default, ([x], *one.flat))
    torch.library.opcheck(ops.mix.default, ([x, y], *both.flat))
    torch.library.opcheck(ops.blend.default, ([x, y], *both.flat))


def test_operators_compile_into_one_graph(where: Where) -> None:
    x, y = (m.to(where.device) for m in MIX.models(2, 2, 130, 22))
    one, both = plans(where, 130)
    ops = torch.ops.trimtab

    def step(hidden: torch.Tensor, other: torch.Tensor) -> Any:
        numbers, ids, flags = ops.mix([hidden * 2], *one.flat)
        mixed = ops.mix([hidden, other * 1], *both.flat)
        return numbers + 1, ids, flags, *mixed, ops.stats(other, ids[0])

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert MIX.same(compiled(x, y), step(x, y))


@pytest.mark.gpu
@no_cuda
def test_operators_go_into_a_cuda_graph() -> None:

    x, y = (m.cuda() for m in MIX.models(2, 2, 50_257, 23))
    _, both = plans(CUDA, 50_257)
    wanted = torch.ops.trimtab.mix([x, y], *both.flat)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torch.ops.trimtab.mix([x, y], *both.flat)
    for _ in range(3):
        graph.replay()
        assert MIX.same(found, wanted)
    old = x.clone()
    x.copy_(x.flip(1))
    both.lists.ints[:, 1] += 1  # positions move on in the tensors that the graph reads
    graph.replay()
    assert MIX.same(found, torch.ops.trimtab.mix([x, y], *both.flat))
    assert not torch.equal(x, old)


def test_calls_are_recorded(where: Where) -> None:
    x = torch.zeros(1, 10, device=where.device)
    with paths.record() as calls:
        dispatch.stats(x, path=where.path)
        dispatch.pick(x, [Pick()], path=where.path)
        dispatch.mix([x], [Blend((1.0,))], [Pick()], path=where.path)
        dispatch.stats(x)
    first = paths.available(where.device)[0]
    assert [tuple(call) for call in calls] == [
        ("stats", where.path),
        ("pick", where.path),
        ("mix", where.path),
        ("stats", first),
    ]


X = torch.zeros(2, 10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, x: dispatch.stats(x.double(), path=p), TypeError, r"logits.dtype = torch.float64: accepted"),
        (lambda p, x: dispatch.stats(x[0], path=p), ValueError, r"logits.shape = \(10,\)"),
        (lambda p, x: dispatch.stats(x, torch.zeros(2), path=p), TypeError, r"tokens.dtype = torch.float32"),
        (lambda p, x: dispatch.stats(x, torch.zeros(3).long(), path=p), ValueError, r"tokens.shape = \(3,\)"),
        (lambda p, x: dispatch.stats(x, torch.zeros(2).long().to("meta"), path=p), ValueError, r"tokens.device = meta"),
        (lambda p, x: dispatch.pick(x, [Pick()], path=p), ValueError, r"rows: 1 of them: accepted: 2"),
        (lambda p, x: dispatch.pick(x, [Pick(position=-1)] * 2, path=p), ValueError, r"position = -1"),
        (lambda p, x: dispatch.pick(x, [Pick(banned=[10])] * 2, path=p), ValueError, r"banned = 10: accepted"),
        (
            lambda p, x: dispatch.pick(x, [Pick(Filters(repetition_penalty=2.0), seen=[-1])] * 2, path=p),
            ValueError,
            r"seen = -1: accepted",
        ),
        (
            lambda p, x: dispatch.pick(x, [Pick(Filters(bias={12: 1.0}))] * 2, path=p),
            ValueError,
            r"bias = 12: accepted",
        ),
        (lambda p, x: dispatch.mix([x, x], [Blend((1.0,))] * 2, [Pick()] * 2, path=p), ValueError, r"weights = \(1"),
    ],
)
def test_bad_input_is_named(
    where: Where, call: Callable[[Any, torch.Tensor], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(where.path, X.to(where.device))


def fresh(code: str, **environment: str) -> str:
    """Run code in a process without the interpreter and return what it prints."""
    import os

    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_package_works_without_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from trimtab.kernels import dispatch, paths
from trimtab.kernels.types import Pick
print(int(dispatch.pick(torch.eye(3), [Pick()] * 3).token[2]))
try:
    dispatch.stats(torch.eye(3), path="interpret")
except paths.PathUnavailable as error:
    print(error)
"""
    token, error = fresh(code).splitlines()
    assert token == "2"
    assert error == "path = 'interpret': accepted for stats on cpu: 'auto', 'torch'"


BUILD = """
from trimtab.kernels.triton import build
from trimtab.kernels.results import Picked, Stats
for vocabulary, models, dtype in {cases}:
    for name, variant in build.variants(vocabulary, models, dtype):
        if {only} is None or name in {only}:
            built = build.build(variant)
            text = build.sass(built.code.asm["cubin"])
            print(name, built.spills, text.count("LDG.E.128"), sep=",")
"""


def built(cases: list[tuple[int, int, str]], only: tuple[str, ...] | None = None) -> dict[str, tuple[int, int]]:
    """Name -> (bytes spilled, vector loads) of kernels compiled for sm_90."""
    lines = fresh(BUILD.format(cases=cases, only=only), TRITON_DEFAULT_FP_FUSION="1").splitlines()
    rows = [line.split(",") for line in lines]
    return {name: (int(spills), int(loads)) for name, spills, loads in rows}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is missing")
@pytest.mark.parametrize(
    ("cases", "only"),
    [
        ([(128_256, 1, "bf16")], ("scan", "settle_stats", "gather")),
        ([(50_257, 2, "bf16")], ("scan",)),
        *(
            pytest.param(case, None, marks=pytest.mark.full)
            for case in itertools.chain(
                ([(v, m, d)] for v, m, d in [(128_256, 1, "bf16"), (262_144, 3, "bf16"), (50_257, 2, "fp32")]),
                [[(60, 1, "fp16"), (60, 2, "fp16")]],
            )
        ),
    ],
)
def test_kernels_compile_for_sm_90(cases: list[tuple[int, int, str]], only: tuple[str, ...] | None) -> None:
    for name, (spills, loads) in built(cases, only).items():
        assert spills == 0, name
        if cases[0][0] % 16 == 0 and "scan" in name:
            assert loads, name
