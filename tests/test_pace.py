"""Costs measured at different times, at one pace of the machine."""

from __future__ import annotations

import math
import random

import pytest

from trimtab.decode.engine.pace import Pace
from trimtab.decode.engine.speculation import Speculation


def test_it_follows_the_machine() -> None:
    pace = Pace()
    for _ in range(200):
        pace.observe(1.3, 1.0)
    assert pace.usual(1.3) == pytest.approx(1.0, rel=1e-3)
    for _ in range(200):
        pace.observe(0.8, 1.0)
    assert pace.usual(0.8) == pytest.approx(1.0, rel=1e-3)


def test_disturbances_and_impossible_times_move_it_little() -> None:
    pace = Pace()
    for seconds in (50.0, float("nan"), float("inf"), -1.0, 0.0):
        pace.observe(seconds, 1.0)
    pace.observe(1.0, 0.0)
    assert pace.usual(1.0) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("drift", [0.0, 0.15])
def test_passes_of_unlike_sizes_compare_across_a_drift(drift: float) -> None:
    """A size that is met only while the machine is slow costs no more for that than one met only while it is fast."""
    speculation, rng = Speculation(), random.Random(0)
    for size in (8, 16, 8, 16):  # both are known before the drift
        for _ in range(12):
            speculation.observe("t", size, float(size) * rng.uniform(0.98, 1.02), "target")
    for i in range(4000):
        slow = math.sin(i / 400)
        size = 16 if slow > 0 else 8
        speculation.observe("t", size, size * (1 + drift * slow) * rng.uniform(0.98, 1.02), "target")
        if i > 1000:
            costs = speculation._costs("t")
            eight, sixteen = costs.seconds(8), costs.seconds(16)
            assert eight is not None
            assert sixteen is not None
            assert sixteen / eight == pytest.approx(2.0, rel=0.15)


def test_without_a_pace_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.decode.engine.pace._WEIGHT", 0.0)
    with pytest.raises(AssertionError):
        test_passes_of_unlike_sizes_compare_across_a_drift(0.15)
