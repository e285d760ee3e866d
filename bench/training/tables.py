"""Tables of recorded trainings, for the documents."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.bench.record import Row

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
        shown = [f"{found[case, 'acceptance'].value:.3f}", _figure(found.get((f"{case}, sampled", "acceptance")))]
        shown += [f"{found[case, 'agreement'].value:.3f}", _figure(found.get((f"{case}, greedy", "agreement")))]
        shown.append(f"{found[case, 'missing'].value:.3f}")
        lines.append(f"| {case} | {found[case, 'acceptance'].repeats} | {' | '.join(shown)} |")
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
        lines.append(f"| {subject} | {' | '.join(f'{found[subject, metric].value:.4f}' for metric in metrics)} |")
    lines += ["", "| kept head | predicted | observed | positions |", "|---|---|---|---|"]
    for row in rows:
        name, _, predicted = row.case.partition(", predicted ")
        if predicted:
            lines.append(f"| {name} | {predicted} | {row.value:.3f} | {row.repeats} |")
        elif row.metric == "ece" and row.subject == "kept":
            lines.append(f"| **{name}, calibration error** | | **{row.value:.4f}** | {row.repeats} |")
    return [*lines, "", _ran(rows)]


def _figure(row: Row | None) -> str:
    return "" if row is None else f"{row.value:.3f}"


def _ran(rows: Sequence[Row]) -> str:
    row = rows[0]
    settings = ", ".join(f"{key} {value}" for key, value in row.settings.items())
    return f"{row.device.name}, {row.device.threads} thread(s), {row.time[:10]}; {settings}. `{row.command}`"
