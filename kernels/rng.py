"""Counter-based random numbers: Philox4x32-10 with the same bits in NumPy, in torch and, later, in Triton.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), sections 3.3 and 4.2.

A random number belongs to a branch of a request and to nothing else: the *key* is a hash of (seed, branch) and the
*counter* is (position, stream, index // 4, 0), of whose four output words number ``index % 4`` is taken. ``index`` is
a token id, or the number of a tile, a column or a line. Neither the row of the batch nor the time enters, so a request
draws the same numbers whatever else runs. Four indices share one block because all four words of a block are good: a
run of n consecutive indices costs n / 4 blocks on every path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = [
    "ROOT_BRANCH",
    "Key",
    "Stream",
    "child_branch",
    "exponential",
    "exponential_torch",
    "keys_of",
    "philox",
    "philox_torch",
    "uniform",
    "uniform_ragged",
    "uniform_runs",
    "uniform_torch",
]

Words = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]

ROOT_BRANCH = 0

_ROUNDS = 10
_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of counter words 0 and 2
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the two key words every round
_MASK, _SHIFT = np.uint64(_MASK32), np.uint64(32)
_MULTIPLIERS64 = np.array(_MULTIPLIERS, np.uint64)
_STEPS = np.arange(_ROUNDS).astype(np.uint64)[:, None] * np.array(_WEYL, np.uint64)

# Last counter word of the hashes. It is 0 for draws, so a hash and a draw never share a block.
_HASH_KEY = 0x6B657931
_HASH_CHILD = 0x63686C64
_HASH_DRAFTING = 0x64726674
_HASH_RESIDUAL = 0x72657364

# 2^-31 rounded down, so that the largest uniform number is below 1 (the constant of ``tl.rand``).
_SCALE = np.float32(4.6566127342e-10)
_SMALLEST = np.float32(2.0**-31)
_SERIES_BELOW = np.float32(1 / 64)


class Stream(IntEnum):
    """What a random number is for. Two purposes never share bits; the numbers are part of the contract.

    A token is drawn in three steps, tile, column and line (``reference.races``), or among the tokens of a filtered
    support in one. Draws that must not share bits with these, yet happen at the same position, use a derived key.
    """

    TILE = 0
    COLUMN = 1
    LINE = 2
    TOKEN = 3
    ACCEPT = 4  # whether a drafted token is accepted
    SEARCH = 5  # choices of a search: resampling, tie breaking


@dataclass(frozen=True, slots=True)
class Key:
    """Seed (unsigned 64 bits) and branch (unsigned 64 bits, 0 at the root) of one line of tokens.

    Attributes:
        bits: the 64-bit Philox key of this (seed, branch), as ``keys_of`` gives it. Made once here, so that a step
            over many rows hashes nothing.
    """

    seed: int
    branch: int = ROOT_BRANCH
    bits: int = field(init=False, repr=False, compare=False)
    _drafting: Key | None = field(init=False, repr=False, compare=False, default=None)
    _residual: Key | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        seed, branch = _unsigned("seed", self.seed, 64), _unsigned("branch", self.branch, 64)
        low, high, _, _ = _philox_int(seed, (branch & _MASK32, branch >> 32, 0, _HASH_KEY))
        object.__setattr__(self, "bits", low | high << 32)

    def child(self, position: int, k: int) -> Key:
        """The key of the k-th fork or retry at ``position``."""
        return Key(self.seed, child_branch(self.branch, position, k))

    @property
    def drafting(self) -> Key:
        """The key under which a draft proposes this branch's tokens. Made at its first use and kept.

        What was proposed decides how far a block goes and what is left after a rejection, so the target must draw
        there with bits that the proposal has not seen.
        """
        if self._drafting is None:
            object.__setattr__(self, "_drafting", Key(self.seed, _derived(self.branch, _HASH_DRAFTING)))
        return cast(Key, self._drafting)

    @property
    def residual(self) -> Key:
        """The key under which this branch's token is drawn after a rejection. Made at its first use and kept."""
        if self._residual is None:
            object.__setattr__(self, "_residual", Key(self.seed, _derived(self.branch, _HASH_RESIDUAL)))
        return cast(Key, self._residual)

    def uniform(self, position: int, stream: int, index: int = 0) -> float:
        """One number of ``uniform``, bit for bit, for choices that are made one at a time."""
        word = _philox_int(self.bits, (position, int(stream), index >> 2, 0))[index & 3]
        return float(_to_uniform(np.array([word], np.uint64))[0])


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


def philox_torch(
    keys: torch.Tensor, c0: torch.Tensor, c1: torch.Tensor, c2: torch.Tensor, c3: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Philox4x32-10 of torch tensors, on any device: int64 throughout, the same bits as ``philox``.

    ``keys`` is int64 holding the 64 bits of the key; counter words are int64 below 2^32. Signed products wrap modulo
    2^64, which leaves the bits of the unsigned product; the arithmetic shift is masked.
    """
    k0, k1 = keys & _MASK32, (keys >> 32) & _MASK32
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3  # after two rounds every word has the broadcast shape


def _philox_int(key: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """One block with Python integers: about 6 us, a quarter of what the array version costs for a single block."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK32, key >> 32
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def _unsigned(field: str, value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{field} = {value}: accepted: an unsigned {bits}-bit integer")
    return int(value)


def child_branch(parent: int, position: int, k: int) -> int:
    """The 64-bit branch of the k-th fork or retry of branch ``parent`` at token ``position``.

    A Philox hash keyed by the parent, so that grandchildren depend on the whole path from the root. Two different
    paths collide with probability 2^-64.

    Raises:
        ValueError: parent outside 64 bits, position or k outside 32 bits.
    """
    parent = _unsigned("parent", parent, 64)
    counter = (_unsigned("position", position, 32), _unsigned("k", k, 32), 0, _HASH_CHILD)
    low, high, _, _ = _philox_int(parent, counter)
    return low | high << 32


def _derived(branch: int, purpose: int) -> int:
    low, high, _, _ = _philox_int(branch, (0, 0, 0, purpose))
    return low | high << 32


def keys_of(seeds: Sequence[int], branches: Sequence[int]) -> NDArray[np.uint64]:
    """Philox keys uint64 [R] of R pairs (seed, branch): a Philox hash of the branch keyed by the seed.

    Raises:
        ValueError: unequal lengths, or a number outside unsigned 64 bits.
    """
    if len(seeds) != len(branches):
        raise ValueError(f"branches: {len(branches)} of them: accepted: one for each of the {len(seeds)} seeds")
    seed_bits, branch_bits = _uint64("seed", seeds), _uint64("branch", branches)
    mask = np.uint64(_MASK32)
    zero = np.zeros((), np.uint64)
    low, high, _, _ = philox(
        seed_bits, branch_bits & mask, branch_bits >> np.uint64(32), zero, np.array(_HASH_KEY, np.uint64)
    )
    return low | high << np.uint64(32)


def _uint64(field: str, values: Sequence[int]) -> NDArray[np.uint64]:
    for value in values:
        if not 0 <= value <= _MASK64:
            raise ValueError(f"{field} = {value}: accepted: an unsigned 64-bit integer")
    return np.array(values, np.uint64)


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
        keys: uint64 [R], from ``keys_of``.
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


def uniform_torch(keys: torch.Tensor, position: torch.Tensor, stream: int, index: torch.Tensor) -> torch.Tensor:
    """The torch twin of ``uniform``, bit for bit: int64 keys [R] (the 64 bits), position [R], index [n] or [R, n]."""
    rows = index.expand(keys.shape[0], index.shape[-1])
    zero = torch.zeros((), dtype=torch.int64, device=keys.device)
    words = torch.stack(philox_torch(keys[:, None], position[:, None], zero + int(stream), rows >> 2, zero))
    word = words.gather(0, (rows & 3)[None])[0]
    signed = torch.where(word >= 1 << 31, word - (1 << 32), word)
    folded = torch.where(signed < 0, -signed - 1, signed)
    return (folded.to(torch.float32) * float(_SCALE)).clamp_min(float(_SMALLEST))


def exponential(u: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard exponential clocks -ln(1 - u), float32, of uniform numbers from this module.

    Below 1/64 the series u + u^2/2 + u^3/3 + u^4/4 (relative error 1.2e-8) replaces the logarithm, which loses the
    small values that decide races. Values lie in [2^-31, 16.7].
    """
    series = u * (1 + u * (np.float32(1 / 2) + u * (np.float32(1 / 3) + u * np.float32(1 / 4))))
    return np.where(u < _SERIES_BELOW, series, -np.log(1 - u))


def exponential_torch(u: torch.Tensor) -> torch.Tensor:
    """The torch twin of ``exponential``: equal where the series is used, else up to the last bit of the logarithm."""
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4))))
    return torch.where(u < float(_SERIES_BELOW), series, -torch.log(1 - u))
