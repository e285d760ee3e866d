"""Ragged batches over pages, and what attention over them should answer: dense, in float64."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from trimtab.kernels import dispatch, paging
from trimtab.kernels.paths import Path as KernelPath
from trimtab.kernels.paths import available

CPU = torch.device("cpu")


@pytest.fixture(params=["interpret", pytest.param("triton", marks=pytest.mark.gpu)])
def path(request: pytest.FixtureRequest) -> KernelPath:
    """The path that runs the kernels on this machine."""
    found: KernelPath = request.param
    if found not in available(_device(found)):
        pytest.skip(
            f"the path {found!r} needs Triton and a {_device(found).type} device, with TRITON_INTERPRET to suit"
        )
    return found


def _device(path: str) -> torch.device:
    return torch.device("cuda" if path == "triton" else "cpu")


@dataclass(frozen=True)
class Shape:
    """One case. ``spans`` are (cached positions, new tokens)."""

    spans: tuple[tuple[int, int], ...]
    window: int | None = None
    heads: int = 2
    group: int = 3
    dim: int = 16
    page: int = 64
    softcap: float = 0.0
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        own = {k: v for k, v in vars(self).items() if v != Shape.__dataclass_fields__[k].default}
        return "-".join(f"{k}={v}" for k, v in own.items()).replace("torch.", "").replace(" ", "")


class Case:
    """Sequences on scattered pages of a pool that holds NaN wherever nothing was written."""

    def __init__(self, shape: Shape, path: str = "interpret", seed: int = 0) -> None:
        self.shape, self.device = shape, _device(path)
        rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
        needed = [-(-(start + new) // shape.page) for start, new in shape.spans]
        free = rng.sample(range(sum(needed) + 2), sum(needed))
        self.pages = [[free.pop() for _ in range(n)] for n in needed]
        self.keys, self.values = (
            [
                torch.randn(start + new, shape.heads, shape.dim, generator=g).to(shape.dtype)
                for start, new in shape.spans
            ]
            for _ in range(2)
        )
        total = sum(new for _, new in shape.spans)
        self.q = (2 * torch.randn(total, shape.heads * shape.group, shape.dim, generator=g)).to(shape.dtype)
        size = (2, sum(needed) + 2, shape.heads, shape.page, shape.dim)
        self.pool = torch.full(size, float("nan"), dtype=shape.dtype, device=self.device)
        self.scale = shape.dim**-0.5
        old = [start for start, _ in shape.spans]
        self._write([0] * len(old), old, "torch")

    def _kv(self, starts: list[int], lengths: list[int]) -> Tensor:
        both = [
            torch.cat((k[s : s + n], v[s : s + n]), 1)
            for k, v, s, n in zip(self.keys, self.values, starts, lengths, strict=True)
        ]
        return torch.cat(both).to(self.device) if both else self.q.new_empty(0, 2 * self.shape.heads, self.shape.dim)

    def _write(self, starts: list[int], lengths: list[int], path: KernelPath) -> None:
        some = [i for i, n in enumerate(lengths) if n]
        batch = paging.spans(
            [starts[i] for i in some],
            [lengths[i] for i in some],
            [self.pages[i] for i in some],
            self.shape.page,
            self.device,
        )
        dispatch.paged_write(self.pool, self._kv(starts, lengths), batch.slots, path=path)

    def spans(self, rows: int | None = None) -> paging.Spans:
        starts, lengths = ([s[i] for s in self.shape.spans] for i in (0, 1))
        return paging.spans(starts, lengths, self.pages, self.shape.page, self.device, rows)

    def attend(self, path: KernelPath, window: int | None = -1, rows: int | None = None) -> Tensor:
        """Write the new keys and values and attend; ``window`` -1 is the shape's own."""
        shape, batch = self.shape, self.spans(rows)
        new, q = self._kv(*([s[i] for s in shape.spans] for i in (0, 1))), self.q.to(self.device)
        if rows is not None:
            padding = rows - len(q)
            new = torch.cat((new, new.new_full((padding, *new.shape[1:]), 1e4)))
            q = torch.cat((q, q.new_full((padding, *q.shape[1:]), 1e4)))
        dispatch.paged_write(self.pool, new, batch.slots, path=path)
        window = shape.window if window == -1 else window
        work = paging.schedule(batch, window, shape.group, shape.dim * shape.dtype.itemsize)
        out = dispatch.paged_attend(q, self.pool, batch, work, self.scale, shape.softcap, path=path)
        return out[: len(self.q)].cpu()

    def dense(self) -> Tensor:
        """By definition, in float64, one query at a time."""
        shape, rows, row = self.shape, [], 0
        for (start, new), k, v in zip(shape.spans, self.keys, self.values, strict=True):
            for position in range(start, start + new):
                low = 0 if shape.window is None else max(0, position - shape.window + 1)
                keys, values = (x[low : position + 1].double().repeat_interleave(shape.group, 1) for x in (k, v))
                scores = torch.einsum("hd,lhd->hl", self.q[row].double(), keys) * self.scale
                if shape.softcap:
                    scores = shape.softcap * torch.tanh(scores / shape.softcap)
                rows.append(torch.einsum("hl,lhd->hd", scores.softmax(-1), values))
                row += 1
        return torch.stack(rows)


def error(found: Tensor, truth: Tensor) -> float:
    assert found.isfinite().all()
    return float((found.double() - truth).abs().max())
