"""The README's examples, run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from trimtab.decode.commands import main


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(repository: Path) -> list[list[str]]:
    lines = [line for block in blocks(repository, "console") for line in block.splitlines()]
    found = [shlex.split(line.partition("  # ")[0])[1:] for line in lines if line.startswith("$ .venv/bin/trimtab ")]
    return [words[1:] for words in found if "serve" not in words and "--server" not in words]


def test_there_is_something_to_run(repository: Path) -> None:
    searches = [
        words[words.index("--search") + 1].partition(":")[0] for words in commands(repository) if "--search" in words
    ]
    assert searches == ["best_of_n", "segments", "reject_segments", "evolution", "refine"]
    assert len([block for block in blocks(repository, "python") if "Engine(" in block]) == 2


@pytest.mark.full
@pytest.mark.real
def test_commands(repository: Path, real_models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(repository):
        assert main(words) == 0, words
        out, _ = capsys.readouterr()
        assert out.strip(), words


@pytest.mark.full
@pytest.mark.real
def test_programs(repository: Path, real_models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for block in blocks(repository, "python"):
        if "Engine(" in block:
            exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
            assert capsys.readouterr().out.strip()
