"""Loop guards: whether an answer has begun to repeat itself."""

from __future__ import annotations

__all__ = ["MAX_PERIOD", "repeats"]

MAX_PERIOD = 240  # bytes; a longer paragraph that comes back word for word is left to the length limit
_PER_COPY = 16  # bytes that the copies fill on average: "very very very" is emphasis, and a rule of dashes no loop


def repeats(data: bytes, copies: int = 3) -> bool:
    """Whether ``data`` ends in at least ``copies`` exact copies of one string of at most ``MAX_PERIOD`` bytes.

    Copies of a string shorter than 16 bytes count as more than one only together: they must fill 16 ``copies`` bytes.

    Raises:
        ValueError: fewer than two copies.
    """
    if copies < 2:
        raise ValueError(f"copies = {copies}: accepted: 2 or more")
    size, shortest = len(data), _PER_COPY * copies
    for period in range(1, min(MAX_PERIOD, size // copies) + 1):
        tail = max(period * copies, -(-shortest // period) * period)
        # A string is periodic with `period` if it equals itself shifted by one period.
        if tail <= size and data[size - tail : size - period] == data[size - tail + period :]:
            return True
    return False
