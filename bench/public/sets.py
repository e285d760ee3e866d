"""The public data sets: where each is published, under which licence, and what becomes of its rows.

A benchmark reads rows in the form of this project, which is the published form with an ``id`` where it has none, and
with a ``split``: ``tune`` to choose by, ``report`` for figures. Which rows are used, in which order and with which
split is recorded in ``rows.json`` (``trimtab.bench.public.rows``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.decode.errors import InvalidRequest

__all__ = ["FOLDER", "SETS", "Hub", "PublicSet", "Web", "find"]

FOLDER = Path("build/data")  # where rows are kept, from the root of the repository

Published = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hub:
    """A data set of the Hugging Face hub, read with the package ``datasets``.

    Attributes:
        path: OWNER/NAME.
        split: of the published data.
        config: of several in one data set.
        file: one JSON file of the data set, where it is published with a script, which ``datasets`` no longer runs.
    """

    path: str
    split: str
    config: str | None = None
    file: str | None = None

    @property
    def name(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Web:
    """JSON files on the web, rows of one after rows of the other.

    Attributes:
        name: of the repository that publishes them.
        urls: where they are.
    """

    name: str
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PublicSet:
    """A public data set.

    Attributes:
        name: of its file here.
        source: where it is published.
        licence: of the data.
        row: makes of a published row and its number, from 0, the row that benchmarks read; None leaves it out. Rows
            that were made already stay as they are.
        key: the field by which a row is known; empty where all rows are used.
        file: of the rows that benchmarks read.
    """

    name: str
    source: Hub | Web
    licence: str
    row: Callable[[Published, int], dict[str, Any] | None]
    key: str = ""
    file: str = ""

    @property
    def file_name(self) -> str:
        return self.file or f"{self.name}.jsonl"


def _ifeval(row: Published, number: int) -> dict[str, Any]:
    # On the hub every constraint has all arguments of all constraints, and None for those that are not its own.
    kwargs = [{key: value for key, value in (given or {}).items() if value is not None} for given in row["kwargs"]]
    return {**_only(row, "key", "prompt", "instruction_id_list"), "kwargs": kwargs}


def _gsm8k(part: str) -> Callable[[Published, int], dict[str, Any]]:
    return lambda row, number: {"id": row.get("id", f"gsm8k-{part}-{number}"), **_only(row, "question", "answer")}


def _humaneval(row: Published, number: int) -> dict[str, Any]:
    return _only(row, "task_id", "prompt", "entry_point", "canonical_solution", "test")


def _alpaca_eval(row: Published, number: int) -> dict[str, Any]:
    reference = row["reference"] if "reference" in row else row["output"]
    return {
        "id": row.get("id", f"alpacaeval-{number}"),
        **_only(row, "dataset", "instruction"),
        "reference": reference,
    }


def _spec_bench(row: Published, number: int) -> dict[str, Any]:
    return {name: row[name] for name in ("question_id", "category", "turns", "reference") if row.get(name) is not None}


_LONGEST = 4000  # characters of an answer; longer ones are mostly loops


def _preferences(row: Published, number: int) -> dict[str, Any] | None:
    """The judge compares a fixed baseline, 1, with the answer, 2; its preference is the mean of these numbers."""
    if "output" in row:
        return _only(row, "instruction", "generator", "output", "preference")
    output, preference = row["output_2"], row["preference"]
    if preference is None or not 0 < len(output) < _LONGEST:
        return None
    return {
        "instruction": row["instruction"],
        "generator": row["generator_2"],
        "output": output,
        "preference": round(min(max(preference - 1, 0.0), 1.0), 4),
    }


def _only(row: Published, *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names}


# Folders of AlpacaEval's leaderboard, in the order of the rows.
_GENERATORS = (
    *("FuseChat-Gemma-2-9B-Instruct", "FuseChat-Llama-3.1-8B-Instruct", "Mixtral-8x7B-Instruct-v0.1_concise"),
    *("OpenHermes-2.5-Mistral-7B", "alpaca-farm-ppo-human", "baize-v2-13b", "chatglm2-6b", "claude", "gemma-2b-it"),
    *("gpt-3.5-turbo-1106_concise", "gpt-3.5-turbo-1106_verbose", "gpt35_turbo_instruct", "humpback-llama2-70b"),
    *("minichat-3b", "minotaur-13b", "oasst-rlhf-llama-33b", "oasst-sft-pythia-12b", "openbuddy-falcon-40b-v9"),
    *("openbuddy-llama2-13b-v11.1", "phi-2-sft", "phi-2", "text_davinci_003", "ultralm-13b", "vicuna-13b"),
    *("vicuna-7b", "wizardlm-13b"),
)
_RESULTS = "https://raw.githubusercontent.com/tatsu-lab/alpaca_eval/main/results"
_JUDGED = "weighted_alpaca_eval_gpt4_turbo/annotations.json"
_SPEC_BENCH = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"

SETS: Mapping[str, PublicSet] = {
    one.name: one
    for one in (
        PublicSet("ifeval", Hub("google/IFEval", "train"), "Apache-2.0", _ifeval, "key"),
        PublicSet("gsm8k", Hub("openai/gsm8k", "test", "main"), "MIT", _gsm8k("test"), "id"),
        PublicSet("gsm8k_train", Hub("openai/gsm8k", "train", "main"), "MIT", _gsm8k("train")),
        PublicSet("humaneval", Hub("openai/openai_humaneval", "test"), "MIT", _humaneval, "task_id"),
        PublicSet(
            "alpaca_eval",
            Hub("tatsu-lab/alpaca_eval", "train", file="alpaca_eval.json"),
            "CC-BY-NC-4.0",
            _alpaca_eval,
            "id",
        ),
        PublicSet("spec_bench", Web("hemingkx/Spec-Bench", (_SPEC_BENCH,)), "Apache-2.0", _spec_bench, "question_id"),
        PublicSet(
            "preferences",
            Web("tatsu-lab/alpaca_eval", tuple(f"{_RESULTS}/{name}/{_JUDGED}" for name in _GENERATORS)),
            "CC-BY-NC-4.0",
            _preferences,
            "instruction",
            file="preferences.jsonl.gz",
        ),
    )
}


def find(name: str) -> PublicSet:
    """The data set of that name.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in SETS:
        raise InvalidRequest.of("data", name, f"one of {', '.join(SETS)}")
    return SETS[name]
