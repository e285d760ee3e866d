"""What the documents say can be done: links lead somewhere, commands are commands, programs run, tables are read."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from trimtab.decode.commands import GROUP, main
from trimtab.decode.config import EngineConfig
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.request.method import AXES, methods
from trimtab.decode.request.spec_string import parse_draw, parse_objective, parse_policy, parse_reward, parse_search
from trimtab.decode.rewards.registry import make_rewards, reward_types
from trimtab.server.cli.needed import needed
from trimtab.server.config import ServerConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *(ROOT / "docs").glob("**/*.md")]
)
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
pages = pytest.mark.parametrize("page", TEXTS)
OTHERS = {"python", "pip", "echo", "chromium"}  # programs of others that lines of blocks begin with

OWN = ("bench", "--version")  # parsed elsewhere; no subcommand


def blocks(page: str, *languages: str) -> list[str]:
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL)


def prose(page: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.MULTILINE | re.DOTALL)


# -------------------------------------------------------------------------------------------------------------- links


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page: lower case, without signs, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert path.resolve().is_relative_to(ROOT), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{page}: {target}"


def test_every_page_and_picture_is_linked() -> None:
    index = TEXTS["docs/index.md"]
    for page in TEXTS:
        if page.startswith("docs/") and page != "docs/index.md":
            assert f"({page.removeprefix('docs/')})" in index, page
    shown = " ".join(TEXTS.values())
    for picture in [*(ROOT / "docs").glob("*.svg"), *(ROOT / "docs").glob("*.png")]:
        assert f"{picture.name})" in shown, picture.name


def test_the_readme_is_one_that_is_read() -> None:
    text = TEXTS["README.md"]
    assert len(text.splitlines()) < 200
    assert "make demo" in (first := "\n".join(text.splitlines()[:24]))
    assert "make test" in first
    for cls in (cls for axis in AXES for cls in list(methods(axis, plugins=False).values())[1:]):
        assert f"`{cls.__name__}" in text, f"README says nowhere when to use {cls.__name__}"
    for kind, entry in reward_types().items():
        assert not entry.value.startswith("trimtab.") or f"`{kind}`" in text, f"README names no reward {kind}"


# ----------------------------------------------------------------------------------------------------------- commands


class Command(NamedTuple):
    page: str
    words: list[str]


def parser() -> argparse.ArgumentParser:
    """The real one, with all that is installed of the project."""
    whole = argparse.ArgumentParser(prog="trimtab")
    added = whole.add_subparsers(dest="command")
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.value.startswith("trimtab."):
            entry.load()(added)
    return whole


def console() -> Iterator[Command]:
    """Lines of console blocks, without their comments; the program without its folder."""
    for page in TEXTS:
        for line in "".join(blocks(page, "console", "sh")).splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield Command(page, [words[0].rpartition("/")[2], *unpiped(words[1:])])


def unpiped(words: list[str]) -> list[str]:
    """A command without where its output goes."""
    return list(itertools.takewhile(lambda word: word not in (">", ">>", "|"), words))


def inline(program: str) -> Iterator[Command]:
    """Code in prose that begins with a program's name and says more than that."""
    for page in TEXTS:
        for code in re.findall(r"`([^`]+)`", prose(page)):
            if re.match(rf"{program}\s+[a-z]", code):
                yield Command(page, unpiped(shlex.split(code)))


def to_generate() -> list[list[str]]:
    return [words[1:] for _, words in console() if words[:2] == ["trimtab", "generate"]]


def test_console_blocks_have_known_programs() -> None:
    assert {command.words[0] for command in console()} <= {"trimtab", "make", *OTHERS}
    assert len(list(console())) > 20


def test_make_targets_are_there() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", rules, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) \??:?=", rules, re.MULTILINE))
    found = [command for command in [*console(), *inline("make")] if command.words[0] == "make"]
    assert len(found) > 8
    for page, (_, target, *rest) in found:
        assert target in targets, f"{page}: make {target}"
        assert {word.partition("=")[0] for word in rest} <= variables, f"{page}: make {target} {rest}"


def test_commands_parse() -> None:
    """All but the benchmarks', which test_bench_documents.py parses beside their files."""
    whole = parser()
    asked = [words for words in console() if words.words[:1] == ["trimtab"] and words.words[1] not in OWN]
    assert len(asked) > 10
    for page, (_, *words) in asked:
        try:
            assert callable(whole.parse_args(words).run)
        except (SystemExit, InvalidRequest) as error:
            pytest.fail(f"{page}: {shlex.join(words)}: {error}")


def test_commands_in_passing_have_their_options() -> None:
    """In prose a command may lack what the reader would put in."""
    (action,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    count = 0
    for page, (_, name, *words) in inline("trimtab"):
        assert name in action.choices, f"{page}: trimtab {name}"
        if name not in OWN:
            options = {word for word in words if word.startswith("--")}
            assert options <= set(action.choices[name]._option_string_actions), f"{page}: trimtab {name} {words}"
            count += 1
    assert count > 10


def test_what_is_generated_can_be() -> None:
    """Of the bundled models, by methods and rewards that are there."""
    whole = parser()
    searched = set()
    for words in to_generate():
        args = whole.parse_args(words)
        rewards = dict(parse_reward(text, "--reward") for text in args.reward or ())
        make_rewards(rewards)
        objective = args.objective and parse_objective(args.objective, "--objective")
        asked = [
            args.policy and parse_policy(args.policy, "--policy"),
            args.draw and parse_draw(args.draw, "--draw"),
            args.search and parse_search(args.search, objective, "--search"),
        ]
        chosen = [method for method in asked if method]
        config = EngineConfig.demo()
        assert needed(config, args.model, chosen).models
        for method in chosen:
            assert {*method.models()} <= config.models.keys(), words
            assert {*method.rewards()} <= rewards.keys(), words
        searched |= {args.search.partition(":")[0]} if args.search else set()
    assert searched == set(methods("search", plugins=False)) - {"single"}


@pytest.mark.full
@pytest.mark.real
def test_commands_run(
    real_models: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some write a file
    for words in to_generate():
        if "--server" not in words:
            assert main(words) == 0, words
            assert capsys.readouterr().out.strip(), words


# ----------------------------------------------------------------------------------------------------------- programs


@pages
def test_programs_without_a_model_run(page: str) -> None:
    for block in blocks(page, "python"):
        if not re.search(r"\b(Engine|Client)\(|\bresult\.", block):
            exec(compile(block, page, "exec"), {"__name__": "document"})


def test_programs_of_clients_run(
    tiny_folder: Callable[..., Path], foreign_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trimtab.decode.engine.engine import Engine
    from trimtab.server.rpc.background import BackgroundServer

    found = [block for page in TEXTS for block in blocks(page, "python") if "Client(" in block]
    assert found
    models = {"base": str(tiny_folder("llama")), "chat": str(foreign_folder)}
    with Engine(models) as engine, BackgroundServer(lambda: nullcontext(engine)) as server:
        for block in found:
            exec(block.replace("localhost:50051", server.address), names := {"__name__": "document"})
            assert names["result"].tokens  # type: ignore[attr-defined]


@pytest.mark.full
@pytest.mark.real
@pages
def test_programs_of_engines_run(page: str, real_models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """As a reader runs them, one after the other."""
    names: dict[str, Any] = {"__name__": "document"}
    for block in blocks(page, "python"):
        if "Client(" not in block:
            exec(compile(block, page, "exec"), names)
            assert "print(" not in block or capsys.readouterr().out.strip()


@pytest.mark.full
def test_the_reference_has_every_public_name(tmp_path: Path) -> None:
    """`make check` writes it; here is what it must have."""
    subprocess.run([sys.executable, "docs/api.py", str(tmp_path)], cwd=ROOT, check=True)
    written = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.html")}
    for name in ("trimtab.decode", "trimtab.decode.extending", "trimtab.server", "trimtab.server.client"):
        text = written[f"{name.replace('.', '/')}.html"].read_text(encoding="utf-8")
        sections = set(re.findall(r'<section id="(\w+)"', text))
        assert sections == set(importlib.import_module(name).__all__), name
    assert "trimtab/decode/engine.html" not in written, "the inside is no part of it"


# ------------------------------------------------------------------------------------------------------------- tables


@pages
def test_configurations_are_read(page: str) -> None:
    """With a model where a page shows other tables only; rewards that name others are made with all of the page."""
    found: dict[str, Any] = {}
    for block in blocks(page, "toml"):
        table = tomllib.loads(block)
        if "project" in table:  # of a package of one's own
            continue
        config = EngineConfig.from_dict({"models": {"chat": {"source": "x"}}, **table})
        ServerConfig.from_table(config.server)
        found |= config.rewards
    options = {name: table for name, table in found.items() if table["type"] != "profile"}
    make_rewards(options, EngineConfig.demo().models)
    assert {term for table in found.values() for term in table.get("terms", ())} <= {*found, *names_of_rewards(page)}


def names_of_rewards(page: str) -> set[str]:
    """Rewards that the page's programs make."""
    return set(re.findall(r'"(\w+)": (?:\{"type"|\w+,  #)', "".join(blocks(page, "python"))))
