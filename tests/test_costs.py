"""What passes cost, learned from passes whose true costs are known."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decode.engine.costs import CostModel


def test_costs_shrug_off_disturbances() -> None:
    rng = random.Random(0)
    costs = CostModel()
    true = {n: 4e-3 + 1e-3 * n for n in (1, 2, 4, 7, 16, 40)}
    for _ in range(400):
        n = rng.choice(list(true))
        disturbed = 10 if rng.random() < 0.1 else 1 + 0.05 * rng.random()
        costs.observe(n, true[n] * disturbed)
    for n in (1, 3, 5, 10, 30, 80):
        assert costs.seconds(n) == pytest.approx(4e-3 + 1e-3 * n, rel=0.1)
    for n, more in ((1, 4), (4, 12), (16, 24)):
        assert costs.added(n, more) == pytest.approx(1e-3, rel=0.1)


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-4, 10)), min_size=1, max_size=60))
def test_costs_are_positive_and_never_fall_between_two_sizes(passes: list[tuple[int, float]]) -> None:
    costs = CostModel()
    for tokens, seconds in passes:
        costs.observe(tokens, seconds)
    assert all(costs.seconds(n) > 0 for n in range(1, 600))
    assert all(costs.added(n, more) >= 0 for n in range(1, 300) for more in (1, 7))


def test_few_passes_of_a_size_are_not_believed() -> None:
    """One disturbed pass of a size that hardly comes must not decide what larger passes are thought to take."""
    costs = CostModel()
    for n in (1, 2, 4):
        for _ in range(10):
            costs.observe(n, 1e-3 * n)
    costs.observe(8, 1.0)
    assert costs.seconds(8) == pytest.approx(8e-3)


def test_costs_follow_a_drift() -> None:
    costs = CostModel()
    for i in range(200):
        costs.observe(4, 1e-3 if i < 100 else 3e-3)
    assert costs.seconds(4) == pytest.approx(3e-3)


def test_what_was_measured_long_ago_is_not_known() -> None:
    costs = CostModel()
    for _ in range(10):
        costs.observe(4, 1e-3)
    assert costs.known(4)
    assert costs.known(5), "about that size"
    assert not costs.known(8)
    for _ in range(1000):
        costs.observe(64, 1e-2)
    assert not costs.known(4)
    assert costs.known(64)


def test_measurements_that_no_clock_makes_are_ignored() -> None:
    costs = CostModel()
    for size, seconds in ((0, 1.0), (4, 0.0), (4, -1.0), (4, float("nan")), (4, float("inf"))):
        costs.observe(size, seconds)
    assert costs.passes == 0
    with pytest.raises(ValueError, match="no pass has been seen"):
        costs.seconds(4)


def test_larger_sizes_share_measurements() -> None:
    costs = CostModel()
    for n in (33, 34, 35, 36):
        costs.observe(n, 1.0)
    assert costs.known(40)
    found = [costs.seconds(n) for n in range(30, 45)]
    assert all(a == b for a, b in pairwise(found))
