"""The pictures of decoding speed, of the kernels' speed and of early rejection; for the extra ``bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.bench.figures import COLOURS, figure_module, save
from trimtab.bench.kernel_names import GRAPH, PLAIN, TITLES, Case, share_of
from trimtab.bench.record import Row
from trimtab.decode.errors import InvalidRequest

__all__ = ["plot_decode", "plot_kernels", "plot_rejection"]


def plot_decode(rows: Sequence[Row], path: Path) -> None:
    """Bars of tokens per second by batch size, with the 20th to 80th percentile.

    Args:
        rows: of one run of the benchmark ``decode``.
        path: of the picture; its ending says the format.

    Raises:
        InvalidRequest: no rows. TrimtabError: matplotlib is not installed.
    """
    figures = figure_module()
    speeds = [row for row in rows if row.metric == "speed" and " / " not in row.subject]
    if not speeds:
        raise InvalidRequest.of("results", [], "a recorded run of 'trimtab bench decode'")
    cases = list(dict.fromkeys(row.case for row in speeds))
    subjects = list(dict.fromkeys(row.subject for row in speeds))
    found = {(row.case, row.subject): row for row in speeds}
    figure = figures.Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(subjects)
    for i, subject in enumerate(subjects):
        chosen = [found[case, subject] for case in cases]
        places = [x + (i - (len(subjects) - 1) / 2) * width for x in range(len(cases))]
        values = [row.value for row in chosen]
        below = [row.value - (row.value if row.p20 is None else row.p20) for row in chosen]
        above = [(row.value if row.p80 is None else row.p80) - row.value for row in chosen]
        colour = COLOURS[i % len(COLOURS)]
        bars = axes.bar(places, values, 0.94 * width, color=colour, label=subject)
        axes.errorbar(places, values, [below, above], fmt="none", ecolor="#333333", elinewidth=1, capsize=3)
        axes.bar_label(bars, [f"{value:.0f}" for value in values], padding=5, fontsize=9)
    axes.set_xticks(range(len(cases)), cases)
    axes.set_ylabel("tokens per second, end to end")
    row = speeds[0]
    axes.set_title(f"{row.settings['model']}, {row.dtype}, {row.device.threads} threads", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.15)
    axes.legend(frameon=False, loc="upper left")
    save(figure, path)


def plot_kernels(rows: Sequence[Row], path: Path) -> None:
    """Share of a copy's rate against the number of rows, a line for each kernel, a panel for each vocabulary.

    Args:
        rows: of one run of the benchmark ``kernels``: graph replay where there is one, else plain calls on the most
            threads that were measured.
        path: of the picture; its ending says the format.

    Raises:
        InvalidRequest: no rows. TrimtabError: matplotlib is not installed.
    """
    figures = figure_module()
    how = GRAPH if any(row.metric == GRAPH for row in rows) else PLAIN
    found = {Case.parse(row.case): row for row in rows if row.metric == share_of(how)}
    if not found:
        raise InvalidRequest.of("results", [], "a recorded run of 'trimtab bench kernels'")
    threads = max(case.threads for case in found)
    found = {case: row for case, row in found.items() if case.threads == threads}
    panels = list(dict.fromkeys((case.vocabulary, case.dtype) for case in found))
    figure = figures.Figure(figsize=(4.2 * len(panels) + 1.8, 3.8), layout="constrained")
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    kernels = list(dict.fromkeys(case.kernel for case in found))
    for axes, (vocabulary, dtype) in zip(every, panels, strict=True):
        for i, kernel in enumerate(kernels):
            chosen = sorted(
                (c for c in found if c[0] == kernel and c[2:4] == (vocabulary, dtype)), key=lambda c: c.rows
            )
            x, values = [case.rows for case in chosen], [found[case].value for case in chosen]
            low, high = ([getattr(found[case], name) for case in chosen] for name in ("p20", "p80"))
            axes.plot(x, values, color=f"C{i}", marker="o", markersize=4, label=TITLES[kernel])
            axes.fill_between(x, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted({case.rows for case in found}), sorted({case.rows for case in found}))
        axes.set_title(f"V = {vocabulary:,}, {dtype}", fontsize=10, loc="left")
        axes.set_xlabel("rows")
        axes.axhline(1, color="#333333", linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    every[0].set_ylabel("share of a copy's rate")
    figure.legend(*every[0].get_legend_handles_labels(), frameon=False, loc="outside right upper", fontsize=8)
    save(figure, path)


def plot_rejection(rows: Sequence[Row], path: Path) -> None:
    """Reward of the chosen answer against tokens generated: plain best-of-n and with rejection, a point for each n.

    Args:
        rows: of one run of the benchmark ``rejection``.
        path: of the picture; its ending says the format.

    Raises:
        InvalidRequest: no rows. TrimtabError: matplotlib is not installed.
    """
    figures = figure_module()
    found = {(row.case, row.subject, row.metric): row for row in rows}
    cases = list(dict.fromkeys(row.case for row in rows if row.subject == "plain" and row.metric == "reward"))
    if not cases:
        raise InvalidRequest.of("results", [], "a recorded run of 'trimtab bench rejection'")
    settings = rows[0].settings
    figure = figures.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    labels = {"plain": "plain best-of-n", "rejecting": f"with rejection of {settings['rule']} tokens"}
    for (subject, label), colour in zip(labels.items(), (COLOURS[1], COLOURS[0]), strict=True):
        chosen = [found[case, subject, "reward"] for case in cases]
        tokens = [found[case, subject, "tokens generated"].value for case in cases]
        axes.plot(tokens, [row.value for row in chosen], color=colour, marker="o", markersize=5, label=label)
        above = subject == "rejecting"
        for case, x, row in zip(cases, tokens, chosen, strict=True):
            offset = (-4, 7) if above else (4, -13)
            axes.annotate(case.split()[0], (x, row.value), xytext=offset, textcoords="offset points", fontsize=8)
    target = found.get((f"{settings['against']} candidates", "plain", "reward"))
    if target is not None:
        axes.axhline(target.value, color="#333333", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("tokens generated per answer")
    axes.set_ylabel("reward of the chosen answer, mean")
    axes.set_title(
        f"{settings['model']}, {found[cases[0], 'plain', 'reward'].repeats} prompts", fontsize=10, loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    save(figure, path)
