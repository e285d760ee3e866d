"""Who wrote what, on a terminal and on a page; and the commands that show it, over a scripted engine."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import scripted_engine as scripted
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decode.commands import main
from trimtab.decode.display.attribution import Attribution, Span, spans_of
from trimtab.decode.display.figures import nudged_share, summary, tokens_per_second
from trimtab.decode.display.page import page
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.request.as_json import from_json
from trimtab.decode.request.events import (
    Chunk,
    Completed,
    Event,
    Progress,
    Started,
)
from trimtab.decode.request.objective import Objective, RewardTerm
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.result import (
    Candidate,
    FinishReason,
    ModelUsage,
    Result,
    Token,
    TokenDraw,
    TopLogprob,
    Usage,
)
from trimtab.decode.request.sampling import Sampling
from trimtab.decode.text.detokenizer import Detokenizer
from trimtab.server.cli import demo
from trimtab.server.cli.commands import _interruptible
from trimtab.server.cli.display import Marker, candidates, progress, show
from trimtab.server.rpc.background import BackgroundServer

AUTHORS = ("base", "chat")


def result_of(tokens: list[Token], text: str | None = None, seconds: float = 2.0) -> Result:
    if text is None:
        text = b"".join(token.piece for token in tokens).decode(errors="replace")
    candidate = Candidate(0, text, tuple(tokens), FinishReason.EOS)
    return Result(
        model="base",
        models=AUTHORS,
        candidates=(candidate,),
        usage=Usage(prompt_tokens=1, total_time=seconds, queue_time=seconds / 2),
        seed=1,
    )


def tok(piece: str | bytes, author: str = "base", number: int = 0) -> Token:
    data = piece.encode() if isinstance(piece, str) else piece
    return Token(number, data, author, logprob=-0.5, entropy=1.0, top_prob=0.6)


# ---------------------------------------------------------------------------------------------------------- attribution


@st.composite
def answers(draw: Any) -> tuple[str, list[Token]]:
    """A text and its tokens, which may cut characters."""
    text = draw(st.text(st.sampled_from("ab é本🙂 \n"), max_size=20))
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=8))) if len(data) > 1 else []
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return text, [tok(piece, draw(st.sampled_from(AUTHORS)), number) for number, piece in enumerate(pieces)]


def oracle(text: str, tokens: list[Token]) -> list[int]:
    """For each character the number of the token that holds its first byte."""
    owner = [token.id for token in tokens for _ in token.piece]
    starts, position = [], 0
    for character in text:
        starts.append(owner[position])
        position += len(character.encode())
    return starts


def flat(spans: list[Span]) -> list[int | None]:
    return [None if span.token is None else span.token.id for span in spans for _ in span.text]


@given(answers(), st.data())
def test_every_character_belongs_to_the_token_of_its_first_byte(answer: tuple[str, list[Token]], data: Any) -> None:
    text, tokens = answer
    spans = spans_of(result_of(tokens, text).chosen)
    assert "".join(span.text for span in spans) == text
    assert flat(spans) == oracle(text, tokens)

    # As a stream: tokens come no later than the text behind them.
    attribution, detokenizer, streamed = Attribution(), Detokenizer(), list[Span]()
    pending: list[Token] = []
    for token in tokens:
        pending.append(token)
        released = detokenizer.feed(token.piece)
        if data.draw(st.booleans()) or released:
            streamed += attribution.feed(released, pending)
            pending = []
    streamed += attribution.feed(detokenizer.finish(), pending)
    assert flat(streamed) == oracle(text, tokens)


@given(answers())
def test_every_token_has_its_place(answer: tuple[str, list[Token]]) -> None:
    text, tokens = answer
    spans = spans_of(result_of(tokens, text).chosen)
    assert [span.token and span.token.id for span in spans] == [token.id for token in tokens]
    owners = set(oracle(text, tokens))
    assert [bool(span.text) for span in spans] == [token.id in owners for token in tokens]


def test_tokens_without_text_have_an_empty_span() -> None:
    tokens = [
        tok("<bos>", number=0),
        tok(" The", number=1),
        tok("<pad>", number=2),
        tok(" end", "chat", 3),
        tok("</s>", number=4),
    ]
    spans = spans_of(result_of(tokens, "The end").chosen)
    found = [(span.text, span.token and span.token.id) for span in spans]
    assert found == [("", 0), ("The", 1), ("", 2), (" end", 3), ("", 4)]


def test_bytes_that_are_no_character_keep_their_author() -> None:
    tokens = [tok("a", number=0), tok(b"\xff", "chat", 1), tok("b", number=2)]
    spans = spans_of(result_of(tokens).chosen)
    assert [(span.text, span.token and span.token.id) for span in spans] == [("a", 0), ("�", 1), ("b", 2)]


def test_text_that_no_token_accounts_for_is_still_shown() -> None:
    assert spans_of(result_of([], "abc").chosen) == [Span("abc", None)]


# -------------------------------------------------------------------------------------------------------------- display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def events_of(result: Result) -> Iterator[Event]:
    yield Started("g", result.models, 1, 1, 9)
    for token in result.tokens:
        yield Chunk(0, token.piece.decode(), (token,))
    yield Completed(result)


STORY = [tok("\n The"), tok(" quick", "chat"), tok(" fox", "chat"), tok(" runs"), tok(".", "chat")]


def test_brackets_enclose_what_the_nudger_wrote() -> None:
    out = io.StringIO()
    result = result_of(STORY)
    assert show(events_of(result), out, marked=True) == result
    assert out.getvalue() == "[base writes plain text, ⟦chat⟧ the marked]\nThe ⟦quick fox⟧ runs⟦.⟧\n"


def test_colours_on_a_terminal_unless_unwanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    show(events_of(result_of(STORY)), out, marked=True, legend=False)
    assert out.getvalue() == "The \x1b[1;33mquick fox\x1b[0m runs\x1b[1;33m.\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    show(events_of(result_of(STORY)), out, marked=True)
    assert "\x1b" not in out.getvalue()


def test_unmarked_is_the_text_alone() -> None:
    out = io.StringIO()
    show(events_of(result_of(STORY)), out, marked=False)
    assert out.getvalue() == "\n The quick fox runs.\n"


def test_a_mark_is_closed_when_the_stream_breaks() -> None:
    def broken() -> Iterator[Event]:
        yield Started("g", AUTHORS, 1, 1, 9)
        yield Chunk(0, "half", (tok("half", "chat"),))
        raise KeyboardInterrupt

    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        show(broken(), out, marked=True, legend=False)
    assert out.getvalue() == "⟦half⟧\n"


@given(answers())
def test_marks_change_nothing_but_themselves(answer: tuple[str, list[Token]]) -> None:
    text, tokens = answer
    marker = Marker(AUTHORS, colour=False)
    marked = marker.mark(Attribution().feed(text, tokens)) + marker.close()
    assert marked.replace("⟦", "").replace("⟧", "") == text.lstrip()
    assert marked.count("⟦") == marked.count("⟧")
    assert "⟦⟧" not in marked


FOUND = Result(
    model="base",
    models=("base",),
    candidates=(
        Candidate(0, "weak", (tok("weak"),), FinishReason.EOS, rewards={"helpful": 0.1, "objective": 0.1}),
        Candidate(
            1,
            "strong end",
            (tok("strong"), Token(1, b" end", "base", TokenDraw.BONUS)),
            FinishReason.STOP,
            rewards={"helpful": 0.9, "objective": 0.9},
        ),
        Candidate(2, "<cut", (tok("<cut"),), FinishReason.PRUNED, rewards={"helpful": -2.0, "objective": -2.0}),
    ),
    usage=Usage(
        prompt_tokens=1,
        generated_tokens=4,
        drafted_tokens=10,
        accepted_tokens=7,
        discarded_tokens=3,
        models=(ModelUsage("base", 5, 6, 7),),
        total_time=1.0,
    ),
    seed=1,
    selected=1,
)


def searching(committed: str = "") -> Iterator[Event]:
    yield Started("g", ("base",), 1, 1, 9)
    yield Progress(3, 0, 2)
    if committed:
        yield Chunk(1, committed, FOUND.tokens[:1])
    yield Progress(1, 2, 4, 0.9)
    yield Completed(FOUND)


@pytest.mark.parametrize("committed", ["", "strong", "str"])
@pytest.mark.parametrize("marked", [False, True])
def test_what_a_search_did_not_commit_is_written_in_the_end(committed: str, marked: bool) -> None:
    out = io.StringIO()
    assert show(searching(committed), out, marked=marked) == FOUND
    assert out.getvalue() == "strong end\n"


def test_progress_is_one_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out, status = io.StringIO(), Terminal()
    show(searching(), out, marked=False, status=status)
    first, second = (
        "candidates: 3 running, 0 done, 2 tokens",
        "candidates: 1 running, 2 done, 4 tokens, best reward 0.9",
    )
    assert status.getvalue() == f"\r\x1b[K{first}\r\x1b[K{second}\r\x1b[K"
    assert out.getvalue() == "strong end\n"
    assert progress(Progress(1, 2, 4, 0.9)) == second

    terminal = Terminal()
    show(searching("strong"), terminal, marked=False, status=terminal)
    assert terminal.getvalue() == f"\r\x1b[K{first}\r\x1b[Kstrong end\n", "it would overwrite what is committed"
    for quiet in (None, io.StringIO()):
        show(searching(), out, marked=False, status=quiet)
        assert quiet is None or quiet.getvalue() == ""


def test_candidates_come_best_first_with_their_rewards() -> None:
    assert candidates(FOUND) == (
        "\n--- candidate 1 (selected): 2 tokens, stop, helpful 0.9, objective 0.9\nstrong end\n"
        "\n--- candidate 0: 1 tokens, eos, helpful 0.1, objective 0.1\nweak\n"
        "\n--- candidate 2: 1 tokens, pruned, helpful -2, objective -2\n<cut\n"
    )


def test_figures_of_searches_and_speculation() -> None:
    assert summary(FOUND) == (
        "2 tokens, best of 3 candidates with 4 tokens together, reward 0.9, 10 drafted, 7 accepted, 3 discarded, "
        "5 forward passes, exp(mean entropy) 2.72, 2.0 tokens/s"
    )


def test_figures() -> None:
    result = result_of(STORY)
    assert nudged_share(result) == pytest.approx(0.6)
    assert tokens_per_second(result) == pytest.approx(5.0), "time in the queue is not work"
    assert summary(result) == "5 tokens, 60% nudged, exp(mean entropy) 2.72, 5.0 tokens/s"
    assert tokens_per_second(result_of([], seconds=0.0)) == 0.0


# ----------------------------------------------------------------------------------------------------------------- page


class Reader(HTMLParser):
    """Collects the answer's text and what is said of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = ""
        self.answer = ""
        self.tokens: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.prompt = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag == "p":
            self.inside = given.get("class") or ""
        if "tabindex" in given and tag == "span":
            self.tokens.append((given.get("class") or "", given.get("title") or ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "p":
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "answer":
            self.answer += data
        if self.inside == "prompt":
            self.prompt += data


def test_the_page_holds_the_answer_and_its_authors() -> None:
    tokens = [
        tok("a <b>&amp; "),
        Token(7, b'"</p>', "chat", logprob=-1.0, top=(TopLogprob(3, b"<i>", -2.0),)),
        tok("é"),
    ]
    html = page(result_of(tokens), 'Is 1 < 2 & "so"?')
    reader = Reader()
    reader.feed(html)
    assert reader.answer == 'a <b>&amp; "</p>é'
    assert reader.prompt == 'Is 1 < 2 & "so"?'
    assert [cls for cls, _ in reader.tokens] == ["t m0", "t m1", "t m0"]
    assert reader.tokens[1][1].startswith("token '\"</p>', by chat, id 7\n")
    assert "p 0.368, ln p -1\n" in reader.tokens[1][1]
    assert "most likely '<i>' 0.135" in reader.tokens[1][1]
    assert "http" not in html, "nothing is fetched"
    assert "prefers-color-scheme: dark" in html


def test_the_page_marks_how_tokens_were_drawn_and_holds_all_candidates() -> None:
    draws = [TokenDraw.ACCEPTED, TokenDraw.CORRECTED, TokenDraw.BONUS, TokenDraw.PLAIN, TokenDraw.FORCED]
    tokens = [Token(i, b"x", "base", draw, reward=0.5) for i, draw in enumerate(draws)]
    reader = Reader()
    html = page(result_of(tokens), "?")
    reader.feed(html)
    assert [cls for cls, _ in reader.tokens] == ["t m0 accepted", "t m0 corrected", "t m0 bonus", "t m0", "t m0"]
    assert "reward 0.5" in reader.tokens[0][1]
    assert "drawn forced" in reader.tokens[4][1]
    for said in ("drafted and accepted", "in place of a rejected one", "after a draft that was accepted whole"):
        assert f">{said}</b>" in html
    assert "drafted and accepted" not in page(result_of(STORY), "?"), "the legend explains what is there"

    html = page(FOUND, "?")
    reader = Reader()
    reader.feed(html)
    assert reader.answer == "strong end"
    assert reader.tags.count("section") == 3
    assert "&lt;cut" in html
    for figure in ("10", "7 (70%)", "3", "5 (2.50 per token)", "0.9"):
        assert f"<td>{figure}</td>" in html


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def engine() -> Any:
    return scripted.ScriptedEngine()


@pytest.fixture(scope="module")
def address(engine: Any) -> Iterator[str]:
    with BackgroundServer(lambda: engine) as server:
        yield server.address


def test_generate_streams_from_a_server(address: str, engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--server",
        address,
        "--max-new-tokens",
        "9",
        "--temperature",
        "0",
        "--system",
        "Be brief.",
        "--seed",
        "3",
    ]
    assert main(["generate", "Hello", *arguments]) == 0
    request = engine.jobs[-1].request
    assert [(m.role, m.content) for m in request.prompt] == [("system", "Be brief."), ("user", "Hello")]
    assert capsys.readouterr().out == scripted.expected_text(request, 3) + "\n"
    assert (request.sampling.temperature, request.sampling.seed, request.stopping.max_new_tokens) == (0.0, 3, 9)


def test_generate_passes_every_number_on(address: str, engine: Any) -> None:
    given = {"temperature": 0.5, "top_p": 0.75, "top_k": 5, "min_p": 0.125, "repetition_penalty": 1.5, "seed": 7}
    counts = {"max_new_tokens": 4, "min_new_tokens": 2}
    options = [text for name, value in {**given, **counts}.items() for text in (f"--{name.replace('_', '-')}", value)]
    assert main(["generate", "x", "--server", address, *map(str, options)]) == 0
    request = engine.jobs[-1].request
    assert {name: getattr(request.sampling, name) for name in given} == given
    assert {name: getattr(request.stopping, name) for name in counts} == counts
    assert main(["generate", "x", "--server", address, "--max-new-tokens", "1"]) == 0
    assert engine.jobs[-1].request.sampling == Sampling(), "what isn't given is the model's own default"


def test_generate_marks_and_writes_a_page(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html = tmp_path / "answer.html"
    arguments = ["--server", address, "--nudger", "chat", "--above", "1.5", "--show", "--html", str(html)]
    assert main(["generate", "Hello", *arguments, "--max-new-tokens", "12"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("[base writes plain text, ⟦chat⟧ the marked]\n")
    assert "tokens, 50% nudged, 1 forward passes, exp(mean entropy)" in out
    written = html.read_text(encoding="utf-8")
    assert 'class="t m1"' in written
    assert "dashed: the trigger, 4.48" in written


def test_generate_writes_json(
    address: str, engine: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("From a pipe"))
    assert main(["generate", "-", "--raw", "--json", "--server", address, "--stop", "zzz", "--stop", "q"]) == 0
    result = from_json(json.loads(capsys.readouterr().out))
    assert isinstance(result, Result)
    assert engine.jobs[-1].request.prompt == "From a pipe"
    assert engine.jobs[-1].request.stopping.stop == ("zzz", "q")
    assert result.text == scripted.expected_text(engine.jobs[-1].request, result.seed)


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        (["--top-prob-below", "0.4"], "TopProb(below=0.4)"),
        (["--branching-above", "9"], "Branching(above=9.0)"),
        ([], "None"),
    ],
)
def test_generate_passes_the_trigger_on(address: str, engine: Any, options: list[str], policy: str) -> None:
    assert main(["generate", "x", "--server", address, "--nudger", "chat", "--max-new-tokens", "1", *options]) == 0
    assert repr(engine.jobs[-1].request.policy.when) == policy


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        (["--policy", "nudged:chat,when=entropy:1.5"], {"policy": Nudged("chat", Entropy(1.5))}),
        (["--draw", "speculative:chat,coupled"], {"draw": Speculative("chat", coupled=True)}),
        (["--draw", "speculative:lookup,length=fixed:4"], {"draw": Speculative(PromptLookup(), Fixed(4))}),
        (["--no-prompt-cache"], {"prompt_cache": False}),
        (["--begin", "An"], {"prompt": (ChatMessage("user", "x"), ChatMessage("assistant", "An"))}),
        ([], {"prompt_cache": True}),
        (
            ["--search", "best_of_n:4", "--objective", "helpful=1", "--reference", "a", "--reference", "b"],
            {"search": BestOfN(4, Objective((RewardTerm("helpful"),))), "references": ("a", "b")},
        ),
        (
            ["--search", "segments:beams=2,samples_per_beam=3", "--objective", "helpful", "--draw", "speculative:chat"],
            {"search": Segments(Objective((RewardTerm("helpful"),)), 2, 3), "draw": Speculative("chat")},
        ),
    ],
)
def test_generate_passes_the_axes_on(address: str, engine: Any, options: list[str], axes: dict[str, Any]) -> None:
    assert main(["generate", "x", "--server", address, "--max-new-tokens", "1", *options]) == 0
    request = engine.jobs[-1].request
    assert {name: getattr(request, name) for name in axes} == axes


def test_generate_writes_every_candidate(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--server", address, "--max-new-tokens", "3", "--seed", "1", "--candidates"]) == 0
    text, _, rest = capsys.readouterr().out.partition("\n\n--- candidate 0 (selected): 3 tokens, max_new_tokens\n")
    assert text.strip() == rest.strip() != ""


def test_rewards_of_the_command_line_join_those_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def open_engine(config: Any) -> Any:
        opened.append(config)
        return scripted.ScriptedEngine

    monkeypatch.setattr("trimtab.server.cli.commands._open_engine", open_engine)
    options = ["--reward", "short=length,at_most=50", "--reward", "j=json", "--max-new-tokens", "1"]
    monkeypatch.setattr(scripted.ScriptedEngine, "stream", lambda self, *a, **k: iter(events_of(FOUND)), raising=False)
    assert main(["generate", "x", *options]) == 0
    assert opened[0].rewards == {"short": {"type": "length", "at_most": 50}, "j": {"type": "json"}}
    assert set(opened[0].models) == {"base"}, "no other is needed"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--policy", "nudge:chat"], 2, "--policy = 'nudge': accepted: one of base, guided, mixture, nudged"),
        (["--policy", "nudged:chat", "--nudger", "chat"], 2, "use one of them"),
        (["--draw", "speculative:d,length=fixed:x"], 2, "--draw speculative.length.fixed.tokens = 'x'"),
        (["--draw", "speculative:base"], 2, "draw.speculative.draft_model = 'base'"),
        (["--search", "best_of_n:4"], 2, "search.best_of_n.objective = None"),
        (["--search", "best_of_n:0,objective=helpful"], 2, "search.best_of_n.n = 0"),
        (["--search", "segments:gone"], 2, "search.segments.objective.terms[0].reward = 'gone'"),
        (["--search", "segments:whole", "--reference", "x"], 2, "search.segments with 'whole'"),
        (["--objective", "helpful"], 2, "--objective needs a search"),
        (["--reward", "short=length"], 2, "--reward is for models in this process"),
        (["--candidates", "--json"], 2, "--json has every candidate already"),
        (["--above", "2"], 2, "--above needs --nudger"),
        (["--raw", "--system", "x"], 2, "--system"),
        (["--raw", "--begin", "x"], 2, "--begin"),
        (["--show", "--json"], 2, "not allowed with"),
        (["--model", "gpt"], 2, "model = 'gpt'"),
        (["--temperature", "-1"], 2, "sampling.temperature = -1.0"),
        (["--top-p", "2"], 2, "sampling.top_p = 2.0"),
        (["--min-new-tokens", "300"], 2, "stopping.min_new_tokens = 300"),
    ],
)
def test_generate_refuses_clearly(
    address: str, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, says: str
) -> None:
    try:
        code: object = main(["generate", "x", "--server", address, *arguments])
    except SystemExit as exit_:  # of argparse
        code = exit_.code
    assert code == status
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_interrupting_generate_cancels_and_says_so_briefly() -> None:
    engine = scripted.ScriptedEngine(tick=0.01)
    with BackgroundServer(lambda: engine) as server:
        command = [
            "generate",
            "x",
            "--server",
            server.address,
            "--max-new-tokens",
            "4000",
            "--show",
            "--nudger",
            "chat",
        ]
        with subprocess.Popen(
            [sys.executable, "-m", "trimtab.decode.commands", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(60)  # the legend and the beginning of the answer
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
            error = process.stderr.read()
            assert "interrupted" in error
            assert "Traceback" not in error
        assert engine.wait_idle(2.0)
        assert engine.jobs[0].state == "cancelled"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_is_not_lost_where_python_drops_the_exception() -> None:
    class Interrupting:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def events() -> Iterator[Any]:
        yield "first"
        Interrupting()  # at once finalised
        yield "second"

    seen: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _interruptible(events()) as watched:
        seen.extend(watched)
    assert seen == ["first"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "x", "--server", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--port", "700000"], ["--config", "/nowhere.toml"]])
def test_serve_refuses_a_bad_configuration(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) in (1, 2)
    assert "trimtab: error: " in capsys.readouterr().err


def test_the_demonstration_compares_alone_and_nudged() -> None:
    out = io.StringIO()
    demo.run(scripted.ScriptedEngine, out, model="base", nudger="chat", max_new_tokens=12)
    text = out.getvalue()
    for question in demo.QUESTIONS:
        assert f"=== {question}" in text
    assert text.count("--- base alone") == text.count("--- base, nudged by chat") == len(demo.QUESTIONS)
    last = text.splitlines()[-1]
    assert last.startswith("mean")
    assert last.endswith("50%")
