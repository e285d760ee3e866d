"""Attention over pages in an engine, under torch.compile, in a CUDA graph, and compiled for sm_90."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paged_cases as pc
import pytest
import torch
from paged_cases import Case, Shape
from torch import Tensor

from trimtab.decode.config import ModelConfig
from trimtab.decode.engine.batch import RaggedBatch, Span
from trimtab.decode.engine.storage import Storage
from trimtab.decode.models.load import load
from trimtab.kernels import dispatch, paging, paths
from trimtab.kernels.paths import Path as KernelPath

pytestmark = pytest.mark.usefixtures("one_thread")


path, error = pc.path, pc.error
_device = pc._device


@pytest.mark.parametrize("kind", ["gemma3", "gpt2"])
def test_a_whole_model_on_the_paged_kernels(kind: str, tiny_folder: Callable[..., Path], path: KernelPath) -> None:
    """The engine's storage on this path gives the logits of the torch path: prefill, then verification and decode."""
    device = _device(path)
    model = load("tiny", ModelConfig(source=str(tiny_folder(kind)), device=device.type, dtype="float32"))
    logits: dict[str, list[Tensor]] = {}
    for way in ("torch", path):
        shape = (model.layers, 8, 64, model.kv_heads, model.head_dim, model.kv_dtype, device)
        storage = Storage(*shape, path=way)
        found = logits[way] = []
        for spans in ([(0, 70), (0, 3)], [(70, 5), (3, 1)]):
            batch = RaggedBatch.pack(
                [
                    Span([(7 * i + 31 * k) % 200 for i in range(start, start + new)], start, pages, min(new, 5))
                    for k, ((start, new), pages) in enumerate(zip(spans, ([5, 2], [4]), strict=True))
                ],
                64,
            )
            tensors = (torch.from_numpy(x).to(device) for x in (batch.tokens, batch.positions, batch.rows))
            tokens, positions, rows = tensors
            with torch.inference_mode(), paths.record() as calls:
                found.append(model.forward(tokens, positions, storage.begin(batch), rows))
            assert ("paged", way) in calls
            assert [c.op for c in calls].count("paged_attend") == (0 if way == "torch" else model.layers)
    for expected, got in zip(logits["torch"], logits[path], strict=True):
        assert float((expected - got).abs().max() / expected.std()) < 1e-4


def test_torch_compile_sees_whole_operators(path: KernelPath) -> None:
    case = Case(Shape(((70, 1), (10, 20)), heads=1), path)
    expected = case.attend(path)
    batch = case.spans()
    work = paging.schedule(batch, None, 3, 64)
    new, q = case._kv([70, 10], [1, 20]), case.q.to(case.device)

    def step(q: Tensor, pool: Tensor, new: Tensor) -> Tensor:
        dispatch.paged_write(pool, new, batch.slots, path=path)
        return dispatch.paged_attend(q, pool, batch, work, case.scale, path=path) * 1

    found = torch.compile(step, backend="aot_eager", fullgraph=True)(q, case.pool, new)
    assert torch.equal(found.cpu(), expected)


def test_the_operators_keep_what_they_promise(path: KernelPath) -> None:
    from trimtab.kernels.triton import paged

    case = Case(Shape(((70, 1), (300, 2)), heads=1), path)
    case.attend(path)
    batch = case.spans()
    work = paging.schedule(batch, None, 3, 64)
    pool, q, new = case.pool.nan_to_num(), case.q.to(case.device), case._kv([70, 300], [1, 2])
    lists = (batch.table, batch.pages, work.short, work.long, work.merges)
    torch.library.opcheck(paged._write_op, (pool, new, batch.slots))
    torch.library.opcheck(paged._attend_op, (q, pool, *lists, work.slots, *work.rows, 0, case.scale, 0.0))


@pytest.mark.gpu
def test_a_captured_graph_follows_its_buffers() -> None:
    """One capture serves another batch of its bucket; nothing waits for the host."""
    first = Case(Shape(((70, 1), (300, 1))), "triton", 0)
    second = Case(Shape(((40, 1), (290, 1))), "triton", 1)
    truth = second.dense()
    batch, other = first.spans(), second.spans()
    works = [paging.schedule(b, None, 3, 64) for b in (batch, other)]
    pool = torch.zeros(2, 16, *first.pool.shape[2:], device="cuda")
    q, new = first.q.cuda(), first._kv([70, 300], [1, 1])

    def step() -> Tensor:
        dispatch.paged_write(pool, new, batch.slots, path="triton")
        return dispatch.paged_attend(q, pool, batch, works[0], first.scale, path="triton")

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    pool[:, : second.pool.shape[1]].copy_(second.pool.nan_to_num())
    batch.buffer.copy_(other.buffer)
    works[0].buffer.copy_(works[1].buffer)
    q.copy_(second.q)
    new.copy_(second._kv([40, 290], [1, 1]))
    graph.replay()
    assert error(out.cpu(), truth) < 5e-6


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
    """Without spills, with 16-byte loads, asynchronous ones for keys and values, and on the tensor cores."""
    found = compiled("paged")
    for kernel in found.values():
        assert kernel["spilled"] == 0
    for name, mma in (("decode", "HMMA"), ("prefill", "HGMMA")):
        counts = found[name]["instructions"]
        assert any(op.startswith(mma) for op in counts)
        assert counts["LDGSTS.E.BYPASS.128"] > 0
        assert not any(op.startswith("LDG") and op.endswith((".U16", ".U8")) for op in counts)
    assert found["merge"]["instructions"]["LDG.E.128"] > 0
    assert found["write"]["instructions"]["STG.E.128"] > 0


@pytest.mark.full
def test_all_head_shapes_compile_for_hopper() -> None:
    for name, kernel in compiled("paged-all").items():
        assert kernel["shared"] <= 227 * 1024, name
        assert kernel["spilled"] == 0 or name == "fp32 256", name
