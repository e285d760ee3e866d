"""Nudging across vocabularies against an oracle that recomputes everything, and its rules one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import nudging_models as nm
import oracle_nudging as oracle
import pytest
import table_engine as tables
import table_models as tm
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.policies import cross_vocabulary
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import (
    Branching,
    Entropy,
    TopProb,
    Trigger,
)
from trimtab.decode.request.events import Chunk
from trimtab.decode.request.result import Candidate, FinishReason
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.text.spelling import Spelling
from trimtab.kernels.types import Filters, Key, Pick

HELPER = 2**32 - 1  # number of the branch whose random numbers the nudger draws with

# What the models can say: words, parts of words, line breaks, spaces alone, halves of characters, bytes that are no
# UTF-8, the ends of answers, and a special token that is none.
BASE = [" the", " a", " sing", " on", " then", "the", "Que", "Q", "s", "t", "g", ".", "..", "\n", "\n\n", " ", "  "]
BASE += [b"\xc3", b"\xa9", b"\xe3\x81", b"\x82", b"\xff", "<eos>", "<turn>"]
NUDGER = [" the", " an", " in", " sin", " o", "the", "and", "g", "s", "sin", ".", ".\n", "\n", " \n", " ", b"\xc3\xa9"]
NUDGER += [b"\xf0\x9f", b"\x99", b"\x82", b"\xc3", b"\xfe", "<eos>", "<turn>"]
PLAIN = [" the", " a", " sing", " on", "s", "t", "g", ".", "\n", "<eos>"]


def key_of(name: str, seed: int) -> Key:
    return Key(seed) if name == "base" else Key(seed).child(0, HELPER)


def told(case: Any) -> Any:
    """The oracle's answer to a case over tables."""

    def reader(model: Any, name: str) -> Any:
        def read(tokens: Sequence[int], position: int, banned: Sequence[int]) -> tuple[int, float, float]:
            found = tm.read(model, tokens, Pick(case.filters, key_of(name, case.seed), position, banned=tuple(banned)))
            return found.token, found.entropy, found.top_prob

        return read

    return oracle.tell(case, reader)


def summary(candidate: Candidate) -> tuple[Any, ...]:
    return (
        [(token.author, token.id) for token in candidate.tokens],
        candidate.text,
        candidate.finish_reason,
        candidate.stop_match,
    )


def same(candidate: Candidate, expected: Any) -> bool:
    return summary(candidate) == (expected.tokens, expected.text, expected.finish_reason, expected.stop_match)


def reasons_of(candidate: Candidate) -> list[tuple[str | None, float | None, float | None]]:
    """Why each token is its author's, and what the base read there."""
    return [(token.reason, token.base_entropy, token.base_top_prob) for token in candidate.tokens]


def prompt_of(kind: str, text: str) -> tuple[int, ...]:
    return (nm.special(kind, "<bos>"), *nm.vocabulary(kind).encode(text, False))


def random_case(seed: int) -> Any:
    """A random request over random tables; every option is off more often than on."""
    rng = random.Random(seed)
    triggers: list[Trigger] = [
        Entropy(rng.choice((0.0, 0.8, 1.6))),
        TopProb(rng.choice((0.35, 0.6, 1.0))),
        Branching(rng.choice((1.5, 4.0))),
    ]
    when = rng.choice(triggers)
    most = rng.choice((7, 40, 40, 90))
    plain = rng.random() < 0.3
    rare: list[Any] = ["<eos>", b"\xff"] if not plain else ["<eos>"]
    base_prompt = prompt_of("base", rng.choice(("Ans:", "go on ", "x\n", " ")))
    nudger_prompt = (
        *prompt_of("nudger", rng.choice(("and", "s\n"))),
        *([nm.special("nudger", "<turn>")] * rng.randint(0, 1)),
    )
    small = rng.random() < 0.15
    order = rng.choice((1, 2, 3))
    return nm.Case(
        base=nm.table(
            "base",
            seed,
            PLAIN if plain else BASE,
            rare=rare,
            order=order,
            limit=len(base_prompt) + rng.randint(2, 40) if small and rng.random() < 0.5 else 4096,
        ),
        nudger=nm.table(
            "nudger",
            seed + 1,
            [" the", " an", " in", "g", "s", ".", "\n", "<eos>"] if plain else NUDGER,
            rare=rare[:1],
            order=order,
            limit=len(nudger_prompt) + rng.randint(1, 40) if small else 4096,
        ),
        policy=Nudged("nudger", when, rng.choice((None, None, 1, 4))),
        base_prompt=base_prompt,
        nudger_prompt=nudger_prompt,
        stopping=Stopping(
            max_new_tokens=most,
            min_new_tokens=rng.choice((0, 0, 5, most)),
            stop=tuple(rng.sample(("s the", "\n\n", ". ", "é", "g\n", "\ufffd", "sinsin"), rng.choice((0, 0, 1, 2)))),
            stop_token_ids=tuple(
                nm.token("base", piece) for piece in rng.sample(("..", " on", "<eos>"), rng.choice((0, 0, 1)))
            ),
            ignore_eos=rng.random() < 0.2,
            include_stop=rng.random() < 0.5,
        ),
        filters=Filters(
            temperature=rng.choice((0.0, 0.0, 0.7, 1.2)), repetition_penalty=rng.choice((1.0, 1.0, 1.0, 1.3))
        ),
        seed=seed,
        stops=rng.choice(((), ("\nQuestion:",))),
        top=rng.choice((0, 2)),
    )


# ----------------------------------------------------------------------------------------------------------- the oracle


@given(st.integers(0, 2**31))
@settings(max_examples=150)
def test_equals_the_oracle(seed: int) -> None:
    case = random_case(seed)
    chunks: list[Chunk] = []
    candidate, _ = case.run(chunks.append)
    expected = told(case)
    assert summary(candidate) == (expected.tokens, expected.text, expected.finish_reason, expected.stop_match)
    assert reasons_of(candidate) == expected.why
    assert "".join(chunk.text for chunk in chunks) == candidate.text
    assert [token for chunk in chunks for token in chunk.tokens] == list(candidate.tokens)


@pytest.fixture(scope="module")
def known() -> list[tuple[Any, Any]]:
    """Cases and what the oracle says of them."""
    return [(case, told(case)) for case in map(random_case, range(250))]


def test_the_cases_meet_every_rule(known: list[tuple[Any, Any]]) -> None:
    """The test above would be empty if the random cases never came to where the rules differ."""
    events = Counter(event for _, expected in known for event in expected.events)
    assert set(events) == {
        "gave up",
        "unsure",
        "word ends inside a character",
        "sure again",
        "agreed",
        "spent",
        "long span",
    }
    assert min(events.values()) >= 5, events
    reasons = Counter(expected.finish_reason for _, expected in known)
    assert set(reasons) == set(FinishReason) - {FinishReason.TIME_BUDGET, FinishReason.PRUNED}, reasons
    assert sum(len({author for author, _ in expected.tokens}) == 2 for _, expected in known) > 100
    told_why = [zip(expected.tokens, expected.why, strict=True) for _, expected in known]
    why = Counter((author, reason) for pairs in told_why for (author, _), (reason, _, _) in pairs)
    of_base = {"sure", "agreed", "span_spent", "within_word"}
    of_nudger = {"unsure", "base_ends", "nudger_ends", "within_word", "looping"}
    assert set(why) >= {("base", reason) for reason in of_base} | {("nudger", reason) for reason in of_nudger}, why
    assert sum("\ufffd" in expected.text for _, expected in known) > 20


def test_blocks_only_change_the_cost(known: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """One word at a time gives the same answers, by more forward passes of the base."""
    passes = Counter[str]()
    for size in (1, 3, 16):
        monkeypatch.setattr(cross_vocabulary, "_MAX_BLOCK", size)
        for case, expected in known[:120]:
            candidate, context = case.run()
            assert same(candidate, expected), (case.seed, size)
            assert reasons_of(candidate) == expected.why, (case.seed, size)
            passes[f"base {size}"] += len(context.work["base"].read)
    assert passes["base 1"] > passes["base 3"] > passes["base 16"]


def _wrong_position(self: Answer, model: str, ahead: int = 0) -> Pick:
    return _pick(self, model, 0)


_pick = Answer.pick
_respell = Spelling.respell
_after_word = cross_vocabulary.CrossVocabularyWriter._reason_after_word
_is_whole = cross_vocabulary.CrossVocabularyWriter._is_whole


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (Answer, "pick", _wrong_position),
        (cross_vocabulary, "_LOOP", 10**6),
        (cross_vocabulary, "_STUCK", 10**6),
        (cross_vocabulary, "_CHECK_EVERY", 1),
        (cross_vocabulary, "_MAX_WORD", 3),
        (cross_vocabulary, "incomplete", lambda data: False),
        (cross_vocabulary, "text_of", lambda vocabulary, token: vocabulary.piece(token)),
        (cross_vocabulary.CrossVocabularyWriter, "_gives_up", lambda self, read: False),
        (
            cross_vocabulary.CrossVocabularyWriter,
            "_reason_after_word",
            lambda self, read, follower, spent: _after_word(self, read, None, spent),
        ),
        (
            cross_vocabulary.CrossVocabularyWriter,
            "_reason_after_word",
            lambda self, read, follower, spent: _after_word(self, read, follower, False),
        ),
        (cross_vocabulary.CrossVocabularyWriter, "_guard", lambda self: None),
        (cross_vocabulary.CrossVocabularyWriter, "_is_last", lambda self, draft, index, ahead: True),
        (Spelling, "respell", lambda self, answer, fixed=0: _respell(self, answer.replace(b"\n", b" "), fixed)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_rule_is_seen(
    known: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, wrong: Any
) -> None:
    """Negative controls: each rule, broken, changes an answer (or breaks the run)."""
    monkeypatch.setattr(owner, name, wrong)

    def differs(case: Any, expected: Any) -> bool:
        try:
            return not same(case.run()[0], expected)
        except (AssertionError, IndexError, ValueError):
            return True

    assert any(differs(case, expected) for case, expected in known)


def test_no_pass_is_wasted(known: list[tuple[Any, Any]]) -> None:
    """No model reads a token again that it has in its cache, and passes are bounded by what was written."""
    again = 0
    for case, _ in known:
        candidate, context = case.run()
        authors = [token.author for token in candidate.tokens]
        spans = sum(a == "nudger" != b for a, b in zip(authors, ["", *authors], strict=False))
        base, nudger = context.work["base"], context.work.get("nudger", tables.Work())
        assert not any(base.again)
        # One token, where the base wrote nothing but a special token since: there is no text to read.
        assert set(nudger.again) <= {0, 1}
        again += sum(nudger.again)
        assert base.passes <= len(authors) + spans + 1  # + 1: a last look before the nudger has nothing to say
        assert set(nudger.reads) <= {1}
        assert nudger.passes >= authors.count("nudger")
        assert base.read[0] == len(case.base_prompt)
    assert again < len(known)


# ------------------------------------------------------------------------------------------------ the rules, one by one

ANSWER = prompt_of("base", "Ans:")
TURN = (nm.special("nudger", "<bos>"), nm.special("nudger", "<turn>"))


class Scene:
    """Two models that recite: each says the next token of a text that continues what it has read, else its EOS.

    Args:
        base, nudger: texts that the model would write, or what it says after a text: (piece, probability).
        sure: whether the base is sure after a text.
    """

    def __init__(self, base: Any, nudger: Any, sure: Any = lambda text: True, **options: Any) -> None:
        self.seen: dict[str, list[str]] = {"base": [], "nudger": []}
        policy = options.pop("policy", Nudged("nudger", TopProb(0.5)))
        limits = options.pop("limits", {})

        def speaker(kind: str, says: Any) -> Any:
            def said(data: bytes) -> tuple[Any, float]:
                text = data.decode(errors="replace")
                self.seen[kind].append(text)
                if callable(says):
                    said: tuple[Any, float] = says(text)
                    return said
                return _recite(kind, says, data), 0.9 if kind == "nudger" or sure(text) else 0.4

            return said

        prompts = {"base": ANSWER, "nudger": TURN}
        made = {
            kind: nm.scripted(
                kind, prompts[kind], speaker(kind, says), **({"limit": limits[kind]} if kind in limits else {})
            )
            for kind, says in (("base", base), ("nudger", nudger))
        }
        out_of_time = options.pop("out_of_time", lambda: False)
        stops = options.pop("stops", ())
        self.case = nm.Case(
            **made,
            policy=policy,
            base_prompt=ANSWER,
            nudger_prompt=TURN,
            stopping=Stopping(**{"max_new_tokens": 60, **options}),
            stops=stops,
        )
        self.candidate, self.context = self.case.run(out_of_time=out_of_time)

    @property
    def pieces(self) -> list[tuple[str, bytes]]:
        return [(token.author[0], token.piece) for token in self.candidate.tokens]

    def passes(self, model: str) -> int:
        return self.context.work[model].passes if model in self.context.work else 0

    def ends(self, text: str, reason: FinishReason = FinishReason.EOS) -> None:
        assert (self.candidate.text, self.candidate.finish_reason) == (text, reason)


def _recite(kind: str, text: str, data: bytes) -> Any:
    """The token after ``data`` in a text, which may also begin without its space, or with one."""
    for whole in (text.encode(), text.lstrip(" ").encode(), f" {text}".encode()) if text else ():
        if whole.startswith(data) and whole != data:
            rest = whole[len(data) :]
            try:
                return nm.vocabulary(kind).encode(rest.decode(), False, continues=True)[0]
            except UnicodeDecodeError:
                return rest[:1]
    return "<eos>"


def test_the_end_of_the_base_is_not_trusted() -> None:
    scene = Scene("", " the sing")
    scene.ends(" the sing")
    assert {author for author, _ in scene.pieces} == {"n"}


def test_a_sure_base_writes_alone_until_its_end() -> None:
    scene = Scene(" the sing on", "the sing on")
    scene.ends(" the sing on")
    assert scene.pieces[-1] == ("n", b"<eos>")
    assert [author for author, _ in scene.pieces[:-1]] == ["b"] * 3
    assert (scene.passes("base"), scene.passes("nudger")) == (4, 1)
    assert scene.seen["nudger"] == ["the sing on"], "a chat turn doesn't begin with a space"


def test_the_base_takes_over_where_it_agrees() -> None:
    """Unsure all along, but of the nudger's opinion: after one word the base writes the next token."""
    scene = Scene(" the sing on", "the sing on", sure=lambda text: False)
    scene.ends("the sing on")
    # The nudger's tokens are "the", " sin" + "g", " o" + "n"; the base's " sing" and " on" begin with or as they do.
    assert scene.pieces == [("n", b"the"), ("b", b" sing"), ("n", b" o"), ("n", b"n"), ("n", b"<eos>")]


def test_the_base_takes_over_where_it_is_sure() -> None:
    scene = Scene(" the sing on", "an sing on", sure=lambda text: text != "")
    assert scene.pieces[0] == ("n", b"an")


def test_the_base_may_continue_a_nudged_word() -> None:
    scene = Scene(lambda text: ("g", 0.9) if text == " sin" else ("<eos>", 0.9), "sin the")
    assert scene.pieces[:2] == [("n", b"sin"), ("b", b"g")]


def test_a_question_of_the_base_is_an_end() -> None:
    scene = Scene(" the\nQueQue", "the\n on", stops=("\nQuestion:",))
    assert b"Que" not in [piece for _, piece in scene.pieces]
    assert ("n", b" o") in scene.pieces
    inline = Scene(" the QueQue", "the", stops=("\nQuestion:",))
    assert ("b", b"Que") in inline.pieces, "only at the start of a line"
    plain = Scene(" the\nQueQue", "the\n on")
    assert ("b", b"Que") in plain.pieces, "only where the template invites it"


@pytest.mark.parametrize("limit", range(1, 7))
def test_the_length_limit_cuts_a_nudged_word(limit: int) -> None:
    scene = Scene("", "stsgst on", max_new_tokens=limit)
    scene.ends("stsgst"[:limit], FinishReason.MAX_NEW_TOKENS)
    assert len(scene.pieces) == limit
    assert (scene.passes("base"), scene.passes("nudger")) == (1, limit), "nothing is read that can't be written"


@pytest.mark.parametrize(("stop", "text"), [("in", " the s"), ("g o", " the sin"), ("e s", " th")])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_inside_nudged_words(stop: str, text: str, include: bool) -> None:
    scene = Scene("", " the sing on", stop=(stop,), include_stop=include)
    scene.ends(text + stop * include, FinishReason.STOP)
    assert scene.candidate.stop_match == stop
    assert b"".join(piece for _, piece in scene.pieces).decode().startswith(text + stop)


def test_the_shortest_length_bans_every_end() -> None:
    scene = Scene(" the", " the", min_new_tokens=12, stop_token_ids=(nm.token("base", " on"),))
    assert len(scene.pieces) >= 12
    eos = [i for i, (_, piece) in enumerate(scene.pieces) if piece == b"<eos>"]
    assert eos in ([], [len(scene.pieces) - 1])
    assert len(Scene(" the", " the").pieces) < 12


def test_a_stop_token_of_the_base_ends_the_answer() -> None:
    on = nm.token("base", " on")
    scene = Scene(" the on sing", "the", stop_token_ids=(on,))
    scene.ends(" the", FinishReason.STOP)
    assert scene.pieces[-1] == ("b", b" on")
    # The same number is another token in the nudger's vocabulary, and ends nothing there.
    other = nm.vocabulary("nudger").piece(on).decode()
    Scene("", f"the{other} sin", stop_token_ids=(on,)).ends(f"the{other} sin")
    assert other.strip()


def test_without_ends_only_the_limit_ends() -> None:
    scene = Scene(" the", "the", ignore_eos=True)
    assert scene.candidate.finish_reason in (FinishReason.MAX_NEW_TOKENS, FinishReason.REPETITION)
    assert b"<eos>" not in [piece for _, piece in scene.pieces]
    asked = Scene(" the", "the", ignore_eos=True, stop_token_ids=(nm.token("base", "<eos>"),))
    assert asked.pieces[-1] == ("b", b"<eos>"), "an end that the request names is none of those to ignore"


def test_characters_are_never_shown_in_halves() -> None:
    text = "sé é🙂 🙂\n🙂🙂 é"
    scene = Scene("", text)
    scene.ends(text)
    assert sum(len(piece) < 2 for _, piece in scene.pieces) > 10, "the nudger does write halves"
    assert not any("\ufffd" in seen for seen in scene.seen["base"])


def test_half_a_character_that_stays_half_is_shown_as_the_text_shows_it() -> None:
    """The base ends inside a character: the nudger reads the answer as it will be printed."""
    scene = Scene(lambda text: (b"\xc3", 0.9) if text == "" else ("<eos>", 0.9), "\ufffd sin")
    scene.ends("\ufffd sin")
    assert scene.seen["nudger"][0] == "\ufffd"
    assert scene.seen["base"][-1] == "\ufffd", "the base's own half stays its own"


def test_text_without_spaces_comes_back_to_the_base() -> None:
    text = "".join(random.Random(0).choices("éstgao", k=50))
    scene = Scene("", text, max_new_tokens=45)
    assert text.startswith(scene.candidate.text)
    assert len(scene.pieces) == 45
    longest = max(len(b) - len(a) for a, b in zip(scene.seen["base"], scene.seen["base"][1:], strict=False))
    assert cross_vocabulary._MAX_WORD <= longest <= 2 * cross_vocabulary._MAX_WORD
    assert scene.passes("base") == 3


@pytest.mark.parametrize("begin", ["the", " the", "  the"])
def test_a_leading_space_is_shown_once(begin: str) -> None:
    scene = Scene("", f"{begin} sin")
    scene.ends(f"{begin} sin")
    assert scene.seen["base"] == ["", " the"], "the prompt 'Ans:' goes on with a space, however the nudger begins"
    own = Scene(lambda text: (" ", 0.9) if len(text) < 3 else ("<eos>", 0.9), "the")
    assert own.seen["base"][:4] == ["", " ", "  ", "   "], "spaces of its own it keeps"


@pytest.mark.parametrize("text", ["s\n\nthe", "s. \n the", "s.\n\n\nsin\n", "\nthe", "s\t on", "  \n sin  on"])
def test_line_breaks_pass_unchanged(text: str) -> None:
    scene = Scene("", f"{text} on an")
    scene.ends(f"{text} on an")
    assert scene.seen["base"][-1] == f" {text.lstrip(' ')} on"


def test_special_tokens_have_no_text() -> None:
    turn = nm.special("nudger", "<turn>")
    lines = {"": "the", "the": turn, "the<turn>": " sin"}
    scene = Scene("", lambda text: (lines.get(text, "<eos>"), 0.9))
    scene.ends("the sin")
    assert [piece for _, piece in scene.pieces] == [b"the", b"<turn>", b" sin", b"<eos>"]
    assert scene.seen["base"] == ["", " the"]
    assert "the<turn> sin" in scene.seen["nudger"], "the model that wrote it keeps it"


def test_a_full_context_ends_the_answer_when_it_is_needed() -> None:
    for room in range(1, 8):
        pieces = ["the", "s", "s", "g", "t", " o", "n"]
        scene = Scene("", "".join(pieces), limits={"nudger": len(TURN) + room})
        scene.ends("".join(pieces[:room]), FinishReason.CONTEXT_FULL)
        base = Scene(" the" + " on" * 9, "the", limits={"base": len(ANSWER) + room})
        base.ends((" the" + " on" * 9)[: 4 + 3 * (room - 1)], FinishReason.CONTEXT_FULL)
    alone = Scene(" the on on", "sin", limits={"nudger": len(TURN) + 1})
    assert [author for author, _ in alone.pieces] == ["b"] * 3, "a small nudger doesn't limit a base that is sure"
    tight = Scene("", "the sin s the sin", limits={"base": len(ANSWER) + 5})
    tight.ends("the sin", FinishReason.CONTEXT_FULL)


def test_white_space_without_end_is_cut() -> None:
    scene = Scene(lambda text: (" on", 0.9) if len(text) > 20 else ("<eos>", 0.9), lambda text: ("\n", 0.9))
    first = next(i for i, (author, _) in enumerate(scene.pieces) if author == "b")
    assert first == 2 * cross_vocabulary._MAX_WORD, "the base is asked after every word's worth of it"


def test_the_time_budget_holds_while_drafting() -> None:
    calls = iter(range(10**6))
    scene = Scene("", "the" + "s" * 500, max_new_tokens=400, out_of_time=lambda: next(calls) > 20)
    assert scene.candidate.finish_reason is FinishReason.TIME_BUDGET
    assert scene.passes("nudger") < 25


def test_a_loop_is_handed_to_the_nudger_and_then_ended() -> None:
    period = " sing on the then"
    saved = Scene(period * 40, (period * 40)[1:200] + " sin.", max_new_tokens=400)
    assert ("n", b" sin") in saved.pieces, "the nudger was asked although the base was sure"
    assert "looping" in {token.reason for token in saved.candidate.tokens if token.author == "nudger"}
    back = Scene(lambda text: (" a", 0.4), (period * 40)[1:], max_new_tokens=400)
    assert "looping" in {token.reason for token in back.candidate.tokens if token.author == "base"}
    lost = Scene(period * 40, (period * 40)[1:], max_new_tokens=400)
    assert lost.candidate.finish_reason is FinishReason.REPETITION
    copies = lost.candidate.text.count(period[1:])
    assert 6 <= copies <= 9
    rule = "s" * 80
    Scene(" " + rule, rule, max_new_tokens=200).ends(" " + rule)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_the_longest_span(most: int) -> None:
    """Counted at ends of words, and then the base writes at least one token."""
    policy = Nudged("nudger", TopProb(0.5), most)
    scene = Scene(lambda text: (" a", 0.4), lambda text: (" sin", 0.9), policy=policy, max_new_tokens=11)
    assert "".join(author for author, _ in scene.pieces) == (("n" * most + "b") * 11)[:11]

    def two(text: str) -> tuple[str, float]:
        return ("s" if text.endswith(" sin") else " sin"), 0.9

    words = Scene(lambda text: (" a", 0.4), two, policy=policy, max_new_tokens=11)
    whole = most + most % 2
    assert "".join(author for author, _ in words.pieces) == (("n" * whole + "b") * 11)[:11]


def test_every_trigger_reads_the_base() -> None:
    """A base with three equal choices, H = ln 3: each bound fires just below it and not just above."""
    from math import log

    def triggers(e: float) -> list[Trigger]:
        return [Entropy(log(3) - e), Branching(3 - e), TopProb(1 / 3 + e)]

    row = {nm.token("base", piece) for piece in (" the", " on", " a")}

    def run(when: Trigger) -> list[str]:
        def logits(tokens: Sequence[int]) -> Any:
            found = nm.np.full(nm.vocabulary("base").size, -90.0)
            found[list(row) if len(tokens) == len(ANSWER) else nm.special("base", "<eos>")] = 0.0
            return found

        nudger = nm.scripted("nudger", TURN, lambda text: ("<eos>" if text else "s", 0.9))
        case = nm.Case(
            tm.Model(nm.vocabulary("base"), logits),
            nudger,
            Nudged("nudger", when),
            ANSWER,
            TURN,
            Stopping(max_new_tokens=5),
        )
        return [token.author for token in case.run()[0].tokens]

    for fires, quiet in zip(triggers(1e-3), triggers(-1e-3), strict=True):
        assert run(fires)[0] == "nudger", fires
        assert run(quiet)[0] == "base", quiet
