"""Medians, percentiles and bootstrap intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["bootstrap_interval", "mean_ratio", "median_ratio", "percentile", "rate_ratio"]

Array = NDArray[np.float64]


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile, q in [0, 100], linear between the two nearest values.

    Raises:
        ValueError: no values, or q outside its range.
    """
    if not values or not 0 <= q <= 100:
        raise ValueError(f"percentile {q} of {len(values)} values: accepted: at least one value, and q in [0, 100]")
    return float(np.percentile(np.asarray(values, dtype=np.float64), q))


def bootstrap_interval(
    samples: Array, statistic: Callable[[Array], Array], *, level: float = 0.95, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of independent samples.

    Args:
        samples: [n, k]; a row is one sample, so values that belong together (paired) stay together.
        statistic: [resamples, n, k] -> [resamples].
        level: mass of the interval.
        resamples: draws of n rows with replacement.
        seed: of the draws.

    Raises:
        ValueError: ``samples`` is empty or not two-dimensional, or ``level`` is outside (0, 1).
    """
    if samples.ndim != 2 or not len(samples):
        raise ValueError(f"samples of shape {samples.shape}: accepted: [n, k] with n >= 1")
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: accepted: between 0 and 1, both excluded")
    draws = np.random.default_rng(seed).integers(0, len(samples), size=(resamples, len(samples)))
    values = statistic(samples[draws])
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def mean_ratio(samples: Array) -> Array:
    """Sum of column 0 over the sum of column 1: [..., n, 2] -> [...]; the rate over all rows together."""
    sums = samples.sum(axis=-2)
    return np.asarray(sums[..., 0] / sums[..., 1], dtype=np.float64)


def median_ratio(samples: Array) -> Array:
    """Median of the rows' own ratios of column 0 to column 1: [..., n, 2] -> [...]."""
    return np.asarray(np.median(samples[..., 0] / samples[..., 1], axis=-1), dtype=np.float64)


def rate_ratio(samples: Array) -> Array:
    """Column 0 per column 1 over all rows together, as a multiple of column 2 per column 3: [..., n, 4] -> [...]."""
    return mean_ratio(samples[..., :2]) / mean_ratio(samples[..., 2:])
