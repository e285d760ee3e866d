"""What passes cost, learned from passes whose true costs are known."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decode.engine.costs import PassCosts


def test_costs_shrug_off_disturbances() -> None:
    rng = random.Random(0)
    costs = PassCosts()
    true = {n: 4e-3 + 1e-3 * n for n in (1, 2, 4, 7, 16, 40)}
    for _ in range(400):
        n = rng.choice(list(true))
        disturbed = 10 if rng.random() < 0.1 else 1 + 0.05 * rng.random()
        costs.observe(n, true[n] * disturbed)
    for n in (1, 3, 5, 10, 30, 80):
        found = costs.seconds(n)
        assert found == pytest.approx(4e-3 + 1e-3 * n, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-4, 10)), min_size=1, max_size=60))
def test_costs_never_fall(passes: list[tuple[int, float]]) -> None:
    costs = PassCosts()
    for tokens, seconds in passes:
        costs.observe(tokens, seconds)
    found = [costs.seconds(n) for n in range(1, 600)]
    assert all(x is not None and x > 0 for x in found)
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(found))  # type: ignore[operator]


def test_costs_follow_a_drift() -> None:
    costs = PassCosts()
    for i in range(200):
        costs.observe(4, 1e-3 if i < 100 else 3e-3)
    assert costs.seconds(4) == pytest.approx(3e-3)
    assert costs.age(4) == 0
    assert costs.age(64) is None
    assert PassCosts().seconds(1) is None


def test_measurements_that_no_clock_makes_are_ignored() -> None:
    costs = PassCosts()
    for tokens, seconds in ((0, 1.0), (4, 0.0), (4, -1.0), (4, float("nan")), (4, float("inf"))):
        costs.observe(tokens, seconds)
    assert costs.seconds(4) is None


def true(tokens: int, positions: float) -> float:
    return 14.0 + 1.0 * tokens + 4e-3 * positions


@pytest.mark.parametrize("counted", [True, False])
def test_passes_compare_across_contexts(counted: bool) -> None:
    """What reads little is met while rows hold little, what reads much while they hold much; but for the first few."""
    costs, rng = PassCosts(), random.Random(0)
    for i in range(1500):
        long = (i // 100) % 2 == 1
        tokens = (16 if long else 8) if i > 400 else rng.choice((8, 16))
        positions = rng.uniform(3000, 4000) if long else rng.uniform(800, 1200)
        seconds = true(tokens, positions) * rng.uniform(0.95, 1.05)
        costs.observe(tokens, seconds, positions if counted else 0.0)
    found = {(n, p): costs.seconds(n, p if counted else 0.0) for n in (8, 16) for p in (1000, 3500)}
    wrong = max(abs(seconds / true(*key) - 1) for key, seconds in found.items() if seconds is not None)
    if counted:
        assert wrong < 0.05
        assert costs.per_position == pytest.approx(4e-3, rel=0.15)
    else:
        assert wrong > 0.25, "without positions a cost is that of the contexts that were met"


def test_few_positions_are_not_believed() -> None:
    """A drift that goes along with contexts that hardly vary is none of their doing."""
    costs = PassCosts()
    for i in range(300):
        costs.observe(8, 10.0 + i % 20 * 0.1, 100.0 + i % 20)
    assert costs.per_position * 120 < 0.1


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-4, 10), st.floats(0, 1e6)), min_size=1, max_size=60))
def test_costs_are_positive_and_grow_with_positions(passes: list[tuple[int, float, float]]) -> None:
    costs = PassCosts()
    for tokens, seconds, positions in passes:
        costs.observe(tokens, seconds, positions)
    found = [costs.seconds(8, positions) for positions in (0, 10, 1e5, 1e7)]
    assert all(x is not None and x > 0 for x in found)
    assert found == sorted(found)  # type: ignore[type-var]
