"""How fast the machine is now, so that what passes took at different times can be compared.

Neighbours on a shared machine and clocks that follow the heat make all passes slower or faster together, by a tenth or
two within seconds. What speculation is worth are smaller differences between passes of unlike
sizes, which are never measured in the same moment. So costs are kept as they would have been at one pace, and the pace
is found from passes of sizes that are known: their time over what it usually is, averaged over the latest.
"""

from __future__ import annotations

from math import exp, log

__all__ = ["Pace"]

_STEP = 0.008  # by which a pass moves the logarithm at most: a median; it follows a change by a tenth within 13 passes
_FADES = 1 / 512  # of the pace per pass: what lasts becomes part of the costs


class Pace:
    """Seconds now for a second of usual costs.

    Times of passes are skewed: their mean lies above their median. Costs are medians of times at this pace, so a pace
    that were a mean would find each pass a little slow, and with every cost that is learned anew it would rise further.
    """

    def __init__(self) -> None:
        self._log = 0.0

    def observe(self, seconds: float, usual: float) -> None:
        """A pass took so long whose cost at the usual pace was known."""
        if 0 < seconds < float("inf") and usual > 0:
            miss = log(seconds / usual) - self._log
            self._log = (self._log + max(-_STEP, min(_STEP, miss))) * (1 - _FADES)

    @property
    def now(self) -> float:
        return exp(self._log)

    def usual(self, seconds: float) -> float:
        """What it would have taken at the usual pace."""
        return seconds / self.now
