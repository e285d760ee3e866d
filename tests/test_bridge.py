"""The text bridge between vocabularies, and the loop guard: laws over random texts and random ways to write them."""

from __future__ import annotations

import codecs
import random
from collections.abc import Sequence

import nudging_models as nm
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimtab.decode.methods.policies.repetition import MAX_PERIOD, repeats
from trimtab.decode.text.spelling import Spelling, incomplete, starts_word, text_of
from trimtab.decode.text.vocabulary import Vocabulary

WORDS = ["the", "sing", "on", "a", "Que", "x1", ".", ",", "é", "日本", "🙂", "then..", "»", "(a)", "don't"]
SPACES = [" ", " ", " ", "  ", "\n", "\n\n", " \n", "\t", "\r\n", "\n  ", "", "\u00a0", "\u3000"]
texts = st.lists(st.tuples(st.sampled_from(SPACES), st.sampled_from(WORDS)), max_size=12).map(
    lambda pairs: "".join(space + word for space, word in pairs)
)


@pytest.fixture(
    scope="session",
    params=["base", "nudger", *(pytest.param(f"real {role}", marks=pytest.mark.real) for role in ("base", "aligned"))],
)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    kind = request.param
    if not kind.startswith("real"):
        own: Vocabulary = nm.vocabulary(kind)
        return own
    folders = request.getfixturevalue("real_models")
    return Vocabulary.from_pretrained(str(getattr(folders, kind.removeprefix("real "))), name=kind)


def spelled(spelling: Spelling) -> bytes:
    return b"".join(text_of(spelling.vocabulary, token) for token in spelling.ids)


class Writer:
    """An answer that a model writes in turns with somebody else, and its spelling of it."""

    def __init__(self, vocabulary: Vocabulary, lead: bytes) -> None:
        self.spelling, self.data = Spelling(vocabulary, lead), b""

    def own(self, token: int) -> None:
        self.spelling.append(token)
        self.data += text_of(self.spelling.vocabulary, token)

    def other(self, text: str, fixed: int = 0) -> int | None:
        kept = self.spelling.respell(self.data + text.encode(), fixed)
        if kept is not None:
            self.data += text.encode()
        return kept


def check(writer: Writer) -> None:
    """What the spelling promises of itself."""
    spelling = writer.spelling
    ends = spelling.ends
    assert len(ends) == len(spelling.ids)
    assert sorted(ends) == ends
    assert spelled(spelling) == spelling.shown(writer.data)
    assert [
        len(b"".join(text_of(spelling.vocabulary, t) for t in spelling.ids[: k + 1])) for k in range(len(ends))
    ] == ends
    assert spelling.shown(writer.data).lstrip(b" ") == writer.data.lstrip(b" ")


turns = st.lists(st.one_of(texts, st.integers(0, 2**16)), max_size=6)


@pytest.mark.parametrize("lead", [b"", b" "])
@given(turns=turns)
@settings(max_examples=80)
def test_tokens_spell_the_answer(vocabulary: Vocabulary, lead: bytes, turns: list[str | int]) -> None:
    """After others' text, and between: the pieces concatenate to what is shown, and kept tokens are a common prefix."""
    writer = Writer(vocabulary, lead)
    for turn in turns:
        before = list(writer.spelling.ids)
        if isinstance(turn, int):  # a few tokens of its own, as a model would write them: of whole words here
            rng = random.Random(turn)
            for token in vocabulary.encode("".join(rng.choices([" the", "\n", " a.", "x", " "], k=3)), False):
                writer.own(token)
            assert writer.spelling.ids[: len(before)] == before
        else:
            kept = writer.other(turn)
            ids = writer.spelling.ids
            assert kept is not None
            assert ids[:kept] == before[:kept]
            assert kept in (len(ids), len(before)) or ids[kept] != before[kept]
        if writer.data.strip(b" ") or not writer.spelling.ids:
            check(writer)


@given(turns=st.lists(texts, min_size=2, max_size=8))
@settings(max_examples=80)
def test_what_is_settled_stays(vocabulary: Vocabulary, turns: list[str]) -> None:
    """Tokens before the last word that was read never change again, and end up as if the text had come at once."""
    writer = Writer(vocabulary, b"")
    for turn in turns:
        ids, ends, read = list(writer.spelling.ids), list(writer.spelling.ends), writer.spelling.shown(writer.data)
        kept = writer.other(turn)
        starts = [p for p in range(1, len(read)) if read[p : p + 1] == b" " and not read[p - 1 : p].isspace()]
        last = max((p for p in starts if p in ends), default=0)
        settled = max((k + 1 for k, end in enumerate(ends) if end <= last), default=0)
        assert kept is not None
        assert kept >= settled
        assert writer.spelling.ids[:settled] == ids[:settled]
    at_once = Spelling(vocabulary, b"")
    at_once.respell(writer.data)
    whole = at_once.ids
    if all(text[:1] in ("", " ") for text in turns[1:]):
        assert writer.spelling.ids == whole


def test_own_tokens_before_the_last_word_are_kept(vocabulary: Vocabulary) -> None:
    """However strange: a model that spelled a word in bytes keeps its spelling once another word follows."""
    odd = [i for byte in b" sing" for i in _ids_of(vocabulary, bytes((byte,)))]
    if len(odd) != 5:
        pytest.skip("no tokens of one letter")
    assert vocabulary.encode(" sing", False) != odd
    writer = Writer(vocabulary, b" ")
    for token in odd:
        writer.own(token)
    assert writer.other(" on") == len(odd)
    assert writer.spelling.ids[: len(odd)] == odd
    unsettled = Writer(vocabulary, b" ")
    for token in odd:
        unsettled.own(token)
    assert unsettled.other("s") == 0, "but a word that is continued is spelled anew"


def _ids_of(vocabulary: Vocabulary, piece: bytes) -> list[int]:
    return [i for i in range(vocabulary.size) if vocabulary.piece(i) == piece and i not in vocabulary.special_ids][:1]


@given(
    pieces=st.lists(
        st.sampled_from([b"\xc3", b"\xa9", b"\xff", b"\xe3\x81", b"\x82", b"\xf0\x9f", b"s", b" the", b" "]), max_size=9
    )
)
@settings(max_examples=150)
@example([b"\xe3\x81", b" the", b"\x82", b" the"])
def test_bytes_that_are_no_text_are_shown_as_the_answer_shows_them(pieces: list[bytes]) -> None:
    """What the other model wrote is read as U+FFFD where it isn't UTF-8, and ends are still those of the bytes."""
    spelling = Spelling(nm.vocabulary("base"), b"")
    data = b""
    for piece in pieces:
        data += piece
        if incomplete(data):
            continue
        kept = spelling.respell(data)
        assert kept is not None
        shown = spelling.shown(data)
        assert spelled(spelling).decode() == shown.decode(errors="replace")
        assert sorted(spelling.ends) == spelling.ends
        assert (spelling.ends[-1] if spelling.ends else 0) == len(shown)
        for token, end in zip(spelling.ids, spelling.ends, strict=True):
            if starts_word(nm.vocabulary("base").piece(token)):
                assert shown[:end].decode(errors="replace").encode().endswith(nm.vocabulary("base").piece(token))


def test_text_that_a_tokenizer_changes_keeps_its_places(vocabulary: Vocabulary) -> None:
    """Gemma reads U+2581 as a space, SmolLM2 drops some control characters: ends are places of the answer even so."""
    odd = "\x04" if vocabulary.name == "real aligned" else "\u2581"
    writer = Writer(vocabulary, b"")
    for turn in ("one", f" t{odd}o", " three", f" {odd}four", " five", odd, " six"):
        before = list(writer.spelling.ids)
        kept = writer.other(turn)
        assert kept is not None
        assert writer.spelling.ids[:kept] == before[:kept]
        assert writer.spelling.ends[-1] == len(writer.data), turn
    start = writer.data.index(b" three")
    at = {start: 0, **{end: i + 1 for i, end in enumerate(writer.spelling.ends)}}
    ids = writer.spelling.ids[at[start] : at[start + len(" three")]]
    assert b"".join(map(vocabulary.piece, ids)) == b" three"
    changed = spelled(writer.spelling) != writer.data
    assert changed == vocabulary.name.startswith("real"), "and these two do change it"


def test_fixed_tokens_stay_or_nothing_changes() -> None:
    writer = Writer(nm.vocabulary("base"), b" ")
    writer.other("the sin")
    ids, ends = list(writer.spelling.ids), list(writer.spelling.ends)
    assert writer.other("g", fixed=len(ids)) is None
    assert (writer.spelling.ids, writer.spelling.ends) == (ids, ends)
    assert writer.other(" on", fixed=len(ids)) == len(ids)
    assert writer.other("", fixed=99) == len(writer.spelling.ids), "nothing to add changes nothing"


def test_special_tokens_take_no_room() -> None:
    turn, kind = nm.special("base", "<turn>"), "base"
    writer = Writer(nm.vocabulary(kind), b" ")
    for token in (nm.token(kind, " the"), turn, nm.token(kind, " on")):
        writer.own(token)
    assert (writer.data, writer.spelling.ends) == (b" the on", [4, 4, 7])
    assert writer.other(" a") == 3
    assert writer.spelling.ids[1] == turn, "its own special token stays"
    first = Writer(nm.vocabulary(kind), b" ")
    first.own(turn)
    first.own(nm.token(kind, " the"))
    assert first.spelling.shown(first.data) == b" the", "its own first space is known also after a special token"


@pytest.mark.parametrize("own", [["  ", "  ", "the"], [" ", "\n"], ["the"], [" the"], ["  "]])
def test_own_leading_spaces_are_kept_and_no_others_shown_twice(own: Sequence[str]) -> None:
    writer = Writer(nm.vocabulary("base"), b" ")
    for piece in own:
        writer.own(nm.token("base", piece))
    assert writer.spelling.shown(writer.data) == writer.data
    writer.other(" on")
    assert writer.spelling.shown(writer.data) == (writer.data if writer.data.strip(b" ")[:2] != b"on" else b"  on")
    foreign = Writer(nm.vocabulary("base"), b" ")
    foreign.other("   the")
    assert spelled(foreign.spelling) == b" the"
    assert Writer(nm.vocabulary("base"), b" ").other("   ") == 0


# ---------------------------------------------------------------------------------------------------------- characters


@given(
    st.lists(
        st.sampled_from(
            [b"\x80", b"\xbf", b"\xa0", b"\xc3", b"\xe0", b"\xed", b"\xf0", b"\xf4", b"\x90", b"\xff", b"\xc0", b"a"]
        ),
        max_size=8,
    )
)
@settings(max_examples=400)
def test_incomplete_is_what_python_waits_for(parts: list[bytes]) -> None:
    data = b"".join(parts)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(data)
    assert incomplete(data) == bool(decoder.getstate()[0])
    assert incomplete(bytearray(data)) == incomplete(data)


@given(st.text(max_size=5))
def test_incomplete_at_every_cut(text: str) -> None:
    data = text.encode()
    borders = {len(text[:i].encode()) for i in range(len(text) + 1)}
    for cut in range(len(data) + 1):
        assert incomplete(data[:cut]) == (cut not in borders)


# ---------------------------------------------------------------------------------------------------------- repetition


def slowly(data: bytes, copies: int) -> bool:
    """Try every string and every number of copies."""
    for period in range(1, MAX_PERIOD + 1):
        unit = data[len(data) - period :]
        for count in range(copies, len(data) // period + 1):
            if len(unit) == period and count * period >= 16 * copies and data.endswith(unit * count):
                return True
    return False


@given(
    st.binary(max_size=6),
    st.one_of(st.binary(min_size=1, max_size=4), st.binary(min_size=15, max_size=60)),
    st.integers(1, 40),
    st.binary(max_size=2),
    st.sampled_from([2, 3, 6]),
)
@settings(max_examples=300)
def test_repeats_finds_what_brute_force_finds(head: bytes, unit: bytes, times: int, tail: bytes, copies: int) -> None:
    data = head + unit * times + tail
    assert repeats(data, copies) == slowly(data, copies)


def test_every_doubled_tail_of_sixty_characters_is_found() -> None:
    rng = random.Random(0)
    letters = "abcdefghij klmnop"
    for _ in range(200):
        unit = "".join(rng.choices(letters, k=60)).encode()
        head = "".join(rng.choices(letters, k=rng.randrange(100))).encode()
        assert repeats(head + unit * 2, 2)
        assert not repeats(head + unit + unit[:-1] + bytes((unit[-1] ^ 1,)), 2)


@pytest.mark.parametrize(
    "text",
    [
        "It is very very very very good, very very very ",
        "no, no, no, no, no, no",
        "1.3333333333333333",
        "ha" * 15,
        "x = 1\nx = 2\nx = 3\nx = 4\n",
        "# " + "-" * 47,
    ],
)
def test_emphasis_is_no_loop(text: str) -> None:
    assert not repeats(text.encode(), 3)


def test_a_loop_is_found_wherever_it_stands() -> None:
    sentence = "I am a language model. "
    for end in range(len(sentence)):
        assert repeats(("Hello! " + sentence * 4)[: -end or None].encode(), 3)
    assert not repeats(("Hello! " + sentence * 3)[:-2].encode(), 3)
    assert repeats(b"-" * 96, 6)
    assert not repeats(b"-" * 95, 6)
    assert repeats(bytes(range(240)) * 3)
    assert not repeats(bytes(range(241)) * 3), "longer paragraphs are left to the length limit"


def test_one_copy_is_no_repetition() -> None:
    with pytest.raises(ValueError, match="copies = 1: accepted: 2 or more"):
        repeats(b"abc", 1)
