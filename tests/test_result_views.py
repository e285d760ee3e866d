"""Results in notebooks and tables: short on a line, whole as HTML and as records."""

from __future__ import annotations

import builtins
import pickle
import re
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import pytest

from trimtab.decode.display.curve import curve
from trimtab.decode.display.page import fragment, page
from trimtab.decode.request.result import Candidate, FinishReason, Result, Token, TokenDraw, Usage

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


def test_a_line_says_what_it_is() -> None:
    assert repr(RESULT) == "Result('Drink water<', 2 by base, 1 by chat, eos, chosen of 2, seed 7)"
    assert repr(RESULT.candidates[0]) == "Candidate(0, 'no', 1 tokens, pruned, objective 0.25)"
    long = Candidate(0, "x" * 500, (), FinishReason.EOS)
    assert len(repr(long)) < 120


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
    assert [(row["candidate"], row["position"]) for row in RESULT.records(every=True)] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (1, 2),
    ]


def test_a_data_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame = RESULT.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["entropy"].tolist() == [1.75, 0.25, 9.0]


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
    """Every tag that is opened, with its attributes, and that all are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_notebook_shows_who_wrote_each_token() -> None:
    html = RESULT._repr_html_()
    assert html == fragment(RESULT)
    assert html in page(RESULT, "?")
    tags = Tags(html)
    spans = [attrs for tag, attrs in tags.found if tag == "span"]
    assert [attrs["class"] for attrs in spans] == ["t m1", "t m0 accepted", "t m0"]
    assert all(attrs["tabindex"] == "0" and attrs["data-about"] for attrs in spans), "the keyboard reaches each"
    assert [attrs["style"] for attrs in spans] == ["--h:44%", "--h:6%", "--h:100%"]
    assert "script" not in {tag for tag, _ in tags.found}
    assert "rejected after 1 tokens" in html
    assert "Drink water&lt;" not in html, "the answer is in spans"
    rules = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert rules is not None
    selectors = [part for rule in re.findall(r"([^{}]+){", rules[1]) for part in rule.split(",")]
    assert all(part.strip().startswith(".trimtab") for part in selectors), "the style is for it alone"


def test_the_curve_has_a_point_for_each_known_entropy() -> None:
    assert curve([1.0, None]) == ""
    svg = curve([0.0, None, 2.302585, 4.60517])
    Tags(svg)
    (points,) = re.findall(r'points="([^"]+)"', svg)
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert len(places) == 3
    assert places[0][0] < places[1][0] < places[2][0]
    assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=0.11), "a logarithmic scale"
