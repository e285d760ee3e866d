"""Results of the benchmarks of speculation as markdown tables; what they ran on is added outside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from trimtab.bench.cells import interval, spread
from trimtab.bench.record import Row

__all__ = ["Case", "assisted_table", "cases_of", "lengths_table", "speculation_table"]

_HEADS = (
    "prompts",
    "T",
    "at a time",
    "plain, tokens/s",
    "best fixed length",
    "confidence",
    "**acceptance**",
    "lookup",
    "**both**",
    "acceptance / best fixed",
    "target passes per token",
    "drafts discarded per token",
)
_AGAINST = "acceptance / "
_RULES = ("confidence", "acceptance", "lookup", "both")


class Case(NamedTuple):
    """What answers were measured on."""

    data: str
    temperature: float
    batch: int

    @classmethod
    def parse(cls, case: str) -> Case:
        """Of a row's ``case``."""
        found = json.loads(case)
        return cls(found.get("data", ""), found["temperature"], found["batch"])

    @property
    def name(self) -> str:
        return json.dumps({"data": self.data, "temperature": self.temperature, "batch": self.batch})


def cases_of(rows: Sequence[Row]) -> list[Case]:
    """All cases, in the order in which they were measured."""
    return [Case.parse(case) for case in dict.fromkeys(row.case for row in rows)]


def speculation_table(rows: Sequence[Row]) -> list[str]:
    """One line per kind of text, temperature and batch: the best fixed length beside the rules that adapt."""
    found = {(Case.parse(row.case), row.subject, row.metric): row for row in rows}
    lines = [
        f"| {' | '.join(_HEADS)} |",
        "|---" * len(_HEADS) + "|",
    ]
    for case in cases_of(rows):
        plain = found[case, "plain", "speed"]
        against = next(
            row for (c, name, _), row in found.items() if c == case and name.startswith("acceptance / fixed")
        )
        best = against.subject.removeprefix(_AGAINST)
        times = {name: found[case, f"{name} / plain", "speed"].value for name in (best, *_RULES)}
        passes, lost = (
            " / ".join(f"{found[case, name, metric].value:.2f}" for name in (best, "acceptance"))
            for metric in ("target passes", "discarded")
        )
        ratio = f"{against.value:.3f} {interval(against, '{:.3f}')}".rstrip()
        lines.append(
            f"| {case.data} | {case.temperature:g} | {case.batch} | {plain.value:.0f} "
            f"| {best.removeprefix('fixed ')}: {times[best]:.2f}× | {times['confidence']:.2f}× "
            f"| **{times['acceptance']:.2f}×** | {times['lookup']:.2f}× | **{times['both']:.2f}×** "
            f"| {ratio} | {passes} | {lost} |"
        )
    settings = rows[0].settings
    repeats = {row.repeats for row in rows if row.unit == "tokens/s"}
    rounds = " to ".join(f"{count}" for count in sorted({min(repeats), max(repeats)}))
    caption = (
        f"{settings['target']} with {settings['draft']}, {settings['timed']} prompts of each kind, at most "
        f"{settings['max_new_tokens']} tokens: tokens per second as multiples of plain decoding's over all prompts, "
        f"{rounds} interleaved repeats together, with 95 % intervals. Passes and discarded drafts: of the best "
        f"fixed length / of acceptance, over {max(row.repeats for row in rows)} prompts. Both: copies where they have "
        "mostly stood, drafts by acceptance elsewhere."
    )
    return [*lines, "", caption]


def assisted_table(rows: Sequence[Row]) -> list[str]:
    """This engine's speculation beside assisted generation of transformers."""
    lines = ["| T | prompts at a time | contestant | tokens/s | trimtab / it |", "|---|---|---|---|---|"]
    found = {(row.case, row.subject, row.metric): row for row in rows}
    for name, subject in dict.fromkeys((row.case, row.subject) for row in rows):
        if " / " in subject:
            continue
        case = Case.parse(name)
        cells = f"| {case.temperature:g} | {case.batch} | {subject} |"
        speed, ratio = found.get((name, subject, "speed")), found.get((name, f"trimtab / {subject}", "speed"))
        if speed is None:
            lines.append(f"{cells} refuses more than one | |")
            continue
        times = "" if ratio is None else f"**{ratio.value:.2f}×** {interval(ratio, '{:.2f}')}"
        lines.append(f"{cells} {spread(speed)} | {times} |")
    settings = rows[0].settings
    shortest, longest = settings["prompt_tokens"]
    repeats = next(row.repeats for row in rows if row.metric == "speed")
    caption = (
        f"{settings['target']} with {settings['draft']}, {rows[0].dtype}, on both sides; {settings['prompts']} prompts "
        f"of {shortest} to {longest} tokens a round, at most {settings['max_new_tokens']} new tokens each. Median "
        f"(20th to 80th percentile) of {repeats} interleaved rounds, the ratio with its 95 % interval."
    )
    return [*lines, "", caption]


def lengths_table(rows: Sequence[Row]) -> list[str]:
    """One line for each way to decide lengths, beside the best fixed length: replayed, and timed."""
    found = {(row.case, row.subject, row.metric): row for row in rows}
    cases = list(dict.fromkeys(row.case for row in rows))
    best = {case: next(row.subject for row in rows if row.case == case and row.unit == "s") for case in cases}
    lines = [
        f"| lengths | {' | '.join(f'{case} ({best[case]})' for case in cases)} |",
        "|---" * (len(cases) + 1) + "|",
    ]
    for subject in sorted({row.subject for row in rows}):
        cells = []
        for case in cases:
            figures = [found.get((case, subject, metric)) for metric in ("replayed", "processor", "timed")]
            cells.append(" / ".join("" if row is None else f"{row.value:.3f}" for row in figures))
        lines.append(f"| {subject} | {' | '.join(cells)} |")
    settings = rows[-1].settings
    repeats = max((row.repeats for row in rows if row.metric == "timed"), default=0)
    answers = max(row.repeats for row in rows if row.metric == "replayed")
    caption = (
        f"{settings['target']} with {settings['draft']}, speed as a multiple of the best fixed length's, named above: "
        f"replayed on recorded blocks of {answers} answers at costs measured once / in the engine, by the processor's "
        f"time / and by the clock, medians of up to {repeats} interleaved repeats."
    )
    return [*lines, "", caption]
