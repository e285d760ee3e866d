"""Whether rows that go together should draft, from rounds with drafts and without."""

from __future__ import annotations

from itertools import pairwise

import pytest

from trimtab.decode.engine.costs import Load
from trimtab.decode.engine.rounds import Rounds, Verdict
from trimtab.decode.methods.draws.length import Acceptance, Confidence, Length


def filled(*prices: tuple[type[Length] | None, float], rows: int = 8, count: int = 12) -> Rounds:
    rounds = Rounds()
    for length, price in prices:
        for _ in range(count):
            rounds.add("t", None if length is None else (length, False), Load(rows), 10 * price, 10)
    return rounds


def test_a_price_is_time_over_tokens() -> None:
    rounds = Rounds()
    for seconds, written in ((1.0, 8), (2.0, 16), (3.0, 12), (2.0, 4)):
        assert rounds.price("t", None, Load(8)) is None, "too few to say"
        rounds.add("t", None, Load(8), seconds, written)
    assert rounds.price("t", None, Load(8)) == pytest.approx(8 / 40)
    assert rounds.price("t", (Acceptance, False), Load(8)) is None
    assert rounds.price("other", None, Load(8)) is None
    assert rounds.price("t", None, Load(7)) is None, "another number of rows has prices of its own"


def test_disturbed_and_impossible_rounds_say_nothing() -> None:
    rounds = filled((None, 0.1))
    for seconds, written in ((50.0, 10), (float("nan"), 10), (-1.0, 10), (1.0, 0)):
        rounds.add("t", None, Load(8), seconds, written)
    assert rounds.price("t", None, Load(8)) == pytest.approx(0.1)


def test_like_numbers_of_many_rows_share_a_price() -> None:
    rounds = filled((None, 0.1), rows=17)
    assert rounds.price("t", None, Load(20)) == pytest.approx(0.1)
    assert rounds.price("t", None, Load(16)) is None


def test_the_cheaper_way_is_taken() -> None:
    for price, pays in ((0.9, True), (1.1, False)):
        rounds = filled((None, 1.0), (Acceptance, price))
        assert rounds.verdict("t", Acceptance, Load(8), plain=5.0) == Verdict(pytest.approx(price), pays, False)
    assert rounds.verdict("t", Confidence, Load(8), plain=5.0) is None, "a kind of lengths says nothing of another"
    rounds = filled((Acceptance, 0.9))
    assert rounds.verdict("t", Acceptance, Load(8), plain=0.8) == Verdict(pytest.approx(0.9), False, False)


def test_it_doesnt_waver() -> None:
    """What has stopped paying must pay clearly to be taken up again."""
    rounds = filled((None, 1.0), (Acceptance, 1.05))
    found = []
    for price in (0.98, 0.9):
        for _ in range(30):
            rounds.add("t", (Acceptance, False), Load(8), 10 * price, 10)
            verdict = rounds.verdict("t", Acceptance, Load(8), plain=1.0)
            assert verdict is not None
            found.append(verdict.pays)
    assert not any(found[:30])
    assert found[-1]
    assert sum(a != b for a, b in pairwise(found)) == 1


def test_a_few_trials_bring_it_back() -> None:
    rounds = filled((None, 1.0), (Acceptance, 1.2), count=24)
    assert rounds.verdict("t", Acceptance, Load(8), plain=1.0) == Verdict(pytest.approx(1.2), False, False)
    trials = 0
    while not rounds.verdict("t", Acceptance, Load(8), plain=1.0).pays:  # type: ignore[union-attr]
        rounds.add("t", (Acceptance, False), Load(8), 7.0, 10)
        trials += 1
    assert trials < 12


def drafting(price: float, evenly: float, count: int) -> list[bool]:
    """Which rounds are even where each way has its price."""
    rounds, found = filled((None, 1.0)), []
    for _ in range(count):
        verdict = rounds.verdict("t", Acceptance, Load(8), plain=1.0, even=True)
        even = verdict is not None and verdict.even
        rounds.add("t", (Acceptance, even), Load(8), 10 * (evenly if even else price), 10)
        found.append(even)
    return found


def test_the_better_way_to_draft_is_taken_and_the_other_tried_now_and_then() -> None:
    for price, evenly in ((0.8, 0.75), (0.75, 0.8)):
        found = drafting(price, evenly, 600)
        assert 0.02 < found[100:].count(evenly > price) / 500 < 0.2


def test_it_changes_its_way_when_the_other_becomes_better() -> None:
    rounds = filled((None, 1.0), (Acceptance, 0.8))
    prices = {False: 0.8, True: 0.7}
    found = []
    for i in range(1200):
        if i == 600:
            prices = {False: 0.7, True: 0.8}
        verdict = rounds.verdict("t", Acceptance, Load(8), plain=1.0, even=True)
        assert verdict is not None
        rounds.add("t", (Acceptance, verdict.even), Load(8), 10 * prices[verdict.even], 10)
        found.append(verdict.even)
    assert found[200:600].count(True) > 0.8 * 400
    assert found[1000:].count(True) < 0.2 * 200


def test_blocks_are_even_only_where_that_is_allowed() -> None:
    rounds = filled((None, 1.0), (Acceptance, 0.8), count=40)
    assert rounds.verdict("t", Acceptance, Load(8), plain=1.0) == Verdict(pytest.approx(0.8), True, False)
    assert rounds.verdict("t", Acceptance, Load(8), plain=1.0, even=True) == Verdict(pytest.approx(0.8), True, True)


def test_prices_are_those_of_what_rows_hold_now() -> None:
    """Plain rounds were seen with short contexts, drafted ones with long ones."""
    rounds = Rounds()
    for _ in range(20):
        rounds.add("t", None, Load(8, 1000), 16.0 + 4.0, 8, reading=4.0)
        rounds.add("t", (Acceptance, False), Load(8, 4000), 20.0 + 22.0, 11, reading=22.0)
    for positions in (0, 1000, 2000, 4000):
        plain, drafted = (16 + 4e-3 * positions) / 8, (20 + 5.5e-3 * positions) / 11
        assert rounds.price("t", None, Load(8, positions)) == pytest.approx(plain)
        verdict = rounds.verdict("t", Acceptance, Load(8, positions), plain=0.1)
        assert verdict == Verdict(pytest.approx(drafted), drafted < plain, False)
