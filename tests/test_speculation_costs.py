"""Costs, acceptance and the decisions drawn from them, in simulations of an engine whose true costs are known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.engine.costs import Load
from trimtab.decode.engine.speculation import Part, Speculation
from trimtab.decode.methods.draws.length import (
    Acceptance,
    Confidence,
    Fixed,
    Length,
)
from trimtab.decode.methods.draws.lengths import (
    UNMEASURED_STOP,
    TokenCosts,
    longest,
    rule,
    together,
)

# ------------------------------------------------------------------------------------------------------------- lengths


def drafted(length: Length, probs: list[float], accepts: list[float] | None = None, **options: object) -> int:
    """Tokens that a rule lets be drafted."""
    found = rule(length, **options)  # type: ignore[arg-type]
    for i, prob in enumerate(probs, 1):
        if not found.goes_on(prob, None if accepts is None else accepts[i - 1]):
            return i
    return len(probs)


def test_fixed_lengths_are_fixed() -> None:
    assert drafted(Fixed(3), [0.01] * 9) == 3
    assert drafted(Fixed(3), [0.01] * 9, cap=1) == 3
    assert longest(Fixed(3)) == 3


def test_confidence_stops_after_an_unsure_token() -> None:
    assert drafted(Confidence(0.4, 8), [0.9, 0.41, 0.4, 0.39, 0.9]) == 4
    assert drafted(Confidence(0.4, 3), [0.9] * 9) == 3
    assert drafted(Confidence(0.4, 8), [0.9] * 9, cap=2) == 2
    assert drafted(Confidence(0.4, 8), [0.9] * 9, cap=20) == 8


def test_acceptance_cumulates_the_probability_of_a_rejection() -> None:
    head = [0.9, 0.9, 0.9, 0.9, 0.9, 0.9]  # 1 - 0.9^k: 0.1, 0.19, 0.271, 0.344, ...
    assert drafted(Acceptance(8, stop=0.27), [0.5] * 6, head) == 3
    assert drafted(Acceptance(8, stop=0.28), [0.5] * 6, head) == 4
    assert drafted(Acceptance(2, stop=0.9), [0.5] * 6, head) == 2
    assert drafted(Acceptance(9, stop=0.9), [0.5] * 6, [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]) == 2
    assert rule(Acceptance()).stops == (UNMEASURED_STOP,)
    assert rule(Acceptance()).wants_acceptance
    assert not rule(Confidence()).wants_acceptance


def test_acceptance_needs_a_head() -> None:
    with pytest.raises(ValueError, match="length = Acceptance: the draft has no acceptance head: accepted: Confidence"):
        rule(Acceptance()).goes_on(0.9, None)


@given(st.floats(0.01, 1), st.floats(0, 1), st.floats(0.01, 5))
def test_the_bound_is_the_theorems(draft: float, verify: float, value: float) -> None:
    """(c2 + D) / (c1 + c2 + D) with c1 all that the token costs, for any split of c2 + D."""
    costs = TokenCosts(draft, verify, 2 * value, 0.5)
    c1 = draft + verify
    c2_and_delta = value - c1
    expected = c2_and_delta / (c1 + c2_and_delta) if c2_and_delta > 0 else 0.0
    assert costs.stop == pytest.approx(expected)
    assert 0 <= costs.stop < 1


def test_the_bound_stops_at_the_best_fixed_length() -> None:
    """With an equal chance at every place the best block has one length, and the rule finds it."""
    for a, ratio in ((0.6, 5.0), (0.8, 10.0), (0.9, 20.0), (0.95, 4.0)):
        price = {k: (k + ratio) / sum(a**i for i in range(k + 1)) for k in range(1, 33)}
        best = min(price, key=price.__getitem__)
        costs = TokenCosts(1.0, 0.0, price[best], a)
        assert drafted(Acceptance(32), [0.5] * 32, [a] * 32, costs=[costs]) == best


def kept(accepts: list[float], costs: TokenCosts, length: Length = Acceptance(8)) -> int:  # noqa: B008
    """Tokens that are verified of those that a rule lets be drafted."""
    found = rule(length, [costs])
    for i, accept in enumerate(accepts):
        if not found.keeps(accept):
            return i
        if not found.goes_on(0.5, accept):
            return i + 1
    return len(accepts)


def test_a_token_that_costs_more_than_it_brings_is_dropped() -> None:
    costs = TokenCosts(draft=0.0, verify=0.3, saves=1.0, chance=1.0)  # worth it from 0.3 on, those before it included
    assert kept([0.29, 1.0], costs) == 0
    assert kept([0.31, 0.97], costs) == 2
    assert kept([0.8, 0.8, 0.5, 0.9], costs) == 3
    assert kept([0.8, 0.8, 0.46, 1.0], costs) == 2
    assert kept([0.01], costs, Acceptance(8, stop=0.9)) == 1
    assert kept([0.01], costs, Confidence()) == 1
    assert kept([0.01], costs, Fixed(1)) == 1
    assert rule(Acceptance(), [costs]).keeps(None), "a draft without a head drops nothing"
    found = rule(Acceptance(), [costs])
    assert found.keeps(0.8)
    assert found.dropped is None
    found.goes_on(0.5, 0.8)
    assert not found.keeps(0.25)
    assert found.dropped == (0.8, 0.25)


# --------------------------------------------------------------------------------------------------------- simulations

Curve = Callable[[float], float]
Chance = Callable[[int, int], float]


@dataclass
class World:
    """An engine with one draft and one target, rows in step.

    Attributes:
        draft, target: true seconds of a pass over n tokens.
        load: rows.
        chance: (row, place in its answer) -> that a drafted token stands; a perfect head says the same.
        cold: seconds by which the first pass of a round is longer.
        noise: of what the clock shows; time that passes is the true one.
    """

    draft: Curve
    target: Curve
    load: int
    chance: Chance
    noise: bool = True
    seed: int = 0
    cold: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    lengths: list[int] = field(default_factory=list)
    speculation: Speculation = field(default_factory=Speculation)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.written = [0] * self.load
        self.behind = [0] * self.load  # whether the draft has a token to read beside the last; more cost nothing here

    def spend(self, model: str, tokens: int, part: Part) -> float:
        seconds = (self.target if part == "target" else self.draft)(tokens) + self.cold * (part == "first")
        self.seconds += seconds
        if self.noise:
            seconds *= (1 + 0.1 * self.rng.random()) * (5 if self.rng.random() < 0.03 else 1)
        return self.speculation.observe(model, tokens, seconds, part).seconds

    def round(self, length: Length | None) -> None:
        """Each row drafts, then all are verified; None is plain decoding."""
        rules = {}
        for row in range(self.load):
            found = None if length is None else self.speculation.rule(length, "d", "t", f"r{row}", Load(self.load))
            if found is not None:
                rules[row] = found
        stands: dict[int, list[bool]] = {row: [] for row in rules}
        growing = dict(rules)
        part: Part = "first"
        took, before = 0.0, self.tokens
        while growing:
            reads = sum(1 + self.behind[row] for row in growing) if part == "first" else len(growing)
            took += self.spend("d", reads, part)
            part = "later"
            for row, it in list(growing.items()):
                chance = self.chance(row, self.written[row] + len(stands[row]))
                if it.keeps(chance):
                    stands[row].append(self.rng.random() < chance)
                    if it.goes_on(chance, chance):
                        continue
                del growing[row]
            if not together(list(growing.values())):
                growing = {}
        took += self.spend("t", self.load + sum(map(len, stands.values())), "target")
        for row in range(self.load):
            block = stands.get(row, [])
            accepted = block.index(False) if False in block else len(block)
            self.tokens += accepted + 1
            self.written[row] += accepted + 1
            self.behind[row] = int(accepted == len(block))
            self.lengths.append(len(block))
            dropped = rules[row].dropped if row in rules else None
            if dropped is not None:
                assert length is not None
                self.speculation.dropped("d", "t", f"r{row}", length, *dropped, alone=not block)
            if block:
                assert length is not None
                passes = len(block) + (dropped is not None)
                self.speculation.verified("d", "t", f"r{row}", length, len(block), accepted, passes)
        kind = (type(length), next(iter(rules.values())).even) if rules and length is not None else None
        if not any(it.trial for it in rules.values()):
            self.speculation.rounds.add("t", kind, Load(self.load), took, self.tokens - before)

    def price(self, length: Length | None, tokens: int, skip: int = 0) -> float:
        """Seconds per token of so many, after ``skip`` others."""
        while self.tokens < skip * self.load:
            self.round(length)
        self.seconds, self.tokens, self.lengths = 0.0, 0, []
        while self.tokens < tokens * self.load:
            self.round(length)
        return self.seconds / self.tokens


def linear(fixed: float, each: float) -> Curve:
    return lambda tokens: fixed + each * tokens


def even(chance: float) -> Chance:
    return lambda row, place: chance


def bursts(sure: float, unsure: float) -> Chance:
    """Stretches of easy and of hard tokens, seven long on average."""
    states: dict[int, list[bool]] = {}

    def chance(row: int, place: int) -> float:
        if row not in states:
            rng, easy = random.Random(row), True
            states[row] = [easy := easy != (rng.random() < 0.15) for _ in range(8000)]
        return sure if states[row][place % 8000] else unsure

    return chance


# Target and draft: a GPU bound by reading weights; a CPU; one whose draft isn't worth much; a slow target.
MACHINES = {
    "gpu": (linear(10.0, 0.02), linear(1.0, 0.005)),
    "cpu": (linear(4.0, 1.5), linear(0.5, 0.2)),
    "dear": (linear(4.0, 1.0), linear(2.0, 0.6)),
    "steep": (linear(0.5, 4.0), linear(0.1, 0.3)),
}
ADAPTIVE = (Confidence(0.4, 16), Acceptance(16))


def check_against_plain(machine: str, length: Length, load: int, chance: Chance, seed: int) -> None:
    """The beginning counts as in any short run; several runs, so that luck with single tokens decides nothing."""
    target, draft = MACHINES[machine]
    worlds = [World(draft, target, load, chance, seed=seed + run) for run in range(4)]
    assert target(load) / load / mean(world.price(length, 400, skip=60) for world in worlds) >= 0.97


SITUATIONS = {
    "machine": st.sampled_from(sorted(MACHINES)),
    "length": st.sampled_from(ADAPTIVE),
    "load": st.sampled_from((1, 2, 3, 8, 16)),
    "chance": st.one_of(
        st.floats(0, 1).map(even), st.tuples(st.floats(0.5, 1), st.floats(0, 0.5)).map(lambda pair: bursts(*pair))
    ),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=20, derandomize=True)
@given(**SITUATIONS)
def test_never_much_slower_than_plain_decoding(**situation: Any) -> None:
    check_against_plain(**situation)


@pytest.mark.full
@settings(max_examples=150, derandomize=True)
@given(**SITUATIONS)
def test_never_much_slower_than_plain_decoding_anywhere(**situation: Any) -> None:
    check_against_plain(**situation)


@pytest.mark.parametrize("machine", sorted(MACHINES))
@pytest.mark.parametrize("load", [1, 8])
def test_the_first_requests_lose_little(machine: str, load: int) -> None:
    target, draft = MACHINES[machine]
    for length in ADAPTIVE:
        for chance in (0.0, 0.3):
            world = World(draft, target, load, even(chance))
            assert target(load) / load / world.price(length, 250) >= 0.94


def best_fixed(machine: str, load: int, chance: float) -> float:
    target, draft = MACHINES[machine]

    def price(k: int) -> float:
        drafting = draft(load * (1 + chance**k)) + (k - 1) * draft(load) if k else 0.0
        return (drafting + target(load * (k + 1))) / (load * sum(chance**i for i in range(k + 1)))

    return min(map(price, range(17)))


@pytest.mark.parametrize("machine", sorted(MACHINES))
@pytest.mark.parametrize("chance", [0.3, 0.8, *(pytest.param(c, marks=pytest.mark.full) for c in (0.6, 0.95))])
@pytest.mark.parametrize("load", [1, 4, pytest.param(16, marks=pytest.mark.full)])
def test_near_the_best_fixed_length(machine: str, load: int, chance: float) -> None:
    """Where every token has the same chance nothing beats a fixed length; 0 is one of them."""
    target, draft = MACHINES[machine]
    world = World(draft, target, load, even(chance))
    best = best_fixed(machine, load, chance)
    assert best / world.price(Acceptance(16), 8000 // (load + 3), skip=200) >= 0.94


@pytest.mark.parametrize(("machine", "load", "factor"), [("gpu", 1, 1.1), ("cpu", 1, 1.03), ("gpu", 8, 0.98)])
def test_better_than_any_fixed_length_where_tokens_differ(machine: str, load: int, factor: float) -> None:
    """Rows that share a pass of the draft at one price whoever takes part leave less to be won."""
    target, draft = MACHINES[machine]

    def price(length: Length) -> float:
        return World(draft, target, load, bursts(0.97, 0.2), noise=False).price(length, 2000, skip=200)

    assert min(price(Fixed(k)) for k in range(1, 9)) / price(Acceptance(16)) > factor


def test_lengths_shrink_under_load() -> None:
    target, draft = MACHINES["cpu"]
    means = []
    for load in (1, 4, 32):
        world = World(draft, target, load, even(0.85))
        world.price(Acceptance(16), 300, skip=100)
        means.append(sum(world.lengths) / len(world.lengths))
    assert means == sorted(means, reverse=True)
    assert means[0] > 1.5
    assert means[-1] < 0.2


def test_it_comes_back_when_acceptance_does() -> None:
    target, draft = MACHINES["gpu"]
    chance = [0.0]
    world = World(draft, target, 1, lambda row, place: chance[0])
    world.price(Confidence(0.0, 8), 500)
    assert sum(world.lengths) < 0.25 * len(world.lengths), "held back"
    chance[0] = 0.9
    world.price(Confidence(0.0, 8), 400, skip=400)
    assert sum(world.lengths) > 2 * len(world.lengths)


def test_a_row_of_its_own_kind_has_its_own_length() -> None:
    world = World(linear(0.5, 0.2), linear(10.0, 0.3), 4, lambda row, place: 0.97 if row == 0 else 0.1)
    world.price(Acceptance(16), 800, skip=200)
    lengths = [world.lengths[row::4] for row in range(4)]
    assert sum(lengths[0]) > 5 * max(sum(other) for other in lengths[1:])


def test_decisions_depend_on_observations_alone() -> None:
    def lengths() -> list[int]:
        target, draft = MACHINES["cpu"]
        world = World(draft, target, 4, bursts(0.9, 0.3), seed=7)
        world.price(Acceptance(16), 400)
        return world.lengths

    assert lengths() == lengths()


def test_a_draft_that_must_read_much_is_tried_less() -> None:
    def tried(missing: int) -> int:
        speculation = Speculation()
        for _ in range(200):
            speculation.verified("d", "t", "r", Confidence(), 4, 0, 4)
        for n in (1, 2, 4, 8, 16):
            for _ in range(20):
                speculation.observe("t", n, 1.0 + 0.1 * n, "target")
                speculation.observe("d", n, 0.5 + 0.1 * n, "first")
                speculation.observe("d", n, 0.5 + 0.1 * n, "later")
        count = 0
        for _ in range(2000):
            speculation.observe("t", 1, 1.1, "target")
            count += speculation.rule(Confidence(), "d", "t", "r", Load(1), missing) is not None
        return count

    assert tried(0) > 10 * tried(2000)
    assert 10 < tried(0) < 60
    assert tried(2000) >= 0


def test_fixed_lengths_are_never_held_back() -> None:
    speculation = Speculation()
    for _ in range(100):
        speculation.observe("t", 1, 1.0, "target")
        speculation.observe("d", 1, 5.0, "first")
        speculation.observe("d", 1, 5.0, "later")
        speculation.verified("d", "t", "r", Fixed(4), 4, 0, 4)
        found = speculation.rule(Fixed(4), "d", "t", "r", Load(1))
        assert found is not None
        assert found.max_tokens == 4


# --------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("load", [1, 8])
@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_copies_are_as_long_as_pays(machine: str, load: int, chance: float) -> None:
    target, _ = MACHINES[machine]
    speculation = Speculation()
    for n in (1, 2, 4, 5, 8, 9, 12, 16, 24, 32):
        for _ in range(20):
            speculation.observe("t", n, target(n), "target")
    found = speculation.copies("t", chance, 16, Load(load))
    plain = target(load)
    gain = {k: sum(chance**i for i in range(1, k + 1)) * plain / load - target(load + k) + plain for k in range(17)}
    best = max(gain.values())
    assert gain[found] >= best - 0.02 * plain / load
    assert speculation.copies("t", chance, 0, Load(load)) == 0


def test_copies_are_tried_until_costs_are_known() -> None:
    speculation = Speculation()
    assert speculation.copies("t", 0.5, 16, Load(1)) == 4
    for _ in range(50):
        speculation.observe("t", 1, 1.0, "target")
    assert speculation.copies("t", 0.5, 16, Load(1)) == 4
    assert speculation.copies("t", 0.5, 2, Load(1)) == 2
    speculation.observe("t", 5, 5.0, "target")
    assert speculation.copies("t", 0.5, 16, Load(1)) == 0
    for _ in range(300):
        speculation.observe("t", 1, 1.0, "target")
    assert speculation.copies("t", 0.5, 16, Load(1)) == 4, "what was measured long ago is measured again"
