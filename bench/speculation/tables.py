"""Results of the benchmarks of speculation as markdown tables; what they ran on is added outside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from trimtab.bench.cells import count, interval, medians, spread
from trimtab.bench.record import Row
from trimtab.bench.weights import weights

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
_FIXED = "fixed "
_RULES = {
    "confidence": "{}",
    "acceptance": "**{}**",
    "lookup": "{}",
    "both": "**{}**",
}  # and how their speed is written
_Found = Mapping[tuple[str, str], Row]  # rows of one case, by subject and metric


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
    """One line per kind of text, temperature and batch: the best fixed length beside the rules that adapt; what was not
    measured is left open.
    """
    lines = [f"| {' | '.join(_HEADS)} |", "|---" * len(_HEADS) + "|"]
    for case in cases_of(rows):
        found = {(row.subject, row.metric): row for row in rows if Case.parse(row.case) == case}
        cells = (case.data, f"{case.temperature:g}", f"{case.batch}", *_speeds(found))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", _speculation_caption(rows)]


def _speeds(found: _Found) -> Iterator[str]:
    """From plain decoding to discarded drafts."""
    plain, best = found.get(("plain", "speed")), _best_fixed(found)
    yield "" if plain is None else f"{plain.value:.0f}"
    length = best.removeprefix(_FIXED)
    yield f"{length}: {_times(found, best)}".removesuffix(": ") if best else ""
    for name, form in _RULES.items():
        times = _times(found, name)
        yield form.format(times) if times else ""
    against = found.get((f"acceptance / {best}", "speed"))
    yield "" if against is None else f"{against.value:.3f} {interval(against, '{:.3f}')}".rstrip()
    for metric in ("target passes", "discarded"):
        both = [found.get((name, metric)) for name in (best, "acceptance")]
        yield " / ".join("–" if row is None else f"{row.value:.2f}" for row in both) if any(both) else ""


def _best_fixed(found: _Found) -> str:
    """The fixed length that the rules were compared with, or the fastest that was measured; empty without any."""
    for ours in ("acceptance", "both"):
        for subject, _ in found:
            if subject.startswith(f"{ours} / {_FIXED}"):
                return subject.removeprefix(f"{ours} / ")
    speeds = {name: row.value for (name, metric), row in found.items() if metric == "speed" and " / " not in name}
    fixed = [name for name in speeds if name.startswith(_FIXED)]
    return max(fixed, key=speeds.__getitem__, default="")


def _times(found: _Found, name: str) -> str:
    row = found.get((f"{name} / plain", "speed"))
    return "" if row is None else f"{row.value:.2f}×"


def _speculation_caption(rows: Sequence[Row]) -> str:
    settings = rows[0].settings
    speeds = [row for row in rows if row.unit == "tokens/s"]
    counted = max((row.repeats for row in rows if row.metric == "target passes"), default=0)
    intervals = any(interval(row, "{}") for row in rows)
    repeats = count(speeds)
    how = "in one repeat" if repeats == "1" else f"{repeats} interleaved repeats together"
    return (
        f"{settings['target']} with {settings['draft']}, {weights(rows[0], settings['target'])}, {settings['timed']} "
        f"prompts of each kind, at most {settings['max_new_tokens']} tokens: tokens per second as multiples of plain "
        f"decoding's over all prompts, {how}{', with 95 % intervals' * intervals}. Passes and discarded drafts: of the "
        f"best fixed length / of acceptance, over {counted} prompts. Both: copies where they have mostly stood, drafts "
        "by acceptance elsewhere."
    )


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
        times = "" if ratio is None else f"**{ratio.value:.2f}×** {interval(ratio, '{:.2f}')}".rstrip()
        lines.append(f"{cells} {spread(speed)} | {times} |")
    settings = rows[0].settings
    shortest, longest = settings["prompt_tokens"]
    speeds = [row for row in rows if row.metric == "speed"]
    measured = medians([row for row in speeds if " / " not in row.subject], "round").capitalize()
    intervals = ", the ratio with its 95 % interval" * any(interval(row, "{}") for row in speeds)
    caption = (
        f"{settings['target']} with {settings['draft']}, {weights(rows[0], settings['target'])}, on both sides; "
        f"{settings['prompts']} prompts of {shortest} to {longest} tokens a round, at most "
        f"{settings['max_new_tokens']} new tokens each. {measured}{intervals}."
    )
    return [*lines, "", caption]


def lengths_table(rows: Sequence[Row]) -> list[str]:
    """One line for each way to decide lengths, beside the best fixed length: replayed, and timed."""
    found = {(row.case, row.subject, row.metric): row for row in rows}
    cases = list(dict.fromkeys(row.case for row in rows))
    best = {row.case: row.subject for row in rows if row.unit == "s"}
    lines = [
        f"| lengths | {' | '.join(f'{case} ({best[case]})' if case in best else case for case in cases)} |",
        "|---" * (len(cases) + 1) + "|",
    ]
    for subject in sorted({row.subject for row in rows}):
        cells = []
        for case in cases:
            figures = [found.get((case, subject, metric)) for metric in ("replayed", "processor", "timed")]
            cells.append(" / ".join("" if row is None else f"{row.value:.3f}" for row in figures))
        lines.append(f"| {subject} | {' | '.join(cells)} |")
    last = rows[-1]
    settings = last.settings
    repeats = max((row.repeats for row in rows if row.metric == "timed"), default=0)
    timed = "once" if repeats == 1 else f"medians of up to {repeats} interleaved repeats"
    answers = max((row.repeats for row in rows if row.metric == "replayed"), default=0)
    caption = (
        f"{settings['target']} with {settings['draft']}, {weights(last, settings['target'])}, speed as a multiple "
        f"of the best fixed length's, named above: replayed on recorded blocks of {answers} answers at costs measured "
        f"once / in the engine, by the processor's time / and by the clock, {timed}."
    )
    return [*lines, "", caption]
