"""Interleaved repeats: what is compared runs in turn, so that a slow minute of the machine hits all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from trimtab.bench.progress import Progress
from trimtab.bench.statistics import bootstrap_interval, median_ratio, percentile

__all__ = ["LEAST", "Ratio", "Spread", "interleaved", "paired_ratio"]

LEAST = 3  # measurements of which percentiles and intervals are taken: those of fewer would look like knowledge

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, 20th and 80th percentile of repeated measurements; no percentiles of fewer than ``LEAST``."""

    median: float
    p20: float | None
    p80: float | None
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError without values."""
        enough = len(values) >= LEAST
        p20, p80 = (percentile(values, q) if enough else None for q in (20, 80))
        return cls(percentile(values, 50), p20, p80, len(values))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median over repeats of one measurement divided by its pair.

    Attributes:
        low, high: 95 % bootstrap interval of that median; None of fewer than ``LEAST`` repeats.
    """

    spread: Spread
    low: float | None
    high: float | None


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Ratio:
    """``ours[i] / theirs[i]``, where both were measured in the same repeat.

    Raises:
        ValueError: different numbers of values, none, or one that is not positive.
    """
    if len(ours) != len(theirs) or not ours or min(*ours, *theirs) <= 0:
        raise ValueError(f"{len(ours)} and {len(theirs)} values: accepted: as many positive ones on both sides")
    pairs = np.stack([np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)], axis=1)
    low, high = bootstrap_interval(pairs, median_ratio, seed=seed) if len(ours) >= LEAST else (None, None)
    return Ratio(Spread.of([a / b for a, b in zip(ours, theirs, strict=True)]), low, high)


def interleaved(
    runs: Mapping[str, Callable[[int], T]], repeats: int, warm_up: int = 1, progress: Progress | None = None
) -> dict[str, list[T]]:
    """Call each run in turn, ``repeats`` times; the order is reversed every other time.

    Args:
        runs: name -> what to measure, called with the number of the repeat; warm-up calls have negative numbers.
        repeats: measured rounds.
        warm_up: rounds before them, whose results are dropped.
        progress: is told of every call.

    Raises:
        ValueError: fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}: accepted: 1 or more")
    found: dict[str, list[T]] = {name: [] for name in runs}
    for repeat in range(-warm_up, repeats):
        for name in list(runs) if repeat % 2 == 0 else reversed(list(runs)):
            result = runs[name](repeat)
            if repeat >= 0:
                found[name].append(result)
            if progress is not None:
                progress.add()
    return found
