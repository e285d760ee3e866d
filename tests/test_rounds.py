"""Whether rows that go together should draft, from rounds with drafts and without."""

from __future__ import annotations

from itertools import pairwise

import pytest

from trimtab.decode.engine.rounds import Rounds, Verdict
from trimtab.decode.types import Acceptance, Confidence


def filled(*prices: tuple[type | None, float], rows: int = 8, count: int = 12) -> Rounds:
    rounds = Rounds()
    for kind, price in prices:
        for _ in range(count):
            rounds.add("t", kind, rows, 10 * price, 10)
    return rounds


def test_a_price_is_time_over_tokens() -> None:
    rounds = Rounds()
    for seconds, written in ((1.0, 8), (2.0, 16), (3.0, 12), (2.0, 4)):
        assert rounds.price("t", None, 8) is None, "too few to say"
        rounds.add("t", None, 8, seconds, written)
    assert rounds.price("t", None, 8) == pytest.approx(8 / 40)
    assert rounds.price("t", Acceptance, 8) is None
    assert rounds.price("other", None, 8) is None
    assert rounds.price("t", None, 7) is None, "another number of rows has prices of its own"


def test_disturbed_and_impossible_rounds_say_nothing() -> None:
    rounds = filled((None, 0.1))
    for seconds, written in ((50.0, 10), (float("nan"), 10), (-1.0, 10), (1.0, 0)):
        rounds.add("t", None, 8, seconds, written)
    assert rounds.price("t", None, 8) == pytest.approx(0.1)


def test_like_numbers_of_many_rows_share_a_price() -> None:
    rounds = filled((None, 0.1), rows=17)
    assert rounds.price("t", None, 20) == pytest.approx(0.1)
    assert rounds.price("t", None, 16) is None


def test_the_cheaper_way_is_taken() -> None:
    for price, pays in ((0.9, True), (1.1, False)):
        rounds = filled((None, 1.0), (Acceptance, price))
        assert rounds.verdict("t", Acceptance, 8, plain=5.0) == Verdict(pytest.approx(price), pays)
    assert rounds.verdict("t", Confidence, 8, plain=5.0) is None, "a kind of lengths says nothing of another"
    assert filled((Acceptance, 0.9)).verdict("t", Acceptance, 8, plain=0.8) == Verdict(pytest.approx(0.9), False)


def test_it_doesnt_waver() -> None:
    """What has stopped paying must pay clearly to be taken up again."""
    rounds = filled((None, 1.0), (Acceptance, 1.05))
    found = []
    for price in (0.98, 0.9):
        for _ in range(30):
            rounds.add("t", Acceptance, 8, 10 * price, 10)
            verdict = rounds.verdict("t", Acceptance, 8, plain=1.0)
            assert verdict is not None
            found.append(verdict.pays)
    assert not any(found[:30])
    assert found[-1]
    assert sum(a != b for a, b in pairwise(found)) == 1


def test_a_few_trials_bring_it_back() -> None:
    rounds = filled((None, 1.0), (Acceptance, 1.2), count=24)
    assert rounds.verdict("t", Acceptance, 8, plain=1.0) == Verdict(pytest.approx(1.2), False)
    trials = 0
    while not rounds.verdict("t", Acceptance, 8, plain=1.0).pays:  # type: ignore[union-attr]
        rounds.add("t", Acceptance, 8, 7.0, 10)
        trials += 1
    assert trials < 12
