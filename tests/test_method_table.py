"""The page of all methods says what is accepted: it is up to date, and true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trimtab.decode.commands import main
from trimtab.decode.methods.table import as_markdown, as_text
from trimtab.decode.request.fields import described
from trimtab.decode.request.method import AXES, methods


def test_the_page_is_up_to_date(repository: Path) -> None:
    page = (repository / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == as_markdown(plugins=False), "run: trimtab methods --markdown > docs/methods.md"


def test_every_method_and_field_is_there_and_explained() -> None:
    page = as_markdown(plugins=False)
    for cls in (cls for axis in AXES for cls in methods(axis, plugins=False).values()):
        _, _, section = page.partition(f"### `{cls.name}`: `{cls.__name__}`\n")
        rows = re.findall(r"^\| `(\w+)` \| (.+) \| `(.+)` \| (.+) \|$", section.partition("\n##")[0], re.MULTILINE)
        assert [row[0] for row in rows] == [field.name for field in described(cls)]
        assert [row[2] == "required" for row in rows] == [field.required for field in described(cls)]


@pytest.mark.parametrize(
    ("name", "accepted", "default"),
    [
        ("n", "a whole number in [1, max_n]", "none"),
        ("choose", "one of best, soft, worst, majority, weighted, consensus, tournament", "best"),
        ("nudger", "a model", "required"),
        ("draft", "a model or lookup", "required"),
        ("experts", "1 to 15 weighted", "required"),
        ("reward", "a reward that rates beginnings", "required"),
        ("coupled", "true or false", "false"),
        ("threshold", "a number of the objective", "none"),
    ],
)
def test_what_a_field_accepts(name: str, accepted: str, default: str) -> None:
    lines = [line.split(maxsplit=1) for line in as_text(plugins=False).splitlines()]
    said = dict(line for line in lines if len(line) == 2)
    assert re.fullmatch(rf"{re.escape(accepted)}\s+{default}", said[name])


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert capsys.readouterr().out == as_text()
    assert main(["methods", "--markdown"]) == 0
    assert capsys.readouterr().out == as_markdown()
