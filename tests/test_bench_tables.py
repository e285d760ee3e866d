"""Tables of fewer rows: of whatever methods, cases and repeats there are, with captions that say what ran."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from trimtab.bench.cells import count, interval, medians, spread
from trimtab.bench.data import append_rows, going_on, read_rows
from trimtab.bench.record import Recorder, Row, latest, load, newest
from trimtab.bench.speculation.run import METHODS, Options, record
from trimtab.bench.tables import TABLES, table
from trimtab.bench.timing import LEAST, Spread, paired_ratio
from trimtab.bench.weights import quantised, weights
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.models.bundled import bundled

NOTHING = "No results are recorded yet"


def committed(repository: Path, bench: str) -> list[Row]:
    rows = load(repository / "bench" / "results" / f"{bench}.jsonl")
    return newest(rows) if bench == "speculation_lengths" else latest(rows)


@pytest.mark.parametrize("bench", TABLES)
def test_a_table_is_made_of_any_rows(bench: str, repository: Path) -> None:
    """Of every run that was cut short, and of rows that somebody left out."""
    rows = committed(repository, bench)
    draw = random.Random(bench)
    samples = [draw.sample(rows, size) for size in (1, 2, 3, len(rows) // 2, len(rows) - 1) for _ in range(6)]
    for some in [*samples, *([row] for row in rows[:40])]:
        assert NOTHING not in table(bench, some)
    for case in {row.case for row in rows}:
        assert table(bench, [row for row in rows if row.case == case])
    for subject in {row.subject for row in rows}:
        assert table(bench, [row for row in rows if row.subject == subject])
        assert table(bench, [row for row in rows if row.subject != subject])


@pytest.mark.parametrize("bench", sorted(set(TABLES) - {"kernels"}))
def test_every_caption_says_what_the_weights_were(bench: str, repository: Path) -> None:
    text = table(bench, committed(repository, bench))
    assert "4-bit weights (Q4" in text.splitlines()[-1]


# -------------------------------------------------------------------------------------------------------- speculation


def measured(method: str, prompts: int = 2, repeat: int = 0, share: int = 0, **more: Any) -> dict[str, Any]:
    sums = {"tokens": 100, "passes": 60, "drafted": 80, "accepted": 40, "discarded": 40, "blocks": 40}
    step = {"case": "gsm8k", "temperature": 0.0, "batch": 1, "repeat": repeat, "share": share, "method": method}
    seconds = 2.0 if method == "plain" else 1.0
    return {**step, "prompts": prompts, "timed": True, "seconds": seconds, "sums": sums, **more}


@pytest.mark.parametrize(
    "methods",
    [("plain",), ("plain", "acceptance"), ("plain", "fixed 2"), ("fixed 2", "both"), ("lookup",), ("plain", "both")],
)
def test_speculation_of_few_methods_is_recorded(methods: tuple[str, ...]) -> None:
    rows = record([measured(method) for method in methods], Options(data=(), methods=methods)).rows
    lines = table("speculation", rows).splitlines()
    cells = dict(zip(lines[0].split(" | "), lines[2].split(" | "), strict=True))
    assert ("plain" in methods) == (cells["plain, tokens/s"] == "50")
    if {"plain", "acceptance"} <= set(methods):
        assert cells["**acceptance**"] == "**2.00×**"
        assert cells["target passes per token"] == "– / 0.60"
    if {"plain", "fixed 2"} <= set(methods):
        assert cells["best fixed length"] == "2: 2.00×"
    assert set(methods) <= set(METHODS)


def test_captions_count_what_ran() -> None:
    options = Options(data=(), prompts=40, timed=24)
    few = table("speculation", record([measured(m) for m in ("plain", "acceptance", "fixed 2")], options).rows)
    assert " 2 prompts of each kind" in few
    assert "over all prompts, in one repeat. Passes" in few
    assert "over 2 prompts" in few
    assert "interval" not in few
    assert "24" not in few
    assert "[" not in few
    runs = [
        measured(m, 8, repeat, share)
        for m in ("plain", "acceptance", "fixed 2")
        for repeat in range(2)
        for share in range(3)
    ]
    more = table("speculation", record(runs, options).rows)
    assert " 24 prompts of each kind" in more
    assert "2 interleaved repeats together, with 95 % intervals" in more
    assert "1.000 [1.000, 1.000]" in more


# ---------------------------------------------------------------------------------------------------------- intervals


def recorder(**settings: Any) -> Recorder:
    return Recorder("decode", seed=0, dtype="float32", settings=settings)


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
def test_few_repeats_have_no_intervals(repeats: int) -> None:
    values = [10.0 + i for i in range(repeats)]
    made = recorder()
    made.spread("c", "ours", "speed", "tokens/s", values)
    made.ratio("c", "ours / theirs", "speed", paired_ratio(values, [5.0] * repeats))
    speed, ratio = made.rows
    known = repeats >= LEAST
    assert (speed.p20 is not None) is (speed.p80 is not None) is known
    assert (ratio.low is not None) is (ratio.high is not None) is known
    assert ("(" in spread(speed)) is known
    assert bool(interval(ratio, "{:.2f}")) is known
    assert (Spread.of(values).p20 is None) is not known


def test_intervals_of_few_that_were_recorded_are_not_shown() -> None:
    made = recorder()
    made.value("c", "s", "m", "u", 0.5, 2, (0.1, 0.9))
    made.value("c", "s", "n", "u", 0.5, 3, (0.1, 0.9))
    assert [interval(row, "{:.1f}") for row in made.rows] == ["", "[0.1, 0.9]"]


def test_how_medians_are_said() -> None:
    made = recorder()
    for case, n in (("a", 1), ("b", 2), ("c", 3), ("d", 5)):
        made.spread(case, "s", "speed", "tokens/s", [1.0] * n)
    one, two, three, five = made.rows
    assert medians([one]) == "one repeat"
    assert medians([two]) == "median of 2 interleaved repeats"
    assert medians([three], "round") == "median (20th to 80th percentile) of 3 interleaved rounds"
    assert medians([five, three, one]) == "median (20th to 80th percentile) of 1 to 5 interleaved repeats"
    assert count([five, three]) == "3 to 5"


# ------------------------------------------------------------------------------------------------------------ weights


def test_weights_are_what_the_bundled_models_were_made_from() -> None:
    known = {model.name: model.quantisation for model in bundled()}
    assert quantised("owner/name", *reversed(known)) == dict(reversed(known.items()))
    row = row_of(quantisation=quantised(*known))
    assert weights(row, *known) == f"4-bit weights ({', '.join(known.values())}) dequantised to float32"
    first, kind = next(iter(known.items()))
    mixed = row_of(quantisation=quantised(first, "/some/folder"))
    assert weights(mixed, first, "folder") == f"4-bit weights ({kind}) of {first} dequantised to float32"
    assert weights(row_of(quantisation={}), first) == "weights in float32", "a folder that is called as a bundled model"
    assert weights(row_of(), first) == f"4-bit weights ({kind}) dequantised to float32", "recorded before"


def row_of(**settings: Any) -> Row:
    made = recorder(**settings)
    made.value("c", "s", "m", "u", 1.0, 1)
    return made.rows[0]


# ------------------------------------------------------------------------------------------------------ going on again


def test_a_run_goes_on_with_its_cases(tmp_path: Path) -> None:
    def run(seed: int = 0, quick: bool = False) -> Recorder:
        return Recorder("decode", seed=seed, dtype="float32", settings={"n": [1]}, quick=quick, unfinished=tmp_path)

    def measure(made: Recorder, case: str, value: float) -> None:
        if not made.has(case):
            first = len(made.rows)
            made.spread(case, "ours", "speed", "tokens/s", [value])
            made.spread(case, "theirs", "speed", "tokens/s", [value / 2])
            made.keep(case, first)

    cut = run()
    measure(cut, "1 prompt", 10.0)
    (file,) = tmp_path.iterdir()
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"run": {"bench"')  # killed while it wrote the next
    other, smoke = run(seed=1), run(quick=True)
    measure(other, "1 prompt", 7.0)
    measure(smoke, "1 prompt", 3.0)
    assert [made.rows[0].value for made in (other, smoke)] == [7.0, 3.0], "of another run nothing is taken"
    again = run()
    measure(again, "2 prompts", 20.0)
    measure(again, "1 prompt", 99.0)
    assert {row.case: row.value for row in again.rows if row.subject == "ours"} == {"2 prompts": 20.0, "1 prompt": 10.0}
    assert {row.time for row in again.rows} == {cut.rows[0].time}, "it is one run"
    path = again.save(tmp_path / "results")
    assert load(path) == again.rows == latest(load(path))
    assert not file.exists()
    fresh = run()
    measure(fresh, "1 prompt", 11.0)
    assert fresh.rows[0].value == 11.0, "what is done is measured anew"


def test_work_files_go_on_with_what_was_made_alike(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert going_on(path, {"size": 1}) == []
    append_rows(path, [{"size": 1, "limits": (1, 2), "n": n} for n in range(3)])
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"size": 1, "n"')
    assert [row["n"] for row in going_on(path, {"size": 1, "limits": (1, 2)})] == [0, 1, 2]
    assert len(read_rows(path)) == 3, "the line that was cut short is gone"
    with pytest.raises(InvalidRequest, match="another place"):
        going_on(path, {"size": 2})
    assert json.loads(path.read_text().splitlines()[0])["size"] == 1
