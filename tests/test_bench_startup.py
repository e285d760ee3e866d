"""The time to a first token, measured in processes of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.bench import startup
from trimtab.bench.record import load
from trimtab.bench.startup import startup_table
from trimtab.decode.commands import main

SECONDS = ("python", "import", "load", "first token")


def test_parts_add_up(tiny_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny_folder("llama"))
    assert main(["bench", "startup", "--models", folder, "--repeats", "1", "--results", str(tmp_path)]) == 0
    rows = {row.metric: row for row in load(tmp_path / "startup.jsonl")}
    assert {row.case for row in rows.values()} == {folder}
    assert all(rows[part].value > 0 for part in SECONDS)
    assert rows["altogether"].value == pytest.approx(sum(rows[part].value for part in SECONDS), rel=1e-3)
    assert 100 < rows["peak"].value < 1500  # MB: torch takes the first 100
    assert f"| {folder} |" in capsys.readouterr().out


def test_the_table_shows_medians_of_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([[9.0] * 6, [9.0] * 6, *([part * n for part in (0.1, 1, 1, 1, 3.1, 800)] for n in (1, 2, 3, 4, 2, 6))])
    monkeypatch.setattr(startup, "_run", lambda model: next(runs))
    recorder = startup.bench_startup(startup.Options(models=("a", "b"), repeats=3))
    lines = startup_table(recorder.rows)
    assert lines[0] == "| model | python | import | load | first token | altogether | peak |"
    assert lines[2].startswith("| a | 0.20 | 2.00 | 2.00 | 2.00 | **6.2** ")  # without the first run
    assert lines[3].startswith("| b | 0.40 | 4.00 | 4.00 | 4.00 | **12.4** ")
    assert "of 3 processes" in lines[-1]


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="there is no such folder"):
        startup._run("smollm3")
