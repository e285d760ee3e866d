"""The benchmarks of speculation: their sums, tables and pictures, and that theirs drafts as ours does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.bench.record import Row
from trimtab.bench.speculation.assisted import Assisted, bench_assisted
from trimtab.bench.speculation.assisted import Options as AssistedOptions
from trimtab.bench.speculation.plots import plot_rates, plot_speed
from trimtab.bench.speculation.run import Options, record, speculation
from trimtab.bench.tables import table
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.models.sources import bundled_draft

SPEEDS = {
    "plain": 100.0,
    "fixed 1": 120.0,
    "fixed 2": 150.0,
    "confidence": 130.0,
    "acceptance": 165.0,
    "lookup": 90.0,
    "both": 170.0,
}


def run(method: str, repeat: int, share: int, batch: int = 1, temperature: float = 0.0) -> dict[str, Any]:
    """As the benchmark writes it: 1,000 tokens at the method's speed, a tenth slower in odd repeats and shares."""
    sums = {"tokens": 1000, "passes": 500, "drafted": 800, "accepted": 500, "discarded": 300, "blocks": 400}
    row = {"case": "questions", "temperature": temperature, "batch": batch, "method": method, "repeat": repeat}
    seconds = 1000 / SPEEDS[method] * (1.1 if repeat % 2 else 1.0) * (1.1 if share % 2 else 1.0)
    timed = share < 2
    if not timed:  # only counted: of no weight in speeds, and better drafted
        seconds, sums = 1e6, sums | {"passes": 200}
    return {**row, "share": share, "prompts": 12 if timed else 16, "timed": timed, "seconds": seconds, "sums": sums}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    runs = [
        run(method, repeat, share, batch, temperature)
        for temperature in (0.0, 1.0)
        for batch in (1, 8)
        for repeat in (0, 1)
        for share in ((0, 1, 2) if repeat == 0 and batch == 1 else (0, 1))
        for method in SPEEDS
    ]
    return record(runs, Options(data=(Path("questions.jsonl"),))).rows


def test_rates_and_ratios(rows: list[Row]) -> None:
    case = json.dumps({"data": "questions", "temperature": 0.0, "batch": 1})
    found = {(row.subject, row.metric): row for row in rows if row.case == case}
    assert found["fixed 2", "target passes"].value == pytest.approx(0.4)
    assert found["fixed 2", "discarded"].value == 0.3
    assert found["fixed 2", "accepted"].value == 1.25
    assert found["fixed 2", "discarded"].repeats == 40, "of all prompts, timed or not"
    assert found["acceptance / plain", "speed"].value == pytest.approx(1.65)
    assert found["acceptance / fixed 2", "speed"].value == pytest.approx(1.1)
    assert found["acceptance / fixed 2", "speed"].repeats == 4, "shares, of two repeats"
    assert found["plain", "speed"].value == pytest.approx((2000 / 21 + 2000 / 23.1) / 2)
    assert ("acceptance / fixed 1", "speed") not in found, "only the best fixed length is compared"


def test_the_table(rows: list[Row]) -> None:
    text = table("speculation", rows)
    assert (
        "| questions | 0 | 1 | 91 | 2: 1.50× | 1.30× | **1.65×** | 0.90× | **1.70×** | 1.100 [1.100, 1.100] |" in text
    )
    assert text.count("| questions |") == 4


def test_the_pictures(rows: list[Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for draw, words in ((plot_rates, "target passes per token"), (plot_speed, "plain decoding")):
        path = tmp_path / f"{draw.__name__}.svg"
        draw(rows, path)
        text = path.read_text()
        assert words in text
        assert "questions, T = 1" in text
        with pytest.raises(InvalidRequest, match="trimtab bench speculation"):
            draw([], path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("methods", ("fixed 5",)), ("methods", ()), ("prompts", 0), ("timed", 0), ("batches", (0,)), ("repeats", 0)],
)
def test_what_is_asked_for_must_make_sense(field: str, value: Any) -> None:
    options = replace(Options(data=(Path("x.jsonl"),)), **{field: value})
    with pytest.raises(InvalidRequest, match=field):
        options.checked()


def test_nothing_measured_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="out"):
        record([], Options(data=(tmp_path / "x.jsonl",)))


@pytest.mark.parametrize(
    ("field", "value"), [("assistant_tokens", 0), ("batches", ()), ("temperatures", (-1.0,)), ("repeats", 0)]
)
def test_assisted_options_must_make_sense(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field):
        replace(AssistedOptions(), **{field: value}).checked()


@pytest.mark.real
@pytest.mark.full
def test_a_run_goes_on_where_it_was(real_models: Any, tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is {n} + {n}?"}) + "\n" for n in range(3)))
    options = Options(
        data=(data,),
        out=tmp_path / "runs.jsonl",
        methods=("plain", "fixed 2"),
        prompts=3,
        timed=2,
        max_new_tokens=8,
        temperatures=(0.0,),
        batches=(1, 2),
        repeats=1,
    )
    assert speculation(replace(options, stop_after=-1.0)) is None
    assert not options.out.exists()
    found = speculation(options)
    assert found is not None
    runs = options.out.read_text().splitlines()
    assert len(runs) == 6
    assert [json.loads(line)["timed"] for line in runs] == [True, True, False, False, True, True]
    options.out.write_text("".join(line + "\n" for line in runs[:3]))
    assert speculation(options) is not None
    again = options.out.read_text().splitlines()
    assert again[:3] == runs[:3], "what was measured is kept"
    assert len(again) == 6
    assert len({tuple(json.loads(line)[key] for key in ("batch", "share", "method")) for line in again}) == 6


@pytest.mark.real
@pytest.mark.full
def test_their_draft_is_ours(real_models: Any) -> None:
    """Greedy, in float32: the same answers with the draft as without, in fewer passes; and a batch is refused."""
    draft = bundled_draft("smollm2-135m-draft")
    assert draft is not None
    make = (str(real_models.aligned), torch.float32, "cpu", 0.0)
    target, *rest = make
    plain = Assisted(target, None, *rest, batch=1)
    assisted = Assisted(target, str(draft), *rest, batch=1, assistant_tokens=3)
    prompts = [plain_ids(target, "Count from one to ten in words."), plain_ids(target, "Name a fruit.")]
    passes = {}
    for name, contestant in (("plain", plain), ("assisted", assisted)):
        forward, calls = contestant._model.forward, list[Any]()

        def counted(*args: Any, forward: Any = forward, calls: list[int] = calls, **kwargs: Any) -> Any:
            calls.append(1)
            return forward(*args, **kwargs)

        contestant._model.forward = counted
        passes[name] = (contestant.run(prompts, 24).tokens, len(calls))
    assert passes["assisted"][0] == passes["plain"][0]
    assert passes["assisted"][1] < 0.9 * passes["plain"][1]
    with pytest.raises(ValueError, match="batch_size"):
        Assisted(target, str(draft), *rest, batch=2).run(prompts, 4)


def plain_ids(source: str, text: str) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )
    return list(ids)


@pytest.mark.real
@pytest.mark.full
def test_assisted_runs_small(real_models: Any) -> None:
    found = bench_assisted(AssistedOptions(quick=True, temperatures=(0.0,), batches=(1, 2))).rows
    alone = [row for row in found if json.loads(row.case)["batch"] == 1 and row.metric == "speed"]
    assert sum(" / " not in row.subject for row in alone) == 6
    refused = {row.subject for row in found if row.metric == "refused"}
    assert refused == {"transformers, assisted", "transformers, assisted, 3 tokens"}
    assert "refuses" in table("assisted", found)
