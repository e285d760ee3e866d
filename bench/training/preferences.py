"""Preference data: answers of several models to the same instructions, how well they were liked, and what is learned.

``preference`` is how often a judge prefers the answer over a fixed baseline's. Under Bradley and Terry's model its
log-odds are the answer's reward up to a constant of the instruction, so two answers i, j to one instruction give the
target probability sigmoid(logit_i - logit_j), softer than "the better one wins".
"""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.bench.statistics import bootstrap_interval
from trimtab.decode.errors import InvalidRequest

__all__ = ["Answered", "Scores", "by_instruction", "choose", "correlation", "pair_accuracy", "read_preferences"]

Floats = NDArray[np.float64]

_CLIP = 0.02  # a judge that always prefers one answer is not infinitely sure
_ACCEPTED = "a row with the texts instruction, generator, output and split, and preference in [0, 1]"


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer and how well it was liked.

    Attributes:
        instruction: what was asked.
        generator: model that answered.
        text: the answer.
        preference: in [0, 1].
        split: ``tune`` or ``report``.
    """

    instruction: str
    generator: str
    text: str
    preference: float
    split: str

    @property
    def logit(self) -> float:
        """Log-odds of the preference, clipped to [0.02, 0.98]."""
        p = min(max(self.preference, _CLIP), 1 - _CLIP)
        return math.log(p / (1 - p))


def read_preferences(path: Path) -> list[Answered]:
    """The rows of a JSONL file, which may be compressed with gzip.

    Raises:
        InvalidRequest: the file can't be read, or a row is not as it should be; names the line.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as stream:
            lines = stream.read().split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidRequest.of("data", path.name, f"a readable JSONL file, perhaps .gz ({error})") from error
    rows = [_row(f"{path.name}:{i}", line) for i, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise InvalidRequest.of("data", path.name, "at least one row")
    return rows


def _row(where: str, line: str) -> Answered:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidRequest.of(where, line, f"a JSON object ({error})") from error
    names = ("instruction", "generator", "output", "split")
    if not isinstance(row, Mapping) or not all(isinstance(row.get(name), str) for name in names):
        raise InvalidRequest.of(where, line, _ACCEPTED)
    preference = row.get("preference")
    if isinstance(preference, bool) or not isinstance(preference, int | float) or not 0 <= preference <= 1:
        raise InvalidRequest.of(f"{where}.preference", preference, "a number in [0, 1]")
    return Answered(row["instruction"], row["generator"], row["output"], float(preference), row["split"])


def by_instruction(rows: Iterable[Answered]) -> dict[str, list[Answered]]:
    """The answers to each instruction, in the order of the rows."""
    found: dict[str, list[Answered]] = {}
    for row in rows:
        found.setdefault(row.instruction, []).append(row)
    return found


def choose(rows: Sequence[Answered], instructions: int | None, answers: int | None, seed: int) -> list[Answered]:
    """At most so many instructions and answers to each, drawn at random; instruction by instruction."""
    draw = random.Random(seed)
    groups = list(by_instruction(rows).values())
    draw.shuffle(groups)
    chosen = []
    for group in groups[:instructions]:
        chosen += draw.sample(group, min(answers or len(group), len(group)))
    return chosen


@dataclass(frozen=True, slots=True)
class Scores:
    """Answers, and what a reward says of them."""

    rows: Sequence[Answered]
    values: Sequence[float]

    def groups(self) -> list[tuple[list[Answered], list[float]]]:
        """Per instruction."""
        found: dict[str, tuple[list[Answered], list[float]]] = {}
        for row, value in zip(self.rows, self.values, strict=True):
            group = found.setdefault(row.instruction, ([], []))
            group[0].append(row)
            group[1].append(value)
        return list(found.values())


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of pairs that a reward orders as the preferences do, and its 95 % interval over instructions."""

    value: float
    interval: tuple[float, float]
    pairs: int


def pair_accuracy(scores: Scores, margin: float = 0.0, unseen: Iterable[str] = (), which: str = "all") -> Accuracy:
    """Over pairs of answers to one instruction; equal rewards count half.

    Args:
        scores: of a reward.
        margin: only pairs whose preferences differ by more.
        unseen: generators that nothing was trained on.
        which: ``all`` pairs, ``seen`` (neither is of an unseen generator) or ``unseen`` (one is, or both).

    Raises:
        InvalidRequest: there is no such pair.
    """
    new = frozenset(unseen)
    sums = []  # per instruction: right, pairs
    for rows, values in scores.groups():
        right = pairs = 0.0
        for i, a in enumerate(rows):
            for j in range(i):
                b = rows[j]
                is_new = a.generator in new or b.generator in new
                if abs(a.preference - b.preference) <= margin or (which != "all" and is_new != (which == "unseen")):
                    continue
                pairs += 1
                agrees = (values[i] - values[j]) * (a.preference - b.preference)
                right += 1.0 if agrees > 0 else 0.5 if agrees == 0 else 0.0
        if pairs:
            sums.append((right, pairs))
    if not sums:
        raise InvalidRequest.of("data", f"no {which} pairs", "at least two answers to some instruction")
    table = np.asarray(sums)
    interval = bootstrap_interval(table, lambda s: s[..., 0].sum(-1) / s[..., 1].sum(-1))
    total = table.sum(0)
    return Accuracy(float(total[0] / total[1]), interval, int(total[1]))


def correlation(scores: Scores, lengths: Sequence[float]) -> float:
    """Mean over instructions of the rank correlation (Spearman) between rewards and lengths of the answers."""
    values: dict[str, tuple[list[float], list[float]]] = {}
    for row, value, length in zip(scores.rows, scores.values, lengths, strict=True):
        pair = values.setdefault(row.instruction, ([], []))
        pair[0].append(value)
        pair[1].append(length)
    found = []
    for x, y in values.values():
        a, b = _ranks(x), _ranks(y)
        if len(x) > 2 and a.std() > 0 and b.std() > 0:
            found.append(float(np.corrcoef(a, b)[0, 1]))
    return float(np.mean(found)) if found else 0.0


def _ranks(values: Sequence[float]) -> Floats:
    """Ranks from 0, ties at their mean."""
    array = np.asarray(values, dtype=np.float64)
    below = (array[None, :] < array[:, None]).sum(1)
    upto = (array[None, :] <= array[:, None]).sum(1)
    return np.asarray((below + upto - 1) / 2, dtype=np.float64)
