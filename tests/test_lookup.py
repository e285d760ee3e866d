"""Prompt lookup: the index against a search of the whole text, and copies that adapt."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.methods.draws.lookup import MAX_COPY, CopyingDrafter, LookupDrafter, NgramIndex
from trimtab.decode.ops import Drafted
from trimtab.kernels.types import Filters, Key, Pick

PICKS = [Pick(Filters(), Key(0), i) for i in range(64)]


def search(text: Sequence[int], max_ngram: int) -> tuple[int, int]:
    """What ``NgramIndex.find`` promises, by looking everywhere."""
    for n in range(min(max_ngram, len(text) - 1), 0, -1):
        for place in range(len(text) - 1, n - 1, -1):
            if list(text[place - n : place]) == list(text[len(text) - n :]):
                return n, place
    return 0, 0


def drafts(drafter: LookupDrafter | CopyingDrafter, text: Sequence[int], picks: int = 64) -> tuple[int, ...]:
    """What a drafter proposes; it awaits nothing."""
    coroutine = drafter.draft(text, PICKS[:picks], False)
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    tokens: tuple[int, ...] = stop.value.value.tokens
    return tokens


@settings(max_examples=150)
@given(max_ngram=st.integers(1, 4), letters=st.integers(1, 3), data=st.data())
def test_the_index_finds_what_a_search_finds(max_ngram: int, letters: int, data: st.DataObject) -> None:
    tokens = st.lists(st.integers(0, letters - 1), max_size=8)
    alive = [NgramIndex(max_ngram, data.draw(tokens))]
    texts = [list(alive[0].tokens)]
    for _ in range(data.draw(st.integers(0, 12))):
        k = data.draw(st.integers(0, len(alive) - 1))
        match data.draw(st.sampled_from(("extend", "rewind", "fork"))):
            case "extend":
                fresh = data.draw(tokens)
                alive[k].extend(fresh)
                texts[k] = texts[k] + fresh
            case "rewind":
                length = data.draw(st.integers(0, len(texts[k])))
                alive[k].rewind(length)
                texts[k] = texts[k][:length]
            case "fork":
                alive.append(alive[k].fork())
                texts.append(list(texts[k]))
        for index, text in zip(alive, texts, strict=True):
            assert index.tokens == text
            assert index.find() == search(text, max_ngram)
    for index in alive:
        index.rewind(0)
        assert not index._after, "places of a text that is gone"


def test_the_latest_of_the_longest_wins() -> None:
    index = NgramIndex(3, [1, 2, 3, 9, 2, 3, 8, 7, 1, 2, 3])
    assert index.find() == (3, 3)
    assert index.copy_from(3, 4) == (9, 2, 3, 8)
    assert NgramIndex(2, [1, 2, 3, 9, 2, 3, 8, 7, 1, 2, 3]).find() == (2, 6)


def test_a_copy_may_run_into_itself() -> None:
    index = NgramIndex(3, [5, 1, 2, 3, 1, 2, 3])
    assert index.find() == (3, 4)
    assert index.copy_from(4, 8) == (1, 2, 3, 1, 2, 3, 1, 2)


def test_an_ngram_has_a_length() -> None:
    with pytest.raises(ValueError, match="max_ngram = 0: accepted: 1 or more"):
        NgramIndex(0)


def test_a_fixed_length_is_always_copied() -> None:
    drafter = LookupDrafter([1, 2, 3, 4, 5, 6, 7, 1, 2], tokens=3)
    text = [1, 2, 3, 4, 5, 6, 7, 1, 2]
    assert drafter.room(len(text)) == 3
    assert drafts(drafter, text) == (3, 4, 5)
    assert drafts(drafter, text, picks=2) == (3, 4)
    assert drafts(drafter, [*text, 9]) == ()
    assert drafter.reproducible


def copying(drafter: LookupDrafter, text: list[int], follows: Callable[[int], int], rounds: int) -> list[int]:
    """Lengths of the copies of a text that goes on as ``follows`` says, each verified as greedy decoding does."""
    lengths = []
    for _ in range(rounds):
        tokens = drafts(drafter, text)
        lengths.append(len(tokens))
        for token in (*tokens, None):
            right = follows(len(text))
            text.append(right)
            if token != right:
                break
        drafter.rewind(len(text) - 1)
    return lengths


def test_copies_grow_where_they_stand_and_stop_where_they_fall() -> None:
    text = list(range(20)) * 2
    lengths = copying(LookupDrafter(text), text, lambda place: place % 20, 30)
    assert lengths[-1] == MAX_COPY
    assert lengths[0] < MAX_COPY
    rng = random.Random(0)
    noise = [rng.randrange(6) for _ in range(4000)]
    text = noise[:50]
    lengths = copying(LookupDrafter(text), text, noise.__getitem__, 200)
    assert sum(lengths[100:]) < 20
    # What falls is still compared with what is written: so it starts again by itself.
    phrase = list(range(10, 40))
    for token in phrase * 6:
        drafter_text = [*text, token]
        text.append(token)
        assert drafter_text == text
    drafter = LookupDrafter(text[:50])
    for end in range(50, len(text)):
        drafts(drafter, text[:end])
    assert len(drafts(drafter, text)) == MAX_COPY


class Scripted:
    """A drafter that always drafts the same."""

    reproducible = True

    def __init__(self) -> None:
        self.rewound: list[int] = []

    def room(self, text: int) -> int:
        return 2

    async def draft(self, text: Sequence[int], picks: Sequence[Pick], coupled: bool) -> Drafted:
        return Drafted((77,) * len(picks))

    def rewind(self, length: int) -> None:
        self.rewound.append(length)

    def fork(self) -> Scripted:
        return Scripted()

    def close(self) -> None:
        self.rewound.append(-1)


def test_a_model_drafts_where_copies_fall() -> None:
    model = Scripted()
    drafter = CopyingDrafter(LookupDrafter([], tokens=4), model)
    assert drafter.reproducible
    assert drafter.room(9) == 4
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert drafts(drafter, text) == (4, 5, 6, 1), "three tokens have occurred before"
    assert drafts(drafter, [*text, 9]) == (77, 77), "nothing to copy, and no more than there is room for"
    # The copies after n-grams of three fall, again and again, until the model is trusted more.
    text, found = [*text, 9], []
    for token in range(20, 32):
        text += [1, 2, 3]
        found.append(drafts(drafter, text)[:1])
        text.append(token)
    assert found[0] != (77,)
    assert found[-1] == (77,)
    drafter.rewind(5)
    drafter.fork().close()
    drafter.close()
    assert model.rewound == [5, -1]


def test_the_engine_says_what_pays() -> None:
    asked: list[tuple[float, int]] = []

    def pays(chance: float, most: int) -> int:
        asked.append((chance, most))
        return 2 if len(asked) > 1 else 0

    text = [1, 2, 3, 4, 5, 1, 2, 3]
    drafter = LookupDrafter(text, pays=pays)
    assert not drafter.reproducible
    assert drafts(drafter, text) == ()
    assert drafts(drafter, [*text, 4]) == (5, 1)
    (first, most), (second, _) = asked
    assert most == MAX_COPY
    assert 0 < first < second < 1, "the copy that wasn't verified was right"


def test_forks_learn_apart() -> None:
    text = [1, 2, 3, 4, 1, 2, 3]
    one = LookupDrafter(text)
    drafts(one, text)
    two = one.fork()
    drafts(one, [*text, 4])
    drafts(two, [*text, 9])
    assert one.chance(3) > two.chance(3)
    assert one._index.tokens == [*text, 4]
    assert two._index.tokens == [*text, 9]


def test_a_rewind_forgets_what_was_to_be_compared() -> None:
    text = [1, 2, 3, 4, 1, 2, 3]
    drafter = LookupDrafter(text)
    before = drafter.chance(3)
    drafts(drafter, text)
    drafter.rewind(5)
    drafts(drafter, [*text[:5], 7, 7])
    assert drafter.chance(3) == before


def test_it_is_fast() -> None:
    """The index grows by each token alone: a text ten times as long takes about ten times as long."""
    import time

    def seconds(n: int) -> float:
        rng: Any = random.Random(1)
        text = [rng.randrange(50) for _ in range(n)]
        began = time.process_time()
        index = NgramIndex(3)
        for token in text:
            index.extend([token])
            index.find()
        return time.process_time() - began

    assert min(seconds(20_000) for _ in range(2)) < 25 * max(seconds(2_000) for _ in range(2))
