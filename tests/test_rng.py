"""The counter-based generator: known answers, the same bits everywhere, uniformity, branches."""

from __future__ import annotations

import pickle
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab.kernels import rng
from trimtab.kernels.types import ROOT_BRANCH, Key, Stream

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)

# Random123, tests/kat_vectors, philox4x32 with 10 rounds: key (low word first), counter, result.
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

GOLDEN_KEYS = ("0xc06146ef6d9e6b45", "0xa7d7f837913b84e8")
GOLDEN_DERIVED = ("0x779edaefdd2d853b", "0xdcf40d8cbb5e148")
GOLDEN_UNIFORM = 0.9044119119644165


def bits_of(keys: Iterable[Key]) -> NDArray[np.uint64]:
    return np.array([key.bits for key in keys], np.uint64)


@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_known_answers(key: tuple[int, int], counter: tuple[int, int, int, int], expected: tuple[int, ...]) -> None:
    bits = np.array([key[0] | key[1] << 32], np.uint64)
    words = [np.array([c], np.uint64) for c in counter]
    assert tuple(int(w[0]) for w in rng.philox(bits, *words)) == expected
    assert rng.philox_int(int(bits[0]), counter) == expected


@settings(deadline=None, max_examples=60)
@given(
    keys=st.lists(U64, min_size=1, max_size=4),
    position=U32,
    stream=st.sampled_from(list(Stream)),
    start=st.one_of(st.just(0), st.integers(0, 2**32)),
    n=st.integers(1, 50),
)
def test_every_path_gives_the_same_bits(keys: list[int], position: int, stream: Stream, start: int, n: int) -> None:
    bits = np.array(keys, np.uint64)
    rows = len(keys)
    positions = np.full(rows, position, np.int64)
    index = np.arange(start, start + n)
    expected = rng.uniform(bits, positions, stream, index)
    assert expected.dtype == np.float32
    assert expected.shape == (rows, n)
    if start == 0:
        runs = rng.uniform_runs(bits, positions, [(Stream.TILE, 7), (stream, n), (Stream.LINE, 0)])
        np.testing.assert_array_equal(runs[1], expected)
        np.testing.assert_array_equal(runs[0], rng.uniform(bits, positions, Stream.TILE, np.arange(7)))
        assert runs[2].shape == (rows, 0)
    assert rng.uniform_one(keys[0], position, stream, start + n - 1) == expected[0, -1]
    ragged = rng.uniform_ragged(np.repeat(bits, n), np.repeat(positions, n), stream, np.tile(index, rows))
    np.testing.assert_array_equal(ragged.reshape(rows, n), expected)
    # A row does not know its neighbours, and an index not its place in the list.
    shuffled = rng.uniform(bits[::-1].copy(), positions, stream, index[::-1].copy())
    np.testing.assert_array_equal(shuffled[::-1, ::-1], expected)


def test_uniform_mapping_is_that_of_tl_rand_above_zero() -> None:
    words = np.array([0, 0xFFFFFFFF, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE], np.uint64)
    u = rng._to_uniform(words)
    scale = np.float32(4.6566127342e-10)
    assert u[0] == u[1] == u[2] == u[6] == np.float32(2.0**-31)  # scale is just below
    assert u[3] == 2 * scale
    assert u[4] == u[5] == np.float32(1 - 2.0**-24)


def test_exponential_is_accurate_where_races_are_decided() -> None:
    u = np.concatenate([2.0 ** np.linspace(-31, -1e-6, 20_001), [1 - 2.0**-24]]).astype(np.float32)
    exact = -np.log1p(-u.astype(np.float64))
    error = np.abs(rng.exponential(u) / exact - 1)
    assert error[u < 1 / 64].max() < 2e-7
    assert error.max() < 5e-6
    # The control: without the series the small values are lost.
    assert np.abs(-np.log(1 - u) / exact - 1).max() > 0.1
    assert rng.exponential(u).max() < 16.7


def uniformity(u: NDArray[np.float32]) -> float:
    counts, _ = np.histogram(u, bins=256, range=(0, 1))
    expected = len(u) / len(counts)
    statistic = torch.tensor(float(((counts - expected) ** 2).sum() / expected), dtype=torch.float64)
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2))


def test_uniform_along_every_axis() -> None:
    n = 200_000
    one = np.array([Key(11).bits], np.uint64)
    at = np.array([3], np.int64)
    by_index = rng.uniform_runs(one, at, [(Stream.TOKEN, n)])[0][0]
    by_position = rng.uniform(np.repeat(one, n), np.arange(n), Stream.TOKEN, np.array([5]))[:, 0]
    by_seed = rng.uniform(bits_of(map(Key, range(n))), np.repeat(at, n), Stream.TOKEN, np.array([5]))[:, 0]
    by_branch = rng.uniform(
        bits_of(Key(7, branch) for branch in range(n)), np.repeat(at, n), Stream.TOKEN, np.array([5])
    )[:, 0]
    for numbers in (by_index, by_position, by_seed, by_branch):
        assert uniformity(numbers) > 1e-4
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5 / n**0.5
    # The control: a tilt of 5% is seen.
    assert uniformity((by_index ** np.float32(1.05)).astype(np.float32)) < 1e-4


def test_streams_branches_and_positions_share_nothing() -> None:
    n = 50_000
    child = Key(11).child(3, 0)

    def numbers_of(bits: int, position: int, stream: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = rng.uniform_runs(np.array([bits], np.uint64), np.array([position]), [(stream, n)])[
            0
        ][0]
        return found

    reference = numbers_of(Key(11).bits, 3, 0)
    others = [(Key(11).bits, 3, stream) for stream in list(Stream)[1:]]
    others += [(Key(11).bits, 4, 0), (Key(12).bits, 3, 0), (child.bits, 3, 0)]
    others += [(Key(11).drafting.bits, 3, 0), (Key(11).residual.bits, 3, 0)]
    for bits, position, stream in others:
        numbers = numbers_of(bits, position, stream)
        assert abs(np.corrcoef(reference, numbers)[0, 1]) < 5 / n**0.5
        assert np.mean(reference == numbers) < 1e-3


def test_child_branches_are_distinct_and_depend_on_the_path() -> None:
    children = {Key(0, p).child(position, k).branch for p in range(20) for position in range(20) for k in range(20)}
    assert len(children) == 8000
    assert all(0 <= child < 2**64 for child in children)
    a, b = Key(3).child(5, 1).child(9, 2), Key(3).child(5, 2).child(9, 1)
    assert a != b
    assert a == Key(3, Key(8).child(5, 1).child(9, 2).branch)


@given(seed=U64, branch=U64)
def test_derived_keys_are_others_and_kept(seed: int, branch: int) -> None:
    key = Key(seed, branch)
    keys = [key, key.drafting, key.residual, key.child(0, 0), key.drafting.residual, key.residual.drafting]
    assert len({k.bits for k in keys}) == len(keys)
    assert key.drafting is key.drafting
    assert key.residual is key.residual
    again = Key(seed, branch)
    assert again == key
    assert hash(again) == hash(key)
    assert again.drafting == key.drafting
    assert pickle.loads(pickle.dumps(key)).residual == key.residual
    assert "drafting" not in repr(key)


def test_contract_is_frozen() -> None:
    """Numbers that stored seeds depend on; a change here changes every sampled answer."""
    assert [(s.name, int(s)) for s in Stream] == [
        ("TILE", 0),
        ("COLUMN", 1),
        ("LINE", 2),
        ("TOKEN", 3),
        ("ACCEPT", 4),
        ("SEARCH", 5),
    ]
    assert ROOT_BRANCH == 0
    assert (hex(Key(7).bits), hex(Key(7).child(5, 1).branch)) == GOLDEN_KEYS
    assert (hex(Key(7).drafting.bits), hex(Key(7).residual.bits)) == GOLDEN_DERIVED
    u = rng.uniform(np.array([Key(7, 9).bits], np.uint64), np.array([100]), Stream.TOKEN, np.array([49151]))
    assert float(u[0, 0]) == GOLDEN_UNIFORM


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Key(0, -1), "branch = -1: accepted: an unsigned 64-bit"),
        (lambda: Key(0).child(2**32, 0), "position = 4294967296: accepted: an unsigned 32-bit"),
        (lambda: Key(0).child(0, -3), "k = -3: accepted: an unsigned 32-bit"),
        (lambda: Key(2**64), "seed = 18446744073709551616: accepted: an unsigned 64-bit"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()
