"""The results of training a reward model as a markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.bench.cells import share
from trimtab.bench.record import Row

__all__ = ["reward_table"]

_SCOPES = ("all", "seen", "unseen")
_CORRELATION = "correlation with length"


def reward_table(rows: Sequence[Row]) -> list[str]:
    """A line per reward: shares of pairs ordered as the judge did, and the rank correlation with length."""
    found = {(row.case, row.subject, row.metric): row for row in rows}
    scopes = [scope for scope in _SCOPES if any(row.case.startswith(f"{scope} ") for row in rows)]
    heads = [f"{scope} generators" for scope in scopes] + ["clear pairs"]
    lines = ["| | " + " | ".join((*heads, _CORRELATION)) + " |", "|---" * (len(heads) + 2) + "|"]
    subjects = list(dict.fromkeys(row.subject for row in rows))
    for subject in subjects:
        cases = [*(f"{scope} generators" for scope in scopes), "all generators, clear pairs"]
        cells = [share(found[case, subject, "pair accuracy"], "{:.1f}") for case in cases]
        cells.append(f"{found['all generators', subject, _CORRELATION].value:.2f}")
        name = f"**{subject}**" if subject == subjects[0] else subject
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    row, pairs = rows[0], found[f"{scopes[0]} generators", subjects[0], "pair accuracy"]
    instructions = found["all generators", subjects[0], _CORRELATION].repeats
    s = row.settings
    read = "the answer's tokens" if s.get("pooling") == "mean" else "the last token"
    beginnings = f" and {s['beginnings']} beginning of each" if s.get("beginnings") else ""
    caption = (
        f"The first {s['depth']} layers of {s['source']}, the last {s['layers']} of them trained, and a linear head "
        f"over {read}; {s['answers_learned_from']} answers{beginnings} "
        f"({s['tokens_learned_from']} tokens, at most {s['answer_tokens']} of an answer) to "
        f"{s['instructions_learned_from']} instructions, {s['epochs']:g} epochs of the layers after the head. Share of "
        f"{pairs.repeats} pairs of answers to {instructions} other instructions that are ordered as the judge's "
        f"preferences are, with 95 % intervals over instructions. Pairs with one of {len(s['unseen'])} generators of "
        "which nothing was learned are apart; clear pairs differ by more than 0.3 in preference. "
        f"Seed {row.seed}, {row.device.name}, {row.device.threads} threads, {row.time[:10]}: `{row.command}`."
    )
    return [*lines, "", caption]
