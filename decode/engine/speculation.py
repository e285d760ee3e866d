"""When speculation pays, and how long a block should be, from measured costs.

Costs are measured as requests run, by numbers of tokens, for the positions that these attend to (``costs``) and at one
pace of the machine (``pace``); acceptance is counted, for each pair of models and for each request (``counts``). Of
these are made the prices of drafting and of plain decoding (``prices``).

Where rows go together, what whole rounds took decides whether they draft (``rounds``); prices say how long blocks are
then, and decide where rounds have said nothing yet or a row is alone.

Decisions are functions of what was observed: no clock, no random numbers. What they are not sure of they try, at a
bounded cost:

* While a request is held back, a little of its time goes into an account. When that covers what a few short blocks will
  probably lose, they are drafted. So acceptance that has become better is noticed, the sooner the less is at stake.
* What a plain step costs at the present load is measured by taking one, at first and then every few hundred rounds.
* Costs at a load not met before are extrapolated from others, and corrected by the first pass.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field, replace
from typing import Literal

from trimtab.decode.engine.costs import FEW, STALE, DraftCosts, DraftPart, Load, PassCosts
from trimtab.decode.engine.counts import Counts
from trimtab.decode.engine.pace import Pace
from trimtab.decode.engine.prices import MARGIN, NEAR, Prices, find
from trimtab.decode.engine.rounds import Rounds
from trimtab.decode.methods.draws.length import Fixed, Length
from trimtab.decode.methods.draws.lengths import (
    Rule,
    longest,
    measured,
    rule,
)

__all__ = ["Part", "Speculation", "Spent"]

Part = Literal["target"] | DraftPart  # what a pass is: of the target, the first one that drafts, a later one

_PROBING = 0.015  # share of the time of plain steps that may go into drafts that don't pay
_PROBE = 1  # tokens of such a draft
_BURST = 6  # are drafted in a row: single ones would find the caches cold, and cost up to a fifth more
_STAKE = 0.2  # of what it costs is lost at least, as is assumed
_APART = 16  # rounds between two such measurements, should the passes be of other sizes
_TRIES = 3  # rounds that are drafted at a load before its costs are believed
_UNSURE = 4  # longest block while costs are unknown
_FRESH = 4  # passes of the target for which prices are kept: finding them takes 30 us and their costs change slowly
_REQUESTS = 1024  # whose own acceptance is remembered

_PAIR_MEMORY, _REQUEST_MEMORY = 0.995, 0.97  # how fast what became of blocks fades, per block


@dataclass(slots=True)
class _Pair:
    """What is known of a draft and a target, for lengths of one kind.

    Attributes:
        counts: over all requests.
        trial: passes of the target before the rounds in which all rows draft, though that didn't pay.
        burst: blocks that are still to be tried.
        account: seconds that may be spent on trying.
        calls: blocks asked for.
        plain: of the next ones so many are refused, to see what a plain step costs.
        measured: calls when that was done last.
        prices: the latest, and what they were found from.
    """

    counts: Counts = field(default_factory=Counts.prior)
    trial: int = -_BURST
    burst: int = 0
    account: float = 0.0
    calls: int = 0
    plain: int = 0
    measured: int | None = None
    prices: tuple[tuple[int, int, int, str], Prices] | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds that a pass takes at the machine's usual pace, as all costs here are.

    Attributes:
        seconds: all of them.
        reading: those of them that depend on how many positions its tokens attend to.
    """

    seconds: float
    reading: float


class Speculation:
    """What to draft now. One for all requests of an engine.

    Attributes:
        targets: what their passes take, by name.
        rounds: those that were seen.
    """

    def __init__(self) -> None:
        self.targets: defaultdict[str, PassCosts] = defaultdict(PassCosts)
        self._drafts: defaultdict[str, DraftCosts] = defaultdict(DraftCosts)
        self._pairs: defaultdict[tuple[str, str, type[Length]], _Pair] = defaultdict(_Pair)
        self.rounds = Rounds()
        self._pace = Pace()
        self._requests: OrderedDict[tuple[str, str, str], Counts] = OrderedDict()

    # ---------------------------------------------------------------------------------------------------- observations

    def observe(self, model: str, tokens: int, seconds: float, part: Part, positions: float = 0.0) -> Spent:
        """A pass of ``model`` over ``tokens`` tokens took so long, with all that is done for it: sampling, verifying.

        Args:
            model: its name.
            tokens: read, nearly all of them for rows of output; passes that read prompts are no measure.
            seconds: of wall time.
            part: what it was for. Passes that draft only grow blocks; all those of one round go together.
            positions: that its tokens attended to, in those that are read for one token (``attention.reading``).
        """
        if part == "target":
            costs = self.targets[model]
            if costs.count(tokens) >= FEW:
                usual = costs.seconds(tokens, positions)
                assert usual is not None
                self._pace.observe(seconds, usual)
            seconds = self._pace.usual(seconds)
            costs.observe(tokens, seconds, positions, self._pace.now)
        else:
            seconds = self._pace.usual(seconds)
            costs = self._drafts[model].observe(part, tokens, seconds, positions, self._pace.now)
        return Spent(seconds, min(seconds, costs.per_position * positions))

    def verified(
        self, draft: str, target: str, request: str, length: Length, drafted: int, accepted: int, passes: int
    ) -> None:
        """A block of ``drafted`` tokens, at least one, was verified and ``accepted`` of them stood.

        Args:
            draft, target, request: whose it was.
            length: as requested.
            drafted, accepted: tokens.
            passes: of the draft: as many as tokens, and one more if a token was dropped.
        """
        of_all, own = self._counts(draft, target, request, length)
        of_all.add(drafted, accepted, passes, _PAIR_MEMORY)
        own.add(drafted, accepted, passes, _REQUEST_MEMORY)

    def dropped(
        self, draft: str, target: str, request: str, length: Length, before: float, chance: float, *, alone: bool
    ) -> None:
        """A drafted token was not worth verifying.

        Args:
            draft, target, request: whose it was.
            length: as requested.
            before: probability that all tokens of the block before it stand.
            chance: that it would have stood if they do.
            alone: whether it was the first, so that no block is verified.
        """
        of_all, own = self._counts(draft, target, request, length)
        if alone:
            of_all.add(0, 0, 1, _PAIR_MEMORY)
            own.add(0, 0, 1, _REQUEST_MEMORY)
        of_all.expect(before, chance)
        own.expect(before, chance)

    def beginning(self, draft: str, load: Load) -> float | None:
        """Seconds of a round's first pass of the draft; None if none has been seen."""
        return self._drafts[draft].beginning(load)

    def _counts(self, draft: str, target: str, request: str, length: Length) -> tuple[Counts, Counts]:
        """Of all requests, and of this one."""
        pair = self._pairs[draft, target, type(length)]
        key = (draft, target, request)
        own = self._requests.setdefault(key, Counts())
        self._requests.move_to_end(key)
        if len(self._requests) > _REQUESTS:
            self._requests.popitem(last=False)
        return pair.counts, own

    # ------------------------------------------------------------------------------------------------------- decisions

    def rule(
        self,
        length: Length,
        draft: str,
        target: str,
        request: str,
        load: Load,
        missing: int = 0,
    ) -> Rule | None:
        """The rule for the next block; None where none should be drafted.

        Args:
            length: as requested. ``Fixed`` is never held back: it is the request's own wish.
            draft, target: models.
            request: its id, for estimates of its own.
            load: of the target's next pass.
            missing: tokens that the draft would have to read first, beyond the last two.
        """
        if isinstance(length, Fixed):
            return rule(length)
        pair = self._pairs[draft, target, type(length)]
        pair.calls += 1
        if self._wants_plain(pair, target, load.rows):
            return None
        firsts = self._drafts[draft].first
        # A first measurement may be a disturbed one. Rows that were held back for it would never measure it again.
        if firsts.count(load.rows, 2 * load.rows) < _TRIES or not self.targets[target].passes:
            return replace(rule(length, cap=_UNSURE), trial=True)
        most = longest(length)
        seen = self._requests.get((draft, target, request), Counts())
        everyone = seen.leaning(pair.counts) if load.rows == 1 else pair.counts
        prices = self._prices(pair, length, draft, target, request, load, everyone)
        verdict = prices.verdict
        held_back = verdict is not None and not verdict.pays
        if held_back and not self._tried(pair, draft, target, load, prices, missing):
            return None
        if verdict is not None and verdict.even:
            return Rule(max(1, prices.common), even=True)
        if request in prices.rules:
            return replace(prices.rules[request])
        own = everyone if load.rows == 1 else seen.leaning(pair.counts)
        chance, sure = own.chance, prices.token * (1 - MARGIN)
        block, gain, brings, follow = 0, MARGIN * prices.plain, 0.0, 1.0
        for k in range(1, most + 1):
            follow *= chance
            brings += follow
            more = brings * sure - prices.adds_draft[k] - prices.adds_verify[k]
            if more > gain:
                block, gain = k, more
        if own.blocks:
            costs = prices.adds(own.passes / own.blocks, own.drafted / own.blocks)
            gain = max(gain, (own.written / own.blocks - 1) * sure - costs)
        # Rows that are like the others go together or not at all: they would all take themselves for the only one.
        follows = load.rows > 1 and verdict is None and not prices.common and chance <= everyone.chance * (1 + NEAR)
        # Where all draft, a draft costs a row little, and whether it is verified is weighed token by token.
        drops = self._drops(target, load.rows)
        weighed = verdict is not None and drops and measured(length)
        if not weighed and (gain <= MARGIN * prices.plain or follows):
            return self._probe(pair, length, draft, prices, load, missing, chance, drops)
        block = max(block, prices.common, 1)
        cap = min(most, block if prices.worse else 2 * block + 2)
        if held_back:
            cap = _PROBE
        found = rule(length, prices.costs(cap, chance), cap, drops=drops)
        prices.rules[request] = found
        return replace(found)

    def copies(self, target: str, chance: float, most: int, load: Load) -> int:
        """How many copied tokens, which cost nothing to draft, pay to verify; 0 to ``most``.

        Args:
            target: the model that verifies.
            chance: probability that a copied token stands if those before it do.
            most: tokens that there are.
            load: of its next pass.
        """
        costs, rows = self.targets[target], load.rows
        age = costs.age(rows + _UNSURE)
        if age is None or age > STALE:
            return min(most, _UNSURE)
        without = costs.at(load, rows)
        found, gain, brings = 0, 0.0, 0.0
        for k in range(1, most + 1):
            brings += chance**k
            more = brings * without / rows - (costs.at(load, rows + k) - without)
            if more > gain:
                found, gain = k, more
        return found

    def _drops(self, target: str, rows: int) -> bool:
        """Whether tokens may be dropped: were all of them, the cost of verifying one would never be measured again."""
        return self.targets[target].known(2 * rows)

    def _wants_plain(self, pair: _Pair, target: str, rows: int) -> bool:
        """Whether this row steps plainly, so that the cost of it is known."""
        if pair.plain:
            pair.plain -= 1
            return True
        costs = self.targets[target]
        if costs.known(rows):
            return False
        if pair.measured is not None and pair.calls - pair.measured < _APART * rows:
            return False
        passes = 1 if costs.count(rows) else 2  # the first one alone may be a disturbed one
        pair.measured, pair.plain = pair.calls, passes * rows - 1
        return True

    def _tried(self, pair: _Pair, draft: str, target: str, load: Load, prices: Prices, missing: int) -> bool:
        """Whether this is a round in which all rows draft to see whether that pays by now; the account covers it."""
        now = self.targets[target].passes
        if pair.trial <= now < pair.trial + _BURST:
            return True
        pair.account += _PROBING * prices.plain
        if pair.account >= self._stake(draft, prices, pair.counts.chance, load, missing):
            pair.account, pair.trial = 0.0, now + 1
        return False

    def _stake(self, draft: str, prices: Prices, chance: float, load: Load, missing: int) -> float:
        """Seconds that a load's rows will probably lose by drafting a token each, a few times in a row."""
        first = self.beginning(draft, load)
        assert first is not None
        costs = first + load.rows * prices.adds_verify[1]
        stake = _BURST * max(_STAKE * costs, costs - load.rows * chance * prices.plain)
        if missing > 0:
            stake += self._drafts[draft].first.seconds(load.rows * missing, cautious=True) or 0.0
        return stake

    def _prices(
        self, pair: _Pair, length: Length, draft: str, target: str, request: str, load: Load, counts: Counts
    ) -> Prices:
        """Prices at a load, by what became of the blocks of all its rows; found anew every few rounds."""
        costs, most, rows = self.targets[target], longest(length), load.rows
        key = (rows, most, costs.passes // _FRESH, request if rows == 1 else "")
        if pair.prices is not None and pair.prices[0] == key:
            return pair.prices[1]
        verdict = None
        if rows > 1:
            plain = costs.at(load, rows) / rows
            verdict = self.rounds.verdict(target, type(length), load, plain, measured(length))
        found = find(costs, self._drafts[draft], load, most, counts, pair.counts.blocks, verdict)
        pair.prices = key, found
        return found

    def _probe(
        self,
        pair: _Pair,
        length: Length,
        draft: str,
        prices: Prices,
        load: Load,
        missing: int,
        chance: float,
        drops: bool,
    ) -> Rule | None:
        """A short block, if the account covers that."""
        pair.account += _PROBING * prices.plain
        if not pair.burst:
            price = self._stake(draft, prices, chance, load.alone, missing)
            if pair.account < price:
                return None
            pair.account, pair.burst = min(pair.account - price, price), _BURST
        pair.burst -= 1
        return rule(length, prices.costs(_PROBE, chance), _PROBE, drops=drops)
