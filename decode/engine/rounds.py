"""How rows that share the target's passes should draft, if at all, from what whole rounds took each way.

What a round costs is not just the sum of what its passes cost alone: rows of unlike lengths make attention slower, for
one, and predicting each token's chances takes time. So where rows go together, no model of costs decides but the rounds
themselves, by number of rows: seconds per written token, at the positions that rows hold now, of plain rounds, of
rounds in which each block ends by its own tokens' chances, and of *even* ones, in which all have the length that is
best on average and no chances are read. Of the latter two the worse is tried again every now and then; while drafting
doesn't pay, the better, at a bounded cost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from trimtab.decode.engine.costs import Load
from trimtab.decode.methods.draws.length import Length

__all__ = ["Kind", "Rounds", "Verdict"]

Kind = tuple[type[Length], bool] | None  # of the lengths of a round's blocks, and whether they were even; None: plain

# Numbers of rounds of 8 rows; of rounds with fewer rows as many more (see ``_rounds``).
_LATEST = 48  # that are remembered: their mean price is known to about 1.5 %
_RECENT = 8  # of them stay when drafting stops, so that a few trials can bring it back
_SEEN = 4  # must have been seen before they decide
_FIRST = 4  # before even ones are tried for the first time,
_TRIED = 12  # and judged for the first time
_APART, _LONG = 64, 8  # then the other way is tried after so many for so long,
_RARELY = 4  # so much more rarely where it is worse by
_CLEARLY = 0.05
_NOISE = 0.1  # of a single round's price
_DISTURBED = 1.5  # times the median time: such a round says nothing
_MARGIN = 0.03  # drafting must be better by this to begin; it ends where it is no better
# Reading chances must be better by the first of these, give or take the second. It costs a round more than its passes
# show: 0.2 ms of 28 for the rules, and passes over rows of unlike lengths that pass for a slower pace of the machine.
_EASE, _NEAR = 0.03, 0.005


@dataclass(frozen=True, slots=True)
class Verdict:
    """What rounds of a number of rows say.

    Attributes:
        drafting: seconds per token with drafts, the better way.
        pays: whether that is less than without.
        even: whether the next blocks should be even.
    """

    drafting: float
    pays: bool
    even: bool


@dataclass(slots=True)
class _Choice:
    """Between ways to draft, for a target, a kind of length and a number of rows.

    Attributes:
        pays: whether drafting did, when last asked.
        even: whether even blocks were as good or better.
        clear: whether the other way was clearly worse.
        drafted: rounds since that was last tried.
    """

    pays: bool = True
    even: bool = False
    clear: bool = False
    drafted: int = 0


class _Round(NamedTuple):
    """One that was seen.

    Attributes:
        seconds: that it took, whatever rows hold,
        per_position: and for each position that they hold.
        written: tokens.
    """

    seconds: float
    per_position: float
    written: int


@dataclass(slots=True)
class Rounds:
    """The latest rounds, by target, kind and number of rows."""

    _latest: dict[tuple[str, Kind, int], deque[_Round]] = field(default_factory=dict)
    _choices: dict[tuple[str, type[Length], int], _Choice] = field(default_factory=dict)

    def add(
        self,
        target: str,
        kind: Kind,
        load: Load,
        seconds: float,
        written: int,
        reading: float = 0.0,
    ) -> None:
        """One round.

        Args:
            target: the model that all rows share.
            kind: of its blocks.
            load: of the target's pass.
            seconds: of that pass and of the draft's before it.
            written: tokens.
            reading: those of the seconds that are in proportion to the positions that rows held.
        """
        rows, positions = load
        if written > 0 and 0 < seconds < float("inf"):
            latest = self._latest.setdefault((target, kind, _crowd(rows)), deque(maxlen=_rounds(_LATEST, rows)))
            latest.append(_Round(seconds - reading, reading / positions if positions > 0 else 0.0, written))
            if kind is not None:
                choice = self._choices.setdefault((target, kind[0], _crowd(rows)), _Choice())
                choice.drafted = (choice.drafted + 1) % _rounds(_apart(choice) + _LONG, rows)

    def price(self, target: str, kind: Kind, load: Load) -> float | None:
        """Seconds per token; None while too few rounds have been seen."""
        rows, positions = load
        found = self._latest.get((target, kind, _crowd(rows)), ())
        if len(found) < _rounds(_SEEN, rows):
            return None
        longest = _DISTURBED * sorted(each.seconds for each in found)[len(found) // 2]
        kept = [each for each in found if each.seconds <= longest]
        seconds = sum(each.seconds for each in kept) + positions * sum(each.per_position for each in kept)
        return seconds / sum(each.written for each in kept)

    def verdict(
        self,
        target: str,
        length: type[Length],
        load: Load,
        plain: float,
        even: bool = False,
    ) -> Verdict | None:
        """Whether drafts pay, and how to draft; None while that isn't known.

        Args:
            target: the model that all rows share.
            length: of the next blocks.
            load: of its next pass.
            plain: seconds per token without drafts, where too few such rounds have been seen.
            even: whether even blocks are allowed.
        """
        rows = load.rows
        price = self.price(target, (length, False), load)
        evenly = self.price(target, (length, True), load)
        if price is None:
            return None
        choice = self._choices[target, length, _crowd(rows)]
        trying = False
        tried = len(self._latest.get((target, (length, True), _crowd(rows)), ()))
        if even and (evenly is None or tried < _rounds(_TRIED, rows)):
            trying = choice.drafted >= _rounds(_FIRST, rows)
        elif even and evenly is not None:
            choice.even = evenly < price * (1 + _EASE) * (1 + _NEAR if choice.even else 1 - _NEAR)
            choice.clear = max(price, evenly) > min(price, evenly) * (1 + _CLEARLY)
            trying = choice.drafted >= _rounds(_apart(choice), rows)
            price = evenly if choice.even else price
        plain = self.price(target, None, load) or plain
        latest = self._latest[target, (length, choice.even), _crowd(rows)]
        # A few rounds that went badly don't end it, nor do a few that went well bring it back.
        slack = _NOISE * ((len(latest) / _rounds(1, rows)) ** -0.5 - _LATEST**-0.5)
        pays = price < (plain * (1 + slack) if choice.pays else plain * (1 - _MARGIN))
        if choice.pays and not pays:
            for _ in range(len(latest) - _rounds(_RECENT, rows)):
                latest.popleft()
        choice.pays = pays
        return Verdict(price, pays, choice.even != (trying and pays))


def _apart(choice: _Choice) -> int:
    return _APART * (_RARELY if choice.clear else 1)


def _rounds(count: int, rows: int) -> int:
    """Rounds of so many rows that write about as much as ``count`` rounds of 8 rows."""
    return count * max(1, round(8 / rows))


def _crowd(rows: int) -> int:
    """Numbers of rows that are as good as equal."""
    return rows if rows <= 8 else -(-rows // 4) * 4
