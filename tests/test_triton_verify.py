"""The kernels of verification against their twin: through the interpreter, and on a GPU (``-m gpu``) as they are."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kernel_oracles as oracles
import numpy as np
import pytest
import torch
import windows as ws

from trimtab.kernels import dispatch
from trimtab.kernels.cpu.distribution import RowBuffer, distribution_of
from trimtab.kernels.cpu.tiles import TILE
from trimtab.kernels.paths import Path as KernelPath
from trimtab.kernels.paths import available
from trimtab.kernels.results import Verified
from trimtab.kernels.types import Draft, Filters, Key, Pick, Window

pytest.importorskip("triton")

from trimtab.kernels import paths
from trimtab.kernels.results import Stats
from trimtab.kernels.triton import verify as kernels
from trimtab.kernels.triton.logits import run
from trimtab.kernels.triton.pack import pack

pytestmark = pytest.mark.usefixtures("one_thread")


INF = float("inf")


def _device(path: str) -> torch.device:
    return torch.device("cuda" if path == "triton" else "cpu")


@pytest.fixture(params=["interpret", pytest.param("triton", marks=pytest.mark.gpu)])
def path(request: pytest.FixtureRequest) -> KernelPath:
    """The path that runs the kernels on this machine."""
    found: KernelPath = request.param
    if found not in available(_device(found)):
        pytest.skip(f"the path {found!r} needs a {_device(found).type} device, with TRITON_INTERPRET to suit")
    return found


def moved(windows: Sequence[Window], device: torch.device) -> list[Window]:
    """Windows with their drafts on the device."""
    result = []
    for window in windows:
        draft = window.draft
        if draft is not None and draft.logits is not None:
            draft = draft._replace(logits=draft.logits.to(device))
        result.append(window._replace(draft=draft))
    return result


def by_kernels(logits: torch.Tensor, windows: Sequence[Window], path: KernelPath) -> Verified:
    device = _device(path)
    got = dispatch.verify(logits.to(device), moved(windows, device), path=path)
    return Verified(got.accepted.cpu(), got.token.cpu(), Stats(*(part.cpu() for part in got.stats)))


def agree(logits: torch.Tensor, windows: Sequence[Window], path: KernelPath) -> int:
    """Compare with the twin; returns how many windows lost a token to chance. Only hair's breadths may differ."""
    got, wanted = by_kernels(logits, windows, path), dispatch.verify(logits, windows, path="torch")
    refused = 0
    alike = torch.ones(len(logits), dtype=torch.bool)
    start = 0
    for i, (mine, window) in enumerate(zip(ws.split(logits, windows), windows, strict=True)):
        if (int(got.accepted[i]), int(got.token[i])) != (int(wanted.accepted[i]), int(wanted.token[i])):
            assert window.draft is not None
            assert window.draft.logits is not None
            assert oracles.window(mine, window)[2] < 1e-4, i
            alike[start : start + len(mine)] = False
        refused += window.draft is not None and int(wanted.accepted[i]) < len(window.tokens)
        start += len(mine)
    for a, b in zip(got.stats, wanted.stats, strict=True):
        torch.testing.assert_close(a[alike], b[alike], rtol=2e-6, atol=2e-6)
    return refused


def sizes(ordinary: Sequence[int], full: Sequence[int]) -> Any:
    return pytest.mark.parametrize("vocabulary", [*ordinary, *(pytest.param(v, marks=pytest.mark.full) for v in full)])


@sizes([1, 300, 4500], [2, 64, 4097, 9000])
def test_decisions_are_those_of_the_twin(path: KernelPath, vocabulary: int) -> None:
    refused = 0
    for seed in (0, 1) if vocabulary < TILE else (1,):
        logits, windows = ws.batch(40 * vocabulary + seed, vocabulary, 6)
        if seed:
            logits = logits.bfloat16()
            logits[1] = -INF
            logits[2, 0] = float("nan")
            logits[3, -1] = INF
        refused += agree(logits, windows, path)
    assert refused > 0


def test_other_keys_decide_otherwise(path: KernelPath) -> None:
    """The control of the test above: bits one position on are not these."""
    logits, windows = ws.batch(5, 100, 8)
    later = [
        window._replace(rows=[row._replace(position=row.position + 1) for row in window.rows]) for window in windows
    ]
    wanted = dispatch.verify(logits, windows, path="torch")
    got = by_kernels(logits, later, path)
    assert not torch.equal(got.token, wanted.token)
    assert not torch.equal(got.accepted, wanted.accepted)


def test_windows_do_not_depend_on_the_batch(path: KernelPath) -> None:
    logits, windows = ws.batch(11, 300, 6)
    whole = by_kernels(logits, windows, path)
    parts = ws.split(logits, windows)
    order = [4, 0, 5, 2, 1, 3]
    mixed = by_kernels(torch.cat([parts[i] for i in order]), [windows[i] for i in order], path)
    assert torch.equal(mixed.accepted, whole.accepted[order])
    assert torch.equal(mixed.token, whole.token[order])
    sizes = [len(window.rows) for window in windows]
    for a, b in zip(mixed.stats, whole.stats, strict=True):
        pieces = b.split(sizes)
        assert torch.equal(a, torch.cat([pieces[i] for i in order]))
    for i in (3,):
        alone = by_kernels(parts[i], [windows[i]], path)
        assert (int(alone.accepted[0]), int(alone.token[0])) == (int(whole.accepted[i]), int(whole.token[i]))
    padded = torch.full((len(logits), 311), 99.0)
    padded[:, :300] = logits
    for view in (padded[:, :300], logits.t().contiguous().t()):
        again = by_kernels(view[: len(parts[0])], windows[:1], path)
        assert torch.equal(again.token, whole.token[:1])
        assert all(torch.equal(a, b[: len(parts[0])]) for a, b in zip(again.stats, whole.stats, strict=True))


def test_edges(path: KernelPath) -> None:
    for vocabulary in (1, 50):
        got = by_kernels(torch.empty(0, vocabulary), [], path)
        assert got.accepted.shape == got.token.shape == got.stats.lse.shape == (0,)
    logits = ws.normal(8, 50, seed=14)
    sampled, filtered = Filters(1.0), Filters(1.0, top_p=0.9)
    rows = [Pick(f, Key(4), 9) for f in (Filters(), sampled, filtered)]
    agree(
        logits[:3],
        [Window([], [row], draft) for row, draft in zip(rows, (None, Draft(None, []), None), strict=True)],
        path,
    )
    # A draft equal to the target, one without a common token, an empty one, and a token that it cannot have drawn.
    low, high = logits[:2].clone(), logits[2:3].clone()
    low[:, 25:], high[:, :25] = -INF, -INF
    best = int(logits[0].argmax())
    banned = logits[:1].clone()
    banned[0, best] = -INF
    peaked = torch.full((2, 50), -INF)
    peaked[:, best] = 0.0
    for filters in (sampled, Filters(0.8, top_k=30, top_p=0.95)):
        mine = [Pick(filters, Key(2).drafting, j) for j in range(3)]
        tokens = dispatch.pick(logits[:3], mine).token.tolist()
        windows = [
            ws.speculative(logits[:4], logits[:3], tokens, filters, 2),
            ws.speculative(low, high, [30], filters, 3),
            ws.speculative(logits[:2], torch.full((1, 50), -INF), [best], filters, 4),
            ws.speculative(logits[:2], banned, [best], filters, 5),
            ws.speculative(peaked, peaked[:1], [(best + 1) % 50], filters, 6),
            Window([best], [Pick(filters, Key(7), j, banned=range(50)) for j in range(2)], Draft(None, [])),
        ]
        batch = torch.cat([logits[:4], low, logits[:2], logits[:2], peaked, logits[:2]])
        got = by_kernels(batch, windows, path)
        assert got.accepted.tolist() == [3, 0, 0, 0, 0, 0]
        assert got.token.tolist()[4:] == [best, -1]
        agree(batch, windows, path)


def test_drafts_of_several_vocabularies_and_types(path: KernelPath) -> None:
    target = ws.normal(9, 40, seed=1, scale=2.0)
    rows = [Pick(Filters(1.0), Key(3), j) for j in range(3)]
    drafts = [
        Draft(ws.normal(2, 40, seed=2), rows[:2]),
        Draft(ws.normal(2, 10, seed=3).half(), rows[:2], torch.arange(0, 40, 4)),
        Draft(ws.normal(2, 10, seed=4).half(), rows[:2], torch.arange(3, 40, 4)[:10].flip(0)),
    ]
    windows = [Window([0, 4], rows, draft) for draft in drafts] + [Window([3], rows[:2], None)]
    agree(torch.cat([target, target[:2]]), windows, path)


def test_drafts_side_by_side_are_not_copied() -> None:
    whole = torch.zeros(7, 20)[:, :16]
    together = kernels._stacked([whole[:3], whole[3:4], whole[4:]])
    assert together.data_ptr() == whole.data_ptr()
    assert together.shape == (7, 16)
    assert together.stride() == whole.stride()
    for parts in ([whole[:3], whole[4:]], [whole[3:], whole[:3]], [whole[:2], torch.zeros(1, 16)]):
        copied = kernels._stacked(parts)
        assert copied.data_ptr() != whole.data_ptr()
        assert copied.shape == (sum(map(len, parts)), 16)


@sizes([1, 300, 4500], [2, 63, 4097, 9000])
def test_distributions_are_those_of_the_cpu(path: KernelPath, vocabulary: int) -> None:
    """Thresholds found among numbers keep the same tokens as thresholds found among tokens."""
    kinds = [*ws.KINDS, Filters(1.0, top_p=1e-6), Filters(0.3, top_p=0.999), Filters(2.0, top_k=vocabulary + 1)]
    kinds += [Filters(1.0, top_k=2, top_p=0.6), Filters(1e-30, top_p=0.9), Filters(1.0, top_p=0.9, bias={0: 30.0})]
    logits = ws.normal(len(kinds), vocabulary, seed=3, scale=2.0)
    logits[3:8] = logits[3:8].round()  # ties at the thresholds
    logits[9, 1:] = -INF
    logits = logits.bfloat16()
    banned = [vocabulary - 1] if vocabulary > 2 else []
    rows = [Pick(f, seen=[0, 0], banned=banned if i % 2 else []) for i, f in enumerate(kinds)]
    device = _device(path)
    found = run([logits.to(device)], pack(rows, vocabulary, device))[0]
    buffer = RowBuffer(vocabulary)
    for i, row in enumerate(rows):
        wanted = distribution_of(buffer, logits[i], row)
        assert wanted is not None
        top, rate, bound, mass = found.distributions[i].tolist()
        assert top == float(wanted.top)
        assert (buffer.z >= np.float32(bound)).tolist() == (buffer.z >= wanted.bound).tolist()
        assert mass == pytest.approx(wanted.mass, rel=2e-6)
        if row.filters.temperature == 0:
            assert int(found.ids[0, i]) == int(np.argmax(buffer.z))
        else:
            assert rate == pytest.approx(min(float(wanted.scale) / math.log(2), 3.4e38), rel=1e-2)


def batch(path: KernelPath) -> tuple[torch.Tensor, kernels.Batch]:
    device = _device(path)
    logits, windows = ws.batch(8, 70, 5)
    sampled = [window for window in windows if window.draft is None or window.draft.ids is None]
    logits = torch.cat([m for m, w in zip(ws.split(logits, windows), windows, strict=True) if w in sampled]).to(device)
    found = kernels.pack_windows(moved(sampled, device), 70, device)
    assert found.tested
    return logits, found


def test_the_operator_is_registered_soundly(path: KernelPath) -> None:
    logits, found = batch(path)
    torch.library.opcheck(kernels._verify, (logits, *found.flat), test_utils=("test_schema", "test_faketensor"))


def test_a_compiled_graph_holds_it_whole(path: KernelPath) -> None:
    logits, found = batch(path)

    def step(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        accepted, *rest = torch.ops.trimtab.verify(x * 1.0, *found.flat)
        return accepted + 0, *rest

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(compiled(logits), step(logits), strict=True))


@pytest.mark.full
@pytest.mark.parametrize("filters", [Filters(1.0), Filters(1.0, top_p=0.9)], ids=["plain", "top_p"])
def test_what_is_written_follows_the_target(path: KernelPath, filters: Filters) -> None:
    """As ``test_verify`` has it for the twin; on a GPU with enough draws to see a few percent."""
    n = 40_000 if path == "triton" else 600
    target, draft = ws.normal(6, seed=1, scale=1.5), ws.normal(6, seed=2, scale=1.5)
    rows = [Pick(filters, Key(seed, 9), 5) for seed in range(n)]
    mine = [row._replace(key=row.key.drafting) for row in rows]
    tokens = dispatch.pick(draft.expand(n, -1), mine, path="torch").token
    windows = [
        Window([int(y)], [row, row], Draft(draft[None], [its])) for y, row, its in zip(tokens, rows, mine, strict=True)
    ]
    got = by_kernels(target.expand(2 * n, -1), windows, path)
    stands = got.accepted.bool()
    p = oracles.distribution(target, rows[0])

    def distance(written: torch.Tensor) -> float:
        counts = np.bincount(written.numpy(), minlength=6)
        seen = p > 0
        assert counts[~seen].sum() == 0
        return float(((counts - n * p)[seen] ** 2 / (n * p)[seen]).sum())

    assert distance(torch.where(stands, tokens, got.token)) < 26.0  # 1e-4 of chi-square with 5 degrees of freedom
    whole = dispatch.pick(target.expand(n, -1), [row._replace(key=row.key.residual) for row in rows], path="torch")
    assert distance(torch.where(stands, tokens, whole.token)) > 26.0


def test_calls_are_recorded_and_errors_name_the_field(path: KernelPath) -> None:
    logits = torch.zeros(2, 10, device=_device(path))
    rows = [Pick(Filters(1.0), Key(1), j) for j in range(2)]
    with paths.record() as calls:
        dispatch.verify(logits, [Window([3], rows, None)], path=path)
    assert calls == [("verify", path)]
    with pytest.raises(ValueError, match=r"windows\[0\].tokens holds 10: accepted"):
        dispatch.verify(logits, [Window([10], rows, None)], path=path)
    draft = Draft(torch.zeros(1, 10, device="meta"), rows[:1])
    with pytest.raises(ValueError, match=r"windows\[0\].draft.logits.device = meta: accepted: "):
        dispatch.verify(logits, [Window([3], rows, draft)], path=path)
    bad = Draft(torch.zeros(1, 3, device=_device(path)), rows[:1], torch.tensor([1, 1, 2]))
    with pytest.raises(ValueError, match=r"draft.ids holds 1 twice"):
        dispatch.verify(logits, [Window([1], rows, bad)], path=path)


def compiled(name: str) -> dict[str, dict[str, Any]]:
    """What ``sm90.py`` says of these kernels."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("sm90.py")
    done = subprocess.run([sys.executable, script, name], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def test_compiled_for_hopper() -> None:
    """Without spills, with 16-byte loads and no others of logits."""
    found = compiled("verify")
    for name, kernel in found.items():
        assert kernel["spilled"] == 0, name
        if name != "accept":
            counts = kernel["instructions"]
            assert counts["LDG.E.128"] > 0, name
            assert not any(op.startswith("LDG") and op.endswith((".U16", ".U8")) for op in counts), name


@pytest.mark.full
def test_other_sizes_compile_for_hopper() -> None:
    for name, kernel in compiled("verify-all").items():
        assert kernel["spilled"] == 0, name
