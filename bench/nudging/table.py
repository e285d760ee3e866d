"""The table of nudging."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.bench.cells import interval, run_of
from trimtab.bench.record import Row

__all__ = ["nudging_table"]


def nudging_table(rows: Sequence[Row]) -> list[str]:
    found = {(row.case, row.subject, row.metric): row for row in rows}
    lines = [
        "| prompts | method | constraints kept | prompts kept whole | tokens nudged | mean length | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    differences = []
    for case, subject in dict.fromkeys((row.case, row.subject) for row in rows):
        kept, whole = (found[case, subject, metric] for metric in ("constraints kept", "prompts kept whole"))
        if " - " in subject:
            text = f"{100 * kept.value:+.1f} points {interval(kept, '{:+.1f}', 100)}"
            differences.append(f"{subject.replace(' - ', ' against ')}: {text}")
            continue
        nudged, length, speed = (found[case, subject, metric] for metric in ("tokens nudged", "length", "speed"))
        name = f"**{subject}**" if subject.startswith("nudged") else subject
        lines.append(
            f"| {case} | {name} | {100 * kept.value:.1f} % {interval(kept, '{:.1f}', 100)} "
            f"| {100 * whole.value:.1f} % | {100 * nudged.value:.1f} % | {length.value:.0f} | {speed.value:.0f} |"
        )
    row = rows[0]
    caption = (
        f"IFEval's strict checkers, greedy, at most {row.settings['max_new_tokens']} tokens, over {row.repeats} "
        f"prompts, with 95 % intervals. Difference in constraints kept, paired by prompt: {'; '.join(differences)}. "
        f"{run_of(row)}"
    )
    return [*lines, "", caption]
