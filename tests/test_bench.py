"""Benchmarks: figures that can be computed by hand, rows that survive a file, documents that say what was recorded."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.bench.commands import register
from trimtab.bench.contestants import Apart, Batch
from trimtab.bench.data import append_rows, prompt_of, read_rows, select
from trimtab.bench.decode import run as decode
from trimtab.bench.nudging import run as quality
from trimtab.bench.nudging.answers import Method, answer, methods, parse_trigger, trigger_text
from trimtab.bench.prompts import PROMPTS, spaced
from trimtab.bench.record import Recorder, Row, _command, latest, load
from trimtab.bench.report import default_documents, rendered, stale, update
from trimtab.bench.statistics import bootstrap_interval, mean_ratio, median_ratio, percentile
from trimtab.bench.tables import table
from trimtab.bench.timing import Spread, interleaved, paired_ratio
from trimtab.decode.commands import main
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.policies.base import Base
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import (
    Branching,
    Entropy,
    TopProb,
    Trigger,
)
from trimtab.decode.request.events import Completed
from trimtab.decode.request.result import (
    Candidate,
    FinishReason,
    Result,
    Token,
    Usage,
)


def run(*arguments: object) -> int:
    """The command, without the other layers."""
    plugin: Any = SimpleNamespace(name="bench", load=lambda: register)
    return main([str(argument) for argument in arguments], entry_points=[plugin])


# ------------------------------------------------------------------------------------------------------- statistics


def test_percentiles_of_known_values() -> None:
    values = [4.0, 1.0, 3.0, 2.0, 10.0]
    assert [percentile(values, q) for q in (0, 25, 50, 75, 100)] == [1, 2, 3, 4, 10]
    assert percentile([1.0, 2.0], 20) == pytest.approx(1.2)
    assert Spread.of(values) == Spread(3.0, pytest.approx(1.8), pytest.approx(5.2), 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentiles_refuse_what_has_none(values: list[float], q: float) -> None:
    with pytest.raises(ValueError, match="accepted"):
        percentile(values, q)


def _covered(level: float, trials: int = 200) -> float:
    """How often the interval of a mean holds the true mean."""
    random = np.random.default_rng(5)
    hits = 0
    for trial in range(trials):
        samples = np.stack([random.normal(3.0, 1.0, 60), np.ones(60)], axis=1)
        low, high = bootstrap_interval(samples, mean_ratio, level=level, resamples=400, seed=trial)
        hits += low <= 3.0 <= high
    return hits / trials


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say() -> None:
    assert 0.88 <= _covered(0.95) <= 0.99
    assert 0.4 <= _covered(0.5) <= 0.6  # an interval that always held the truth would pass the first line alone


def test_bootstrap_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    samples = np.stack([np.arange(100.0), np.ones(100)], axis=1)
    low, high = bootstrap_interval(samples, mean_ratio)
    error = np.arange(100.0).std() / 10
    assert low == pytest.approx(49.5 - 1.96 * error, abs=0.4)
    assert high == pytest.approx(49.5 + 1.96 * error, abs=0.4)


def test_pairs_cancel_what_both_sides_share() -> None:
    noise = np.random.default_rng(0).uniform(1, 10, 9)
    ratio = paired_ratio(list(2.0 * noise), list(noise))
    assert ratio.spread.median == pytest.approx(2.0)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.high - ratio.low < 1e-9
    shuffled = paired_ratio(list(2.0 * noise), list(noise[::-1]))
    assert shuffled.low is not None
    assert shuffled.high is not None
    assert shuffled.high - shuffled.low > 0.5  # the same values without their pairs say little


def test_median_ratio_is_of_pairs_not_of_medians() -> None:
    samples = np.array([[1.0, 1.0], [10.0, 2.0], [3.0, 3.0]])
    assert float(median_ratio(samples)) == 1.0
    assert float(mean_ratio(samples)) == pytest.approx(14 / 6)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], []), ([1.0], [0.0])])
def test_ratios_refuse_what_is_not_paired(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="accepted"):
        paired_ratio(ours, theirs)


def test_repeats_are_interleaved_and_turned_round() -> None:
    calls: list[tuple[str, int]] = []

    def note(name: str) -> Callable[[int], int]:
        def measured(repeat: int) -> int:
            calls.append((name, repeat))
            return repeat

        return measured

    found = interleaved({"a": note("a"), "b": note("b")}, 3)
    assert found == {"a": [0, 1, 2], "b": [0, 1, 2]}  # without the warm-up
    assert [repeat for _, repeat in calls] == [-1, -1, 0, 0, 1, 1, 2, 2]
    assert [name for name, _ in calls] == ["b", "a", "a", "b", "b", "a", "a", "b"]
    with pytest.raises(ValueError, match="repeats = 0"):
        interleaved({"a": note("a")}, 0)


# ----------------------------------------------------------------------------------------------------------- prompts


def test_own_prompts_differ_and_grow() -> None:
    sizes = sorted(len(prompt) for prompt in PROMPTS)
    assert len(set(PROMPTS)) == len(PROMPTS) >= 16
    assert sizes[0] < 60
    assert sizes[-1] > 1000
    assert sum(b > 1.2 * a for a, b in itertools.pairwise(sizes)) >= 8  # clearly different lengths


@given(st.integers(1, 40), st.integers(1, 40))
def test_spaced_takes_the_ends(items: int, count: int) -> None:
    chosen = spaced(range(items), count)
    assert len(chosen) == count
    if count <= items:
        assert len(set(chosen)) == count  # none twice while there are enough
    if 1 < count <= items:
        assert (chosen[0], chosen[-1]) == (0, items - 1)


@pytest.mark.parametrize(("items", "count"), [((), 1), ((1,), 0)])
def test_spaced_refuses_nothing(items: tuple[int, ...], count: int) -> None:
    with pytest.raises(ValueError, match="accepted"):
        spaced(items, count)


# -------------------------------------------------------------------------------------------------------------- data


def test_rows_name_the_line_at_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n\n[1]\n', encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"rows\.jsonl:3"):
        read_rows(path)
    path.write_text('{"prompt": \n', encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"rows\.jsonl:1"):
        read_rows(path)
    with pytest.raises(InvalidRequest, match=r"missing\.jsonl"):
        read_rows(tmp_path / "missing.jsonl")


def test_prompts_of_the_usual_fields() -> None:
    rows: list[dict[str, Any]] = [{"prompt": "a"}, {"instruction": "a"}, {"question": "a"}, {"turns": ["a", "b"]}]
    assert [prompt_of(row) for row in rows] == ["a"] * 4
    with pytest.raises(InvalidRequest, match="instruction"):
        prompt_of({"text": "a"})


def test_select_refuses_an_unknown_split() -> None:
    rows = [{"prompt": str(i), "split": "tune" if i % 2 else "report"} for i in range(6)]
    assert [row["prompt"] for row in select(rows, "tune", 2)] == ["1", "3"]
    with pytest.raises(InvalidRequest, match="report, tune"):
        select(rows, "test", None)
    with pytest.raises(InvalidRequest, match="limit = 0"):
        select(rows, "tune", 0)


# ------------------------------------------------------------------------------------------------------------ record


def recorder(bench: str = "decode", quick: bool = False) -> Recorder:
    settings = {"model": "tiny", "max_new_tokens": 8, "prompts": "own", "prompt_tokens": [1, 9]}
    return Recorder(bench, seed=3, dtype="float32", settings=settings, quick=quick)


def test_rows_survive_a_file(tmp_path: Path) -> None:
    made = recorder()
    made.spread("1 prompt", "trimtab", "speed", "tokens/s", [1.0, 2.0, 4.0])
    made.ratio("1 prompt", "trimtab / other", "speed", paired_ratio([2.0, 4.0], [1.0, 1.0]))
    made.value("all", "trimtab", "accuracy", "share", 0.25, 40, (0.1, 0.4))
    path = made.save(tmp_path / "results")
    assert path == tmp_path / "results" / "decode.jsonl"
    assert load(path) == made.rows
    row = made.rows[0]
    assert (row.value, row.p20, row.p80, row.repeats, row.low) == (2.0, 1.4, 3.2, 3, None)
    assert row.device.threads >= 1
    assert row.device.torch
    assert all(r.time == row.time and r.seed == 3 and r.bench == "decode" for r in made.rows)
    assert load(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metric": None}, "metric"),
        ({"surplus": 1}, "surplus"),
        ({"value": "fast"}, "value"),
        ({"device": {"name": "x"}}, "device"),
    ],
)
def test_a_row_that_is_none_names_its_fields(change: dict[str, Any], named: str) -> None:
    made = recorder()
    made.spread("c", "s", "m", "u", [1.0])
    data = made.rows[0].to_json() | change
    data = {key: value for key, value in data.items() if value is not None}
    with pytest.raises(InvalidRequest, match=named):
        Row.from_json(data)


def test_latest_is_the_last_run_that_counts() -> None:
    made = recorder()
    made.spread("c", "s", "m", "u", [1.0])
    made.spread("c", "s", "n", "u", [1.0])
    old = [dataclasses.replace(row, time="2001-01-01T00:00:00+00:00") for row in made.rows]
    smoke = [dataclasses.replace(row, time="2999-01-01T00:00:00+00:00", quick=True) for row in made.rows]
    assert latest([*old, *made.rows, *smoke]) == made.rows
    assert latest(smoke) == []


def test_a_recorded_command_has_no_folders_of_the_machine() -> None:
    assert _command(["/x/trimtab", "bench", "--data", "/a/b c/d.jsonl", "x/y"]) == "trimtab bench --data d.jsonl x/y"


# ----------------------------------------------------------------------------------------------------------- answers


@given(
    st.one_of(
        st.floats(0.001, 1).map(lambda x: TopProb(below=float(f"{x:g}"))),
        st.floats(0, 20).map(lambda x: Entropy(above=float(f"{x:g}"))),
        st.floats(1, 1e5).map(lambda x: Branching(above=float(f"{x:g}"))),
    )
)
def test_triggers_have_one_spelling(trigger: Trigger) -> None:
    assert parse_trigger(trigger_text(trigger)) == trigger


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.3",
        "top_prob",
        "top_prob:",
        "top_prob:0",
        "top_prob:1.1",
        "top_prob:0.3:1",
        "entropy:-1",
        "entropy:nan",
        "entropy:inf",
        "branching:0.5",
        "surprise:2",
    ],
)
def test_other_triggers_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="top_prob:P"):
        parse_trigger(text)


def test_methods_are_what_their_names_say() -> None:
    base, nudger, nudged = methods(("base", "nudger", "nudged"), "b", "n", TopProb(below=0.3))
    assert (base.model, base.policy) == ("b", Base())
    assert (nudger.model, nudger.policy) == ("n", Base())
    assert (nudged.model, nudged.policy, nudged.trigger) == ("b", Nudged("n", when=TopProb(0.3)), "top_prob:0.3")
    with pytest.raises(InvalidRequest, match="one of base, nudger, nudged"):
        methods(("both",), "b", "n", TopProb(below=0.3))


class FakeEngine:
    """Answers each prompt with itself in capitals, on submission; fails after ``stamina`` answers."""

    def __init__(self, stamina: int = 1000) -> None:
        self.stamina, self.asked = stamina, list[str]()
        self.most_open = 0

    def submit(self, request: Any, on_event: Callable[[Any], None]) -> Any:
        prompt = request.prompt[0]["content"]
        self.asked.append(prompt)
        assert request.sampling.temperature == 0
        if len(self.asked) > self.stamina:
            on_event(RuntimeError("worn out"))
        else:
            tokens = (Token(1, b"a", request.model, entropy=1.0), Token(2, b"b", "chat"), Token(3, b"c", "chat"))
            candidate = Candidate(0, prompt.upper(), tokens, FinishReason.EOS)
            usage = Usage(prompt_tokens=1)
            on_event(Completed(Result(model=request.model, models=(), candidates=(candidate,), usage=usage, seed=0)))
        return SimpleNamespace(cancel=lambda: None)


ROWS = [{"key": i, "prompt": f"question {i}", "instruction_id_list": [], "kwargs": []} for i in range(7)]
NUDGED = Method("nudged", "base", Nudged("chat"), "top_prob:0.3")


def write_answers(engine: Any, out: Path, method: Method = NUDGED, limit: int = 16, width: int = 2) -> int:
    return answer(engine, method, ROWS, out, max_new_tokens=limit, concurrency=width)


def test_answers_keep_the_row_and_say_how_they_were_made(tmp_path: Path) -> None:
    out = tmp_path / "answers" / "nudged.jsonl"
    assert write_answers(FakeEngine(), out) == len(ROWS)
    row = sorted(read_rows(out), key=lambda row: row["key"])[3]
    assert row["prompt"] == "question 3"
    assert row["response"] == "QUESTION 3"
    assert (row["tokens"], row["nudged_tokens"], row["switches"], row["finish_reason"]) == (3, 2, 1, "eos")
    assert row["share_nudged"] == pytest.approx(2 / 3, abs=1e-4)
    assert row["exp_mean_entropy"] == pytest.approx(np.e, abs=1e-4)


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "nudged.jsonl"
    with pytest.raises(RuntimeError, match="worn out"):
        write_answers(FakeEngine(stamina=4), out)
    there = [row["prompt"] for row in read_rows(out)]
    assert 0 < len(there) < len(ROWS)
    with out.open("a", encoding="utf-8") as stream:
        stream.write('{"prompt": "question 6", "resp')  # killed in the middle of a row
    engine = FakeEngine()
    assert write_answers(engine, out) == len(ROWS) - len(there)
    assert sorted(engine.asked + there) == sorted(row["prompt"] for row in ROWS)  # each once
    assert sorted(row["key"] for row in read_rows(out)) == list(range(7))
    assert write_answers(FakeEngine(stamina=0), out) == 0


def test_equal_prompts_are_answered_once(tmp_path: Path) -> None:
    engine: Any = FakeEngine()
    assert answer(engine, NUDGED, [*ROWS, *ROWS], tmp_path / "a.jsonl", max_new_tokens=4) == len(ROWS)


def test_answers_made_otherwise_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "nudged.jsonl"
    write_answers(FakeEngine(), out)
    with pytest.raises(InvalidRequest, match="max_new_tokens"):
        write_answers(FakeEngine(), out, limit=17)
    with pytest.raises(InvalidRequest, match="entropy:2"):
        write_answers(FakeEngine(), out, dataclasses.replace(NUDGED, trigger="entropy:2"))


# ----------------------------------------------------------------------------------------------------------- quality


class FakeCheckers:
    """Two constraints a prompt; how many are kept stands in the response."""

    def followed(self, row: dict[str, Any]) -> list[bool]:
        return [row["response"] in "12", row["response"] == "2"]


def responses(path: Path, method: str, kept: Sequence[int], trigger: str = "", limit: int = 8, shift: int = 0) -> Path:
    append_rows(
        path,
        [
            {
                "prompt": f"p{i + shift}",
                "response": str(n),
                "method": method,
                "trigger": trigger,
                "max_new_tokens": limit,
                "tokens": 10,
                "nudged_tokens": 2 if trigger else 0,
                "finish_reason": "repetition" if i == 0 else "eos",
                "run": 1.5,
                "seconds": 0.5 * (i + 1),
            }
            for i, n in enumerate(kept)
        ],
    )
    return path


def test_scores_against_a_count_by_hand(tmp_path: Path) -> None:
    files = [
        responses(tmp_path / "base.jsonl", "base", [0, 1, 0, 1, 0, 1, 0, 1]),
        responses(tmp_path / "nudged.jsonl", "nudged", [2, 2, 1, 1, 2, 1, 2, 1], "top_prob:0.3"),
    ]
    checkers: Any = FakeCheckers()
    made = quality.record(quality.score(quality.collect(files), checkers), "prompts")
    found = {(row.subject, row.metric): row for row in made.rows}
    nudged, difference = "nudged top_prob:0.3", "nudged top_prob:0.3 - base"
    assert found["base", "constraints kept"].value == 4 / 16
    assert found["base", "prompts kept whole"].value == 0
    assert found[nudged, "constraints kept"].value == 12 / 16
    assert found[nudged, "prompts kept whole"].value == 4 / 8
    assert found[nudged, "tokens nudged"].value == 0.2
    assert found["base", "tokens nudged"].value == 0
    assert found[nudged, "speed"].value == 80 / 4
    assert found[nudged, "ended as a loop"].value == 1 / 8
    row = found[difference, "constraints kept"]
    assert row.value == 0.5
    assert row.low is not None
    assert row.high is not None
    assert 0.1 < row.low < 0.4 < 0.6 < row.high < 0.9
    assert ("base - " + nudged, "constraints kept") not in found


def test_answers_are_compared_on_the_same_prompts_only(tmp_path: Path) -> None:
    a = responses(tmp_path / "a.jsonl", "base", [0, 1, 2])
    b = responses(tmp_path / "b.jsonl", "nudger", [2, 2, 2], shift=1)
    answers = quality.collect([a, b])
    assert [row["prompt"] for row in answers["base"]] == [row["prompt"] for row in answers["nudger"]] == ["p1", "p2"]
    for path, field in (
        (responses(tmp_path / "c.jsonl", "nudger", [1], shift=9), "same prompts"),
        (responses(tmp_path / "d.jsonl", "nudger", [1], limit=9), "one max_new_tokens"),
        (responses(tmp_path / "e.jsonl", "base", [1]), "one answer"),
    ):
        with pytest.raises(InvalidRequest, match=field):
            quality.collect([a, path])
    append_rows(tmp_path / "f.jsonl", [{"prompt": "p1", "response": "x"}])
    with pytest.raises(InvalidRequest, match="method"):
        quality.collect([tmp_path / "f.jsonl"])


def test_the_public_checkers_check() -> None:
    pytest.importorskip("lm_eval")
    for package in ("nltk", "langdetect", "immutabledict"):
        pytest.importorskip(package)
    from trimtab.bench.nudging.ifeval import Checkers

    before = {name for name in sys.modules if name.startswith("lm_eval")}
    checkers = Checkers()
    assert {name for name in sys.modules if name.startswith("lm_eval")} == before  # nothing stays behind
    row = {
        "prompt": "Answer in fewer than 3 sentences without commas and end with: Done.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences", "startend:end_checker"],
        "kwargs": [{}, {"relation": "less than", "num_sentences": 3, "end_phrase": None}, {"end_phrase": "Done."}],
    }
    assert checkers.followed(row | {"response": "Salt is white. Done."}) == [True, True, True]
    assert checkers.followed(row | {"response": "Salt, too, is white. It is. It is."}) == [False, False, False]
    assert checkers.followed(row | {"response": "  "}) == [False, False, False]


def test_a_score_does_not_depend_on_the_run() -> None:
    pytest.importorskip("lm_eval")
    langdetect = pytest.importorskip("langdetect")
    from trimtab.bench.nudging.ifeval import Checkers

    text = "station de service"  # of several languages; the detector draws at random
    row = {"prompt": "", "instruction_id_list": ["language:response_language"], "kwargs": [{"language": "it"}]}
    checkers = Checkers()
    assert len({checkers.followed(row | {"response": text})[0] for _ in range(40)}) == 1
    assert len({langdetect.detect(text) for _ in range(80)}) > 1  # by itself it does, and nobody has seeded it for good


def test_missing_checkers_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from trimtab.bench.nudging import ifeval

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ifeval.CheckersMissing, match="pip install --no-deps lm-eval"):
        ifeval.Checkers()


# ------------------------------------------------------------------------------------------------------------ decode


class FakeContestant:
    """Takes as long as it is told, without taking it."""

    def __init__(self, seconds: float, short: bool = False) -> None:
        self.seconds, self.short = seconds, short
        self.asked: list[list[list[int]]] = []

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Batch:
        self.asked.append([list(prompt) for prompt in prompts])
        count = new_tokens - self.short
        tokens = [[sum(prompt) + i for i in range(count)] for prompt in prompts]
        return Batch(tokens, [self.seconds / 4] * len(prompts), self.seconds, len(prompts))


def test_speeds_are_of_equal_work() -> None:
    made = recorder()
    ours, theirs = FakeContestant(1.0), FakeContestant(2.0)
    options = decode.Options(max_new_tokens=8, repeats=3)
    decode.compare(made, "2 prompts", {"trimtab": ours, "other": theirs}, lambda r: [[r], [r, 1]], options)
    found = {(row.subject, row.metric): row for row in made.rows}
    assert found["trimtab", "speed"].value == 16
    assert found["other", "speed"].value == 8
    assert found["trimtab / other", "speed"].value == 2
    assert found["trimtab / other", "first token"].value == 0.5
    assert found["trimtab", "decoding alone"].value == pytest.approx(14 / 0.75, rel=1e-4)
    assert found["trimtab / other", "same tokens"].value == 1
    assert ours.asked == theirs.asked
    assert len({json.dumps(asked) for asked in ours.asked}) == len(ours.asked)  # a repeat asks what is new
    with pytest.raises(RuntimeError, match="instead of 8"):
        decode.compare(made, "x", {"a": ours, "b": FakeContestant(1.0, short=True)}, lambda r: [[1]], options)


def test_a_contestant_apart_answers_fails_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from trimtab.bench.contestants import Batch\n" + inspect.getsource(FakeContestant)
    (tmp_path / "apart_contestant.py").write_text(f"from __future__ import annotations\n{source}")
    monkeypatch.syspath_prepend(tmp_path)  # where its process finds it, too
    made = importlib.import_module("apart_contestant").FakeContestant
    apart = Apart(partial(made, 2.0))
    try:
        assert apart.run([[1, 2]], 4) == FakeContestant(2.0).run([[1, 2]], 4)
        with pytest.raises(TypeError):
            apart.run([["x"]], 4)  # type: ignore[list-item]
        with pytest.raises(RuntimeError, match="ended with status 0"):
            apart.run([[1]], 4)  # after a failure it is gone
    finally:
        apart.close()
        apart.close()
    with pytest.raises(TypeError):
        Apart(made)  # cannot be made without its seconds


@pytest.mark.parametrize("change", [{"batches": ()}, {"batches": (0,)}, {"max_new_tokens": 1}, {"repeats": 0}])
def test_decode_options_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(change))):
        decode.Options(**change).checked()


# ------------------------------------------------------------------------------------------------------------ report


def decode_results(folder: Path, speed: float = 2.0) -> list[Row]:
    made = recorder()
    options = decode.Options(max_new_tokens=8, repeats=3)
    contestants = {"trimtab": FakeContestant(1.0), "transformers": FakeContestant(speed)}
    for size in (1, 4):
        decode.compare(made, f"{size} prompts", contestants, lambda r, n=size: [[r]] * n, options)  # type: ignore[misc]
    made.save(folder)
    return made.rows


DOCUMENT = (
    "# Title\n\n<!-- bench:decode -->\nold\n<!-- /bench -->\n\ntext\n\n<!-- bench:nudging -->\n<!-- /bench -->\nend"
)


def test_documents_follow_the_results(tmp_path: Path) -> None:
    results, document = tmp_path / "results", tmp_path / "README.md"
    document.write_text(DOCUMENT, encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "plain.md").write_text("no table", encoding="utf-8")
    decode_results(results)
    assert default_documents(tmp_path) == [document]
    assert stale([document], results) == [document]
    assert update([document], results) == [document]
    text = document.read_text(encoding="utf-8")
    assert "**2.00×** [2.00, 2.00]" in text
    assert "| 4 | **32 (32 to 32)** | 16 (16 to 16) |" in text
    assert "No results are recorded yet" in text
    assert text.startswith("# Title\n\n<!-- bench:decode -->\n|")
    assert text.endswith("<!-- /bench -->\nend")
    assert "old" not in text
    assert stale([document], results) == []
    assert update([document], results) == []  # a second time changes nothing
    document.write_text(text.replace("2.00×", "3.00×"), encoding="utf-8")
    assert stale([document], results) == [document]


@pytest.mark.parametrize(
    "text",
    ["<!-- bench:speed -->\n<!-- /bench -->", "<!-- bench:decode -->", "<!-- bench:decode -->" + DOCUMENT],
)
def test_broken_markers_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="bench:"):
        rendered(text, tmp_path)


def test_the_nudging_table_names_the_differences(tmp_path: Path) -> None:
    files = [
        responses(tmp_path / "base.jsonl", "base", [0, 1, 0, 1]),
        responses(tmp_path / "nudged.jsonl", "nudged", [2, 1, 2, 1], "top_prob:0.3"),
    ]
    checkers: Any = FakeCheckers()
    text = table("nudging", quality.record(quality.score(quality.collect(files), checkers), "prompts").rows)
    assert "| prompts | **nudged top_prob:0.3** | 75.0 %" in text
    assert "nudged top_prob:0.3 against base: +50.0 points" in text


def test_report_check_fails_where_tables_are_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, document = tmp_path / "results", tmp_path / "README.md"
    document.write_text(DOCUMENT, encoding="utf-8")
    decode_results(results)
    options = ("--results", results, "--document", document)
    assert run("bench", "report", "--check", *options) == 1
    assert "not up to date" in capsys.readouterr().err
    assert document.read_text(encoding="utf-8") == DOCUMENT  # a check changes nothing
    assert run("bench", "report", *options) == 0
    assert run("bench", "report", "--check", *options) == 0
    decode_results(results, speed=4.0)
    assert run("bench", "report", "--check", *options) == 1
    assert run("bench", "report", "--check", "--results", results, "--document", tmp_path / "none.md") == 2


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from trimtab.bench.decode.plot import plot_decode

    rows = decode_results(tmp_path)
    plot_decode(rows, tmp_path / "decode.png")
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidRequest, match="bench decode"):
        plot_decode([], tmp_path / "none.png")


def test_this_repository_is_up_to_date(repository: Path) -> None:
    assert stale(default_documents(repository), repository / "bench" / "results") == []


# ---------------------------------------------------------------------------------------------------------- commands


def test_options_before_the_name_of_a_benchmark_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[decode.Options] = []

    def fake(options: decode.Options) -> Recorder:
        asked.append(options)
        return recorder(quick=options.quick)

    monkeypatch.setattr(decode, "bench_decode", fake)
    for words in (("--quick", "--repeats", "2"), ("--quick", "decode", "--repeats", "2"), ("decode", "--quick")):
        assert run("bench", *words) == 0
    assert [options.quick for options in asked] == [True] * 3
    assert [options.repeats for options in asked] == [2, 2, 5]
    assert asked[0].batches == (1, 4, 16)


@pytest.mark.real
@pytest.mark.full
def test_the_default_set_runs_small(tmp_path: Path, real_models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "--quick", "--results", tmp_path) == 0
    rows = load(tmp_path / "decode.jsonl")
    assert {row.case for row in rows} == {"1 prompt", "4 prompts"}
    assert {row.subject for row in rows} == {"trimtab", "transformers", "trimtab / transformers"}
    assert all(row.value > 0 and row.quick for row in rows)
    same = [row.value for row in rows if row.metric == "same tokens"]
    assert min(same) > 0.5  # the same model on the same prompts: bf16 may part ways, but not at once
    assert "×" in capsys.readouterr().out


@pytest.mark.real
def test_nudging_runs_small_and_is_scored(tmp_path: Path, real_models: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    data, out = tmp_path / "data.jsonl", tmp_path / "answers"
    constraint = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    append_rows(data, [{"prompt": f"Name {n} rivers without commas."} | constraint for n in ("two", "three")])
    options = ("--data", data, "--out", out, "--max-new-tokens", 12, "--trigger", "top_prob:0.3")
    assert run("bench", "nudging", *options) == 0
    files = sorted(out.iterdir())
    assert [path.name for path in files] == ["base.jsonl", "nudged-top_prob-0.3.jsonl", "nudger.jsonl"]
    assert run("bench", "nudging-report", "--results", tmp_path, "--responses", *files) == 0
    assert "nudged top_prob:0.3" in capsys.readouterr().out
    assert len(load(tmp_path / "nudging.jsonl")) > 10
