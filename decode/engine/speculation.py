"""When speculation pays, and how long a block should be, from measured costs.

A round of speculation by R rows with blocks of k tokens takes F(R) + (k - 1) D(R) + S(R (k + 1)) seconds, where S(n) is
the target's pass over n tokens and F(n) and D(n) are the draft's first pass of a round and its later ones, and writes
R (1 + a + ... + a^k) tokens, where a is the chance that a drafted token stands if those before it do. Its *price* is
the quotient, in seconds per token; plain decoding's is S(R) / R. Costs are measured as requests run, by numbers of
tokens, for the positions that these attend to (``costs``) and at one pace of the machine (``pace``), and a is counted,
for each pair of models and for each request. S grows with its tokens on a CPU and with many rows, and with positions
the more, the more tokens attend to them; so the best k shrinks under load, down to none. F is more than D: a
first pass also reads the tokens that the last round wrote, and finds the caches full of the target's weights (1.8 ms in
place of 1.3, measured on two cores).

Where rows go together, what whole rounds took decides whether they draft (``rounds``); this model says how long blocks
are then, and decides where rounds have said nothing yet or a row is alone.

Decisions are functions of what was observed: no clock, no random numbers. What they are not sure of they try, at a
bounded cost:

* While a request is held back, a little of its time goes into an account. When that covers what a few short blocks will
  probably lose, they are drafted. So acceptance that has become better is noticed, the sooner the less is at stake.
* What a plain step costs at the present load is measured by taking one, at first and then every few hundred rounds.
* Costs at a load not met before are extrapolated from others, and corrected by the first pass.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Literal

from trimtab.decode.draws.lengths import Rule, TokenCosts, longest, measured, rule
from trimtab.decode.engine.attention import reading
from trimtab.decode.engine.costs import FEW, STALE, PassCosts
from trimtab.decode.engine.pace import Pace
from trimtab.decode.engine.rounds import Rounds, Verdict
from trimtab.decode.types import Fixed, Length

__all__ = ["Part", "Speculation", "Spent"]

Part = Literal["target", "first", "later"]  # what a pass is: of the target, the first one that drafts, a later one

_PROBING = 0.015  # share of the time of plain steps that may go into drafts that don't pay
_PROBE = 1  # tokens of such a draft
_BURST = 6  # are drafted in a row: single ones would find the caches cold, and cost up to a fifth more
_STAKE = 0.2  # of what it costs is lost at least, as is assumed
_MARGIN = 0.01  # speculation must be better by this, since estimates err
_APART = 16  # rounds between two such measurements, should the passes be of other sizes
_TRIES = 3  # rounds that are drafted at a load before its costs are believed
_UNSURE = 4  # longest block while costs are unknown
_CAUGHT_UP = 1.5  # tokens that a row reads in a round's first pass: the last, and the one before if all had stood
_FRESH = 4  # passes of the target for which prices are kept: finding them takes 30 us and their costs change slowly
_NEAR = 0.05  # what is as good as equal
_REQUESTS = 1024  # whose own acceptance is remembered

# Acceptance before anything is seen, in tokens that stood and fell, and how fast what is seen fades, per block.
_STOOD, _FELL = 2.1, 0.9
_PAIR_MEMORY, _REQUEST_MEMORY = 0.995, 0.97
_ROUND_MEMORY = 0.95
_LEAN = 20.0  # tokens and blocks that a request's own counts must outweigh: requests differ by 0.1 in acceptance


@dataclass(slots=True)
class _Counts:
    """What became of blocks, fading.

    Attributes:
        stood, fell: drafted tokens that did, of those whose predecessors stood; of dropped ones what was expected.
        blocks, passes, drafted, written: blocks, passes of the draft for each, their tokens, and the tokens that they
            led to.
    """

    stood: float = 0.0
    fell: float = 0.0
    blocks: float = 0.0
    passes: float = 0.0
    drafted: float = 0.0
    written: float = 0.0

    def add(self, drafted: int, accepted: int, passes: int, memory: float) -> None:
        self.stood = memory * self.stood + accepted
        self.fell = memory * self.fell + (accepted < drafted)
        self.blocks = memory * self.blocks + 1
        self.passes = memory * self.passes + passes
        self.drafted = memory * self.drafted + drafted
        self.written = memory * self.written + accepted + 1

    def expect(self, before: float, chance: float) -> None:
        """A token was dropped that would have stood with this chance, had all before it stood, and with that."""
        self.stood += before * chance
        self.fell += before * (1 - chance)

    @property
    def chance(self) -> float:
        """That a drafted token stands if those before it do."""
        return self.stood / (self.stood + self.fell)

    def leaning(self, on: _Counts) -> _Counts:
        """These and, as if it had been seen here, a little of what others saw."""
        tokens = _LEAN / (on.stood + on.fell)
        blocks = _LEAN / on.blocks if on.blocks else 0.0
        return _Counts(
            self.stood + tokens * on.stood,
            self.fell + tokens * on.fell,
            self.blocks + blocks * on.blocks,
            self.passes + blocks * on.passes,
            self.drafted + blocks * on.drafted,
            self.written + blocks * on.written,
        )


@dataclass(frozen=True, slots=True)
class _Prices:
    """What things cost at a load, in seconds.

    Attributes:
        plain: a token by plain decoding.
        token: a token as things are: by speculation if it pays for the rows together, else plain.
        common: the best length of blocks of all rows; 0 where they don't pay together.
        worse: whether blocks as they have been cost more than that.
        drafts, verifies: by how much a round grows with a row's first, second, ... drafted token, if the draft's passes
            are made anyway.
        shared: what these passes cost beside.
        adds_draft, adds_verify: what a row must bring with a block of 0, 1, 2, ... tokens: these costs, or its share of
            common ones.
        verdict: of the rounds of so many rows, where there are several and enough of them have been seen.
        rules: found with these prices, by request.
    """

    plain: float
    token: float
    common: int
    worse: bool
    drafts: list[float]
    shared: list[float]
    verifies: list[float]
    adds_draft: list[float]
    adds_verify: list[float]
    verdict: Verdict | None
    rules: dict[str, Rule] = field(default_factory=dict)

    def adds(self, passes: float, tokens: float) -> float:
        """Seconds for a block of so many tokens that took so many passes of the draft."""
        return _between(self.adds_draft, passes) + _between(self.adds_verify, tokens)

    def costs(self, tokens: int, chance: float) -> list[TokenCosts]:
        """Of the first so many tokens of a block, with the chance that one of them stands if those before it do."""
        each = zip(self.drafts[:tokens], self.verifies[:tokens], self.shared[:tokens], strict=True)
        return [TokenCosts(draft, verify, self.token, chance, shared) for draft, verify, shared in each]


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

    counts: _Counts = field(default_factory=lambda: _Counts(_STOOD, _FELL))
    trial: int = -_BURST
    burst: int = 0
    account: float = 0.0
    calls: int = 0
    plain: int = 0
    measured: int | None = None
    prices: tuple[tuple[int, int, int, str], _Prices] | None = None


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
    """Costs of passes by model, and what to draft now. One for all requests of an engine."""

    def __init__(self) -> None:
        self._target: dict[str, PassCosts] = {}
        self._first: dict[str, PassCosts] = {}
        self._later: dict[str, PassCosts] = {}
        self._rounds: dict[str, float] = {}  # of a draft, fading, and
        self._grown: dict[str, float] = {}  # its passes in these
        self._pairs: dict[tuple[str, str, type[Length]], _Pair] = {}
        self.rounds = Rounds()
        self._pace = Pace()
        self._requests: OrderedDict[tuple[str, str, str], _Counts] = OrderedDict()

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
        costs = self._costs(model, part)
        if part == "target" and costs.count(tokens) >= FEW:
            self._pace.observe(seconds, _seconds(costs, tokens, positions))
        seconds = self._pace.usual(seconds)
        costs.observe(tokens, seconds, positions, self._pace.now)
        if part == "first":
            self._rounds[model] = self._rounds.get(model, 0.0) * _ROUND_MEMORY + 1
            self._grown[model] = self._grown.get(model, 0.0) * _ROUND_MEMORY + 1
        elif part == "later":
            self._grown[model] = self._grown.get(model, 0.0) + 1
        return Spent(seconds, min(seconds, costs.per_position * positions))

    def _costs(self, model: str, part: Part = "target") -> PassCosts:
        kinds = {"target": self._target, "first": self._first, "later": self._later}
        return kinds[part].setdefault(model, PassCosts())

    def _drafting(self, draft: str, load: int, positions: float, most: int) -> list[float]:
        """Seconds of a draft's first, second, ... pass of a round, over as many rows; the first must have been seen."""
        first, later = self.typical(draft, load, positions), self._costs(draft, "later").seconds(load, positions)
        assert first is not None
        return [first, *[first if later is None else later] * (most - 1)]

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

    def typical(self, draft: str, rows: int, positions: float = 0.0) -> float | None:
        """Seconds of a round's first pass of the draft over so many rows, which hold so many positions; None if none
        has been seen.
        """
        return self._costs(draft, "first").seconds(_CAUGHT_UP * rows, positions * reading(_CAUGHT_UP))

    def _counts(self, draft: str, target: str, request: str, length: Length) -> tuple[_Counts, _Counts]:
        """Of all requests, and of this one."""
        pair = self._pairs.setdefault((draft, target, type(length)), _Pair())
        key = (draft, target, request)
        own = self._requests.setdefault(key, _Counts())
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
        load: int,
        missing: int = 0,
        positions: float = 0.0,
    ) -> Rule | None:
        """The rule for the next block; None where none should be drafted.

        Args:
            length: as requested. ``Fixed`` is never held back: it is the request's own wish.
            draft, target: models.
            request: its id, for estimates of its own.
            load: sequences that share the target's next pass.
            missing: tokens that the draft would have to read first, beyond the last two.
            positions: that these sequences hold.
        """
        if isinstance(length, Fixed):
            return rule(length)
        pair = self._pairs.setdefault((draft, target, type(length)), _Pair())
        pair.calls += 1
        if self._wants_plain(pair, target, load):
            return None
        firsts = self._costs(draft, "first")
        # A first measurement may be a disturbed one. Rows that were held back for it would never measure it again.
        if firsts.count(load, 2 * load) < _TRIES or not self._costs(target).passes:
            return replace(rule(length, cap=_UNSURE), trial=True)
        most = longest(length)
        seen = self._requests.get((draft, target, request), _Counts())
        everyone = seen.leaning(pair.counts) if load == 1 else pair.counts
        prices = self._prices(pair, length, draft, target, request, load, positions, everyone)
        verdict = prices.verdict
        held_back = verdict is not None and not verdict.pays
        if held_back and not self._tried(pair, draft, target, load, positions, prices, missing):
            return None
        if verdict is not None and verdict.even:
            return Rule(max(1, prices.common), even=True)
        if request in prices.rules:
            return replace(prices.rules[request])
        own = everyone if load == 1 else seen.leaning(pair.counts)
        chance, sure = own.chance, prices.token * (1 - _MARGIN)
        block, gain, brings, follow = 0, _MARGIN * prices.plain, 0.0, 1.0
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
        follows = load > 1 and verdict is None and not prices.common and chance <= everyone.chance * (1 + _NEAR)
        # Where all draft, a draft costs a row little, and whether it is verified is weighed token by token.
        drops = self._drops(target, load)
        weighed = verdict is not None and drops and measured(length)
        if not weighed and (gain <= _MARGIN * prices.plain or follows):
            return self._probe(pair, length, draft, prices, missing, positions / load, chance, drops)
        block = max(block, prices.common, 1)
        cap = min(most, block if prices.worse else 2 * block + 2)
        if held_back:
            cap = _PROBE
        found = rule(length, prices.costs(cap, chance), cap, drops=drops)
        prices.rules[request] = found
        return replace(found)

    def copies(self, target: str, chance: float, most: int, load: int, positions: float = 0.0) -> int:
        """How many copied tokens, which cost nothing to draft, pay to verify; 0 to ``most``.

        Args:
            target: the model that verifies.
            chance: probability that a copied token stands if those before it do.
            most: tokens that there are.
            load, positions: sequences that share the target's next pass, and what these hold.
        """
        costs = self._costs(target)
        age = costs.age(load + _UNSURE)
        if age is None or age > STALE:
            return min(most, _UNSURE)
        alone = _verifying(costs, load, load, positions)
        found, gain, brings = 0, 0.0, 0.0
        for k in range(1, most + 1):
            brings += chance**k
            more = brings * alone / load - (_verifying(costs, load, load + k, positions) - alone)
            if more > gain:
                found, gain = k, more
        return found

    def _drops(self, target: str, load: int) -> bool:
        """Whether tokens may be dropped: were all of them, the cost of verifying one would never be measured again."""
        return self._costs(target).known(2 * load)

    def _wants_plain(self, pair: _Pair, target: str, load: int) -> bool:
        """Whether this row steps plainly, so that the cost of it is known."""
        if pair.plain:
            pair.plain -= 1
            return True
        costs = self._costs(target)
        if costs.known(load):
            return False
        if pair.measured is not None and pair.calls - pair.measured < _APART * load:
            return False
        passes = 1 if costs.count(load) else 2  # the first one alone may be a disturbed one
        pair.measured, pair.plain = pair.calls, passes * load - 1
        return True

    def _tried(
        self, pair: _Pair, draft: str, target: str, load: int, positions: float, prices: _Prices, missing: int
    ) -> bool:
        """Whether this is a round in which all rows draft to see whether that pays by now; the account covers it."""
        now = self._costs(target).passes
        if pair.trial <= now < pair.trial + _BURST:
            return True
        pair.account += _PROBING * prices.plain
        if pair.account >= self._stake(draft, prices, pair.counts.chance, load, positions, missing):
            pair.account, pair.trial = 0.0, now + 1
        return False

    def _stake(self, draft: str, prices: _Prices, chance: float, rows: int, positions: float, missing: int) -> float:
        """Seconds that so many rows will probably lose by drafting a token each, a few times in a row."""
        first = self.typical(draft, rows, positions)
        assert first is not None
        costs = first + rows * prices.adds_verify[1]
        stake = _BURST * max(_STAKE * costs, costs - rows * chance * prices.plain)
        if missing > 0:
            stake += self._costs(draft, "first").seconds(rows * missing, cautious=True) or 0.0
        return stake

    def _prices(
        self,
        pair: _Pair,
        length: Length,
        draft: str,
        target: str,
        request: str,
        load: int,
        positions: float,
        counts: _Counts,
    ) -> _Prices:
        """Prices at a load, by what became of the blocks of all its rows; found anew every few rounds."""
        verifying, most = self._costs(target), longest(length)
        key = (load, most, verifying.passes // _FRESH, request if load == 1 else "")
        if pair.prices is not None and pair.prices[0] == key:
            return pair.prices[1]
        together = self._drafting(draft, load, positions, most)
        alone = self._drafting(draft, 1, positions / load, most)
        joined = [(t - a) / (load - 1) for t, a in zip(together, alone, strict=True)] if load > 1 else alone
        shared = [a - j for a, j in zip(alone, joined, strict=True)]
        target_pass = [_verifying(verifying, load, load * (k + 1), positions) for k in range(most + 1)]
        plain = target_pass[0] / load
        verdict = None
        if load > 1:
            verdict = self.rounds.verdict(target, type(length), load, plain, measured(length), positions)
        drafted = list(accumulate(together, initial=0.0))
        rounds = [before + seconds for before, seconds in zip(drafted, target_pass, strict=True)]
        best, common = _best(rounds, load, counts.chance)
        usual = best
        if pair.counts.blocks > _UNSURE:  # a rule that picks its moments does better than any one length, or worse
            mean = counts.drafted / counts.blocks
            # A round has as many passes of the draft as its longest block has tokens.
            grown = max(counts.passes / counts.blocks, self._grown[draft] / self._rounds[draft])
            seconds = _between(drafted, grown) + _between(target_pass, mean)
            usual = seconds * counts.blocks / (load * counts.written)
        token = min(best, usual) if verdict is None else min(verdict.drafting, plain)
        if verdict is not None or token < plain * (1 - _MARGIN):
            last = max(1.0, 0.75 * load)  # rows: most draft, so these show what one more token costs
            before_last = [_verifying(verifying, load, load * (k + 1) - last, positions) for k in range(1, most + 1)]
            verifies = [(after - before) / last for before, after in zip(before_last, target_pass[1:], strict=True)]
            adds = [(after - before) / load for before, after in pairwise(target_pass)]
            own = [seconds / load for seconds in together]
        else:
            token, common, own = plain, 0, alone
            one_drafts = [_verifying(verifying, load, load + k, positions) for k in range(most + 1)]
            verifies = adds = [after - before for before, after in pairwise(one_drafts)]
        shares = [joined[k] if k < common else own[k] for k in range(most)]
        adds_draft, adds_verify = (list(accumulate(costs, initial=0.0)) for costs in (shares, adds))
        worse = usual > best * (1 + _NEAR)
        found = _Prices(plain, token, common, worse, joined, shared, verifies, adds_draft, adds_verify, verdict)
        pair.prices = key, found
        return found

    def _probe(
        self,
        pair: _Pair,
        length: Length,
        draft: str,
        prices: _Prices,
        missing: int,
        positions: float,
        chance: float,
        drops: bool,
    ) -> Rule | None:
        """A short block, if the account covers that."""
        pair.account += _PROBING * prices.plain
        if not pair.burst:
            price = self._stake(draft, prices, chance, 1, positions, missing)
            if pair.account < price:
                return None
            pair.account, pair.burst = min(pair.account - price, price), _BURST
        pair.burst -= 1
        return rule(length, prices.costs(_PROBE, chance), _PROBE, drops=drops)


def _seconds(costs: PassCosts, tokens: float, positions: float) -> float:
    found = costs.seconds(tokens, positions)
    assert found is not None
    return found


def _verifying(costs: PassCosts, rows: int, tokens: float, positions: float) -> float:
    """Seconds of the target's pass in which so many rows, which hold so many positions, read so many tokens."""
    return _seconds(costs, tokens, positions * reading(tokens / rows))


def _between(values: list[float], place: float) -> float:
    """The value at a place between whole ones; the last one beyond the end."""
    low = min(int(place), len(values) - 2)
    return values[low] + (values[low + 1] - values[low]) * (min(place, len(values) - 1) - low)


def _best(rounds: list[float], load: int, chance: float) -> tuple[float, int]:
    """The least seconds per token with blocks of one length, at least one token, and that length."""
    best, tokens = (float("inf"), 1), 1.0
    for k in range(1, len(rounds)):
        tokens += chance**k
        best = min(best, (rounds[k] / (load * tokens), k))
    return best
