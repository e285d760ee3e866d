"""What makes each table: data sets and commands, in full as for the documents, and short to see that it works.

In commands, ``{data}`` is the folder of the public data sets, ``{work}`` that of what is kept between commands and
``{out}`` the table's own part of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trimtab.bench.public.sets import FOLDER, SETS
from trimtab.decode.errors import InvalidRequest

__all__ = ["RECIPES", "WORK", "Recipe", "find"]

WORK = Path("build/reproduce")  # from the root of the repository


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a table is made.

    Attributes:
        table: its name.
        minutes: what the commands take in full on two cores, without fetching models and data.
        full: commands without ``trimtab bench``, with ``;`` between them; the last one records the table.
        short: the same with little of everything, a few minutes.
        measured: whether the minutes were measured; otherwise they are estimated from recorded speeds.
        note: what else is to be known.
    """

    table: str
    minutes: float
    full: str
    short: str
    measured: bool = False
    note: str = ""

    def commands(self, short: bool = False, data: Path = FOLDER, work: Path = WORK) -> list[list[str]]:
        """The words of each command after ``trimtab bench``."""
        text = (self.short if short else self.full).format(data=data, work=work, out=work / self.table)
        return [shlex.split(command) for command in text.split(";")]

    def data(self, short: bool = False) -> list[str]:
        """The public data sets that are read."""
        text = self.short if short else self.full
        return [of.name for of in SETS.values() if f"{{data}}/{of.file_name}" in text]


def find(table: str) -> Recipe:
    """The recipe of that table.

    Raises:
        InvalidRequest: there is no such table.
    """
    if table not in RECIPES:
        raise InvalidRequest.of("table", table, f"one of {', '.join(RECIPES)}")
    return RECIPES[table]


_CHECKERS = "needs IFEval's checkers, which make reproduce installs"
_FOUR = "{data}/gsm8k.jsonl {data}/humaneval.jsonl {data}/alpaca_eval.jsonl {data}/spec_bench.jsonl"
_NUDGING = "nudging --data {data}/ifeval.jsonl --split report --trigger entropy:1.5 --out {out}"
_SCORE = (
    "nudging-report --case 'IFEval, report rows' --responses {out}/base.jsonl {out}/nudger.jsonl "
    "{out}/nudged-entropy-1.5.jsonl"
)
_REWARD = "train-reward --data {data}/preferences.jsonl.gz --out {work}/reward"
_FULL_REWARD = f"{_REWARD} --learning-rate 5e-5 --epochs 2 --pooling mean"
_SHORT_REWARD = f"{_REWARD} --instructions 8 --answers 12 --report-instructions 6 --answer-tokens 32 --epochs 0.5"
_FULL_DRAFT = (
    "train-draft --target smollm2-135m-instruct --out {work}/draft --data '{data}/gsm8k_train.jsonl#4500' "
    "'{data}/humaneval.jsonl@tune*4' '{data}/spec_bench.jsonl@tune*2' --own-prompts 4500 "
    "--held-out '{data}/gsm8k.jsonl@report#40' '{data}/humaneval.jsonl@report#40' '{data}/alpaca_eval.jsonl@report#40' "
    "'{data}/spec_bench.jsonl@report#40' --ids 4096 --steps 3500 --batch-tokens 3072 --learning-rate 1e-3"
)
_SHORT_DRAFT = (
    "train-draft --target smollm2-135m-instruct --out {work}/draft --data '{data}/gsm8k_train.jsonl#48' "
    "--held-out '{data}/gsm8k.jsonl@report#4' --answer-tokens 24 --ids 512 --steps 8 --warm-steps 2 --batch-tokens 512"
)
_IN_ONE_GO = "trains in one go what the documents' draft was trained in several (docs/drafts.md)"

_ALL = (
    Recipe("decode", 3, "decode --repeats 3", "decode --batches 1 4 --max-new-tokens 16 --repeats 1"),
    Recipe("memory", 2, "memory", "memory"),
    Recipe("startup", 3, "startup", "startup --repeats 1", measured=True),
    Recipe(
        "nudging",
        10,
        f"{_NUDGING} ; {_SCORE}",
        f"{_NUDGING} --limit 6 --max-new-tokens 48 ; {_SCORE}",
        note=_CHECKERS,
    ),
    Recipe(
        "ifeval_search",
        120,
        "ifeval-search --data {data}/ifeval.jsonl --systems instruct nudged --memory-mb 3200 --out {out}",
        "ifeval-search --data {data}/ifeval.jsonl --limit 4 --samples 4 --deep-samples 4 --deep-prompts 0 "
        "--max-new-tokens 48 --beams 2 --samples-per-beam 2 --segment-tokens 16 --out {out}",
        note=_CHECKERS,
    ),
    Recipe(
        "best_of_n",
        7,
        "best-of-n --page-tokens 0 64 --repeats 3",
        "best-of-n --page-tokens 0 64 -n 4 --prompts 1 --max-new-tokens 16 --repeats 1",
    ),
    Recipe("reward_training", 180, _FULL_REWARD, _SHORT_REWARD),
    Recipe(
        "rejection",
        240,
        f"{_FULL_REWARD} ; "
        "rejection --data {data}/alpaca_eval.jsonl --reward {work}/reward/model --tune-prompts 32 --max-new-tokens 128 "
        "--out {out} --plot {out}/rejection.svg",
        f"{_SHORT_REWARD} ; "
        "rejection --data {data}/alpaca_eval.jsonl --reward {work}/reward/model --prompts 3 --tune-prompts 2 "
        "--samples 8 --against 4 --max-new-tokens 48 --confirm 1 --out {out}",
        note="trains a reward model first, that of reward_training",
    ),
    Recipe(
        "speculation",
        150,
        f"speculation --data {_FOUR} --split report --prompts 40 --repeats 2 --out {{out}}/runs.jsonl --plots {{out}}",
        "speculation --data {data}/gsm8k.jsonl --split report --methods plain 'fixed 2' acceptance --prompts 2 "
        "--timed 2 --repeats 1 --max-new-tokens 24 --temperatures 0 --batches 1 --out {out}/runs.jsonl",
    ),
    Recipe(
        "speculation_lengths",
        20,
        "speculation-lengths --data {data}/gsm8k.jsonl {data}/alpaca_eval.jsonl {data}/humaneval.jsonl --split report "
        "--max-new-tokens 64 --repeats 1 --out {out}/runs.jsonl",
        "speculation-lengths --data {data}/gsm8k.jsonl --split report --prompts 2 --max-new-tokens 16 --repeats 1 "
        "--temperatures 0 --batches 1 --out {out}/runs.jsonl",
    ),
    Recipe(
        "assisted",
        25,
        f"assisted --data {_FOUR} --split report --repeats 5",
        "assisted --data {data}/gsm8k.jsonl --split report --prompts 2 --repeats 1 --max-new-tokens 16 "
        "--temperatures 0 --batches 1",
    ),
    Recipe(
        "kernels",
        10,
        "kernels --threads 1 --plot {out}/kernels.svg",
        "kernels --threads 1 --kernels stats mixture --rows 1 16 --vocabularies 49152 --repeats 3",
    ),
    Recipe("draft_training", 180, _FULL_DRAFT, _SHORT_DRAFT, note=_IN_ONE_GO),
    Recipe(
        "head_training",
        200,
        f"{_FULL_DRAFT} ; train-head --out {{work}}/draft --compare",
        f"{_SHORT_DRAFT} ; train-head --out {{work}}/draft --steps 8",
        note=_IN_ONE_GO,
    ),
)
RECIPES: Mapping[str, Recipe] = {recipe.table: recipe for recipe in _ALL}
