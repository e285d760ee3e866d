"""The table of decode."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.bench.cells import interval, run_of, spread
from trimtab.bench.record import Row

__all__ = ["decode_table"]


def decode_table(rows: Sequence[Row]) -> list[str]:
    found = {(row.case, row.subject, row.metric): row for row in rows}
    cases = list(dict.fromkeys(row.case for row in rows))
    ratio = next(row.subject for row in rows if " / " in row.subject)
    ours, other = ratio.split(" / ")
    lines = [
        f"| prompts at a time | {ours} | {other} | ratio | first token | decoding alone |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        a, b, r = (found[case, subject, "speed"] for subject in (ours, other, ratio))
        first = [found[case, subject, "first token"] for subject in (ours, other)]
        alone = [found[case, subject, "decoding alone"] for subject in (ours, other)]
        lines.append(
            f"| {case.split()[0]} | **{spread(a)}** | {spread(b)} | **{r.value:.2f}×** {interval(r, '{:.2f}')} "
            f"| {1000 * first[0].value:.0f} / {1000 * first[1].value:.0f} ms "
            f"| {alone[0].value:.0f} / {alone[1].value:.0f} |"
        )
    row = rows[0]
    settings = row.settings
    shortest, longest = settings["prompt_tokens"]
    caption = (
        f"{settings['model']}, {row.dtype}, prompts of {shortest} to {longest} tokens, {settings['max_new_tokens']} "
        f"new tokens each. Tokens per second end to end, prompts included: median (20th to 80th percentile) "
        f"of {a.repeats} interleaved repeats; the ratio with its 95 % interval. {run_of(row)}"
    )
    return [*lines, "", caption]
