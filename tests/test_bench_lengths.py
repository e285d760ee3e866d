"""The benchmark of ways to decide lengths: replays against passes counted by hand, ratios and the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.bench.record import Row, newest
from trimtab.bench.speculation.lengths import ARMS, Options, record, speculation_lengths
from trimtab.bench.speculation.replay import Blocks, Replay
from trimtab.bench.tables import table
from trimtab.decode.engine.lengths import LengthController
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.draws.length import Fixed, Length

# Six tokens of text: of four drafted ones two are accepted and the third corrected; then one and a correction, and then
# a rejected one's correction.
ANSWER: Blocks = [([(0.9, 0.8)] * 4, 2), ([(0.6, 0.5)] * 4, 1), ([(0.2, 0.1)] * 4, 0)]


def replayed(answers: list[Blocks], rows: int, length: Length | None) -> Replay:
    replay = Replay(answers, rows, length, lambda tokens: 10 + tokens, lambda rows: 1.0, LengthController())
    replay.run()
    return replay


def test_plain_decoding_writes_a_token_with_each_pass() -> None:
    alone, together = replayed([ANSWER] * 2, 1, None), replayed([ANSWER] * 2, 2, None)
    assert (alone.tokens, alone.seconds) == (12, 12 * 11)
    assert (together.tokens, together.seconds) == (12, 6 * 12)


def test_blocks_of_any_length_are_cut_from_the_recorded_ones() -> None:
    for tokens, lengths in ((4, [4, 4, 4]), (2, [2, 2, 2]), (1, [1, 1, 1, 1])):
        # A block of one accepted token and the target's next one: two of the first three; then its third alone.
        found = replayed([ANSWER], 1, Fixed(tokens))
        assert found.lengths == lengths
        assert found.tokens == 6
        assert found.seconds == sum(tokens * 1.0 + 11 + tokens for _ in lengths)


def test_rows_in_step_share_passes() -> None:
    found = replayed([ANSWER, ANSWER[:1]], 2, Fixed(4))
    assert found.tokens == 9
    assert found.seconds == (4 + 10 + 10) + 2 * (4 + 10 + 5)


def measurements() -> list[dict[str, Any]]:
    """As the benchmark writes them; an arm that it no longer has, too."""
    costs = {"target": [[1, 1.0], [9, 1.0], [80, 9.0]], "draft": [[1, 0.1], [8, 0.1]]}
    rows: list[dict[str, Any]] = [{"step": ["costs"], **costs}]
    rows += [{"step": ["blocks", 0.0, i], "blocks": ANSWER} for i in range(4)]
    for repeat in range(3):
        for arm in (*ARMS, "gone"):
            speed = {"fixed 2": 2.0, "gone": 3.0}.get(arm, 1.0) * (1 + repeat)
            row = {"tokens": 60, "seconds": 60 / speed, "processor": 30 / speed}
            rows.append({"step": ["timed", 0.0, 1, repeat, arm], **row})
    return [*rows, {"step": ["replayed", 0.0, 1, "gone"], "seconds": 0.5}]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return record(measurements(), Options(data=(), temperatures=(0.0,), batches=(1,))).rows


def test_ratios_are_to_the_best_fixed_length(rows: list[Row]) -> None:
    found = {(row.subject, row.metric): row.value for row in rows}
    price = {1: 4 * 1.1 / 6, 2: 3 * 1.2 / 6, 3: 3 * 1.3 / 6, 4: 3 * 1.4 / 6}
    assert found["fixed 2", "seconds per token"] == pytest.approx(price[2])
    for tokens, seconds in price.items():
        assert found[f"fixed {tokens}", "replayed"] == pytest.approx(price[2] / seconds, rel=1e-5)
    assert found["plain", "replayed"] == pytest.approx(price[2] / 1.0)
    assert found["gone", "replayed"] == pytest.approx(price[2] / 0.5)
    for metric in ("timed", "processor"):
        assert found["gone", metric] == pytest.approx(1.5)
        assert found["plain", metric] == pytest.approx(0.5)


def test_the_table_keeps_what_is_no_longer_measured(rows: list[Row]) -> None:
    later = [row for row in rows if row.subject != "gone"]
    text = table("speculation_lengths", newest([*rows, *later]))
    assert "| gone | 1.200 / 1.500 / 1.500 |" in text
    assert "| plain | 0.600 / 0.500 / 0.500 |" in text
    assert "T = 0, 1 at a time (fixed 2)" in text


def test_what_is_asked_for_must_make_sense() -> None:
    with pytest.raises(InvalidRequest, match="repeats"):
        Options(data=(), repeats=0).checked()
    with pytest.raises(InvalidRequest, match="batches"):
        Options(data=(), batches=(0,)).checked()
    with pytest.raises(InvalidRequest, match="out"):
        record([], Options(data=()))


@pytest.mark.real
@pytest.mark.full
def test_a_small_run(real_models: Any, tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is {n} + {n}?"}) + "\n" for n in range(2)))
    options = Options(
        data=(data,), out=tmp_path / "runs.jsonl", max_new_tokens=6, temperatures=(0.0,), batches=(1,), repeats=1
    )
    found = speculation_lengths(options)
    assert found is not None
    seen = {(row.subject, row.metric) for row in found.rows}
    assert seen >= {(arm, metric) for arm in ARMS for metric in ("replayed", "timed", "processor")}
    before = options.out.read_text()
    assert speculation_lengths(options) is not None
    assert options.out.read_text() == before, "what was measured is kept"
