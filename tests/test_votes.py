"""Choosing among texts: votes, agreement, tournaments with cycles."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decode.methods.searches.votes import agreement, copeland, majority, tally, vote_weights


def test_the_conclusion_given_most_often_wins() -> None:
    assert majority(["4", "5", "4", "5", "4"]) == [0, 2, 4]
    assert majority(["a", "b", "c"]) == [0], "ties go to what was said first"
    assert majority(["", "", "b"]) == [2], "silence has no vote"
    assert majority(["", ""]) == [0, 1]
    assert tally(["4", "5", "4", ""]) == pytest.approx([2 / 3, 1 / 3, 2 / 3, 0])


def test_the_largest_sum_of_rewards_wins() -> None:
    said = ["4", "5", "5"]
    assert majority(said) == [1, 2]
    assert majority(said, [0.9, 0.3, 0.3]) == [0]
    assert majority(said, [0.5, 0.3, 0.3]) == [1, 2]
    assert majority(["4", "5", "5", "4"], [0.3, 0.1, 0.2, 0.0]) == [0, 3], "sums that differ by rounding are a tie"
    assert majority(said, [0.0, 0.0, 0.0]) == [1, 2], "without any weight answers are counted"
    assert tally(said, [0.9, 0.3, 0.3]) == pytest.approx([0.6, 0.4, 0.4])


def test_a_negative_reward_is_no_vote_against() -> None:
    """Log-probabilities are below zero: three fair answers must not lose to one because their sum is lower."""
    ratings = [-2.0, -2.1, -2.0, -9.0]
    assert majority(["a", "a", "a", "b"], vote_weights(ratings)) == [0, 1, 2]
    assert vote_weights(ratings) == pytest.approx([7.0, 6.9, 7.0, 0.0])
    assert vote_weights([0.5, 2.0]) == [0.5, 2.0], "rewards that are not negative are the weights"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10)), min_size=1, max_size=9))
def test_weighted_votes_are_sums(answers: list[tuple[str, float]]) -> None:
    said, weights = [what for what, _ in answers], [weight for _, weight in answers]
    sums = {what: sum(w for other, w in answers if other == what) for what in said}
    winner = said[majority(said, weights)[0]]
    assert sums[winner] == pytest.approx(max(sums.values()))
    if sum(weights):
        assert tally(said, weights) == pytest.approx([sums[what] / sum(weights) for what in said])
    assert majority(said, [2.0] * len(said)) == majority(said)


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
