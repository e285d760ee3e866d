"""Times of the kernels as a table, on a GPU beside the goals for an H200."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trimtab.bench.cells import count
from trimtab.bench.kernels.names import COMPILED, COPY, EAGER, GRAPH, OURS, PLAIN, TITLES, Case, share_of
from trimtab.bench.record import Row

__all__ = ["GOALS", "Goal", "kernels_table"]


class Goal(NamedTuple):
    """What was set for an H200: bfloat16 logits, graph replay, cold caches.

    Attributes:
        micros: at most, of a call.
        eager: at least so many times as fast as the eager formula.
        share: at least this part of the rate of a copy; None where latency decides.
    """

    micros: float
    eager: float
    share: float | None = None


# (kernel, rows, vocabulary)
GOALS: Mapping[tuple[str, int, int], Goal] = {
    ("stats", 1, 151_936): Goal(6, 8),
    ("stats", 64, 128_256): Goal(8, 10, 0.47),
    ("stats", 256, 151_936): Goal(25, 15, 0.72),
    ("stats", 256, 262_144): Goal(41, 15, 0.76),
    ("mix3", 1, 151_936): Goal(8, 10),
    ("mix3", 8, 151_936): Goal(10, 10),
    ("mix3", 64, 128_256): Goal(18, 10, 0.64),
    ("mix3", 256, 151_936): Goal(66, 13, 0.82),
    ("mix3", 256, 262_144): Goal(112, 13, 0.84),
    ("mix3-top-p", 64, 128_256): Goal(28, 35),
    ("mix3-plausible", 64, 128_256): Goal(12, 15, 0.90),
    ("verify", 1, 151_936): Goal(12, 12),
    ("verify", 64, 128_256): Goal(38, 15, 0.70),
    ("verify", 256, 151_936): Goal(160, 15, 0.79),
}

Found = Mapping[tuple[Case, str, str], Row]


def kernels_table(rows: Sequence[Row]) -> list[str]:
    """The table of one run, without the line that says what it ran on."""
    found = {(Case.parse(row.case), row.subject, row.metric): row for row in rows}
    gpu = rows[0].settings["device"] == "cuda"
    return _gpu(found) if gpu else _cpu(found)


def _cpu(found: Found) -> list[str]:
    cases = list(dict.fromkeys(case for case, _, _ in found if case.kernel != COPY))
    threads = sorted({case.threads for case in cases})
    sizes = sorted({case.rows for case in cases})
    lines = [
        f"| kernel | vocabulary | {' | '.join('1 row' if n == 1 else f'{n} rows' for n in sizes)} |",
        "|---|---|" + "---|" * len(sizes),
    ]
    several = len({case.dtype for case in cases}) > 1
    for kernel, vocabulary, dtype in dict.fromkeys((c.kernel, c.vocabulary, c.dtype) for c in cases):
        cells = []
        for size in sizes:
            case = Case(kernel, size, vocabulary, dtype, threads[-1])
            time = found.get((case, OURS, PLAIN))
            if time is None:
                cells.append("")
                continue
            eager = (found.get((case._replace(threads=n), f"{EAGER} / {OURS}", PLAIN)) for n in reversed(threads))
            first, *rest = ("–" if row is None else f"{row.value:.1f}×" for row in eager)
            others = "".join(f" ({times})" for times in rest)
            cells.append(f"{_time(time.value)}, **{first}**{others}")
        title = TITLES[kernel] + (f", {dtype}" if several else "")
        lines.append(f"| {title} | {vocabulary:,} | {' | '.join(cells)} |")
    most, *fewer = reversed(threads or [0])
    also = f", in brackets on {' and '.join(map(str, fewer))}" if fewer else ""
    repeats = count(row for (_, subject, _), row in found.items() if subject == OURS and row.unit == "s")
    dtypes = ", ".join(dict.fromkeys(case.dtype for case in cases))
    caption = (
        f"The path of a CPU on {dtypes} logits: time of a call on {most} thread{'s' * (most != 1)}, and how many times "
        f"as long the eager formula takes there{also}; medians of {repeats} interleaved repeats. Each gives "
        "token, logprob, entropy and top probability; rows of a verification are windows of 4 drafted tokens.\n"
        "Figures on an H200 are not measured yet: its goals are in `bench/kernels/table.py`, and what can be checked "
        "without one, the machine code for sm_90, passes its gates (`tests/test_kernel_gates.py`)."
    )
    return [*lines, "", caption]


def _gpu(found: Found) -> list[str]:
    lines = [
        "| kernel | rows × vocabulary | graph replay | goal | plain call | of copy | goal | eager | goal | compiled |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cases = list(dict.fromkeys(case for case, _, _ in found if case.kernel != COPY))
    for case in cases:
        time, plain = (found.get((case, OURS, how)) for how in (GRAPH, PLAIN))
        goal = GOALS.get((case.kernel, case.rows, case.vocabulary)) if case.dtype == "bfloat16" else None
        share = found.get((case, OURS, share_of(GRAPH)))
        eager = found.get((case, f"{EAGER} / {OURS}", GRAPH))
        compiled = found.get((case, f"{COMPILED} / {OURS}", GRAPH))
        title = TITLES[case.kernel] + (f", {case.dtype}" if case.dtype != "bfloat16" else "")
        cells = [
            f"{case.rows} × {case.vocabulary:,}",
            f"**{1e6 * time.value:.1f} µs**" if time else "",
            f"≤ {goal.micros:g} µs" if goal else "",
            f"{1e6 * plain.value:.0f} µs" if plain else "",
            f"{100 * share.value:.0f} %" if share else "",
            f"≥ {100 * goal.share:.0f} %" if goal and goal.share else "",
            f"{eager.value:.1f}×" if eager else "",
            f"≥ {goal.eager:g}×" if goal else "",
            f"{compiled.value:.1f}×" if compiled else "",
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    copies = [row for (case, _, _), row in found.items() if case.kernel == COPY]
    copied = f", {copies[0].value / 1e12:.2f} TB/s in the same run" if copies else ""
    caption = (
        "Medians with cold caches: the launches alone, several of them in a CUDA graph, and a whole call by the wall "
        f"clock. Of copy: bytes that have to be read, over the time, as a share of what a copy moves{copied}. "
        "Eager, compiled: how many times as long the eager formula takes, as it is and under torch.compile, "
        "in graphs too. Goals are those for an H200."
    )
    return [*lines, "", caption]


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1e3 * seconds:.2g} ms" if seconds < 1e-2 else f"{1e3 * seconds:.0f} ms"
