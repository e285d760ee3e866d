"""Throughput as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.bench.figures import COLOURS, figure_module, save
from trimtab.bench.record import Row
from trimtab.decode.errors import InvalidRequest

__all__ = ["plot_decode"]


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
