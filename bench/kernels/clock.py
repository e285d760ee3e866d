"""Seconds of a call, on a CPU and on a GPU; what is compared runs in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from trimtab.bench.timing import interleaved

__all__ = ["Graph", "copy_rate", "seconds"]

Call = Callable[[int], object]

_LEAST = 0.01  # seconds of one measurement, far above the clock's own error
_FLUSHED = 256 << 20  # bytes written to push everything out of a GPU's caches
_COPIED = 256 << 20


def seconds(
    calls: Mapping[str, Call], repeats: int, limit: float, device: torch.device, cold: bool = False
) -> dict[str, list[float]]:
    """Seconds of a call by the wall clock, for each repeat; a measurement is as many calls as take 10 ms.

    Args:
        calls: name -> what to measure; its argument numbers the calls.
        repeats: measured rounds; fewer, but at least 3, where they would take longer than ``limit`` seconds.
        device: that the calls work on; the time ends when it is done.
        cold: measure single calls, each with the caches of the GPU emptied.
    """
    count: dict[str, int] = {}
    spent = 0.0
    for name, call in calls.items():
        call(0)  # compiles, allocates
        once = _timed(call, 0, 1, device)
        count[name] = 1 if cold else max(1, math.ceil(_LEAST / once))
        spent += once * count[name]
    rounds = max(min(repeats, 3), min(repeats, int(limit / spent)))
    flush = torch.empty(_FLUSHED if cold else 0, dtype=torch.int8, device=device)

    def measured(name: str, repeat: int) -> float:
        flush.zero_()
        return _timed(calls[name], repeat * count[name], count[name], device)

    return interleaved({name: partial(measured, name) for name in calls}, rounds)


def _timed(call: Call, first: int, count: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for i in range(first, first + count):
        call(i)
    _wait(device)
    return (time.perf_counter() - start) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Graph:
    """A CUDA graph of several calls, one after the other, each on logits of its own.

    Args:
        calls: what is captured.
    """

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:  # compiles, and makes what must not be made during capture
                call()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._kept = [call() for call in calls]
        self._count = len(calls)
        self._flush = torch.empty(_FLUSHED, dtype=torch.int8, device="cuda")
        self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def seconds(self, _: int = 0) -> float:
        """Of one call in a replay that begins with cold caches, by the GPU's clock."""
        self._flush.zero_()
        self._start.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1000 / self._count


def copy_rate(device: torch.device, repeats: int) -> list[float]:
    """Bytes that a copy reads and writes per second, for each repeat."""
    size = _COPIED * (8 if device.type == "cuda" else 1)
    source = torch.zeros(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    found = seconds({"copy": lambda _: target.copy_(source)}, repeats, 10.0, device)
    return [2 * size / taken for taken in found["copy"]]
