"""What became of blocks, and the probability of acceptance that is learned from it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decode.methods.draws.acceptance import AcceptanceStatistics


def learned(true: Callable[[float], float], blocks: int = 6000, seed: int = 0) -> AcceptanceStatistics:
    """From blocks of three tokens, each accepted with a probability that depends on what was read for it."""
    rng, found = random.Random(seed), AcceptanceStatistics()
    for _ in range(blocks):
        read = [rng.uniform(0.02, 0.98) for _ in range(3)]
        accepted = next((i for i, p in enumerate(read) if rng.random() >= true(p)), 3)
        found.add(read, accepted, 3)
    return found


def logistic(intercept: float, slope: float) -> Callable[[float], float]:
    return lambda p: 1 / (1 + math.exp(-intercept - slope * math.log(p / (1 - p))))


@pytest.mark.parametrize("true", [logistic(0, 1), logistic(-1.5, 0.5), logistic(1, 1), logistic(-1, 0)])
def test_probabilities_become_those_of_acceptance(true: Callable[[float], float]) -> None:
    found = learned(true)
    for read in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert found.chance(read) == pytest.approx(true(read), abs=0.08)


def test_at_first_they_are_what_was_read() -> None:
    for read in (0.05, 0.5, 0.95):
        assert AcceptanceStatistics().chance(read) == pytest.approx(read)


def test_what_follows_a_rejected_token_teaches_nothing() -> None:
    one, other = AcceptanceStatistics(), AcceptanceStatistics()
    for i in range(100):
        one.add([0.6, 0.7, 0.9], i % 2, 3)
        other.add([0.6, 0.7, 0.1], i % 2, 3)
    assert (one.intercept, one.slope) == (other.intercept, other.slope)


def test_means_are_of_the_latest_blocks() -> None:
    found = AcceptanceStatistics()
    assert not found.believed
    for i in range(1200):
        read, accepted = ([0.5] * 4, 2) if i >= 600 else ([0.5], 0)
        found.add(read, accepted, len(read))
        if i % 2:
            found.end_round(2)
    assert found.believed
    assert found.drafted == pytest.approx(4, rel=0.02)
    assert found.accepted == pytest.approx(2, rel=0.02)
    assert found.passes == pytest.approx(4, rel=0.02)


def test_a_rounds_passes_are_those_of_its_longest_block() -> None:
    found = AcceptanceStatistics()
    for _ in range(50):
        for tokens in (1, 2, 5, 1):
            found.add([0.5] * tokens, 0, tokens)
        found.end_round(4)
    assert found.passes == pytest.approx(5)


@given(st.lists(st.tuples(st.lists(st.floats(0, 1), max_size=6), st.integers(0, 6)), max_size=40), st.floats(0, 1))
def test_probabilities_are_probabilities(blocks: list[tuple[list[float], int]], read: float) -> None:
    found = AcceptanceStatistics()
    for tokens, accepted in blocks:
        found.add(tokens, min(accepted, len(tokens)), len(tokens))
    assert 0 < found.chance(read) < 1
