"""Rules for the lengths of blocks, and the decisions of the controller in simulations whose true costs are known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.engine.lengths import LengthController
from trimtab.decode.methods.draws.length import (
    Acceptance,
    Confidence,
    Fixed,
    Length,
)
from trimtab.decode.methods.draws.length_rules import Rule, TokenValue, longest, rule, together

# --------------------------------------------------------------------------------------------------------------- rules


def drafted(length: Length, top_probs: list[float], heads: list[float] | None = None, **options: Any) -> int:
    """Tokens that are verified of those that a rule lets be drafted."""
    found = rule(length, **options)
    for i, prob in enumerate(top_probs):
        if not found.keeps(prob, None if heads is None else heads[i]):
            return i
        if not found.goes_on(prob):
            return i + 1
    return len(top_probs)


def test_fixed_lengths_are_fixed() -> None:
    assert drafted(Fixed(3), [0.01] * 9) == 3
    assert drafted(Fixed(3), [0.01] * 9, cap=1) == 3
    assert drafted(Fixed(3), [0.01] * 9, value=TokenValue((0.1,), 1.0, 5.0, 5.0)) == 3
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
    assert rule(Acceptance()).wants_acceptance
    assert not rule(Confidence()).wants_acceptance


def test_a_bound_of_ones_own_is_honoured_whatever_costs_say() -> None:
    value = TokenValue((0.1,), 1.0, verify=5.0, draft=5.0)
    assert drafted(Acceptance(8, stop=0.27), [0.5] * 6, [0.9] * 6, value=value) == 3


def test_acceptance_needs_a_head() -> None:
    with pytest.raises(ValueError, match="length = Acceptance: the draft has no acceptance head: accepted: Confidence"):
        rule(Acceptance()).keeps(0.9, None)


@given(st.floats(0.01, 5), st.floats(0, 1), st.floats(0.01, 5), st.floats(0.05, 1), st.floats(0.001, 1))
def test_the_bound_is_the_theorems(draft: float, verify: float, saves: float, chance: float, survival: float) -> None:
    """(c2 + D) / (c1 + c2 + D) with c1 all that the token costs and c1 + c2 + D = a L."""
    c1 = draft + verify
    c2_and_delta = chance * saves - c1
    bound = c2_and_delta / (c1 + c2_and_delta)
    if abs(1 - survival - bound) > 1e-6:
        stops = TokenValue((chance,), saves, verify, draft).surplus(survival) <= 0
        assert stops == (1 - survival >= bound)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0.01, 5), st.floats(0, 3), st.floats(0, 1))
def test_a_token_is_worth_what_it_brings_where_it_is_verified(
    chances: list[float], saves: float, verify: float, survival: float
) -> None:
    expected = mean(max(0.0, survival * chance * saves - verify) for chance in chances) - 0.2
    value = TokenValue(chances, saves, verify, draft=0.2)
    assert value.surplus(survival) == pytest.approx(expected, abs=1e-9)


def test_the_bound_stops_at_the_best_fixed_length() -> None:
    """With an equal chance at every place the best block has one length, and the rule finds it."""
    for a, ratio in ((0.6, 5.0), (0.8, 10.0), (0.9, 20.0), (0.95, 4.0)):
        price = {k: (k + ratio) / sum(a**i for i in range(k + 1)) for k in range(1, 33)}
        best = min(price, key=price.__getitem__)
        value = TokenValue((a,), price[best], verify=0.0, draft=1.0)
        assert drafted(Acceptance(32), [0.5] * 32, [a] * 32, value=value) == best


def test_a_token_that_costs_more_than_it_brings_is_dropped() -> None:
    value = TokenValue((1.0,), 1.0, verify=0.3, draft=-1.0)  # worth it from 0.3 on, those before it included

    def kept(heads: list[float], length: Length = Acceptance(8), **options: Any) -> int:  # noqa: B008
        return drafted(length, [0.5] * len(heads), heads, value=value, **options)

    assert kept([0.29, 1.0]) == 0
    assert kept([0.31, 0.97]) == 2
    assert kept([0.8, 0.8, 0.5, 0.9]) == 3
    assert kept([0.8, 0.8, 0.46, 1.0]) == 2
    assert kept([0.29, 1.0], drops=False) == 2
    assert kept([0.01], Acceptance(8, stop=0.999)) == 1
    assert kept([0.01], Fixed(1)) == 1
    found = rule(Acceptance(), value=value)
    assert found.keeps(0.5, 0.8)
    assert not found.dropped
    assert not found.keeps(0.5, 0.25)
    assert found.dropped
    assert (found.read, found.survival) == ([0.8], 0.8)


def test_rows_share_a_pass_if_it_pays_for_all_of_them_together() -> None:
    def wanting(heads: list[float]) -> list[Rule]:
        found = []
        for head in heads:
            found.append(rule(Acceptance(), value=TokenValue((0.5,), 2.0, verify=0.0, draft=0.1, shared=1.0)))
            assert found[-1].keeps(0.5, head)
        return found  # each is worth 0.5 * 2 * head - 0.1 more than its own cost

    assert not together(wanting([0.6]))
    assert together(wanting([0.6, 0.7]))
    assert not together(wanting([0.6, 0.5]))
    assert not together([])
    assert together([rule(Fixed(2))])


# --------------------------------------------------------------------------------------------------------- simulations

Curve = Callable[[float], float]
Chance = Callable[[int, int], float]


@dataclass
class World:
    """An engine with one draft and one target, rows in step.

    Attributes:
        draft, target: true seconds of a pass over n tokens.
        load: rows.
        chance: (row, place in its answer) -> that a drafted token is accepted; a perfect head, and the draft's highest
            probability, say the same.
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
    controller: LengthController = field(default_factory=LengthController)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.written = [0] * self.load

    @staticmethod
    def read(chance: float) -> float:
        """What the draft says of it."""
        return chance

    def spend(self, model: str, size: int, first: bool = False) -> None:
        seconds = (self.target if model == "t" else self.draft)(size) + self.cold * first
        self.seconds += seconds
        if self.noise:
            seconds *= (1 + 0.1 * self.rng.random()) * (5 if self.rng.random() < 0.03 else 1)
        self.controller.observe_pass(model, size, seconds, drafting=model == "d")

    def round(self, length: Length | None) -> None:
        """Each row drafts, then all are verified; None is plain decoding."""
        rules: dict[int, Rule] = {}
        for row in range(self.load):
            found = None if length is None else self.controller.length_rule(length, "d", "t", self.load)
            if found is not None:
                rules[row] = found
        accepts: dict[int, list[bool]] = {row: [] for row in rules}
        growing = list(rules)
        while growing:
            self.spend("d", len(growing), first=len(growing) == len(rules) and not any(accepts.values()))
            going = []
            for row in growing:
                chance = self.chance(row, self.written[row] + len(accepts[row]))
                read = self.read(chance)
                if rules[row].keeps(read, read):
                    accepts[row].append(self.rng.random() < chance)
                    if rules[row].goes_on(read):
                        going.append(row)
            growing = going if together([rules[row] for row in going]) else []
        self.spend("t", self.load + sum(map(len, accepts.values())))
        for row in range(self.load):
            block = accepts.get(row, [])
            accepted = block.index(False) if False in block else len(block)
            self.tokens += accepted + 1
            self.written[row] += accepted + 1
            self.lengths.append(len(block))
            if row in rules:
                self.controller.observe_block(rules[row], accepted)

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
        return (k * draft(load) + target(load * (k + 1))) / (load * sum(chance**i for i in range(k + 1)))

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


@pytest.mark.parametrize("seed", range(4))
def test_rows_whose_drafts_are_rejected_verify_less(seed: int) -> None:
    chances = lambda row, place: 0.97 if row == 0 else 0.1  # noqa: E731
    world = World(linear(0.2, 0.1), linear(4.0, 1.5), 4, chances, seed=seed)
    world.price(Acceptance(16), 800, skip=200)
    lengths = [world.lengths[row::4] for row in range(4)]
    assert sum(lengths[0]) > 5 * max(sum(other) for other in lengths[1:])
    assert mean(lengths[0]) > 0.5


def test_decisions_depend_on_observations_alone() -> None:
    def lengths() -> list[int]:
        target, draft = MACHINES["cpu"]
        world = World(draft, target, 4, bursts(0.9, 0.3), seed=7)
        world.price(Acceptance(16), 400)
        return world.lengths

    assert lengths() == lengths()


@pytest.mark.parametrize("length", ADAPTIVE)
@pytest.mark.parametrize("load", [1, 8])
def test_where_nothing_is_accepted_drafts_are_tried_seldom(length: Length, load: int) -> None:
    target, draft = MACHINES["cpu"]
    world = World(draft, target, load, even(0.0))
    world.price(length, 4000, skip=1000)
    tried = sum(count > 0 for count in world.lengths)
    assert 0 < tried < 0.03 * len(world.lengths)


def test_top_probabilities_that_mislead_are_calibrated() -> None:
    """A draft that is always sure and mostly wrong: where its word were taken, long blocks would be drafted."""
    target, draft = MACHINES["gpu"]

    class Sure(World):
        read = staticmethod(lambda chance: 0.95)

    means = [
        mean(world.lengths)
        for world in (Sure(draft, target, 1, even(0.4)), World(draft, target, 1, even(0.95)))
        if world.price(Confidence(0.01, 16), 2000, skip=1000)
    ]
    assert means[0] < 4 < means[1]


def test_fixed_lengths_are_never_held_back() -> None:
    controller = LengthController()
    for _ in range(100):
        controller.observe_pass("t", 1, 1.0)
        controller.observe_pass("d", 1, 5.0, drafting=True)
        found = controller.length_rule(Fixed(4), "d", "t", 1)
        assert found is not None
        assert found.max_tokens == 4
        controller.observe_block(found, 0)


# --------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("load", [1, 8])
@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_copies_are_as_long_as_pays(machine: str, load: int, chance: float) -> None:
    target, _ = MACHINES[machine]
    controller = LengthController()
    for n in (1, 2, 4, 5, 8, 9, 12, 16, 24, 32):
        for _ in range(20):
            controller.observe_pass("t", n, target(n))
    found = controller.copies("t", chance, 16, load)
    plain = target(load)
    gain = {k: sum(chance**i for i in range(1, k + 1)) * plain / load - target(load + k) + plain for k in range(17)}
    best = max(gain.values())
    assert gain[found] >= best - 0.02 * plain / load
    assert controller.copies("t", chance, 0, load) == 0


def test_copies_are_tried_until_costs_are_known() -> None:
    controller = LengthController()
    assert controller.copies("t", 0.5, 16, 1) == 4
    for _ in range(50):
        controller.observe_pass("t", 1, 1.0)
    assert controller.copies("t", 0.5, 16, 1) == 4
    assert controller.copies("t", 0.5, 2, 1) == 2
    for _ in range(4):
        controller.observe_pass("t", 5, 5.0)
    assert controller.copies("t", 0.5, 16, 1) == 0
    for _ in range(500):
        controller.observe_pass("t", 1, 1.0)
    assert controller.copies("t", 0.5, 16, 1) == 4, "what was measured long ago is measured again"
