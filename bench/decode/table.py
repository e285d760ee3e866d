"""The table of decode."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.bench.cells import interval, medians, run_of, spread
from trimtab.bench.record import Row
from trimtab.bench.weights import weights

__all__ = ["decode_table"]


def decode_table(rows: Sequence[Row]) -> list[str]:
    found = {(row.case, row.subject, row.metric): row for row in rows}
    cases = list(dict.fromkeys(row.case for row in rows))
    subjects = list(dict.fromkeys(row.subject for row in rows if " / " not in row.subject))
    ours, other = (*subjects, "", "")[:2]
    ratio = f"{ours} / {other}"
    lines = [
        f"| prompts at a time | {ours} | {other} | ratio | first token | decoding alone |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        a, b, r = (found.get((case, subject, "speed")) for subject in (ours, other, ratio))
        first = [found.get((case, subject, "first token")) for subject in (ours, other)]
        alone = [found.get((case, subject, "decoding alone")) for subject in (ours, other)]
        times = "" if r is None else f"**{r.value:.2f}×** {interval(r, '{:.2f}')}".rstrip()
        cells = [
            "" if a is None else f"**{spread(a)}**",
            "" if b is None else spread(b),
            times,
            " / ".join(f"{1000 * one.value:.0f}" for one in first if one is not None) + " ms",
            " / ".join(f"{one.value:.0f}" for one in alone if one is not None),
        ]
        lines.append(f"| {case.split()[0]} | {' | '.join(cells)} |")
    speeds = [row for row in rows if row.metric == "speed"]
    measured = medians([row for row in speeds if " / " not in row.subject])
    intervals = "; the ratio with its 95 % interval" * any(interval(row, "{}") for row in speeds)
    row = rows[0]
    settings = row.settings
    shortest, longest = settings["prompt_tokens"]
    caption = (
        f"{settings['model']}, {weights(row, settings['model'])}, prompts of {shortest} to {longest} tokens, "
        f"{settings['max_new_tokens']} new tokens each. Tokens per second end to end, prompts included: {measured}"
        f"{intervals}. {run_of(row)}"
    )
    return [*lines, "", caption]
