"""A table made from its recipe, in the shortest form and of random models: data, measurements, rows, a document."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trimtab.bench.commands import register
from trimtab.bench.data import read_rows
from trimtab.bench.public.rows import splits
from trimtab.bench.record import load
from trimtab.bench.reproduce.recipes import RECIPES
from trimtab.decode.commands import main
from trimtab.decode.models.acceptance import AcceptanceHead
from trimtab.decode.models.draft import DraftSpec, assemble, write_draft

IDS = torch.arange(3, 300, 3)


def run(*arguments: object) -> int:
    """The command, without the other layers."""
    plugin: Any = SimpleNamespace(name="bench", load=lambda: register)
    return main([str(argument) for argument in arguments], entry_points=[plugin])


@pytest.fixture
def draft(tiny: Any, tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """Of the model ``llama``, with an acceptance head that has learned nothing."""
    target = tiny.make("llama")
    size = target.config.hidden_size
    head = {"head_blocks": 2, "head_width": 8}
    spec = DraftSpec(
        target=str(tiny_folder("llama")), layers=(0,), vocab_size=target.config.vocab_size, hidden_size=size, **head
    )
    torch.manual_seed(0)
    state = AcceptanceHead(size + 1, 2, 8).to(torch.bfloat16).state_dict()
    write_draft(tmp_path / "draft", spec, IDS, assemble(target, (0,), IDS).state_dict(), state)
    return tmp_path / "draft"


def test_a_table_from_its_recipe(
    tiny_folder: Callable[..., Path],
    draft: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copies, data, results = tmp_path / "copies", tmp_path / "build" / "data", tmp_path / "results"
    copies.mkdir()
    rows = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(1319)]
    (copies / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = RECIPES["speculation"]
    assert run("bench", "data", *recipe.data(short=True), "--data", copies, "--out", data) == 0
    (words,) = recipe.commands(short=True, data=data, work=tmp_path / "build")
    words += ["--target", str(tiny_folder("llama")), "--draft", str(draft), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["trimtab", "bench", *words])
    assert run("bench", *words, "--stop-after", -1) == 0
    assert not results.exists(), "the time was up before anything was measured"
    assert run("bench", *words) == 0
    out = tmp_path / "build" / "speculation" / "runs.jsonl"
    before = out.read_text(encoding="utf-8")
    assert [row["method"] for row in read_rows(out)] == ["plain", "fixed 2", "acceptance"]
    out.write_text("".join(before.splitlines(keepends=True)[:2]) + '{"case": "gsm', encoding="utf-8")  # killed there
    assert run("bench", *words) == 0
    assert out.read_text(encoding="utf-8").startswith("".join(before.splitlines(keepends=True)[:2]))
    assert len(read_rows(out)) == 3
    assert {row.settings["prompts"] for row in load(results / "speculation.jsonl")} == {2}

    document = tmp_path / "page.md"
    document.write_text("# Page\n\n<!-- bench:speculation -->\n<!-- /bench -->\n", encoding="utf-8")
    capsys.readouterr()
    assert run("bench", "report", "--document", document, "--results", results) == 0
    text = document.read_text(encoding="utf-8")
    assert text.count("\n| gsm8k | 0 | 1 | ") == 1
    assert re.search(r", weights in (float32|bfloat16), 2 prompts of each kind", text)  # as the CPU has it
    assert "`trimtab bench speculation --data build/data/gsm8k.jsonl --split report --methods plain 'fixed 2'" in text
    assert str(tmp_path) not in text
    assert "--results" not in text
    assert run("bench", "report", "--check", "--document", document, "--results", results) == 0

    asked = {row["id"]: row["split"] for row in read_rows(data / "gsm8k.jsonl")}
    assert asked == splits("gsm8k")
    shutil.rmtree(copies)
    assert run("bench", "data", "gsm8k", "--out", data) == 0, "what is there is not fetched"


def test_measurements_of_other_models_are_not_mixed(
    tiny_folder: Callable[..., Path], draft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "What is in the sea?"}) + "\n", encoding="utf-8")
    words: list[object] = ["speculation", "--data", questions, "--out", tmp_path / "runs.jsonl", "--methods", "plain"]
    words += ["--temperatures", 0, "--batches", 1, "--repeats", 1, "--target", tiny_folder("llama"), "--draft", draft]
    words += ["--results", tmp_path]
    assert run("bench", *words, "--max-new-tokens", 4) == 0
    assert run("bench", *words, "--max-new-tokens", 8) == 2
    assert "another place for the new ones" in capsys.readouterr().err
