"""What commands check before they begin: every path, and options given twice."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.decode.commands import GROUP, main
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.options import InputFile, Once, OutputFile, OutputFolder, once, writable_file, writable_folder

# Read and checked by what reads them, which says what is wrong in one line.
READ_ELSEWHERE = {"--config", "--data", "--more", "--start", "--document"}


def actions(parser: argparse.ArgumentParser, command: str = "trimtab") -> Iterator[tuple[str, argparse.Action]]:
    """All options of a parser and of those below it, with their commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from actions(child, f"{command} {name}")
        else:
            yield command, action


@pytest.fixture(scope="module")
def every_action() -> list[tuple[str, argparse.Action]]:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for entry in importlib.metadata.entry_points(group=GROUP):
        entry.load()(commands)
    return list(actions(parser))


def test_every_path_of_every_command_is_checked_when_it_is_read(every_action: Any) -> None:
    """An option that takes a file or a folder is one of the checked kinds, so that none can fail only in the end."""
    seen = set()
    for command, action in every_action:
        name = next(iter(action.option_strings), action.dest)
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        if action.type is Path:
            assert name in READ_ELSEWHERE, f"{command} {name} is a path that nothing checks"
        elif metavar in ("FILE", "FOLDER") or isinstance(action, InputFile | OutputFile | OutputFolder):
            assert isinstance(action, InputFile | OutputFile | OutputFolder), f"{command} {name}"
            if isinstance(action, OutputFolder):
                assert metavar == "FOLDER", f"{command} {name}"
            seen.add((command, name))
    assert ("trimtab generate", "--html") in seen
    assert len(seen) > 20


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command refuses its arguments with."""
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("trimtab: error: ")
    assert line.count("\n") == 1
    return line


def unwritable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Nothing may be written in ``folder``; the permissions themselves don't bind the superuser."""
    real = os.access

    def access(path: Any, mode: int) -> bool:
        return real(path, mode) and not (mode & os.W_OK and Path(path) in (folder, folder / "old"))

    monkeypatch.setattr(os, "access", access)


def test_paths_that_can_be_written_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_text("x")
    for path in ("new", "old", "a/b/new"):
        assert writable_file(tmp_path / path, "--x") == tmp_path / path
    for path in ("new", ".", "a/b/new"):
        assert writable_folder(tmp_path / path, "--x") == tmp_path / path
    assert not (tmp_path / "a").exists()  # nothing is made yet
    monkeypatch.chdir(tmp_path)
    assert writable_file(Path("new"), "--x") == Path("new")
    assert writable_folder(Path("a/b"), "--x") == Path("a/b")


@pytest.mark.parametrize(
    ("check", "path"),
    [
        (writable_file, "."),
        (writable_file, "old/new"),
        (writable_file, "old/new/deeper"),
        (writable_folder, "old"),
        (writable_folder, "old/new"),
    ],
)
def test_paths_that_cannot_be_written_are_refused(check: Any, path: str, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    with pytest.raises(InvalidRequest, match="--x = "):
        check(tmp_path / path, "--x")
    assert (tmp_path / "old").read_text() == "x"


@pytest.mark.parametrize(
    ("check", "path"),
    [(writable_file, "new"), (writable_file, "old"), (writable_folder, "."), (writable_folder, "a/b")],
)
def test_folders_without_permission_are_refused(
    check: Any, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_text("x")
    check(tmp_path / path, "--x")
    unwritable(monkeypatch, tmp_path)
    with pytest.raises(InvalidRequest, match="may"):
        check(tmp_path / path, "--x")


@pytest.mark.parametrize("path", [".", "there/page.html"])
def test_generate_refuses_a_page_that_cannot_be_written_before_it_begins(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").write_text("a file")
    monkeypatch.setattr("trimtab.server.cli.commands._open_engine", lambda config: pytest.fail("it has begun"))
    line = refused(["generate", "x", "--html", str(tmp_path / path)], capsys)
    assert f"--html = {str(tmp_path / path)!r}: accepted: " in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "kernels", "--plot", "{}/old/x.svg"],
        ["bench", "decode", "--results", "{}/old"],
        ["bench", "speculation", "--data", "{}/old", "--out", "{}"],
        ["bench", "speculation", "--data", "{}/old", "--plots", "{}/old"],
        ["bench", "decode", "--data", "{}/gone"],
        ["bench", "nudging", "--data", "{}", "--out", "{}/new"],
        ["bench", "train-draft", "--target", "x", "--out", "{}/old"],
    ],
)
def test_benchmarks_refuse_paths_before_they_begin(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").write_text("x")
    assert str(tmp_path) in refused([argument.format(tmp_path) for argument in arguments], capsys)


def test_benchmarks_refuse_to_begin_where_results_cannot_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bench").write_text("a file where the folder of results should be")
    monkeypatch.setattr("trimtab.bench.decode.run.bench_decode", lambda options: pytest.fail("it has begun"))
    assert "--results = 'bench/results'" in refused(["bench", "decode"], capsys)


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["generate", "x", "--temperature", "0", "--temperature", "1"], "--temperature"),
        (["generate", "x", "--policy", "base", "--model", "a", "--policy", "nudged:chat"], "--policy"),
        (["generate", "x", "--html", "a.html", "--html", "b.html"], "--html"),
        (["serve", "--port", "1", "--port", "2"], "--port"),
        (["generate", "x", "--reward", "a=length", "--reward", "a=json"], "--reward a"),
    ],
)
def test_what_is_given_twice_is_refused(
    arguments: list[str], option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtab.server.cli.commands._open_engine", lambda config: pytest.fail("it has begun"))
    line = refused(arguments, capsys)
    assert f"error: invalid request: {option} = " in line
    assert "given twice" in line


def test_a_value_may_be_its_default() -> None:
    parser = argparse.ArgumentParser()
    once(parser)
    parser.add_argument("--x", default="a")
    parser.add_argument("--many", action="append")
    assert isinstance(parser._option_string_actions["--x"], Once)
    assert parser.parse_args(["--x", "a", "--many", "1", "--many", "2"]).many == ["1", "2"]
    assert parser.parse_args([]).x == "a"
