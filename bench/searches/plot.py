"""Rejection as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.bench.figures import COLOURS, figure_module, save
from trimtab.bench.record import Row
from trimtab.decode.errors import InvalidRequest

__all__ = ["plot_rejection"]


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
