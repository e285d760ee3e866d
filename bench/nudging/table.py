"""The table of nudging."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.bench.cells import interval, run_of, share
from trimtab.bench.record import Row
from trimtab.bench.weights import weights

__all__ = ["nudging_table"]

_METRICS = ("constraints kept", "prompts kept whole", "tokens nudged", "length", "speed")
_PAIR = ("gemma-3-270m", "smollm2-135m-instruct")  # of rows from before they named their models


def nudging_table(rows: Sequence[Row]) -> list[str]:
    found = {(row.case, row.subject, row.metric): row for row in rows}
    lines = [
        "| prompts | method | constraints kept | prompts kept whole | tokens nudged | mean length | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    differences = []
    for case, subject in dict.fromkeys((row.case, row.subject) for row in rows):
        kept, *others = (found.get((case, subject, metric)) for metric in _METRICS)
        if " - " in subject:
            if kept is not None:
                text = f"{100 * kept.value:+.1f} points {interval(kept, '{:+.1f}', 100)}".rstrip()
                differences.append(f"{subject.replace(' - ', ' against ')}: {text}")
            continue
        name = f"**{subject}**" if subject.startswith("nudged") else subject
        cells = ["" if kept is None else share(kept, "{:.1f}")]
        for row, percent in zip(others, (True, True, False, False), strict=True):
            cells.append("" if row is None else f"{100 * row.value:.1f} %" if percent else f"{row.value:.0f}")
        lines.append(f"| {case} | {name} | {' | '.join(cells)} |")
    row = rows[0]
    models = row.settings.get("models", _PAIR)
    caption = (
        f"{' with '.join(models)} as nudger, {weights(row, *models)}. IFEval's strict checkers, greedy, at most "
        f"{row.settings['max_new_tokens']} tokens, over {row.repeats} prompts"
        f"{', with 95 % intervals' * bool(interval(row, '{}'))}."
    )
    if differences:
        caption += f" Difference in constraints kept, paired by prompt: {'; '.join(differences)}."
    caption += f" {run_of(row)}"
    return [*lines, "", caption]
