"""The results of training a reward model as a markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.bench.cells import command_of, interval, share
from trimtab.bench.record import Row
from trimtab.bench.weights import weights

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
        pairs = [found.get((case, subject, "pair accuracy")) for case in cases]
        cells = ["" if row is None else share(row, "{:.1f}") for row in pairs]
        length = found.get(("all generators", subject, _CORRELATION))
        cells.append("" if length is None else f"{length.value:.2f}")
        name = f"**{subject}**" if subject == subjects[0] else subject
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, "", _caption(rows, scopes)]


def _caption(rows: Sequence[Row], scopes: Sequence[str]) -> str:
    row = rows[0]
    s = row.settings
    pairs = next((r.repeats for r in rows if (r.case, r.metric) == (f"{scopes[0]} generators", "pair accuracy")), 0)
    instructions = next((r.repeats for r in rows if r.metric == _CORRELATION), 0)
    intervals = ", with 95 % intervals over instructions" * any(interval(r, "{}") for r in rows)
    threads = f"{row.device.threads} thread{'s' * (row.device.threads != 1)}"
    read = "the answer's tokens" if s.get("pooling") == "mean" else "the last token"
    beginnings = f" and {s['beginnings']} beginning of each" if s.get("beginnings") else ""
    return (
        f"The first {s['depth']} layers of {s['source']}, {weights(row, s['source'])}, the last {s['layers']} of them "
        f"trained, and a linear head over {read}; {s['answers_learned_from']} answers{beginnings} "
        f"({s['tokens_learned_from']} tokens, at most {s['answer_tokens']} of an answer) to "
        f"{s['instructions_learned_from']} instructions, {s['epochs']:g} epochs of the layers after the head. Share of "
        f"{pairs} pairs of answers to {instructions} other instructions that are ordered as the judge's "
        f"preferences are{intervals}. Pairs with one of {len(s['unseen'])} generators of "
        "which nothing was learned are apart; clear pairs differ by more than 0.3 in preference. "
        f"Seed {row.seed}, {row.device.name}, {threads}, {row.time[:10]}: `{command_of(row)}`."
    )
