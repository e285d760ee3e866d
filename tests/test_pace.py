"""Costs measured at different times, at one pace of the machine."""

from __future__ import annotations

import math
import random

import pytest

from trimtab.decode.engine.pace import Pace
from trimtab.decode.engine.speculation import Speculation


def test_it_follows_the_machine() -> None:
    pace = Pace()
    for _ in range(60):
        pace.observe(1.3, 1.0)
    assert pace.usual(1.3) == pytest.approx(1.0, rel=0.02)
    for _ in range(120):
        pace.observe(0.8, 1.0)
    assert pace.usual(0.8) == pytest.approx(1.0, rel=0.02)


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
            costs = speculation.targets["t"]
            eight, sixteen = costs.seconds(8), costs.seconds(16)
            assert eight is not None
            assert sixteen is not None
            assert sixteen / eight == pytest.approx(2.0, rel=0.15)


def test_without_a_pace_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.decode.engine.pace._STEP", 0.0)
    with pytest.raises(AssertionError):
        test_passes_of_unlike_sizes_compare_across_a_drift(0.15)


def lasting(passes: int = 20_000) -> float:
    """What a pass that takes 10 ms, or somewhat more, is said to take after so many of them."""
    speculation, rng = Speculation(), random.Random(0)
    for _ in range(passes):
        speculation.observe("t", 1, 0.01 * math.exp(abs(rng.gauss(0, 0.04))), "target")
    costs = speculation.targets["t"].seconds(1)
    assert costs is not None
    return costs


def test_skewed_times_do_not_carry_it_away() -> None:
    """What is rarely measured stays comparable with what is measured all the time."""
    assert lasting() == pytest.approx(0.01, rel=0.08)


def test_a_mean_would_be_carried_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def mean(self: Pace, seconds: float, usual: float) -> None:
        self._log += (math.log(seconds / usual) - self._log) / 16

    monkeypatch.setattr(Pace, "observe", mean)
    assert lasting() < 0.005
