"""The documents' benchmarks: every command is one, every table has its rows, and everybody can run what made them."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from trimtab.bench.cells import command_of
from trimtab.bench.commands import register
from trimtab.bench.public.sets import FOLDER, SETS
from trimtab.bench.record import Recorder, Row, latest, load
from trimtab.bench.report import default_documents
from trimtab.bench.reproduce.recipes import RECIPES
from trimtab.bench.tables import TABLES
from trimtab.decode.errors import InvalidRequest


class Command(NamedTuple):
    document: str
    words: list[str]


def parser() -> argparse.ArgumentParser:
    """The real one, of the benchmarks."""
    whole = argparse.ArgumentParser(prog="trimtab")
    register(whole.add_subparsers(dest="command"))
    return whole


def subparsers(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (found,) = (action.choices for action in of._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found)


def commands(repository: Path) -> Iterator[Command]:
    """What documents say to run: in code, and in console blocks."""
    pages = [repository / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    for path in [*pages, *sorted((repository / "docs").glob("**/*.md"))]:
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:console|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        found = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
        found += re.findall(r"`([^`]*)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        for line in found:
            words = shlex.split(line, comments=True) if "trimtab bench" in " ".join(line.split()) else []
            if len(words) > 2 and words[0].rpartition("/")[2] == "trimtab":
                yield Command(path.name, words[1:])


def places(words: list[str]) -> Iterator[str]:
    """Words that name a file or folder, without what follows in ``FILE[@SPLIT][*TIMES][#LIMIT]``."""
    for word in words:
        if "/" in word or ".jsonl" in word:
            yield re.split(r"[@#]|(?<=\.jsonl)\*", word)[0]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to parse in, as a checkout would be."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_inputs(words: list[str], folder: Path) -> list[str]:
    """The command in a folder that has the files which it reads; patterns are what a shell makes of them."""
    for place in places(words):
        if re.search(r"\.jsonl(\.gz)?$", place):
            path = folder / place.replace("*", "x")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found: list[str] = []
    for word in words:
        found += sorted(map(str, Path().glob(word))) if word.endswith("*.jsonl") else [word]
    return found


def test_there_are_commands(repository: Path) -> None:
    found = list(commands(repository))
    assert {command.document for command in found} >= {"README.md", "drafts.md", "rewards.md", "nudging.md"}
    assert {command.words[1] for command in found} >= {"decode", "speculation", "nudging", "train-draft", "reproduce"}


def test_every_command_of_the_documents_is_one(repository: Path, checkout: Path) -> None:
    whole = parser()
    names = subparsers(subparsers(whole)["bench"])
    for document, words in commands(repository):
        assert words[1] in names, (document, words)
        if len(words) == 2 or "…" in words:  # a benchmark's name, or some of its options
            options = {word for word in words if word.startswith("--")}
            assert options <= set(names[words[1]]._option_string_actions), (document, words)
            continue
        try:
            args = whole.parse_args(with_inputs(words, checkout))
        except (SystemExit, InvalidRequest) as error:
            pytest.fail(f"{document}: {shlex.join(words)}: {error}")
        assert callable(args.run)


def test_no_command_needs_a_folder_outside(repository: Path) -> None:
    for document, words in commands(repository):
        for place in places(words):
            assert not place.startswith(("/", "~", "..")), (document, place)
            name = Path(place).name.partition(".")[0]
            if name in SETS:
                assert place == f"{FOLDER}/{SETS[name].file_name}", (document, place)


def test_every_marked_table_has_rows(repository: Path) -> None:
    results = repository / "bench" / "results"
    marked = set()
    for path in default_documents(repository):
        marked |= set(re.findall(r"<!-- bench:([^ ]*) -->", path.read_text(encoding="utf-8")))
    assert marked
    for bench in marked:
        assert latest(load(results / f"{bench}.jsonl")), f"{bench} has no rows in bench/results"
    assert marked <= set(TABLES)


def test_documents_anywhere_under_docs_have_their_tables_written(tmp_path: Path) -> None:
    for name in ("README.md", "docs/benchmarks.md", "docs/deep/more.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<!-- bench:decode -->\n<!-- /bench -->\n", encoding="utf-8")
    names = {path.relative_to(tmp_path).as_posix() for path in default_documents(tmp_path)}
    assert names == {"README.md", "docs/benchmarks.md", "docs/deep/more.md"}


# ------------------------------------------------------------------------------------------------------- reproduction


def test_every_table_has_a_recipe() -> None:
    assert set(RECIPES) == set(TABLES)


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("table", RECIPES)
def test_recipes_are_commands(table: str, short: bool, checkout: Path) -> None:
    recipe = RECIPES[table]
    assert all(f"build/data/{SETS[name].file_name}" in str(recipe.commands(short)) for name in recipe.data(short))
    read = {Path(place).name for words in recipe.commands(short) for place in places(words) if "build/data" in place}
    assert read == {SETS[name].file_name for name in recipe.data(short)}
    assert set(recipe.data(short)) <= set(recipe.data())
    whole = parser()
    for words in recipe.commands(short):
        args = whole.parse_args(["bench", *with_inputs(words, checkout)])
        assert callable(args.run)


def test_what_recipes_measure_is_what_the_documents_show(repository: Path) -> None:
    """Options of the recipe are those of the recorded command, but for folders, threads and the seed."""
    results = repository / "bench" / "results"
    alike = {"decode", "memory", "best_of_n", "assisted", "speculation", "speculation_lengths", "kernels"}
    for table in sorted(alike):
        (*_, row) = latest(load(results / f"{table}.jsonl"))
        recorded = without(shlex.split(command_of(row))[2:], "--threads", "--out", "--plot", "--plots")
        assert without(RECIPES[table].commands()[-1], "--threads", "--out", "--plot", "--plots") == recorded, table


def without(words: list[str], *options: str) -> list[str]:
    """The words of a command without some options and their values."""
    found: list[str] = []
    skipping = False
    for word in words:
        skipping = word in options or (skipping and not word.startswith("-"))
        found += [] if skipping else [word]
    return found


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [
        ("trimtab bench x --data ../there/data/gsm8k.jsonl", "trimtab bench x --data build/data/gsm8k.jsonl"),
        ("trimtab bench x 'a/b/gsm8k_train.jsonl#5-9' y", "trimtab bench x 'build/data/gsm8k_train.jsonl#5-9' y"),
        ("trimtab bench x 'humaneval.jsonl@tune*4'", "trimtab bench x 'build/data/humaneval.jsonl@tune*4'"),
        ("trimtab bench x ../mine/own.jsonl", "trimtab bench x own.jsonl"),
        ("trimtab bench x build/nudging/base.jsonl", "trimtab bench x build/nudging/base.jsonl"),
        ("trimtab bench x --case 'IFEval, report rows'", "trimtab bench x --case 'IFEval, report rows'"),
    ],
)
def test_commands_are_shown_as_they_run_in_a_checkout(recorded: str, shown: str, any_row: Row) -> None:
    assert command_of(dataclasses.replace(any_row, command=recorded)) == shown


@pytest.fixture
def any_row() -> Row:
    made = Recorder("decode", seed=0, dtype="float32", settings={})
    made.value("c", "s", "m", "u", 1.0, 1)
    return made.rows[0]


def test_the_list_says_what_each_table_takes(capsys: pytest.CaptureFixture[str]) -> None:
    args: Any = parser().parse_args(["bench", "reproduce"])
    assert args.run(args) == 0
    text = capsys.readouterr().out
    for table, recipe in RECIPES.items():
        how = "measured" if recipe.measured else "estimated"
        data = ", ".join(recipe.data()) or "none"
        assert f"\n{table}: {recipe.minutes:g} min on 2 cores ({how}); data: {data}\n" in f"\n{text}"
    unknown: Any = parser().parse_args(["bench", "reproduce", "decoding"])
    with pytest.raises(InvalidRequest, match="one of decode"):
        unknown.run(unknown)
