"""Results in notebooks and tables: short on a line, whole as HTML and as records."""

from __future__ import annotations

import builtins
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import pandas
import pytest

from trimtab.decode.display.curve import curve
from trimtab.decode.display.details import WHY, about
from trimtab.decode.display.page import fragment, page
from trimtab.decode.display.script import SCRIPT
from trimtab.decode.request.result import (
    Candidate,
    FinishReason,
    Result,
    Token,
    TokenDraw,
    TokenReason,
    TopLogprob,
    Usage,
)

TOKENS = (
    Token(3, b"Drink ", "chat", logprob=-0.5, entropy=1.75, top_prob=0.6),
    Token(4, b"wat", "base", TokenDraw.ACCEPTED, logprob=-0.1, entropy=0.25, top_prob=0.9),
    Token(5, b"er<", "base", logprob=-0.2, entropy=9.0, top_prob=0.8),
)
USAGE = Usage(prompt_tokens=3, generated_tokens=4, returned_tokens=3)
RESULT = Result(
    model="base",
    models=("base", "chat"),
    candidates=(
        Candidate(0, "no", TOKENS[:1], FinishReason.PRUNED, rewards={"objective": 0.25}),
        Candidate(1, "Drink water<", TOKENS, FinishReason.EOS, rewards={"objective": 0.75}),
    ),
    usage=USAGE,
    seed=7,
    selected=1,
)
NOTHING = (
    replace(RESULT, candidates=(), selected=0),
    replace(RESULT, selected=2),
    replace(RESULT, selected=-1),
    replace(RESULT, candidates=(Candidate(0, "", (), FinishReason.STOP),), selected=0),
)


def test_a_line_says_what_it_is() -> None:
    assert repr(RESULT) == "Result('Drink water<', 2 by base, 1 by chat, eos, chosen of 2, seed 7)"
    assert repr(RESULT.candidates[0]) == "Candidate(0, 'no', 1 tokens, pruned, objective 0.25)"
    long = Candidate(0, "x" * 500, (), FinishReason.EOS)
    assert len(repr(long)) < 120


def test_a_line_stays_short_whatever_it_is_of() -> None:
    assert repr(TOKENS[1]) == "Token(b'wat', 4 by base, accepted, logprob -0.1, entropy 0.25)"
    nudged = replace(TOKENS[0], reason=TokenReason.UNSURE, base_entropy=1.8, reward=0.5)
    assert repr(nudged) == "Token(b'Drink ', 3 by chat, plain, unsure, logprob -0.5, entropy 1.75, reward 0.5)"
    assert repr(Token(3, b"\xe2", "base")) == "Token(b'\\xe2', 3 by base, plain)"
    top = tuple(TopLogprob(i, b"x" * 100, -1.0) for i in range(1000))
    assert len(repr(Token(3, b"\x00" * 1000, "chat" * 1000, logprob=-1 / 3, top=top))) < 500
    rated = {"rating " * 20 + str(i): i / 3 for i in range(1000)} | {"objective": 0.25}
    line = repr(Candidate(0, "no", (), FinishReason.EOS, rewards=rated))
    assert len(line) < 400
    assert line.endswith(", objective 0.25, 997 rewards more)"), "the objective is among those that are shown"


def test_they_are_plain_data_still() -> None:
    again = pickle.loads(pickle.dumps(RESULT))
    assert again == RESULT
    assert hash(again.tokens) == hash(RESULT.tokens)


def test_records_have_a_row_for_each_token() -> None:
    rows = RESULT.records()
    assert [row["text"] for row in rows] == ["Drink ", "wat", "er<"]
    assert [row["author"] for row in rows] == ["chat", "base", "base"]
    assert [row["entropy"] for row in rows] == [1.75, 0.25, 9.0]
    assert [row["draw"] for row in rows] == ["plain", "accepted", "plain"]
    assert {row["candidate"] for row in rows} == {1}
    assert {(row["reason"], row["base_entropy"], row["base_top_prob"]) for row in rows} == {(None, None, None)}
    assert [(row["candidate"], row["position"]) for row in RESULT.records(every=True)] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (1, 2),
    ]


def test_records_say_why() -> None:
    token = replace(TOKENS[0], reason=TokenReason.UNSURE, base_entropy=1.8, base_top_prob=0.3)
    (row,) = replace(RESULT, candidates=(replace(RESULT.candidates[0], tokens=(token,)),), selected=0).records()
    assert (row["reason"], row["base_entropy"], row["base_top_prob"]) == ("unsure", 1.8, 0.3)
    assert type(row["reason"]) is str


def test_a_data_frame() -> None:
    frame = RESULT.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["entropy"].tolist() == [1.75, 0.25, 9.0]
    assert list(frame) == list(RESULT.records()[0])
    assert len(RESULT.to_pandas(every=True)) == 4


@pytest.mark.parametrize("result", NOTHING, ids=["no candidates", "selected 2 of 2", "selected -1", "no tokens"])
def test_a_result_without_an_answer_can_be_looked_at(result: Result) -> None:
    assert result.records() == []
    assert len(result.records(every=True)) == sum(len(candidate.tokens) for candidate in result.candidates)
    frame = result.to_pandas()
    assert len(frame) == 0
    assert list(frame) == list(RESULT.to_pandas()), "the columns are there"
    tags = Tags(result._repr_html_())
    assert not [tag for tag, attrs in tags.found if "tabindex" in attrs]
    assert len(tags.all("section")) == (2 if len(result.candidates) == 2 else 0), "of an only one there is no choice"


def test_without_pandas_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> ModuleType:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pandas"):
        RESULT.to_pandas()


class Tags(HTMLParser):
    """Every tag that is opened, with its attributes and the text right inside it, and that all are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, int]] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "input", "br"):
            self.open.append((tag, len(self.found)))
        self.found.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1][1]] += data

    def all(self, tag: str, cls: str | None = None) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of each such tag."""
        found = zip(self.found, self.texts, strict=True)
        return [
            (attrs, text)
            for (name, attrs), text in found
            if name == tag and (cls is None or cls in (attrs.get("class") or "").split())
        ]


def test_a_notebook_shows_who_wrote_each_token() -> None:
    html = RESULT._repr_html_()
    assert html == fragment(RESULT)
    assert html in page(RESULT, "?")
    spans = Tags(html).all("span", "t")
    assert [attrs["class"] for attrs, _ in spans] == ["t m1", "t m0 accepted", "t m0"]
    assert [text for _, text in spans] == ["Drink ", "wat", "er<"]
    assert [attrs["style"] for attrs, _ in spans] == ["--h:44%", "--h:6%", "--h:100%"]
    rules = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert rules is not None
    selectors = [part for rule in re.findall(r"([^{}]+){", rules[1]) for part in rule.split(",")]
    assert all(part.strip().startswith(".trimtab") for part in selectors), "the style is for it alone"


def test_every_token_can_be_reached_and_is_described_without_scripts_too() -> None:
    html = page(RESULT, "?")
    tags = Tags(html)
    spans = tags.all("span", "t")
    assert all(attrs["tabindex"] == "0" for attrs, _ in spans), "until the script makes one stop of them"
    for (attrs, _), token in zip(spans, TOKENS, strict=True):
        said = attrs["title"] or ""
        assert said.startswith(f"token {token.piece.decode()!r}, by {token.author}, id {token.id}")
        assert f"entropy {token.entropy:.3g} nats" in said
        assert f"top p {token.top_prob}" in said
    assert "drawn drafted and accepted" in (spans[1][0]["title"] or "")
    assert not [attrs for _, attrs in tags.found if "id" in attrs], "two results in one document have no id in common"
    (card,) = tags.all("div", "card")
    assert card[0]["role"] == "status"
    assert "hidden" in card[0], "it is of use with scripts alone"
    (group,) = [attrs for attrs, _ in tags.all("div") if attrs.get("role") == "group"]
    assert group["aria-label"]
    assert all(attrs.get("scope") in ("row", "col") for attrs, _ in tags.all("th"))


def test_the_table_of_all_tokens_has_what_is_known_of_them() -> None:
    html = fragment(RESULT)
    table = html[html.index("<details>") : html.index("</details>")]
    head, *rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    names = re.findall(r">([^<]+)</th>", head)
    assert names == ["place", "token", "by", "id", "drawn", "p", "ln p", "entropy", "top p"], "no empty columns"
    assert len(rows) == len(TOKENS)
    assert [re.findall(r"<td>(.*?)</td>", row)[1] for row in rows] == ["chat", "base", "base"]
    assert [re.findall(r"<td>(.*?)</td>", row)[-1] for row in rows] == ["0.6", "0.9", "0.8"]


def test_details_say_why_and_what_the_base_read() -> None:
    assert set(WHY) == set(TokenReason)
    nudged = replace(TOKENS[0], reason=TokenReason.UNSURE, base_entropy=2.5, base_top_prob=0.125)
    own = replace(TOKENS[1], reason=TokenReason.SURE, base_entropy=TOKENS[1].entropy, base_top_prob=TOKENS[1].top_prob)
    inside = replace(TOKENS[0], reason=TokenReason.WITHIN_WORD)
    first, second, third = (about(token).split("\n") for token in (nudged, own, inside))
    assert first[0] == "token 'Drink ', by chat, id 3, because the base is unsure"
    assert first[2] == "entropy of the base 2.5 nats (exp 12.2), its top p 0.125"
    assert second[0].endswith("because the base is sure, drawn drafted and accepted")
    assert len(second) == 2, "the base's own figures are not said twice"
    assert third[0].endswith("because it goes on with its word")
    assert len(third) == 2
    result = replace(RESULT, candidates=(Candidate(0, "", (nudged, own, inside), FinishReason.EOS),), selected=0)
    rows = re.findall(r"<tr>(.*?)</tr>", fragment(result).partition("<details>")[2], re.DOTALL)
    assert re.findall(r">([^<]+)</th>", rows[0])[-2:] == ["entropy of the base", "its top p"]
    assert [re.findall(r"<td>(.*?)</td>", row)[-1] for row in rows[1:]] == ["0.125", "0.9", ""]


def test_the_script_works_on_what_is_there() -> None:
    classes = {cls for attrs, _ in Tags(fragment(RESULT)).all("span") for cls in (attrs.get("class") or "").split()}
    classes |= {cls for _, attrs in Tags(fragment(RESULT)).found for cls in (attrs.get("class") or "").split()}
    wanted = set(re.findall(r"""(?:querySelector(?:All)?|closest)\("\.([a-z]+)""", SCRIPT))
    assert wanted == {"trimtab", "t", "card", "answer"}
    assert wanted <= classes
    assert "</" not in SCRIPT, "it would end the element"


def test_tokens_without_text_of_their_own_have_a_mark_in_their_place() -> None:
    e, acute = "é".encode()[:1], "é".encode()[1:]
    tokens = (
        Token(1, b"<bos>", "base"),
        Token(2, b" caf", "chat"),
        Token(3, e, "chat"),
        Token(4, acute, "base"),
        Token(5, b"", "base"),
        Token(6, b"\n", "base"),
        Token(7, b"<|im_end|>", "chat"),
    )
    result = replace(RESULT, candidates=(Candidate(0, "café", tokens, FinishReason.STOP),), selected=0)
    spans = Tags(result._repr_html_()).all("span", "t")
    assert [text for _, text in spans] == ["⟨bos⟩", "caf", "é", "⟨a9⟩", "⟨id 5⟩", r"⟨\n⟩", "⟨im_end⟩"]
    assert ["mark" in (attrs["class"] or "") for attrs, _ in spans] == [True, False, False, True, True, True, True]
    assert [f"id {token.id}" in (attrs["title"] or "") for (attrs, _), token in zip(spans, tokens, strict=True)]


def test_candidates_stand_side_by_side_the_chosen_one_first() -> None:
    more = Candidate(2, "so so", TOKENS[:2], FinishReason.STOP, rewards={"brief": 0.125, "objective": 0.5})
    tags = Tags(fragment(replace(RESULT, candidates=(*RESULT.candidates, more))))
    assert [attrs["class"] for attrs, _ in tags.all("section")] == ["chosen", "whole", "pruned"]
    assert [text for _, text in tags.all("h3")] == ["Candidate 1 ", "Candidate 2", "Candidate 0"]
    assert [text for _, text in tags.all("p", "ended")] == [
        "3 tokens, eos\nreward 0.75",
        "2 tokens, stop\nreward 0.5\nbrief 0.125",
        "rejected after 1 token at reward 0.25",
    ]


def points(svg: str) -> list[tuple[float, float]]:
    (found,) = re.findall(r'points="([^"]+)"', svg)
    return [(float(x), float(y)) for x, y in (point.split(",") for point in found.split())]


def test_the_curve_has_a_point_for_each_known_entropy() -> None:
    assert curve([1.0, None, float("nan")]) == ""
    svg = curve([0.0, None, 2.302585, 4.60517])
    Tags(svg)
    assert [x for x, _ in points(svg)] == [0.5, 2.5, 3.5]
    assert [y for _, y in points(svg)] == pytest.approx([100, 50, 0], abs=0.06), "a logarithmic scale"
    assert "<text" not in svg, "letters would shrink with the drawing"
    assert re.findall(r'<span style="top:([\d.]+)%">(\d+)</span>', svg) == [
        ("100.0", "1"),
        ("50.0", "10"),
        ("0.0", "100"),
    ]
    assert re.findall(r'%">(\w+)</span>', curve([0.0, 13.0]))[3:] == ["1k", "10k", "100k", "1M"]


def test_the_curve_says_who_wrote_and_where_the_trigger_is() -> None:
    svg = curve([0.0, 1.0, 1.0, 2.0], ["", "m1", "m1", ""], trigger=1.1512925)
    Tags(svg)
    assert re.findall(r'<rect class="m1" x="(\d+)" width="(\d+)"', svg) == [("1", "2")]
    assert re.findall(r'class="trigger"[^>]* y1="([\d.]+)"', svg) == ["50.0"], "half a decade up"
    assert "the trigger, 3.16" in svg
    assert "trigger" not in curve([0.0, 1.0])
    assert "base" not in svg
    dotted = curve([0.0, 1.0, 2.0], base=[4.60517, None, 2.0])
    assert points(dotted)[0] == (0.5, 100.0)
    assert re.findall(r"M([\d.]+),([\d.]+)h0", dotted)[0] == ("0.5", "0.0"), "the scale holds it too"
    assert [x for x, _ in re.findall(r"M([\d.]+),([\d.]+)h0", dotted)] == ["0.5", "2.5"]
    assert "dots: what the base read" in dotted
    high = curve([0.0, 1.0], trigger=5.0)
    assert '<line class="trigger' not in high, "it would press the curve flat"
    assert "the trigger is higher, 148" in high
