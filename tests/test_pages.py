"""Pages: whatever is done to the accounting, every table still reads the tokens of its own sequence.

A naive pool of token ids is written where the accounting says and copied as it says; so a missing copy on write, a page
freed too early or a prefix taken for another shows as wrong content.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from trimtab.decode.engine.pages import Copy, OutOfPages, Pages, Table

SIZE = 4
POISON = -1

# Few ids and pages of four: sequences collide on prefixes all the time.
tokens_of = st.lists(st.integers(0, 2), min_size=1, max_size=14)


@dataclass(eq=False)
class Sequence_:
    """A table and the tokens that it must read."""

    table: Table
    tokens: list[int] = field(default_factory=list)


class Pool:
    """What a storage would hold, one id per position, beside the accounting of it."""

    def __init__(self, count: int, size: int = SIZE, min_reuse: int = 2) -> None:
        self.pages = Pages(count, size, min_reuse)
        self.size = size
        self.content = [[POISON] * size for _ in range(count)]
        self.open: list[Sequence_] = []

    def copy(self, copies: Sequence[Copy]) -> None:
        for source, target, tokens in copies:
            self.content[target][:tokens] = self.content[source][:tokens]

    def begin(self, tokens: Sequence[int]) -> Sequence_:
        """Open a table over what is known of ``tokens``."""
        found = Sequence_(self.pages.open())
        self.copy(self.pages.adopt(found.table, tokens))
        assert found.table.length <= len(tokens)
        found.tokens = list(tokens[: found.table.length])
        self.open.append(found)
        return found

    def reserve(self, sequence: Sequence_, tokens: int) -> bool:
        """Room for ``tokens``; False if there was none, which must be true and change nothing."""
        table, available = sequence.table, self.pages.available
        before = (list(table.pages), table.length)
        fresh = max(0, self.pages.pages_for(table.length + tokens) - len(table.pages))
        try:
            copies = self.pages.reserve(table, tokens)
        except OutOfPages:
            assert (table.pages, table.length) == before
            assert fresh + 1 > available, "refused although there was room, with a copy to spare"
            return False
        assert fresh <= available
        self.copy(copies)
        return True

    def write(self, sequence: Sequence_, tokens: Sequence[int], commit: int | None = None) -> bool:
        """Append tokens as a forward pass would; the last of them may stay uncommitted."""
        if not self.reserve(sequence, len(tokens)):
            return False
        table, start = sequence.table, sequence.table.length
        for position, token in enumerate(tokens, start):
            self.content[table.pages[position // self.size]][position % self.size] = token
        sequence.tokens += tokens[:commit]
        self.pages.commit(table, sequence.tokens, len(sequence.tokens))
        return True

    def fork(self, sequence: Sequence_) -> Sequence_:
        twin = Sequence_(self.pages.fork(sequence.table), list(sequence.tokens))
        self.open.append(twin)
        return twin

    def truncate(self, sequence: Sequence_, length: int) -> None:
        self.pages.truncate(sequence.table, length)
        del sequence.tokens[length:]

    def close(self, sequence: Sequence_) -> None:
        self.pages.close(sequence.table, sequence.tokens)
        self.open.remove(sequence)

    def read(self, sequence: Sequence_) -> list[int]:
        table = sequence.table
        return [self.content[table.pages[i // self.size]][i % self.size] for i in range(table.length)]

    def check(self) -> None:
        self.pages.check()
        for sequence in self.open:
            assert self.read(sequence) == sequence.tokens
        assert self.pages.held == len({page for s in self.open for page in s.table.pages})


def reusable(known: Sequence[Sequence[int]], tokens: Sequence[int], size: int, min_reuse: int) -> int:
    """What a pool that never evicted must find of ``tokens``, by comparing with everything that it ever held."""
    longest = 0
    for other in known:
        common = 0
        while common < min(len(other), len(tokens)) and other[common] == tokens[common]:
            common += 1
        longest = max(longest, common)
    partial = longest % size
    return longest if partial >= min_reuse else longest - partial


class Machine(RuleBasedStateMachine):
    """Random programs over a pool that is always too small."""

    count = 7
    min_reuse = 2
    pool_class: type[Pool] = Pool

    @initialize()
    def make(self) -> None:
        self.pool = self.pool_class(self.count, SIZE, self.min_reuse)
        self.known: list[list[int]] = []

    def one(self, index: int) -> Sequence_:
        return self.pool.open[index % len(self.pool.open)]

    @precondition(lambda self: len(self.pool.open) < 6)
    @rule(tokens=tokens_of)
    def begin(self, tokens: list[int]) -> None:
        sequence = self.pool.begin(tokens)
        assert sequence.table.length <= reusable(self.known, tokens, SIZE, self.min_reuse)

    @precondition(lambda self: self.pool.open)
    @rule(index=st.integers(0, 5), tokens=tokens_of, held_back=st.integers(0, 5))
    def write(self, index: int, tokens: list[int], held_back: int) -> None:
        sequence = self.one(index)
        if self.pool.write(sequence, tokens, max(0, len(tokens) - held_back)):
            self.note(sequence)

    def note(self, sequence: Sequence_) -> None:
        """Remember what may be found from now on: at most all that was ever written."""
        self.known.append(list(sequence.tokens))

    @precondition(lambda self: self.pool.open)
    @rule(index=st.integers(0, 5), tokens=st.integers(0, 9))
    def reserve_only(self, index: int, tokens: int) -> None:
        self.pool.reserve(self.one(index), tokens)

    @precondition(lambda self: 0 < len(self.pool.open) < 6)
    @rule(index=st.integers(0, 5))
    def fork(self, index: int) -> None:
        self.pool.fork(self.one(index))

    @precondition(lambda self: self.pool.open)
    @rule(index=st.integers(0, 5), back=st.integers(0, 9))
    def truncate(self, index: int, back: int) -> None:
        sequence = self.one(index)
        self.pool.truncate(sequence, max(0, sequence.table.length - back))

    @precondition(lambda self: self.pool.open)
    @rule(index=st.integers(0, 5))
    def close(self, index: int) -> None:
        self.pool.close(self.one(index))

    @rule()
    def forget(self) -> None:
        self.pool.pages.forget()

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for sequence in list(self.pool.open):
            self.pool.close(sequence)
        self.pool.check()
        assert self.pool.pages.held == 0
        self.pool.pages.forget()
        self.pool.check()
        assert self.pool.pages.retained == 0
        assert self.pool.pages.available == self.count
        # Every page can be used again, at once.
        last = self.pool.begin([9])
        assert self.pool.write(last, [9] * (self.count * SIZE))
        assert not self.pool.write(last, [9])
        self.pool.close(last)


class Roomy(Machine):
    """Never under pressure, so what must be found is known exactly."""

    count = 400

    @precondition(lambda self: len(self.pool.open) < 6)
    @rule(tokens=tokens_of)
    def begin(self, tokens: list[int]) -> None:
        sequence = self.pool.begin(tokens)
        assert sequence.table.length == reusable(self.known, tokens, SIZE, self.min_reuse)

    def note(self, sequence: Sequence_) -> None:
        """Pages are known once they are full, the tail of a sequence when it closes."""
        self.known.append(sequence.tokens[: len(sequence.tokens) // SIZE * SIZE])

    @precondition(lambda self: self.pool.open)
    @rule(index=st.integers(0, 5))
    def close(self, index: int) -> None:
        sequence = self.one(index)
        self.known.append(list(sequence.tokens))
        self.pool.close(sequence)

    @rule()
    def forget(self) -> None:
        pass


PROGRAM = settings(max_examples=100, stateful_step_count=40)


@pytest.mark.parametrize("machine", [Machine, Roomy])
def test_random_programs_read_their_own_tokens(machine: type[Machine]) -> None:
    run_state_machine_as_test(machine, settings=PROGRAM)


def long_program(pool: Pool, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        _random_step(pool, rng)
        pool.check()
    for sequence in list(pool.open):
        pool.close(sequence)
    pool.check()
    assert pool.pages.held == 0


@pytest.mark.parametrize("count", [5, 12, 400])
def test_long_random_programs(count: int) -> None:
    """The same at length: what takes many steps to go wrong is out of reach of short programs."""
    for seed in range(12):
        long_program(Pool(count), seed)


def _random_step(pool: Pool, rng: random.Random) -> None:
    tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 10))]
    one = rng.choice(pool.open) if pool.open else None
    match rng.randrange(10):
        case 0 | 1 if len(pool.open) < 8:
            pool.begin(tokens)
        case 2 | 3 if one and len(pool.open) < 8:
            pool.fork(one)
        case 4 if one:
            pool.truncate(one, rng.randrange(one.table.length + 1))
        case 5 if one:
            pool.close(one)
        case 6 if one:
            pool.reserve(one, len(tokens))
        case _ if one:
            pool.write(one, tokens, rng.randrange(len(tokens) + 1))


class _NoCopies(Pool):
    """A storage that forgets to copy."""

    def copy(self, copies: Sequence[Copy]) -> None:
        pass


@pytest.mark.parametrize("count", [5, 12, 400])
def test_the_check_notices_a_missing_copy(count: int) -> None:
    """Negative control: each of the long programs fails where copies are not carried out."""
    for seed in range(12):
        with pytest.raises(AssertionError):
            long_program(_NoCopies(count), seed)


def _share_without_copy(pages: Pages, table: Table, tokens: int) -> list[Copy]:
    """A ``reserve`` that writes into shared and registered pages."""
    fresh = pages.pages_for(table.length + tokens) - len(table.pages)
    table.pages.extend(pages._take() for _ in range(fresh))
    return []


def test_the_check_notices_a_write_into_a_shared_page() -> None:
    """Negative control: forks that write in place are caught by what they read."""
    pool = Pool(8)
    pool.pages.reserve = lambda table, tokens: _share_without_copy(pool.pages, table, tokens)  # type: ignore[method-assign]
    sequence = pool.begin([1])
    pool.write(sequence, [1, 1])
    twin = pool.fork(sequence)
    pool.write(sequence, [2])
    pool.write(twin, [0])
    with pytest.raises(AssertionError):
        pool.check()


def test_forks_part_at_their_next_token() -> None:
    pool = Pool(16)
    root = filled(pool, [1, 1])
    twins = [pool.fork(root) for _ in range(3)]
    for i, sequence in enumerate([root, *twins]):
        pool.write(sequence, [5 + i])
        pool.check()
    assert len({sequence.table.pages[0] for sequence in [root, *twins]}) == 4


def test_a_page_of_ones_own_is_written_in_place() -> None:
    pool = Pool(16)
    sequence = filled(pool, [1, 1])
    assert pool.pages.reserve(sequence.table, 1) == []
    twin = pool.fork(sequence)
    pool.close(twin)
    assert pool.pages.reserve(sequence.table, 1), "the twin left the page to whoever begins alike"
    lone = filled(pool, [3])
    twin = pool.fork(lone)
    pool.close(twin)
    assert pool.pages.reserve(lone.table, 1) == [], "too short for anybody to reuse"


# ------------------------------------------------------------------------------------------------------ prefix reuse


def filled(pool: Pool, tokens: Sequence[int]) -> Sequence_:
    sequence = pool.begin(tokens)
    assert pool.write(sequence, list(tokens[len(sequence.tokens) :]))
    return sequence


def found(pool: Pool, tokens: Sequence[int]) -> int:
    """How much is reusable of ``tokens``; leaves only the order of use changed."""
    sequence = pool.begin(tokens)
    length = sequence.table.length
    pool.close(sequence)
    return length


@settings(max_examples=60)
@given(st.lists(tokens_of, min_size=1, max_size=8), tokens_of)
def test_the_longest_known_prefix_is_found(known: list[list[int]], tokens: list[int]) -> None:
    pool = Pool(200)
    for one in known:
        pool.close(filled(pool, one))
    assert found(pool, tokens) == reusable(known, tokens, SIZE, 2)
    pool.check()


def test_whole_pages_are_shared_while_their_writer_still_runs() -> None:
    pool = Pool(16)
    writer = filled(pool, range(10))
    held = pool.pages.held
    reader = pool.begin([*range(10)])
    assert reader.table.length == 8  # the third page is not full, and its writer may still write into it
    assert pool.pages.held == held
    assert reader.table.pages == writer.table.pages[:2]
    pool.check()


def test_a_partial_page_is_copied_and_both_go_their_own_way() -> None:
    pool = Pool(16)
    pool.close(filled(pool, [1, 2, 3, 4, 5, 6, 7]))
    one, other = pool.begin([1, 2, 3, 4, 5, 6, 7, 8]), pool.begin([1, 2, 3, 4, 5, 6, 9])
    assert (one.table.length, other.table.length) == (7, 6)
    assert one.table.pages[0] == other.table.pages[0]
    assert one.table.pages[1] != other.table.pages[1]
    pool.write(one, [8, 8, 8])
    pool.write(other, [9, 9, 9])
    pool.check()
    pool.close(one)
    pool.close(other)
    assert found(pool, [1, 2, 3, 4, 5, 6, 9, 9]) == 8
    assert found(pool, [1, 2, 3, 4, 5, 6, 7, 8]) == 8


@pytest.mark.parametrize("min_reuse", [1, 2, 3])
def test_short_matches_inside_a_page_are_recomputed(min_reuse: int) -> None:
    pool = Pool(16, min_reuse=min_reuse)
    pool.close(filled(pool, [1, 2, 3, 4, 5, 6]))
    assert found(pool, [1, 2, 3, 4, 5, 6, 7]) == (6 if min_reuse <= 2 else 4)
    assert found(pool, [1, 2, 3, 4, 5, 9]) == (5 if min_reuse == 1 else 4)


def test_equal_tokens_after_different_prefixes_are_different_pages() -> None:
    pool = Pool(16)
    pool.close(filled(pool, [1, 1, 1, 1, 7, 7, 7, 7]))
    assert found(pool, [2, 2, 2, 2, 7, 7, 7, 7]) == 0
    pool.close(filled(pool, [2, 2, 2, 2, 7, 7, 7, 7]))
    assert found(pool, [2, 2, 2, 2, 7, 7, 7, 7]) == 8
    pool.check()


def test_rewinding_into_a_registered_page_does_not_spoil_it() -> None:
    pool = Pool(16)
    sequence = filled(pool, [1, 2, 3, 4, 5, 6, 7, 8])
    pool.truncate(sequence, 5)
    pool.write(sequence, [9, 9, 9])
    pool.check()
    assert found(pool, [1, 2, 3, 4, 5, 6, 7, 8]) == 8
    again = pool.begin([1, 2, 3, 4, 5, 6, 7, 8])
    pool.check()
    pool.close(again)
    pool.close(sequence)
    assert found(pool, [1, 2, 3, 4, 5, 9, 9, 9]) == 8


# ---------------------------------------------------------------------------------------------------------- eviction


def page_of(token: int) -> list[int]:
    return [token] * SIZE


def test_the_least_recently_used_goes_first() -> None:
    pool = Pool(3)
    for token in (1, 2, 3):
        pool.close(filled(pool, page_of(token)))
    assert found(pool, page_of(1)) == SIZE  # used again: 2 is now the oldest
    pool.close(filled(pool, page_of(4)))
    assert pool.pages.retained == 3
    alive = [token for token in (1, 2, 3, 4) if found(pool, page_of(token))]
    assert alive == [1, 3, 4]


def test_the_end_of_a_sequence_goes_before_its_beginning() -> None:
    pool = Pool(4)
    pool.close(filled(pool, [*page_of(1), *page_of(2), *page_of(3)]))
    pool.close(filled(pool, [*page_of(4), *page_of(4)]))
    assert found(pool, [*page_of(1), *page_of(2), *page_of(3)]) == 2 * SIZE


def test_pages_in_use_are_never_evicted() -> None:
    pool = Pool(4)
    keeper = filled(pool, [*page_of(1), *page_of(2)])
    for token in range(3, 9):
        pool.close(filled(pool, page_of(token)))
        pool.check()
    with pytest.raises(OutOfPages):
        pool.pages.reserve(keeper.table, 3 * SIZE)
    pool.check()
    assert pool.write(keeper, [5] * (2 * SIZE))
    pool.check()


def test_a_refused_reservation_costs_nobody_a_page() -> None:
    pool = Pool(4)
    pool.close(filled(pool, [*page_of(1), *page_of(2)]))
    sequence = filled(pool, [7])
    with pytest.raises(OutOfPages):
        pool.pages.reserve(sequence.table, 4 * SIZE)
    assert found(pool, [*page_of(1), *page_of(2)]) == 2 * SIZE, "what was kept for reuse was thrown away for nothing"


def test_a_retained_page_above_one_in_use_can_be_had() -> None:
    """The parent of a page in use may itself be unused, where the user's own copy of it is another page."""
    pool = Pool(4)
    one, other = pool.begin([1]), pool.begin([1])
    pool.write(one, page_of(1))
    pool.write(other, page_of(1))  # the same content on a second page, which stays private
    pool.write(other, page_of(2))  # hangs below the first one's page
    assert found(pool, [*page_of(1), *page_of(2)]) == 2 * SIZE
    pool.close(one)
    assert pool.pages.retained == 1
    assert pool.pages.available == 2
    assert pool.write(other, [3] * (2 * SIZE))
    pool.check()
    pool.close(other)
    pool.check()
    assert pool.pages.held == 0


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Pages(0, 4), "at least one page"),
        (lambda: Pages(4, 0), "at least one page"),
        (lambda: Pool(4).pages.reserve(Pool(4).pages.open(), -1), "tokens must be >= 0, got -1"),
        (lambda: Pool(4).pages.commit(Pool(4).pages.open(), [], 1), "cannot commit 1"),
        (lambda: Pool(4).pages.truncate(Pool(4).pages.open(), 1), "cannot truncate a table of 0 positions to 1"),
    ],
)
def test_impossible_calls_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_only_an_empty_table_adopts() -> None:
    pool = Pool(4)
    sequence = filled(pool, [1, 2, 3])
    with pytest.raises(ValueError, match="empty table"):
        pool.pages.adopt(sequence.table, [1, 2, 3])
