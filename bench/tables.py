"""Results as markdown tables, one function per benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trimtab.bench.cells import interval, spread
from trimtab.bench.kernel_tables import kernels_table
from trimtab.bench.record import Row
from trimtab.bench.search_tables import best_of_n_table, ifeval_search_table, rejection_table
from trimtab.bench.speculation_tables import assisted_table, lengths_table, speculation_table
from trimtab.bench.training.reward_table import reward_table
from trimtab.bench.training.tables import draft_table, head_table

__all__ = ["TABLES", "table"]

_NOTHING = "*No results are recorded yet.*"


def table(bench: str, rows: Sequence[Row]) -> str:
    """The rows of one run, with a line that says what it ran on.

    Raises:
        KeyError: no such benchmark.
    """
    body = TABLES[bench](rows) if rows else []
    return "\n".join(body) if body else _NOTHING


def _decode(rows: Sequence[Row]) -> list[str]:
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
        f"of {a.repeats} interleaved repeats; the ratio with its 95 % interval. {_run(row)}"
    )
    return [*lines, "", caption]


def _nudging(rows: Sequence[Row]) -> list[str]:
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
        f"{_run(row)}"
    )
    return [*lines, "", caption]


def _kernels(rows: Sequence[Row]) -> list[str]:
    return [*kernels_table(rows), _run(rows[0])]


def _with_run(lines: Callable[[Sequence[Row]], list[str]]) -> Callable[[Sequence[Row]], list[str]]:
    return lambda rows: [*(made := lines(rows))[:-1], f"{made[-1]} {_run(rows[0])}"]


def _memory(rows: Sequence[Row]) -> list[str]:
    lines = [f"| {' | '.join(row.metric for row in rows)} |", "|---" * len(rows) + "|"]
    cells = (f"**{row.value:.0f}**" if row.metric == "peak" else f"{row.value:.0f}" for row in rows)
    models = " and ".join(rows[0].settings["models"])
    caption = f"MB resident in a process that runs {rows[0].case} with {models}. {_run(rows[0])}"
    return [*lines, f"| {' | '.join(cells)} |", "", caption]


TABLES: Mapping[str, Callable[[Sequence[Row]], list[str]]] = {
    "decode": _decode,
    "kernels": _kernels,
    "memory": _memory,
    "nudging": _nudging,
    "draft_training": draft_table,
    "head_training": head_table,
    "reward_training": reward_table,
    "ifeval_search": _with_run(ifeval_search_table),
    "rejection": _with_run(rejection_table),
    "best_of_n": _with_run(best_of_n_table),
    "speculation": _with_run(speculation_table),
    "speculation_lengths": _with_run(lengths_table),
    "assisted": _with_run(assisted_table),
}


def _run(row: Row) -> str:
    device = row.device
    threads = f"{device.threads} thread{'s' * (device.threads != 1)}"
    versions = f"torch {device.torch}, transformers {device.transformers}"
    at = f" at {row.commit}" if row.commit else ""
    return f"{device.name}, {threads}, {versions}; trimtab {device.trimtab}{at}, {row.time[:10]}: `{row.command}`."
