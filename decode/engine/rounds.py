"""Whether rows that share the target's passes should draft, from what whole rounds took with drafts and without.

What a round costs is not just the sum of what its passes cost alone: rows of unlike lengths make attention slower, for
one. So where rows go together, no model of costs decides but the rounds themselves, by number of rows: seconds per
written token, of rounds in which all could draft and of plain ones. While drafting doesn't pay, it is tried again from
time to time, in a round of all rows, at a bounded cost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from trimtab.decode.types import Length

__all__ = ["Rounds", "Verdict"]

Kind = type[Length] | None

_LATEST = 24  # rounds that are remembered: with 8 rows, their mean price is known to about 2 %
_RECENT = 8  # of them stay when drafting stops, so that a few trials can bring it back
_SEEN = 4  # so many must have been seen before they decide
_DISTURBED = 1.5  # times the median time: such a round says nothing
_MARGIN = 0.03  # drafting must be better by this to begin; it ends where it is no better


@dataclass(frozen=True, slots=True)
class Verdict:
    """What rounds of a number of rows say.

    Attributes:
        drafting: seconds per token with drafts.
        pays: whether that is less than without.
    """

    drafting: float
    pays: bool


@dataclass(slots=True)
class Rounds:
    """The latest rounds, by target, kind of lengths and number of rows."""

    _latest: dict[tuple[str, Kind, int], deque[tuple[float, int]]] = field(default_factory=dict)
    _pays: dict[tuple[str, Kind, int], bool] = field(default_factory=dict)

    def add(self, target: str, kind: Kind, rows: int, seconds: float, written: int) -> None:
        """One round.

        Args:
            target: the model that all rows share.
            kind: of the lengths of its blocks; None: nothing was drafted.
            rows: of the target's pass.
            seconds: of that pass and of the draft's before it.
            written: tokens.
        """
        if written > 0 and 0 < seconds < float("inf"):
            self._latest.setdefault((target, kind, _crowd(rows)), deque(maxlen=_LATEST)).append((seconds, written))

    def price(self, target: str, kind: Kind, rows: int) -> float | None:
        """Seconds per token; None while too few rounds have been seen."""
        found = self._latest.get((target, kind, _crowd(rows)), ())
        if len(found) < _SEEN:
            return None
        longest = _DISTURBED * sorted(seconds for seconds, _ in found)[len(found) // 2]
        kept = [(seconds, written) for seconds, written in found if seconds <= longest]
        return sum(seconds for seconds, _ in kept) / sum(written for _, written in kept)

    def verdict(self, target: str, kind: Kind, rows: int, plain: float) -> Verdict | None:
        """Whether drafts pay; None while that isn't known.

        Args:
            target, kind, rows: see ``add``.
            plain: seconds per token without drafts, where too few such rounds have been seen.
        """
        price = self.price(target, kind, rows)
        if price is None:
            return None
        plain = self.price(target, None, rows) or plain
        key = (target, kind, _crowd(rows))
        before = self._pays.get(key, True)
        pays = price < (plain if before else plain * (1 - _MARGIN))
        if before and not pays:
            for _ in range(len(self._latest[key]) - _RECENT):
                self._latest[key].popleft()
        self._pays[key] = pays
        return Verdict(price, pays)


def _crowd(rows: int) -> int:
    """Numbers of rows that are as good as equal."""
    return rows if rows <= 8 else -(-rows // 4) * 4
