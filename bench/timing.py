"""Interleaved repeats: what is compared runs in turn, so that a slow minute of the machine hits all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from trimtab.bench.statistics import bootstrap_interval, median_ratio, percentile

__all__ = ["Ratio", "Spread", "interleaved", "paired_ratio"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, 20th and 80th percentile of repeated measurements."""

    median: float
    p20: float
    p80: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError without values."""
        return cls(percentile(values, 50), percentile(values, 20), percentile(values, 80), len(values))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median over repeats of one measurement divided by its pair, with the 95 % bootstrap interval of that median."""

    spread: Spread
    low: float
    high: float


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Ratio:
    """``ours[i] / theirs[i]``, where both were measured in the same repeat.

    Raises:
        ValueError: different numbers of values, none, or one that is not positive.
    """
    if len(ours) != len(theirs) or not ours or min(*ours, *theirs) <= 0:
        raise ValueError(f"{len(ours)} and {len(theirs)} values: accepted: as many positive ones on both sides")
    pairs = np.stack([np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)], axis=1)
    low, high = bootstrap_interval(pairs, median_ratio, seed=seed)
    return Ratio(Spread.of([a / b for a, b in zip(ours, theirs, strict=True)]), low, high)


def interleaved(runs: Mapping[str, Callable[[int], T]], repeats: int, warm_up: int = 1) -> dict[str, list[T]]:
    """Call each run in turn, ``repeats`` times; the order is reversed every other time.

    Args:
        runs: name -> what to measure, called with the number of the repeat; warm-up calls have negative numbers.
        repeats: measured rounds.
        warm_up: rounds before them, whose results are dropped.

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
    return found
