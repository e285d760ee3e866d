"""Tables of recorded trainings, for the documents."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.bench.cells import command_of
from trimtab.bench.record import Row
from trimtab.bench.weights import weights

__all__ = ["draft_table", "head_table"]


def draft_table(rows: Sequence[Row]) -> list[str]:
    """Acceptance of one token by prompts: sampled at temperature 1 (sum min(p, q)) and greedy (same first choice)."""
    found = {(row.case, row.metric): row for row in rows}
    cases = [case for case in dict.fromkeys(row.case for row in rows) if ", " not in case]
    lines = [
        "| prompts | positions | sum min(p, q) | on sampled texts | same first token | on greedy texts | left out |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        columns = [(case, "acceptance"), (f"{case}, sampled", "acceptance"), (case, "agreement")]
        columns += [(f"{case}, greedy", "agreement"), (case, "missing")]
        shown = " | ".join(_figure(found.get(column)) for column in columns)
        positions = next(row.repeats for row in rows if row.case == case)
        lines.append(f"| {case} | {positions} | {shown} |")
    return [*lines, "", _ran(rows)]


def head_table(rows: Sequence[Row]) -> list[str]:
    """Cross-entropy and calibration of heads on held-out texts, and the reliability of the kept one."""
    scores = [row for row in rows if row.case == "held out"]
    metrics = ("bce", "ece", "drawn_bce", "drawn_ece", "greedy_bce", "greedy_ece")
    lines = [
        "| head | BCE, sum min(p, q) | ECE | BCE, drawn token | ECE | BCE, greedy | ECE |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {(row.subject, row.metric): row for row in scores}
    for subject in dict.fromkeys(row.subject for row in scores):
        lines.append(f"| {subject} | {' | '.join(_figure(found.get((subject, metric)), 4) for metric in metrics)} |")
    lines += ["", "| kept head | predicted | observed | positions |", "|---|---|---|---|"]
    for row in rows:
        name, _, predicted = row.case.partition(", predicted ")
        if predicted:
            lines.append(f"| {name} | {predicted} | {row.value:.3f} | {row.repeats} |")
        elif row.metric == "ece" and row.subject == "kept":
            lines.append(f"| **{name}, calibration error** | | **{row.value:.4f}** | {row.repeats} |")
    return [*lines, "", _ran(rows)]


def _figure(row: Row | None, digits: int = 3) -> str:
    return "" if row is None else f"{row.value:.{digits}f}"


def _ran(rows: Sequence[Row]) -> str:
    row = rows[0]
    settings = ", ".join(f"{key} {value}" for key, value in row.settings.items() if key != "quantisation")
    made = weights(row, row.settings["target"])
    threads = f"{row.device.threads} thread{'s' * (row.device.threads != 1)}"
    return f"{row.device.name}, {threads}, {row.time[:10]}; {settings}; the target's {made}. `{command_of(row)}`"
