"""Choosing among texts: conclusions, agreement, tournaments with cycles."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decode.searches.votes import agreement, conclusion, copeland, majority


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("So the answer is 1,200.50.", "1200.5"),
        ("First 3, then 4.", "4"),
        ("It costs $-7.00", "-7"),
        ("Yes!", "yes"),
        ("The  Cat.\n", "the cat"),
        ("-0", "0"),
        ("007", "7"),
        (".5", "0.50"),
    ],
)
def test_equal_conclusions(one: str, other: str) -> None:
    assert conclusion(one) == conclusion(other)


@pytest.mark.parametrize(("one", "other"), [("4", "5"), ("-4", "4"), ("yes", "no"), ("1.5", "15"), ("2 or 3", "2")])
def test_other_conclusions(one: str, other: str) -> None:
    assert conclusion(one) != conclusion(other)


def test_majority() -> None:
    assert majority(["it is 4", "it is 5", "4.0", "five: 5", "4"]) == [0, 2, 4]
    assert majority(["a", "b", "c"]) == [0], "ties go to what was said first"
    assert majority(["", "", "b"]) == [2], "silence has no vote"
    assert majority(["", " "]) == [0, 1]


def test_agreement_prefers_what_is_common() -> None:
    texts = ["the cat sat on the mat", "the cat sat on a mat", "a dog ran", "the cat sat on the mat today"]
    scores = agreement(texts)
    assert max(range(4), key=scores.__getitem__) == 0
    assert min(range(4), key=scores.__getitem__) == 2
    assert agreement(["alone"]) == [0.0]
    assert agreement(["same words", "Same words!"]) == [1.0, 1.0]


def odds_of(beats: dict[tuple[int, int], float], n: int) -> list[float]:
    return [beats[pair] for pair in itertools.combinations(range(n), 2)]


def test_a_winner_over_all_wins_and_a_cycle_does_not() -> None:
    # 0 beats 1, 1 beats 2, 2 beats 0, by much; 3 beats each of them by little.
    beats = {(0, 1): 0.9, (1, 2): 0.9, (0, 2): 0.1, (0, 3): 0.45, (1, 3): 0.45, (2, 3): 0.45}
    scores = copeland(4, odds_of(beats, 4))
    assert scores[3][0] == 1.0
    assert [wins for wins, _ in scores[:3]] == pytest.approx([1 / 3] * 3)


def test_margins_break_a_cycle() -> None:
    scores = copeland(3, odds_of({(0, 1): 0.6, (1, 2): 0.9, (0, 2): 0.3}, 3))
    assert {wins for wins, _ in scores} == {0.5}
    assert max(range(3), key=lambda i: scores[i]) == 1


@given(st.integers(1, 9), st.integers())
def test_renaming_contestants_renames_the_scores(n: int, seed: int) -> None:
    rng = random.Random(seed)
    p = {pair: rng.choice((0.0, 0.3, 0.5, 0.8, 1.0)) for pair in itertools.combinations(range(n), 2)}
    order = rng.sample(range(n), n)
    turned = {
        (i, j): p[order[i], order[j]] if order[i] < order[j] else 1 - p[order[j], order[i]]
        for i, j in itertools.combinations(range(n), 2)
    }
    before, after = copeland(n, odds_of(p, n)), copeland(n, odds_of(turned, n))
    for i in range(n):
        assert after[i] == pytest.approx(before[order[i]])
    assert sum(wins for wins, _ in before) == pytest.approx(n / 2 if n > 1 else 0)
