"""Numbers that cross the wire in another form than the library's."""

from __future__ import annotations

import math
import struct

from google.protobuf.duration_pb2 import Duration

__all__ = ["duration", "seconds", "shortest"]

_FLOAT = struct.Struct("<f")
_DURATION_SECONDS = 315_576_000_000  # about 10,000 years, the bound that google.protobuf.Duration states


def shortest(value: float) -> float:
    """The double of fewest decimal digits that rounds to the 32-bit float ``value``.

    A client that sends 0.7 sends the nearest 32-bit float, 0.699999988…; this gives 0.7 again. So a request made over
    the wire and one made in the library have the same sampling parameters, if they have at most six digits.
    """
    if not math.isfinite(value):
        return value
    for digits in range(6, 9):
        rounded = float(f"{value:.{digits}g}")
        try:
            if _FLOAT.unpack(_FLOAT.pack(rounded))[0] == value:
                return rounded
        except OverflowError:  # rounded up beyond the largest 32-bit float
            continue
    return value


def duration(value: float) -> Duration:
    """A Duration of ``value`` seconds, to the nanosecond.

    Raises:
        ValueError: not finite, or beyond what a Duration holds.
    """
    if not math.isfinite(value) or abs(value) > _DURATION_SECONDS:
        raise ValueError(f"{value} is not a number of seconds that a Duration holds")
    whole, nanos = divmod(round(value * 1e9), 1_000_000_000)
    if whole < 0 and nanos:  # both parts of a Duration have the same sign
        whole, nanos = whole + 1, nanos - 1_000_000_000
    return Duration(seconds=whole, nanos=nanos)


def seconds(value: Duration) -> float:
    """A Duration in seconds."""
    return (value.seconds * 1_000_000_000 + value.nanos) / 1e9  # rounded once: 1.001 s comes back as 1.001
