"""Whether to draft, and how long a block should be, from measured costs and acceptance statistics.

A round of R rows takes P passes of the draft at D(R) seconds each and one of the target at T(n) over its n tokens, R
and the drafted ones. Divided by the tokens that it writes that is the seconds that an accepted token saves, by which
rules weigh tokens (``draws.length_rules``). Where plain decoding, at T(R) / R, is as cheap, rows step plainly; then
drafts are tried for a few rounds now and then, more seldom each time that they still don't pay.

Decisions are functions of what was observed: no clock, no random numbers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from trimtab.decode.engine.costs import CostModel
from trimtab.decode.methods.draws.acceptance import AcceptanceStatistics
from trimtab.decode.methods.draws.length import Fixed, Length
from trimtab.decode.methods.draws.length_rules import Rule, TokenValue, rule

__all__ = ["LengthController"]

_UNMEASURED = 4  # longest block, and copy, while costs are unknown, and passes of a draft until they are known
_SPREAD = 4  # tokens, at least, over which the cost of verifying one more is measured: a single one is lost in noise
_PLAIN, _APART = 4, 64  # rounds that are plain ones to learn their cost, and rounds from one time to the next
_TRIAL = 4  # blocks of a trial
_WAIT, _LONGEST_WAIT = 32, 512  # rounds before the first trial, and at most between two
_SLACK = 0.6  # of what few blocks say, times their uncertainty
_MARGIN = 0.01  # drafting must be better by this


@dataclass(slots=True)
class _Pair:
    """What is known of a draft and a target, for lengths of one kind and about as many rows.

    Attributes:
        round: passes of the target, and rows, for which was decided:
        drafts: whether rows draft,
        value: what a token is worth; None while costs are unknown,
        drops: and whether tokens may be dropped.
        plain: passes of the target when rounds were last plain ones to learn their cost.
        trial: passes of the target at the beginning of a trial, while drafting doesn't pay.
        wait: rounds until the next.
    """

    statistics: AcceptanceStatistics = field(default_factory=AcceptanceStatistics)
    round: tuple[int, int] = (-1, 0)
    drafts: bool = True
    value: TokenValue | None = None
    drops: bool = True
    plain: int = -_APART
    trial: int | None = None
    wait: int = _WAIT


class LengthController:
    """What to draft now. One for all requests of an engine."""

    def __init__(self) -> None:
        self._targets: defaultdict[str, CostModel] = defaultdict(CostModel)
        self._drafts: defaultdict[str, CostModel] = defaultdict(CostModel)
        self._pairs: defaultdict[tuple[str, str, type[Length], int], _Pair] = defaultdict(_Pair)

    def observe_pass(self, model: str, size: int, seconds: float, *, drafting: bool = False) -> None:
        """A pass took so long, with all that is done for it: sampling, verifying. Those that read prompts don't count.

        Args:
            model: its name.
            size: tokens that it read; rows, where it drafted.
            seconds: of wall time.
            drafting: whether it grew blocks.
        """
        (self._drafts if drafting else self._targets)[model].observe(size, seconds)

    def observe_block(self, found: Rule, accepted: int) -> None:
        """Of a block that followed a rule so many tokens were accepted; or all of it was dropped."""
        if found.statistics is not None:
            found.statistics.add(found.read, accepted, len(found.read) + found.dropped)

    def length_rule(self, length: Length, draft: str, target: str, rows: int) -> Rule | None:
        """The rule for the next block; None where none should be drafted.

        Args:
            length: as requested. ``Fixed`` is never held back: it is the request's own wish.
            draft, target: models.
            rows: that probably share the target's next pass.
        """
        if isinstance(length, Fixed):
            return rule(length)
        pair = self._pairs[draft, target, type(length), rows.bit_length()]
        now = self._targets[target].passes, rows
        if pair.round != now:
            pair.round = now
            self._decide(pair, self._drafts[draft], self._targets[target], rows)
        if not pair.drafts:
            return None
        cap = _UNMEASURED if pair.value is None else None
        return rule(length, pair.statistics, pair.value, cap=cap, drops=pair.drops)

    def copies(self, target: str, chance: float, most: int, rows: int) -> int:
        """How many copied tokens, which cost nothing to draft, pay to verify; 0 to ``most``.

        Args:
            target: the model that verifies.
            chance: probability that a copied token is accepted if those before it are.
            most: tokens that there are.
            rows: that probably share its next pass.
        """
        costs = self._targets[target]
        if not costs.known(rows + _UNMEASURED):
            return min(most, _UNMEASURED)
        plain = costs.seconds(rows)
        best, gain, brings = 0, 0.0, 0.0
        for count in range(1, most + 1):
            brings += chance**count
            more = brings * plain / rows - (costs.seconds(rows + count) - plain)
            if more > gain:
                best, gain = count, more
        return best

    def _decide(self, pair: _Pair, draft: CostModel, target: CostModel, rows: int) -> None:
        """Whether the rows of a round draft, and what a token is worth to them."""
        now, statistics = target.passes, pair.statistics
        statistics.end_round(rows)
        if not target.known(rows) and not _PLAIN <= now - pair.plain < _APART:
            if now - pair.plain >= _APART:
                pair.plain = now
            pair.drafts = False
            return
        pair.drafts, pair.drops = True, True
        if draft.passes < _UNMEASURED or not now:
            pair.value = None
            return
        if pair.value is None:
            statistics.blocks = 0.0  # drafted without regard to costs, they say nothing of what those will be that are
        plain = target.seconds(rows) / rows
        price = _seconds_per_token(statistics, draft, target, rows) if statistics.believed else None
        alone, all_rows = draft.seconds(1), draft.seconds(rows)
        each = (all_rows - alone) / (rows - 1) if rows > 1 else alone
        verify = target.added(rows, max(rows, _SPREAD))
        saves = plain if price is None else min(plain, price)
        pair.value = TokenValue(statistics.chances, saves, verify, each, alone - each)
        worth = rows * pair.value.surplus(1.0) > alone - each
        slack = _SLACK * (statistics.uncertainty if pair.trial is None else 0.0) - _MARGIN
        pays = worth if price is None else price < plain * (1 + slack)
        pair.drops = worth or pays  # else a trial would verify nothing, and learn nothing
        pair.drafts = self._resumes(pair, now, rows, pays)

    def _resumes(self, pair: _Pair, now: int, rows: int, pays: bool) -> bool:
        """Whether rows draft, if only for a trial."""
        if pays and (pair.trial is None or now >= pair.trial):
            pair.trial, pair.wait = None, _WAIT
            return True
        if pair.trial is None:
            pair.statistics.fade()
            pair.trial = now + pair.wait
        elif now >= pair.trial + max(1, _TRIAL // rows):
            pair.wait = min(2 * pair.wait, _LONGEST_WAIT)
            pair.trial = now + pair.wait
        return now >= pair.trial


def _seconds_per_token(statistics: AcceptanceStatistics, draft: CostModel, target: CostModel, rows: int) -> float:
    """Of rounds with blocks as they were of late."""
    seconds = statistics.passes * draft.seconds(rows) + target.seconds(rows * (1 + statistics.drafted))
    return seconds / (rows * (1 + statistics.accepted))
