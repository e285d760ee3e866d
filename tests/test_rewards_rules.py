"""Programmatic rewards: cases made by hand, and the laws of partial credit."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.bench.searches.constraints import constraints_of, reward_for
from trimtab.decode.config import ConfigError
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.rewards.base import Sample
from trimtab.decode.rewards.checks import KINDS
from trimtab.decode.rewards.constraints import Constraints
from trimtab.decode.rewards.json_text import json_progress, unfenced
from trimtab.decode.rewards.measures import UNITS, Bounds
from trimtab.decode.rewards.registry import make_rewards

TEXTS = st.text(alphabet=string.ascii_letters + " \n.,*[]\"'{}:0123456789-<>ß", max_size=60)


def rated(table: dict[str, Any], *texts: str, finished: bool = True, references: Sequence[str] = ()) -> list[float]:
    reward: Any = make_rewards({"r": table})["r"]
    return list(reward.rate([Sample("the prompt", t, finished, references=tuple(references)) for t in texts]))


def credit(kind: str, text: str, finished: bool = True, **arguments: Any) -> float:
    (found,) = Constraints([{"kind": kind, **arguments}]).credits(Sample("p", text, finished))
    return found


SECTIONS = "SECTION 1\nabc\nSECTION 2\ndef"
# kind, arguments, texts that keep the rule, texts that don't
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("words", {"at_least": 3}, ["one two three", "a-b c"], ["one two", ""]),
    ("words", {"at_most": 2}, ["", "one", "one, two!"], ["one two three"]),
    ("words", {"exactly": 2}, ["one two"], ["one", "one two three"]),
    ("characters", {"at_least": 2, "at_most": 3}, ["ab", "abc"], ["a", "abcd"]),
    ("sentences", {"exactly": 2}, ["One. Two!"], ["One.", "One. Two. Three.", 'He said "no." Then he left.']),
    ("quoted_sentences", {"exactly": 2}, ["One. Two!", 'He said "no." Then he left.'], ["One.", "One.) Two. Three."]),
    ("lines", {"exactly": 2}, ["a\n\nb"], ["a", "a\nb\nc"]),
    ("bullets", {"exactly": 2}, ["* a\n* b", "text\n- a\n  - b\n", "- \n- two"],
     ["* a", "**a**\n**b**", "a - b", "•a\n• b"]),
    ("list_items", {"exactly": 2}, ["* a\n* b", "text\n- a\n  - b\n", "• a\n• b"],
     ["* a", "**a**\n**b**", "- \n- two"]),
    ("placeholders", {"at_least": 2}, ["[name] and [city]"], ["[name]", "name, city", "[name\n] [city"]),
    ("highlights", {"at_least": 2}, ["*a* and **b c**"], ["*a*", "** ** and * *", "*a\nb* *c"]),
    ("capital_words", {"at_least": 2}, ["NASA and ESA", "I AM"], ["NASA", "Nasa Esa"]),
    ("commas", {"exactly": 0}, ["no", ""], ["a, b"]),
    ("paragraphs", {"exactly": 2, "divider": "***"}, ["a\n***\nb", "***\na\n***\nb\n***"], ["a", "a***b***c"]),
    ("paragraphs", {"at_least": 2}, ["a\n\nb"], ["a\nb"]),
    ("paragraph_start", {"number": 2, "word": "Sea", "paragraphs": 2}, ["a\n\nsea b", 'a\n\n"Sea" b'],
     ["a\n\nb sea", "a\n\nsea\n\nb", "sea"]),
    ("sections", {"name": "SECTION", "at_least": 2}, [SECTIONS], ["SECTION 1", "SECTION A SECTION B"]),
    ("keyword", {"keyword": "sea", "at_least": 2}, ["Sea, seaside"], ["sea", ""]),
    ("keyword", {"keyword": "sea", "at_most": 1}, ["sea", ""], ["sea sea"]),
    ("keywords", {"keywords": ["north", "sea"]}, ["The North Sea"], ["the north", "south"]),
    ("banned", {"keywords": ["mud", "a.b"]}, ["muddy", "axb", ""], ["Mud!", "a.b"]),
    ("letter", {"letter": "q", "at_least": 2}, ["qQ"], ["q"]),
    ("letter", {"letter": "!", "at_most": 0}, ["."], ["!"]),
    ("regex", {"expression": r"\d{3}"}, ["abc123"], ["12"]),
    ("regex", {"expression": r"\d{3}", "wanted": False}, ["12"], ["abc123"]),
    ("regex", {"expression": r"\d{3}", "whole_text": True}, ["123"], ["1234", "a123"]),
    ("title", {}, ["<<A title>>\ntext"], ["<A title>", "<<>>", "<<  >>", "<<a\nb>>"]),
    ("postscript", {"marker": "P.S."}, ["text\nP.S. more", "text\np.s. more", "P. S. more"], ["text", "PS more"]),
    ("postscript", {"marker": "P.P.S"}, ["P.P.S more"], ["P.S. more"]),
    ("quotation", {}, ['"all of it"', ' "a" '], ['"half', 'half"', "none", '"', ""]),
    ("start", {"phrase": "Repeat me."}, ["Repeat me. Then more", "repeat ME."], ["Repeat", "I repeat me.", ""]),
    ("end", {"phrase": "The end."}, ["... the end.", 'The END." '], ["The end. Or not", "The end", 'The end. "', ""]),
    ("ends_with", {"phrase": 'The "end"'}, ['... the "end"', 'The "END ', 'the "end" " '], ["The end", '"end"', ""]),
    ("options", {"phrases": ["My answer is yes.", "My answer is no."]}, ["Well: My answer is no."],
     ["My answer is maybe.", "my answer is no.", "My answer is  no.", ""]),
    ("two_answers", {}, ["a\n******\nb"], ["a", "a******a", "a******b******c", ""]),
    ("json", {}, ['{"a": [1, 2.5e3, null]}', "```json\n[]\n```", " 3 "],
     ["{'a': 1}", '{"a": 1', "[1,]", "[] []", "NaN", ""]),
    ("json", {"nan": True}, ["[NaN, -Infinity]", "Infinity"], ["nan", "+Infinity", "-NaN"]),
    ("json", {"schema": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}},
     ['{"a": 1}'], ["{}", '{"a": "b"}', "[]", '{"a": 1']),
    ("case", {"style": "upper"}, ["ALL 123 CAPS!"], ["Not all", "123", ""]),
    ("case", {"style": "lower"}, ["all 123 small"], ["Not all", "1", "ǅ a"]),
]  # fmt: skip
NAMES = [f"{kind}-{i}" for i, (kind, *_) in enumerate(CASES)]


@pytest.mark.parametrize(("kind", "arguments", "keeps", "breaks"), CASES, ids=NAMES)
def test_rules(kind: str, arguments: dict[str, Any], keeps: list[str], breaks: list[str]) -> None:
    for text in keeps:
        assert credit(kind, text, **arguments) == 1, text
    for text in breaks:
        assert 0 <= credit(kind, text, **arguments) < 1, text


def test_every_kind_has_cases() -> None:
    assert set(KINDS) == {kind for kind, *_ in CASES} | {"language"}


@given(TEXTS)
def test_credit_is_in_its_range(text: str) -> None:
    for kind, arguments, *_ in CASES:
        for finished in (True, False):
            assert 0 <= credit(kind, text, finished, **arguments) <= 1, kind


# Texts ever further from a rule, and the rule: credit must not rise, and must fall somewhere.
LADDERS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("words", {"at_least": 5}, ["a b c d e", "a b c d", "a b", "a", ""]),
    ("words", {"at_most": 2}, ["a b", "a b c", "a b c d e f g"]),
    ("keywords", {"keywords": ["a", "b", "c"]}, ["cba", "ab", "a", ""]),
    ("banned", {"keywords": ["mud"]}, ["", "mud", "mud mud", "mud mud mud"]),
    ("commas", {"exactly": 0}, ["", ",", ",,", ",,,,,"]),
    ("start", {"phrase": "repeat this"}, ["repeat this", "repeat thus", "repeal", "x"]),
    ("end", {"phrase": "the end"}, ["so, the end", "so, the end.", "the end, so they say and more", "no"]),
    ("options", {"phrases": ["it is so"]}, ["it is so", "it is", "it", ""]),
    ("json", {}, ['{"a": 1}', '{"a": 1', '{"a" 1}', "no"]),
    ("case", {"style": "upper"}, ["ABC", "ABc", "Abc", "abc"]),
    ("sections", {"name": "DAY", "at_least": 3}, ["DAY 1 DAY 2 DAY 3", "DAY 1 DAY 2", "DAY 1", ""]),
    ("quotation", {}, ['"a"', '"a', "a"]),
]


@pytest.mark.parametrize(("kind", "arguments", "texts"), LADDERS, ids=[f"{k}-{i}" for i, (k, *_) in enumerate(LADDERS)])
def test_credit_falls_with_distance(kind: str, arguments: dict[str, Any], texts: list[str]) -> None:
    credits = [credit(kind, text, **arguments) for text in texts]
    assert credits == sorted(credits, reverse=True)
    assert credits[0] == 1
    assert len(set(credits)) > 2


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 200))
def test_bounds_credit_is_monotone(low: int, more: int, count: int) -> None:
    bounds = Bounds(low, low + more)
    here, next_ = bounds.closeness(count), bounds.closeness(count + 1)
    assert (here == 1) == (low <= count <= low + more)
    assert here < next_ if count < low else here > next_ or next_ == 1 if count >= low + more else here == next_ == 1


@pytest.mark.parametrize(
    ("kind", "arguments", "begun", "lost"),
    [
        ("json", {}, ["", "`", "```js", "```json\n{", "```json\n{}\n`", '{"a', '{"a": tr', "[1, 2", "[-", '["\\u12'],
         ["{a", "[1 2"]),
        ("start", {"phrase": "repeat this"}, ["", "rep", "REPEAT THIS and"], ["x", "repeat x"]),
        ("end", {"phrase": "the end"}, ["", "anything"], []),
        ("postscript", {}, ["anything"], []),
        ("quotation", {}, ["", '"open'], ["none"]),
        ("regex", {"expression": "a+", "whole_text": True}, ["b"], []),
        ("case", {"style": "upper"}, ["", "ABC"], ["ABc"]),
    ],
)  # fmt: skip
def test_a_beginning_is_rated_by_what_it_can_become(
    kind: str, arguments: dict[str, Any], begun: list[str], lost: list[str]
) -> None:
    for text in begun:
        assert credit(kind, text, finished=False, **arguments) == 1, text
    for text in lost:
        assert credit(kind, text, finished=False, **arguments) < 1, text


# ----------------------------------------------------------------------------------------------------------------- JSON


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(values, st.sampled_from((None, 2)), st.booleans(), st.data())
def test_every_beginning_of_json_may_become_json(value: Any, indent: int | None, ascii: bool, data: Any) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii)
    assert json_progress(text) == (len(text), True)
    cut = data.draw(st.integers(0, len(text) - 1))
    assert json_progress(text[:cut]).valid == cut
    if not isinstance(value, int | float) or isinstance(value, bool):  # a number's beginning may be a number
        assert not json_progress(text[:cut]).complete


@given(st.text(alphabet='{}[]",:0123456789.eE+-tfnrula\\ \n', max_size=14))
def test_json_agrees_with_python(text: str) -> None:
    try:
        json.loads(text)
        whole = True
    except ValueError:
        whole = False
    found = json_progress(text)
    assert found.complete == whole
    assert 0 <= found.valid <= len(text)


def test_json_is_bounded_in_depth() -> None:
    assert json_progress("[" * 900 + "]" * 900).complete
    assert json_progress("[" * 100_000).valid < 1000
    assert unfenced("```json\n{}\n```") == "{}"
    assert unfenced("{}") == "{}"


# ------------------------------------------------------------------------------------------------ rewards made of rules


def test_lists_of_rules_prefer_keeping_one_to_being_close_to_two() -> None:
    rules = [{"kind": "words", "at_least": 10}, {"kind": "commas", "exactly": 0}]
    one_kept = Sample("p", "one two three")  # and far from the other
    near = Sample("p", "one two, three four five six seven eight nine")
    strict, loose = Constraints(rules, strict=0.5), Constraints(rules, strict=0.0)
    assert strict.credits(one_kept) == [0.3, 1.0]
    assert strict.credits(near) == [0.9, 0.5]
    assert strict.rate([one_kept])[0] > strict.rate([near])[0]
    assert loose.rate([one_kept])[0] < loose.rate([near])[0]
    assert strict.rate([Sample("p", "w " * 10)]) == [1]
    assert Constraints([]).rate([one_kept]) == [1]


def test_rules_of_single_prompts(tmp_path: Path) -> None:
    path = tmp_path / "rules.jsonl"
    rows = [{"prompt": "a", "constraints": [{"kind": "words", "exactly": 1}]}, {"prompt": "b", "constraints": []}]
    path.write_text("\n".join(map(json.dumps, rows)))
    reward: Any = make_rewards({"c": {"type": "constraints", "path": str(path), "strict": 1.0}})["c"]
    samples = [Sample(p, "two words") for p in ("a", "b", "never seen")]
    assert reward.rate(samples) == [0, 1, 1]


def test_rewards_of_one_rule() -> None:
    assert rated({"type": "length", "at_least": 4, "unit": "characters"}, "ab", "abcd") == [0.5, 1]
    assert rated({"type": "keywords", "wanted": ["a", "b"], "banned": ["c"]}, "a b", "a c", "") == [1, 0.5, 0.5]
    assert rated({"type": "keywords", "counts": {"a": {"exactly": 2}}}, "aa", "a") == [1, 0.5]
    assert rated({"type": "regex", "expression": "^a"}, "ab", "ba") == [1, 0]
    assert rated({"type": "case", "style": "lower"}, "ab", "aB") == [1, 0.5]
    assert rated({"type": "json"}, "{}", "{", "x") == [1, 0.5, 0]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"type": "constraints"}, r"rewards\.r\.constraints"),
        ({"type": "constraints", "constraints": "words"}, r"rewards\.r\.constraints"),
        ({"type": "constraints", "constraints": [{}]}, r"constraints\[0\]"),
        (
            {"type": "constraints", "constraints": [{"kind": "word", "at_least": 1}]},
            r"\.kind = 'word'.*mean 'words'",
        ),
        ({"type": "constraints", "constraints": [{"kind": "words"}]}, r"constraints\[0\]\.at_least"),
        (
            {"type": "constraints", "constraints": [{"kind": "words", "at_least": -1}]},
            r"\[0\]\.at_least = -1",
        ),
        ({"type": "constraints", "constraints": [{"kind": "words", "at_least": 3, "at_most": 2}]}, r"at_most = 2"),
        ({"type": "constraints", "constraints": [{"kind": "title", "text": "a"}]}, r"\[0\]\.text.*no arguments"),
        ({"type": "constraints", "constraints": [{"kind": "end"}]}, r"\[0\]\.phrase = None"),
        ({"type": "constraints", "constraints": [{"kind": "letter", "letter": "ab", "exactly": 1}]}, r"one character"),
        ({"type": "constraints", "constraints": [{"kind": "title"}], "strict": 2}, r"rewards\.r\.strict = 2"),
        ({"type": "constraints", "path": "/nowhere.jsonl"}, r"rewards\.r\.path"),
        ({"type": "keywords"}, r"rewards\.r\.wanted"),
        ({"type": "keywords", "wanted": [""]}, r"rewards\.r\.keywords = \[''\]"),
        ({"type": "regex", "expression": "("}, r"rewards\.r\.expression = '\('.*regular expression"),
        ({"type": "json", "schema": {"type": "thing"}}, r"rewards\.r\.schema"),
        ({"type": "json", "path": "/nowhere.json"}, r"rewards\.r\.path"),
        ({"type": "case", "style": "title"}, r"rewards\.r\.style = 'title': accepted: one of upper, lower"),
        ({"type": "readability", "formula": "fog"}, r"rewards\.r\.formula"),
        ({"type": "bleu", "max_ngram": 0}, r"rewards\.r\.max_ngram"),
    ],
)
def test_options_are_checked(table: dict[str, Any], named: str) -> None:
    if table["type"] in ("readability", "bleu", "json"):
        pytest.importorskip({"readability": "textstat", "bleu": "sacrebleu", "json": "jsonschema"}[table["type"]])
    with pytest.raises(ConfigError, match=named):
        make_rewards({"r": table})


# --------------------------------------------------------------------------------------- those of the extra ``rewards``


def test_bleu() -> None:
    pytest.importorskip("sacrebleu")
    reference = "the cat sat on the warm mat"
    found = rated({"type": "bleu"}, reference, "the cat sat on a mat", "cat the", "", references=[reference, "else"])
    assert found[0] == pytest.approx(1)
    assert 1 > found[1] > found[3] == 0
    assert 0 <= found[2] < 1


def test_readability() -> None:
    pytest.importorskip("textstat")
    easy, hard = (
        "The cat sat. It was fun. We ran.",
        "Notwithstanding organisational heterogeneity, characterisations vary.",
    )
    ease = rated({"type": "readability"}, easy, hard, "", "...")
    assert ease[0] > ease[1] >= -100
    assert ease[2:] == [-100, -100]
    grade = rated({"type": "readability", "formula": "flesch_kincaid_grade"}, easy, hard)
    assert grade[0] > grade[1]
    target = rated({"type": "readability", "formula": "flesch_kincaid_grade", "target": -grade[1]}, easy, hard)
    assert target[1] == pytest.approx(0)
    assert target[0] < -1


def test_profanity() -> None:
    pytest.importorskip("profanity_check")
    found = rated({"type": "profanity"}, "what a lovely day", "you are a fucking idiot")
    assert -1 <= found[1] < -0.9 < -0.2 < found[0] <= 0


def test_languages() -> None:
    pytest.importorskip("langdetect")
    english, german = "This is a short text about the sea.", "Dies ist ein kurzer Text über das Meer."
    for code, text, other in (("en", english, german), ("de", german, english)):
        assert credit("language", text, code=code) == 1
        assert credit("language", other, code=code) < 0.5
    assert credit("language", "123", code="en") == 1  # as good as any
    assert credit("language", " ", code="en") == 0
    assert credit("language", "", False, code="en") == 1
    assert len({credit("language", "no es la mer sea", code="es") for _ in range(20)}) == 1  # the detector samples
    with pytest.raises(ConfigError, match=r"\.code = 'klingon'"):
        make_rewards({"c": {"type": "constraints", "constraints": [{"kind": "language", "code": "klingon"}]}})


# --------------------------------------------------------------------------------------------------------------- IFEval


IFEVAL: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["sea"]}, "the sea", "the air"),
    ("keywords:forbidden_words", {"forbidden_words": ["sea"]}, "the air", "the sea"),
    ("keywords:frequency", {"keyword": "sea", "relation": "less than", "frequency": 2}, "sea", "sea sea"),
    ("keywords:letter_frequency", {"letter": "s", "let_relation": "at least", "let_frequency": 2}, "ss", "s"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 2}, "a b", "a"),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2}, "A.", "A. B."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "b"}, "a\n\nb c", "b\n\na"),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[a]", "a"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "a\nP.S. b", "a"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "* a", "a"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*a*", "a"),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 1}, "Day 1 x", "day"),
    ("detectable_format:json_format", {}, "{}", "{"),
    ("detectable_format:title", {}, "<<a>>", "a"),
    ("combination:two_responses", {}, "a******b", "a"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "say it"}, "say it. it", "it"),
    ("startend:end_checker", {"end_phrase": "bye"}, "and bye", "bye and"),
    ("startend:quotation", {}, '"a"', "a"),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 1}, "A B", "a b"),
    ("change_case:english_capital", {}, "THIS IS A TEXT ABOUT THE SEA", "THIS is A TEXT ABOUT THE SEA"),
    ("change_case:english_lowercase", {}, "this is a text about the sea", "dies ist ein text über das meer"),
    ("punctuation:no_comma", {}, "a", "a,"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "keeps", "breaks"), IFEVAL, ids=[name for name, *_ in IFEVAL])
def test_instructions_become_rules(name: str, arguments: dict[str, Any], keeps: str, breaks: str) -> None:
    if "english" in name:
        pytest.importorskip("langdetect")
    row = {"prompt": "p", "instruction_id_list": [name], "kwargs": [arguments]}
    reward = reward_for([row])
    kept, broken = (reward.rate([Sample("p", text)])[0] for text in (keeps, breaks))
    assert kept == 1 > broken
    unknown = reward.rate([Sample("another prompt", breaks)])
    assert unknown == [1]


def test_instructions_of_other_kinds_are_named() -> None:
    with pytest.raises(InvalidRequest, match="unknown constraint 'poetry:rhyme'"):
        constraints_of({"prompt": "p", "instruction_id_list": ["poetry:rhyme"], "kwargs": [{}]})
    with pytest.raises(InvalidRequest, match="kwargs"):
        constraints_of({"prompt": "p", "instruction_id_list": ["punctuation:no_comma"]})
    with pytest.raises(InvalidRequest, match="KeyError"):
        constraints_of({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]})


def test_units_count_what_they_say() -> None:
    text = "One two.\n\n* three, *four* [five]\n- SIX"
    counts: dict[str, Callable[[str], int]] = UNITS
    expected = {"words": 6, "sentences": 2, "paragraphs": 2, "lines": 3, "bullets": 2, "placeholders": 1}
    expected |= {"highlights": 1, "capital_words": 1, "commas": 1, "characters": len(text)}
    assert {name: counts[name](text) for name in expected} == expected
    assert not math.isnan(sum(measure("") for measure in counts.values()))
