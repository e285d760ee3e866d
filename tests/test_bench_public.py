"""Public data sets: rows in their published form become the rows that benchmarks read, the same for everybody."""

from __future__ import annotations

import dataclasses
import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.bench.data import read_rows
from trimtab.bench.public import fetch
from trimtab.bench.public.fetch import DataMissing, ensure, published, read_copy
from trimtab.bench.public.rows import checksum, chosen, is_known, splits
from trimtab.bench.public.sets import SETS, Hub, Web
from trimtab.decode.errors import InvalidRequest

# Rows of each set as it is published: how many there are, and how many of them are used, to tune on and to report.
SIZES = {"ifeval": 541, "gsm8k": 1319, "humaneval": 164, "alpaca_eval": 805, "spec_bench": 480}
USED = {
    "ifeval": (135, 135),
    "gsm8k": (335, 324),
    "humaneval": (35, 47),
    "alpaca_eval": (205, 197),
    "spec_bench": (125, 115),
}


def as_published(name: str) -> list[dict[str, Any]]:
    """All rows, in the columns that the data set documents."""
    if name == "ifeval":
        # Keys are not numbered through: those that are used, and others up to the size.
        keys = [*splits("ifeval"), *range(10_000, 10_000 + SIZES["ifeval"] - len(splits("ifeval")))]
        kwargs = [{"num_words": 9, "relation": "at least", "keywords": None}, {"num_words": None, "keywords": ["sea"]}]
        ids = ["length_constraints:number_words", "keywords:existence"]
        return [{"key": k, "prompt": f"p{k}", "instruction_id_list": ids, "kwargs": kwargs} for k in sorted(keys)]
    if name == "gsm8k":
        return [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(SIZES[name])]
    if name == "humaneval":
        other = {"canonical_solution": "    pass\n", "test": "def check(f): ...", "entry_point": "f"}
        return [{"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():", **other} for i in range(SIZES[name])]
    if name == "alpaca_eval":
        other = {"output": "Yes.", "generator": "text_davinci_003", "dataset": "koala"}
        return [{"instruction": f"i{i}", **other} for i in range(SIZES[name])]
    rows: list[dict[str, Any]] = [
        {"question_id": 81 + i, "category": "qa", "turns": [f"t{i}", "and?"]} for i in range(480)
    ]
    rows[0]["reference"] = ["It is."]
    return rows


@pytest.mark.parametrize("name", SIZES)
def test_the_rows_of_a_set_are_the_same_for_everybody(name: str) -> None:
    of = SETS[name]
    rows = chosen(of, as_published(name), {})
    assert tuple(sum(row["split"] == split for row in rows) for split in ("tune", "report")) == USED[name]
    assert len({row[of.key] for row in rows}) == len(rows)
    assert [row[of.key] for row in rows] == list(splits(name))
    assert chosen(of, rows[::-1], {}) == rows, "rows in the form of this project are taken, too, in any order"
    assert not is_known(of, rows), "these ask something else than the public ones"


def test_rows_keep_what_benchmarks_read() -> None:
    by_name = {name: {row[SETS[name].key]: row for row in chosen(SETS[name], as_published(name), {})} for name in SIZES}
    key, split = next(iter(splits("ifeval").items()))
    assert by_name["ifeval"][key] == {
        "key": key,
        "prompt": f"p{key}",
        "instruction_id_list": ["length_constraints:number_words", "keywords:existence"],
        "kwargs": [{"num_words": 9, "relation": "at least"}, {"keywords": ["sea"]}],
        "split": split,
    }
    first = {"id": "gsm8k-test-605", "question": "q605", "answer": "#### 605", "split": "tune"}
    assert next(iter(by_name["gsm8k"].values())) == first
    assert by_name["humaneval"]["HumanEval/145"]["entry_point"] == "f"
    assert by_name["alpaca_eval"]["alpacaeval-515"]["instruction"] == "i515"
    assert by_name["alpaca_eval"]["alpacaeval-515"]["reference"] == "Yes."
    assert by_name["spec_bench"][81] == {
        "question_id": 81,
        "category": "qa",
        "turns": ["t0", "and?"],
        "reference": ["It is."],
        "split": "report",
    }


def test_all_questions_to_train_on_are_used() -> None:
    rows = chosen(SETS["gsm8k_train"], [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}], {})
    assert [(row["id"], row["question"]) for row in rows] == [("gsm8k-train-0", "a"), ("gsm8k-train-1", "b")]


def test_a_set_that_lacks_rows_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'gsm8k-test-605'"):
        chosen(SETS["gsm8k"], as_published("gsm8k")[:600], {})
    with pytest.raises(InvalidRequest, match=r"gsm8k:2.*openai/gsm8k.*answer"):
        chosen(SETS["gsm8k"], [{"question": "q", "answer": "a"}, {"question": "q"}], {})


# ------------------------------------------------------------------------------------------------------- preferences


def judged(instruction: str, output: str, preference: float | None, generator: str = "phi-2") -> dict[str, Any]:
    """A row of AlpacaEval's annotations."""
    baseline = {"output_1": "A baseline's.", "generator_1": "gpt4_1106_preview", "raw_completion": {"text": "M"}}
    answer = {"output_2": output, "generator_2": generator, "preference": preference}
    return {"instruction": instruction, **baseline, **answer, "annotator": "weighted_alpaca_eval_gpt4_turbo"}


def test_preferences_are_shares_of_answers_that_can_be_read() -> None:
    rows = [
        judged("i", "good", 1.73284),
        judged("i", "x" * 4000, 1.5),
        judged("i", "", 1.5),
        judged("j", "unknown", None),
        judged("j", "bad", 1.0),
        judged("k", "of another instruction", 1.2),
    ]
    found = chosen(SETS["preferences"], rows, {"i": "tune", "j": "report"})
    assert [(row["output"], row["preference"], row["split"]) for row in found] == [
        ("good", 0.7328, "tune"),
        ("bad", 0.0, "report"),
    ]
    assert found[0]["generator"] == "phi-2"
    assert checksum(found) != checksum([found[0] | {"preference": 0.5}, found[1]])


def test_web_files_follow_each_other(tmp_path: Path) -> None:
    urls = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps([judged("i", name, 1.5, name)]), encoding="utf-8")
        urls.append(path.as_uri())
    of = dataclasses.replace(SETS["preferences"], source=Web("owner/name", tuple(urls)))
    assert [row["output_2"] for row in published(of)] == ["a", "b"]
    gone = dataclasses.replace(of, source=Web("owner/name", ((tmp_path / "c.json").as_uri(),)))
    with pytest.raises(DataMissing, match=r"preferences can't be fetched .*owner/name is taken with: --data PATH"):
        published(gone)


# ------------------------------------------------------------------------------------------------------------ fetching


def test_without_the_package_or_the_network_a_line_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataMissing, match=r"pip install 'trimtab\[data\]'.*google/IFEval is taken with: --data PATH"):
        published(SETS["ifeval"])

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(DataMissing, match=r"ConnectionError: no route to the hub.*--data PATH") as caught:
        published(SETS["gsm8k"])
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_what_is_published_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*words: object, **named: object) -> list[dict[str, Any]]:
        asked.append((words, named))
        return [{"question": "q", "answer": "a"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    for name in ("gsm8k", "alpaca_eval", "ifeval"):
        published(SETS[name])
    assert asked == [
        (("openai/gsm8k", "main"), {"split": "test"}),
        (("json",), {"data_files": "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json", "split": "train"}),
        (("google/IFEval", None), {"split": "train"}),
    ]
    assert all(isinstance(of.source, Hub | Web) for of in SETS.values())


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def test_a_copy_is_taken_as_it_comes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copies, kept = tmp_path / "copies", tmp_path / "kept"
    copies.mkdir()
    (copies / "alpaca_eval.json").write_text(json.dumps(as_published("alpaca_eval")), encoding="utf-8")
    write(copies / "gsm8k.jsonl.gz", as_published("gsm8k"))
    write(copies / "preferences.jsonl", [judged("i515", "good", 1.5), judged("i515", "bad", 1.25, "claude")])
    paths = ensure(["gsm8k", "preferences"], copies, kept)
    assert [path.name for path in paths] == ["gsm8k.jsonl", "preferences.jsonl.gz"]
    assert len(read_rows(paths[0])) == sum(USED["gsm8k"])
    assert [(row["generator"], row["split"]) for row in read_copy(paths[1])] == [
        ("phi-2", "report"),
        ("claude", "report"),
    ]
    assert "gsm8k: its rows are not quite those" in capsys.readouterr().err
    assert (kept / "alpaca_eval.jsonl").exists(), "whose splits preferences have"
    before = paths[1].read_bytes()
    assert ensure(["preferences"], None, kept) == [paths[1]], "what is there is not fetched"
    assert paths[1].read_bytes() == before
    (alone,) = ensure(["gsm8k"], copies / "gsm8k.jsonl.gz", tmp_path / "alone")
    assert alone.read_bytes() == paths[0].read_bytes()


@pytest.mark.parametrize("text", ["{", "[1]", '"x"\n'])
def test_copies_that_are_none_name_the_place(text: str, tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"gsm8k\.jsonl"):
        ensure(["gsm8k"], tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_set_says_what_it_should_have(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"gsm8k\.jsonl, gsm8k\.json"):
        fetch.copy_of(SETS["gsm8k"], tmp_path, alone=False)
    with pytest.raises(InvalidRequest, match="one of ifeval"):
        ensure(["ifevel"], tmp_path)
