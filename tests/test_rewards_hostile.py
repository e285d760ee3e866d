"""Programmatic rewards over texts that nobody writes in good faith: each gets a number, soon, and hurts no other."""

from __future__ import annotations

import inspect
import math
import socket
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.rewards import wording
from trimtab.decode.rewards.base import LocalReward, Sample
from trimtab.decode.rewards.checks import KINDS
from trimtab.decode.rewards.constraints import Constraints
from trimtab.decode.rewards.json_text import MAX_DEPTH, MAX_DIGITS
from trimtab.decode.rewards.measures import LONGEST, LONGEST_FOR_LIBRARIES
from trimtab.decode.rewards.registry import make_rewards

TREE = {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
# Arguments of the kinds that need some; near misses of what the texts below are made of.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "paragraph_start": {"number": 2, "word": "a"},
    "sections": {"name": "SECTION", "at_least": 1},
    "keyword": {"keyword": "aaaaaaab", "at_least": 1},
    "keywords": {"keywords": ["aaaaaaab", "the ende"]},
    "banned": {"keywords": ["aaaaaaab"]},
    "letter": {"letter": "q", "at_least": 1},
    "regex": {"expression": "[xy]+z"},
    "start": {"phrase": "a" * 100},
    "end": {"phrase": "the end x"},
    "ends_with": {"phrase": "the end x"},
    "options": {"phrases": ["My answer is yes.", "My answer is no."]},
    "json": {"schema": TREE},
    "language": {"code": "en"},
}
LIBRARIES: dict[str, dict[str, Any]] = {
    "bleu": {"type": "bleu"},
    "profanity": {"type": "profanity"},
    **{f"readability-{formula}": {"type": "readability", "formula": formula} for formula in wording._FORMULAS},
}
BITS = ["\n", " ", "[", "*", "**a", "*a\n", "<", "<<a", ". ", '."', '"', "1", "1,", "[1,", '{"a":', "\\", "a", "A ",
        "-\n", "- \n", "***", "a@", "http://a", "é", "日", "\x00", "\ud800", "ǅ", "P.", "\u0301", "`"]  # fmt: skip
SECONDS = 2.0  # of this thread's own time; what is quadratic takes minutes


def repeated(bit: str, length: int) -> str:
    return (bit * (length // len(bit) + 1))[:length]


def rule(kind: str) -> dict[str, Any]:
    counts = "at_least" in inspect.signature(KINDS[kind]).parameters
    return {"kind": kind, **ARGUMENTS.get(kind, {"at_least": 3} if counts else {})}


def rules(kind: str) -> Constraints:
    return Constraints([rule(kind)])


def made(table: dict[str, Any]) -> LocalReward:
    reward = make_rewards({"r": table})["r"]
    assert isinstance(reward, LocalReward)
    return reward


@pytest.fixture(autouse=True)
def packages(request: pytest.FixtureRequest) -> None:
    parameters = getattr(request.node, "callspec", None)
    chosen = "" if parameters is None else str(parameters.params.get("kind", parameters.params.get("name", "")))
    modules = {"json": "jsonschema", "language": "langdetect", "bleu": "sacrebleu", "profanity": "profanity_check"}
    modules |= {name: "textstat" for name in LIBRARIES if name.startswith("readability")}
    if chosen in modules:
        pytest.importorskip(modules[chosen])


# ----------------------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_takes_time_linear_in_any_text(kind: str) -> None:
    reward = rules(kind)
    reward.rate([Sample("p", "what has to be loaded is loaded")])
    for bit in BITS:
        began = time.thread_time()
        (value,) = reward.rate([Sample("p", repeated(bit, 100_000))])
        assert time.thread_time() - began < SECONDS, bit
        assert 0 <= value <= 1


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_packages_measure_is_bounded(name: str) -> None:
    reward = made(LIBRARIES[name])
    reward.rate([Sample("p", "what has to be loaded is loaded", references=("a",))])
    for bit in ("1", ". "):
        began = time.thread_time()
        (value,) = reward.rate([Sample("p", repeated(bit, 400_000), references=("the cat sat", ""))])
        assert time.thread_time() - began < SECONDS, bit
        assert math.isfinite(value)


def test_what_is_read_of_a_text_is_its_beginning() -> None:
    counted = rules("commas")
    assert counted.credits(Sample("p", "a" * LONGEST + ",,,")) == counted.credits(Sample("p", "a"))
    assert counted.credits(Sample("p", "a" * (LONGEST - 3) + ",,,")) == [1]
    pytest.importorskip("textstat")
    easy, hard = "The cat sat. " * (LONGEST_FOR_LIBRARIES // 13 + 1), "characterisations notwithstanding " * 9
    reward = made({"type": "readability"})
    assert reward.rate([Sample("p", easy + hard)]) == reward.rate([Sample("p", easy)])


# -------------------------------------------------------------------------------------------------------------- numbers


PIECES = st.sampled_from(BITS) | st.text(st.characters(categories=None), max_size=4)  # surrogates too
HOSTILE = st.lists(PIECES, max_size=30).map("".join)


@given(st.lists(HOSTILE, min_size=1, max_size=4), st.booleans(), st.data())
def test_every_text_gets_a_number_of_its_own(texts: list[str], finished: bool, data: Any) -> None:
    """Whatever its neighbours are, in whatever order."""
    kind = data.draw(st.sampled_from(list(KINDS)))
    reward = rules(kind)
    samples = [Sample("p", text, finished) for text in texts]
    together = reward.rate(samples)
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in together)
    assert [reward.rate([sample])[0] for sample in samples[::-1]] == list(together)[::-1]


@pytest.mark.parametrize("name", LIBRARIES)
def test_packages_give_every_text_a_number_of_its_own(name: str) -> None:
    reward = made(LIBRARIES[name])

    @settings(max_examples=15)
    @given(st.lists(HOSTILE, min_size=1, max_size=4), HOSTILE)
    def law(texts: list[str], reference: str) -> None:
        samples = [Sample("p", text, references=(reference, "a cat")) for text in texts]
        together = reward.rate(samples)
        assert all(map(math.isfinite, together))
        assert [reward.rate([sample])[0] for sample in samples[::-1]] == pytest.approx(list(together)[::-1], abs=1e-9)

    law()


def test_a_package_that_gives_up_on_a_text_gives_up_on_that_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("textstat")
    pytest.importorskip("profanity_check")

    def divides(text: str) -> float:
        return 3 / len(text.replace("bad", ""))

    def predict(texts: Sequence[str]) -> list[float]:
        if "bad" in texts:
            raise ValueError("no feature")
        return [0.25] * len(texts)

    samples = [Sample("p", "word"), Sample("p", "bad"), Sample("p", "words")]
    readable: Any = made({"type": "readability"})
    monkeypatch.setattr(readable, "_measure", divides)
    assert readable.rate(samples) == [0.75, -100, 0.6]
    monkeypatch.setattr(readable, "_measure", lambda text: math.nan if text == "bad" else 1.0)
    assert readable.rate(samples) == [1, -100, 1]
    decent: Any = made({"type": "profanity"})
    monkeypatch.setattr(decent, "_predict", predict)
    assert decent.rate(samples) == [-0.25, -1, -0.25]
    monkeypatch.setattr(readable, "_measure", lambda text: text.nothing)
    with pytest.raises(AttributeError):  # that is no text's fault
        readable.rate(samples)


# ----------------------------------------------------------------------------------------------------------------- JSON

DIGITS = "1" * (MAX_DIGITS + 1)
HARD_JSON = [
    DIGITS,
    f"-{DIGITS}",
    f'{{"a": {DIGITS}, "b": 1}}',
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 100_000,
]


@pytest.mark.parametrize("text", HARD_JSON, ids=range(len(HARD_JSON)))
@pytest.mark.parametrize("schema", [None, {"type": "object"}])
def test_json_that_python_does_not_read_is_rated_low(text: str, schema: Any) -> None:
    if schema is not None:
        pytest.importorskip("jsonschema")
    table = {"type": "json"} if schema is None else {"type": "json", "schema": schema}
    low, good = made(table).rate([Sample("p", text), Sample("p", '{"a": 1}')])
    assert 0 <= low < 0.1
    assert good == 1


def test_json_may_be_nested_so_deep_and_no_deeper() -> None:
    deep, deeper = ("[" * depth + "]" * depth for depth in (MAX_DEPTH, MAX_DEPTH + 1))
    found = made({"type": "json"}).rate([Sample("p", text) for text in (deep, deeper, "[]")])
    assert found[0] == found[2] == 1
    assert 0 < found[1] < 0.5
    whole, part = ('{"a":' * depth + "1" + "}" * depth for depth in (MAX_DEPTH, MAX_DEPTH + 1))
    assert made({"type": "json"}).rate([Sample("p", whole), Sample("p", part)]) == [1, pytest.approx(5 / 6, abs=0.01)]


HARD_FOR_SCHEMAS = [
    ({"type": "number", "multipleOf": 0.01}, "1e999", 0.5),
    ({"type": "number", "multipleOf": 1e-300}, "1" * MAX_DIGITS, 0.5),
    ({"type": "integer"}, "1" * MAX_DIGITS, 1),
    (TREE, "[" * 800 + "]" * 800, 0.5),
    ({"uniqueItems": True}, "[" + "{}," * 300 + "{}]", 0.75),
    ({"type": "object", "properties": {"a": {"const": "\ud800"}}}, '{"a": "\\ud800"}', 1),
]


@pytest.mark.parametrize(("schema", "text", "expected"), HARD_FOR_SCHEMAS)
def test_what_can_not_be_held_against_a_schema_does_not_fit_it(schema: Any, text: str, expected: float) -> None:
    pytest.importorskip("jsonschema")
    found = made({"type": "json", "schema": schema}).rate([Sample("p", text), Sample("p", "no")])
    assert found == [pytest.approx(expected), 0]


# --------------------------------------------------------------------------------------------------- nothing is fetched


def test_nothing_is_fetched_while_answers_are_rated(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("jsonschema", "langdetect", "sacrebleu", "profanity_check", "textstat"):
        pytest.importorskip(module)
    tables = [*LIBRARIES.values(), {"type": "constraints", "constraints": list(map(rule, KINDS))}]
    rewards = [made(table) for table in tables]

    def refused(*_: object) -> None:
        raise AssertionError("a connection")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for reward in rewards:
        assert reward.rate([Sample("p", "A cat sat. See http://example.org/schema.", references=("a cat",))])
