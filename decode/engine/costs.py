"""What passes of a model take, learned from the passes themselves.

A pass takes time for its tokens, which is a curve with steps (products of few rows are no straight line), and time for
what attention reads of the past, which is one: with 8 rows on two cores, 16.0 ms and 4.3 us for each position, in all
from 19 to 33 ms as these are few hundreds or four thousand. Contexts jump whenever a request ends and another begins.
So the positions are counted, and what each costs is found by regression; the curve is of what is left.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from operator import itemgetter
from typing import Literal, NamedTuple

from trimtab.decode.engine.attention import reading

__all__ = ["FEW", "STALE", "DraftCosts", "DraftPart", "Load", "PassCosts"]

DraftPart = Literal["first", "later"]  # passes of a round

FEW = 5  # passes of a size, from which on their median is believed
STALE = 256  # passes of a model after which what one of that size takes is measured again,
_SOON = 24  # but while there are fewer measurements than these few, after so many passes
_WINDOW = 21  # passes of a size that are remembered: enough to shrug off a few slow ones, few enough to follow a drift
_DISTURBED = 1.2  # times what a larger pass takes: no noise

# The regression: passes over which it fades, and by how much positions must have varied to be believed: their squared
# deviations, summed up. The machine's pace drifts by a tenth meanwhile, as would come of some 200 positions.
_MEMORY, _VARIED = 1024, 1e7
_MEAN = 64  # passes of a size from whose mean deviations are taken
_OUTLIER = 0.5  # of the mean seconds: no pass deviates by more on account of its positions
_LEAST = 0.1  # of a pass is for its tokens

_CAUGHT_UP = 1.5  # tokens that a row reads in a round's first pass: the last, and the one before if all had stood
_ROUND_MEMORY = 0.95


class Load(NamedTuple):
    """Sequences that share a pass of the target.

    Attributes:
        rows: how many.
        positions: that they hold, all together.
    """

    rows: int
    positions: float = 0.0

    @property
    def alone(self) -> Load:
        """One of them."""
        return Load(1, self.positions / self.rows)


class PassCosts:
    """Seconds of a model's passes as a function of their tokens and of the positions that these attend to.

    Passes are kept by their tokens, up to 8 of them exactly (products of few rows differ by a tenth from one number to
    the next) and then in eighths of powers of two, the latest few of each size, of which the median speaks for all.
    These are points of the curve: straight between them, never falling, beyond the last one as steep as before it,
    level before the first.

    Attributes:
        passes: that were seen.
        per_position: seconds that each position adds.
    """

    def __init__(self) -> None:
        self._latest: dict[int, deque[tuple[int, float, float]]] = {}
        self._seen: dict[int, int] = {}
        self._points: tuple[list[float], list[float]] | None = None
        self._means: dict[int, tuple[int, float, float]] = {}
        self._squares = self._products = 0.0
        self.passes = 0
        self.per_position = 0.0

    def observe(self, tokens: int, seconds: float, positions: float = 0.0, pace: float = 1.0) -> None:
        """A pass over so many tokens took so long. One that no clock can have measured is ignored.

        Args:
            tokens: of the pass.
            seconds: that it would have taken at the machine's usual pace.
            positions: that its tokens attended to, in those that are read for one token.
            pace: seconds that it took for each of these.
        """
        if tokens < 1 or not 0 < seconds < float("inf"):
            return
        size = _size(tokens)
        self._latest.setdefault(size, deque(maxlen=_WINDOW)).append((tokens, seconds, positions))
        self.passes += 1
        self._seen[size] = self.passes
        self._points = None
        self._regress(size, seconds * pace, positions)

    def _regress(self, size: int, seconds: float, positions: float) -> None:
        """Seconds as they were: at the usual pace, what positions took would already have been taken for a slow one."""
        count, of_positions, of_seconds = self._means.get(size, (0, positions, seconds))
        count = min(count + 1, _MEAN)
        off, late = positions - of_positions, seconds - of_seconds
        late = max(-_OUTLIER * of_seconds, min(_OUTLIER * of_seconds, late))
        self._means[size] = count, of_positions + off / count, of_seconds + late / count
        self._squares += off * off - self._squares / _MEMORY
        self._products += off * late - self._products / _MEMORY
        self.per_position = max(0.0, self._products / (self._squares + _VARIED))

    def age(self, tokens: int) -> int | None:
        """Passes since the last one of about that size; None if there was none."""
        seen = self._seen.get(_size(tokens))
        return None if seen is None else self.passes - seen

    def count(self, tokens: int, most: int | None = None) -> int:
        """Passes of about that size, or of sizes up to about ``most``, that are remembered."""
        low, high = _size(tokens), _size(most or tokens)
        return sum(len(passes) for size, passes in self._latest.items() if low <= size <= high)

    def known(self, tokens: int) -> bool:
        """Whether passes of about that size were seen of late, and often enough to be believed."""
        age = self.age(tokens)
        return age is not None and age <= (STALE if self.count(tokens) >= FEW else _SOON)

    def seconds(self, tokens: float, positions: float = 0.0, cautious: bool = False) -> float | None:
        """What a pass takes, at the usual pace; None if none has been seen.

        Args:
            tokens, positions: of the pass; see ``observe``.
            cautious: while passes of one size only have been seen, a larger one takes as many times as long, which is
                the most that it can.
        """
        if not self._latest:
            return None
        x, y = self._curve()
        reading = self.per_position * positions
        if cautious and len(x) == 1:
            return y[0] * max(1.0, tokens / x[0]) + reading
        i = bisect_left(x, tokens)
        if i == 0 or len(x) == 1:
            return y[0] + reading
        i = min(i, len(x) - 1)
        return y[i - 1] + (y[i] - y[i - 1]) * (tokens - x[i - 1]) / (x[i] - x[i - 1]) + reading

    def at(self, load: Load, tokens: float) -> float:
        """What a pass takes in which a load's rows read so many tokens together; one must have been seen."""
        found = self.seconds(tokens, load.positions * reading(tokens / load.rows))
        assert found is not None
        return found

    def _curve(self) -> tuple[list[float], list[float]]:
        if self._points is None:
            typical = []
            for size in sorted(self._latest):
                own = [
                    (tokens, max(seconds - self.per_position * positions, _LEAST * seconds))
                    for tokens, seconds, positions in self._latest[size]
                ]
                own.sort(key=itemgetter(1))
                typical.append((*own[(len(own) - 1) // 2], len(own)))
            levels: list[tuple[float, int, int]] = []  # seconds, the passes behind them, and how many sizes share them
            for _, seconds, seen in typical:
                level, weight, count = seconds, seen, 1
                while levels and levels[-1][0] > level:  # a larger pass isn't cheaper: that is noise, shared evenly
                    before, other, more = levels.pop()
                    if before < _DISTURBED * level or other > weight:  # else a few disturbed passes
                        level = (level * weight + before * other) / (weight + other)
                    weight, count = weight + other, count + more
                levels.append((level, weight, count))
            y = [level for level, _, count in levels for _ in range(count)]
            self._points = [float(tokens) for tokens, _, _ in typical], y
        return self._points


class DraftCosts:
    """Seconds of a draft's passes, of which a round has a first one and, while blocks grow, later ones.

    Attributes:
        first, later: what these take.
    """

    def __init__(self) -> None:
        self.first, self.later = PassCosts(), PassCosts()
        self._rounds = self._passes = 0.0  # fading

    def observe(self, part: DraftPart, tokens: int, seconds: float, positions: float, pace: float) -> PassCosts:
        """A pass took so long; see ``PassCosts.observe``. Returns the costs that it belongs to."""
        if part == "first":
            self._rounds = self._rounds * _ROUND_MEMORY + 1
            self._passes *= _ROUND_MEMORY
        self._passes += 1
        costs = self.first if part == "first" else self.later
        costs.observe(tokens, seconds, positions, pace)
        return costs

    @property
    def passes_per_round(self) -> float:
        """Of late; there must have been a round."""
        return self._passes / self._rounds

    def beginning(self, load: Load) -> float | None:
        """What the first pass of a round takes; None if none has been seen."""
        return self.first.at(load, _CAUGHT_UP * load.rows) if self.first.passes else None

    def growing(self, load: Load, most: int) -> list[float]:
        """What the first, second, ... pass of a round takes; a first one must have been seen."""
        first = self.beginning(load)
        assert first is not None
        return [first, *[self.later.at(load, load.rows) if self.later.passes else first] * (most - 1)]


def _size(tokens: int) -> int:
    """Numbers of tokens that are counted as equal: the same up to 8, then by two, from 17 on by four, ..."""
    step = 1 << max(0, (tokens - 1).bit_length() - 3)
    return -(-tokens // step) * step
