"""The kernels that are timed: each as the engine calls it, beside the eager formula for the same on the same logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.bench.kernels import eager
from trimtab.kernels import dispatch
from trimtab.kernels.types import Blend, Draft, Filters, Key, Pick, Window

__all__ = ["KERNELS", "Work", "logits"]

# rows, vocabulary, dtype, device, seed -> what is timed
Make = Callable[[int, int, torch.dtype, torch.device, int], "Work"]

# Steps whose random numbers are prepared: a sampler's work depends on what it draws.
_STEPS = 16
_DRAFTED = 4
# Entropies of about 1 to 4 nats at the sizes measured, as language models have them.
_SLOPE = 0.62


@dataclass(frozen=True, slots=True)
class Work:
    """One kernel on one set of logits.

    Attributes:
        ours: a call as the engine makes it; the argument numbers the calls, which draw differently.
        formula, inputs: the eager formula, and the tensors that it is called with.
        captured: the launches alone, over tensors that are on the device: what a CUDA graph holds.
        read: bytes of logits that have to be read once.
    """

    ours: Callable[[int], object]
    formula: Callable[..., object]
    inputs: tuple[Tensor, ...]
    captured: Callable[[], object]
    read: int


def logits(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Random logits [R, V] like a language model's: the k-th largest is about -ln k / 0.62 below the first (Zipf's
    law), in random places."""
    generator = torch.Generator(device).manual_seed(seed)
    made = torch.empty((rows, vocabulary), dtype=dtype, device=device)
    for i in range(0, rows, 64):  # float32 of all rows may not fit beside them
        part = torch.empty((min(64, rows - i), vocabulary), device=device).exponential_(generator=generator)
        made[i : i + 64] = (part / _SLOPE).to(dtype)
    return made


def _flat(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Normal logits, whose nuclei are a large part of the vocabulary: the worst for a filter."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn((rows, vocabulary), generator=generator, device=device).to(dtype)


def _near(base: Tensor, seed: int) -> Tensor:
    """Logits of a model that mostly agrees with another one."""
    generator = torch.Generator(base.device).manual_seed(seed)
    made = torch.empty_like(base)
    for i in range(0, len(base), 64):
        part = base[i : i + 64].float()
        made[i : i + 64] = (part + 0.7 * torch.randn(part.shape, generator=generator, device=base.device)).to(
            base.dtype
        )
    return made


def _picks(rows: int, filters: Filters) -> list[list[Pick]]:
    return [[Pick(filters, Key(i), step) for i in range(rows)] for step in range(_STEPS)]


def _stats(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device, seed: int) -> Work:
    x = logits(rows, vocabulary, dtype, device, seed)
    tokens = torch.arange(rows, device=device)

    def captured() -> object:
        _operators()
        return torch.ops.trimtab.stats(x, tokens)

    return Work(lambda _: dispatch.stats(x, tokens), eager.statistics, (x, tokens), captured, _size(x))


def _pick(filters: Filters, rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device, seed: int) -> Work:
    x = logits(rows, vocabulary, dtype, device, seed)
    steps = _picks(rows, filters)
    temperature, top_p = filters.temperature, filters.top_p

    def formula(x: Tensor) -> object:
        return eager.sampled(x, temperature, top_p) if temperature else eager.greedy(x)

    captured = _Prepared(lambda: _planned(steps[0], vocabulary, device), lambda plan: torch.ops.trimtab.mix([x], *plan))
    return Work(lambda i: dispatch.pick(x, steps[i % _STEPS]), formula, (x,), captured, _size(x))


def _mix(
    weights: tuple[float, ...],
    filters: Filters,
    plausibility: float,
    logits: Callable[[int, int, torch.dtype, torch.device, int], Tensor],
    rows: int,
    vocabulary: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> Work:
    base = logits(rows, vocabulary, dtype, device, seed)
    models = [base, *(_near(base, seed + i) for i in range(1, len(weights)))]
    steps = _picks(rows, filters)
    blends = [Blend(weights, plausibility=plausibility)] * rows

    def formula(*models: Tensor) -> object:
        if plausibility:
            return eager.plausible(models, weights, plausibility)
        return eager.mixed(models, weights, filters.temperature, filters.top_p)

    captured = _Prepared(
        lambda: _planned(steps[0], vocabulary, device, blends), lambda plan: torch.ops.trimtab.mix(models, *plan)
    )
    read = sum(map(_size, models))
    return Work(lambda i: dispatch.mix(models, blends, steps[i % _STEPS]), formula, tuple(models), captured, read)


def _verify(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device, seed: int) -> Work:
    target = logits(rows * (_DRAFTED + 1), vocabulary, dtype, device, seed).view(rows, _DRAFTED + 1, vocabulary)
    draft = _near(target[:, :_DRAFTED].flatten(0, 1), seed + 1)
    generator = torch.Generator(device).manual_seed(seed)
    tokens = torch.empty((len(draft), 1), dtype=torch.int64, device=device)
    for i in range(0, len(draft), 64):
        probs = torch.softmax(draft[i : i + 64].float(), -1)
        tokens[i : i + 64] = torch.multinomial(probs, 1, generator=generator)
    tokens = tokens.view(rows, _DRAFTED)
    drafted: list[list[int]] = tokens.tolist()
    tops = dispatch.stats(draft).top_prob.view(rows, _DRAFTED).tolist()  # known since drafting
    filters = Filters(1.0)

    def windows(step: int) -> list[Window]:
        made = []
        for i in range(rows):
            picks = [Pick(filters, Key(i), (_DRAFTED + 1) * step + j) for j in range(_DRAFTED + 1)]
            source = Draft(draft[i * _DRAFTED : (i + 1) * _DRAFTED], picks[:-1], None, tops[i])
            made.append(Window(drafted[i], picks, source))
        return made

    steps = [windows(step) for step in range(_STEPS)]
    flat, drafts = target.flatten(0, 1), draft.view(rows, _DRAFTED, vocabulary)

    def batch() -> Any:
        from trimtab.kernels.triton.verify import pack_windows

        return pack_windows(steps[0], vocabulary, device).flat

    # The target once; where a token falls, the target's row and the draft's again (kernels.md, c).
    read = _size(target) * (_DRAFTED + 3) // (_DRAFTED + 1)
    return Work(
        lambda i: dispatch.verify(flat, steps[i % _STEPS]),
        eager.verified,
        (target, drafts, tokens),
        _Prepared(batch, lambda flat_batch: torch.ops.trimtab.verify(flat, *flat_batch)),
        read,
    )


class _Prepared:
    """A launch whose plan is made at the first call, which has to come before a graph is captured."""

    def __init__(self, make: Callable[[], Any], launch: Callable[[Any], object]) -> None:
        self._make, self._launch = make, launch
        self._plan: Any = None

    def __call__(self) -> object:
        if self._plan is None:
            _operators()
            self._plan = self._make()
        return self._launch(self._plan)


def _operators() -> None:
    """Registers ``torch.ops.trimtab``."""
    from trimtab.kernels.triton import logits, verify  # noqa: F401


def _planned(rows: Sequence[Pick], vocabulary: int, device: torch.device, blends: Sequence[Blend] | None = None) -> Any:
    from trimtab.kernels.triton.pack import pack

    return pack(rows, vocabulary, device, blends).flat


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()


_DRAWN, _NUCLEUS, _PLAIN = Filters(0.8), Filters(0.8, top_p=0.9), Filters(1.0)
_THREE = (1.0, 0.6, -0.4)

KERNELS: Mapping[str, Make] = {
    "stats": _stats,
    "greedy": partial(_pick, Filters()),
    "sample": partial(_pick, _DRAWN),
    "top-p": partial(_pick, _NUCLEUS),
    "mixture": partial(_mix, (1.0, 0.5), _NUCLEUS, 0.0, logits),
    "mixture-flat": partial(_mix, (1.0, 0.5), _NUCLEUS, 0.0, _flat),
    "verify": _verify,
    "mix3": partial(_mix, _THREE, _PLAIN, 0.0, logits),
    "mix3-top-p": partial(_mix, _THREE, Filters(1.0, top_p=0.9), 0.0, logits),
    "mix3-plausible": partial(_mix, _THREE, _PLAIN, 0.1, logits),
}
