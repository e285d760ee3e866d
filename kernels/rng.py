"""Counter-based random numbers: Philox4x32-10, the same bits in NumPy and in Triton.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), sections 3.3 and 4.2.

A random number belongs to a branch of a request and to nothing else: the *key* is a hash of (seed, branch) and the
*counter* is (position, stream, index // 4, 0), of whose four output words number ``index % 4`` is taken. ``index`` is
a token id, or the number of a tile, a column or a line. Neither the row of the batch nor the time enters, so a request
draws the same numbers whatever else runs. Four indices share one block because all four words of a block are good: a
run of n consecutive indices costs n / 4 blocks on every path.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["exponential", "philox", "philox_int", "uniform", "uniform_one", "uniform_ragged", "uniform_runs"]

Words = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]

_ROUNDS = 10
_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of counter words 0 and 2
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the two key words every round
_MASK, _SHIFT = np.uint64(_MASK32), np.uint64(32)
_MULTIPLIERS64 = np.array(_MULTIPLIERS, np.uint64)
_STEPS = np.arange(_ROUNDS).astype(np.uint64)[:, None] * np.array(_WEYL, np.uint64)

# 2^-31 rounded down, so that the largest uniform number is below 1 (the constant of ``tl.rand``).
_SCALE = np.float32(4.6566127342e-10)
_SMALLEST = np.float32(2.0**-31)
_SERIES_BELOW = np.float32(1 / 64)


def philox(
    keys: NDArray[np.uint64],
    c0: NDArray[np.uint64],
    c1: NDArray[np.uint64],
    c2: NDArray[np.uint64],
    c3: NDArray[np.uint64],
) -> Words:
    """Philox4x32-10 of NumPy arrays.

    Args:
        keys: uint64, the two 32-bit key words as low and high half; broadcasts against the counters.
        c0, c1, c2, c3: uint64 counter words, each below 2^32; they broadcast against each other.

    Returns:
        four uint64 arrays of the broadcast shape, each below 2^32.
    """
    # Both halves of a round run as one array of twice the size: the fixed cost of a NumPy call matters here, since a
    # row needs about a thousand blocks.
    shape = np.broadcast_shapes(keys.shape, c0.shape, c1.shape, c2.shape, c3.shape)
    even, odd, product = np.empty((3, 2, *shape), np.uint64)
    even[0], even[1] = c0, c2
    odd[0], odd[1] = c1, c3
    swapped = product[::-1]
    multipliers = _MULTIPLIERS64.reshape(2, *(1,) * len(shape))
    halves = np.empty((2, *(1,) * (len(shape) - keys.ndim), *keys.shape), np.uint64)
    halves[0], halves[1] = keys & _MASK, keys >> _SHIFT
    round_keys = (halves + _STEPS.reshape(_ROUNDS, 2, *(1,) * len(shape))) & _MASK
    for round_key in round_keys:
        np.multiply(even, multipliers, out=product)
        np.right_shift(swapped, _SHIFT, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, round_key, out=even)
        np.bitwise_and(swapped, _MASK, out=odd)
    return even[0], odd[0], even[1], odd[1]


def philox_int(key: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """One block with Python integers: about 6 us, a quarter of what the array version costs for a single block."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK32, key >> 32
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def _to_uniform(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """32 random bits to float32 in [2^-31, 1 - 2^-24].

    As ``tl.rand``: the word read as a signed integer x, folded to max(x, -x - 1), 31 bits, converted to float32
    (round to nearest even) and scaled by just under 2^-31. Zero becomes 2^-31: an exponential clock of exactly 0
    would win every race. Below 2^-7 all 2^31 values stay distinct, which is where races are decided.
    """
    signed = words.astype(np.uint32).view(np.int32)
    np.bitwise_xor(signed, signed >> np.int32(31), out=signed)  # -x - 1 is ~x
    result = signed.astype(np.float32)
    np.multiply(result, _SCALE, out=result)
    return np.maximum(result, _SMALLEST, out=result)


def uniform(
    keys: NDArray[np.uint64], position: NDArray[np.int64], stream: int, index: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Uniform float32 [R, n] in (0, 1).

    Args:
        keys: uint64 [R], the ``Key.bits`` of each row.
        position: int64 [R], token positions below 2^32.
        stream: a ``Stream``.
        index: int64 [n] or [R, n], in [0, 2^34).
    """
    rows = np.broadcast_to(index.astype(np.uint64), (keys.shape[0], index.shape[-1]))
    words = philox(
        keys[:, None],
        position.astype(np.uint64)[:, None],
        np.array(stream, np.uint64),
        rows >> np.uint64(2),
        np.zeros((), np.uint64),
    )
    return _to_uniform(np.choose((rows & np.uint64(3)).astype(np.intp), words))


def uniform_one(key: int, position: int, stream: int, index: int) -> float:
    """One number of ``uniform``, for choices that are made one at a time."""
    word = philox_int(key, (position, stream, index >> 2, 0))[index & 3]
    return float(_to_uniform(np.array([word], np.uint64))[0])


def uniform_ragged(
    keys: NDArray[np.uint64], position: NDArray[np.int64], stream: int, index: NDArray[np.int64]
) -> NDArray[np.float32]:
    """``uniform`` where every number has its own row: keys, position and index are all [n]; float32 [n]."""
    return uniform(keys, position, stream, index[:, None])[:, 0]


def uniform_runs(
    keys: NDArray[np.uint64], position: NDArray[np.int64], runs: Sequence[tuple[int, int]]
) -> list[NDArray[np.float32]]:
    """``uniform`` at indices 0 to n - 1 of several (stream, n), in one call of the generator.

    A call costs about 50 us before it makes a number, and consecutive indices cost a quarter of scattered ones.

    Returns:
        for each run, float32 [R, n].
    """
    blocks = [-(-n // 4) for _, n in runs]
    words = philox(
        keys[:, None],
        position.astype(np.uint64)[:, None],
        np.repeat(np.array([stream for stream, _ in runs], np.uint64), blocks),
        np.concatenate([np.arange(count) for count in blocks]).astype(np.uint64),
        np.zeros((), np.uint64),
    )
    numbers = _to_uniform(np.stack(words, axis=-1).reshape(keys.shape[0], -1))
    starts = 4 * (np.cumsum(blocks) - blocks)
    return [numbers[:, start : start + n] for start, (_, n) in zip(starts, runs, strict=True)]


def exponential(u: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard exponential clocks -ln(1 - u), float32, of uniform numbers from this module.

    Below 1/64 the series u + u^2/2 + u^3/3 + u^4/4 (relative error 1.2e-8) replaces the logarithm, which loses the
    small values that decide races. Values lie in [2^-31, 16.7].
    """
    series = u * (1 + u * (np.float32(1 / 2) + u * (np.float32(1 / 3) + u * np.float32(1 / 4))))
    return np.where(u < _SERIES_BELOW, series, -np.log(1 - u))
