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
    ("method", "field", "accepted", "default"),
    [
        ("best_of_n", "n", "a whole number in [1, max_n]", "none"),
        ("best_of_n", "choose", "one of best, soft, worst, majority, weighted, consensus, tournament", "best"),
        ("best_of_n", "threshold", "a number of the objective", "none"),
        ("nudged", "nudger", "a model", "required"),
        ("nudged", "when", "entropy or top_prob or branching", "none"),
        ("speculative", "draft", "a model or lookup", "required"),
        ("speculative", "coupled", "true or false", "false"),
        ("mixture", "experts", "1 to 15 weighted", "required"),
        ("token_reward", "reward", "a reward that rates beginnings", "required"),
    ],
)
def test_what_a_field_accepts(method: str, field: str, accepted: str, default: str) -> None:
    _, _, section = as_text(plugins=False).partition(f"\n  {method} ")
    (line,) = re.findall(rf"^    {field} +(.*)$", re.split(r"\n  \w", section)[0], re.MULTILINE)
    assert re.fullmatch(rf"{re.escape(accepted)} +{default}", line)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert capsys.readouterr().out == as_text()
    assert main(["methods", "--markdown"]) == 0
    assert capsys.readouterr().out == as_markdown()
