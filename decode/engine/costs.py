"""The cost model: what a pass of a model takes, by its size, learned from the passes themselves."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from statistics import median_low

__all__ = ["CostModel"]

_WINDOW = 31  # passes of a size whose median is taken: a few slow ones don't matter, and a drift is followed
_FIRST = 4  # passes of a size before they are believed: the first may have been disturbed
_STALE = 400  # passes after which what one of a size takes is measured again
_FRESH = 8  # passes for which the curve is kept: it changes slowly, and making it takes longer than a decision should


class CostModel:
    """Seconds of a model's passes as a function of their size: tokens of the target's, rows of the draft's.

    The latest few of about each size are kept, of which the median speaks for all. These are points of a curve:
    straight between them, level before the first, as steep beyond the last one as before it.

    Attributes:
        passes: that were seen.
    """

    def __init__(self) -> None:
        self._latest: dict[int, deque[tuple[float, int]]] = {}
        self._seen: dict[int, int] = {}
        self._curve: list[tuple[float, float]] = []
        self._made = 0  # the curve, after so many passes
        self.passes = 0

    def observe(self, size: int, seconds: float) -> None:
        """A pass took so long. One that no clock can have measured is ignored."""
        if size >= 1 and 0 < seconds < float("inf"):
            self._latest.setdefault(_class(size), deque(maxlen=_WINDOW)).append((seconds, size))
            self.passes += 1
            self._seen[_class(size)] = self.passes

    def known(self, size: int) -> bool:
        """Whether passes of a size within a third were seen often enough, and of late."""
        return any(3 * size <= 4 * near and 3 * near <= 4 * size and self._believed(near) for near in self._latest)

    def seconds(self, size: float) -> float:
        """What a pass takes.

        Raises:
            ValueError: none has been seen.
        """
        if not self._latest:
            raise ValueError("no pass has been seen: accepted: a model with passes")
        if self.passes >= self._made + (_FRESH if self.passes > _STALE else 1):
            self._made = self.passes
            believed = sorted(filter(self._believed, self._latest))
            # A slope that is doubtful is better than none.
            classes = believed if len(believed) > 1 else sorted(self._latest)
            self._curve = [median_low(self._latest[each])[::-1] for each in classes]
        curve = self._curve
        if len(curve) == 1 or size <= curve[0][0]:
            return curve[0][1]
        at = min(bisect_left(curve, (size, 0.0)), len(curve) - 1)
        (low, here), (high, there) = curve[at - 1 : at + 1]
        return here + max(0.0, there - here) * (size - low) / (high - low)

    def added(self, size: int, more: int) -> float:
        """What each of ``more`` adds to a pass of that size, >= 0. Raises ValueError as ``seconds``."""
        return max(0.0, self.seconds(size + more) - self.seconds(size)) / more

    def _believed(self, size: int) -> bool:
        return len(self._latest[size]) >= _FIRST and self.passes - self._seen[size] <= _STALE


def _class(size: int) -> int:
    """Sizes that are counted as about equal: the same up to 8, then by two, from 17 on by four, ..."""
    step = 1 << max(0, (size - 1).bit_length() - 3)
    return -(-size // step) * step
