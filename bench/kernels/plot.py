"""What kernels take, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.bench.figures import figure_module, save
from trimtab.bench.kernels.names import GRAPH, PLAIN, TITLES, Case, share_of
from trimtab.bench.record import Row
from trimtab.decode.errors import InvalidRequest

__all__ = ["plot_kernels"]


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
            ends = ([getattr(found[case], name) for case in chosen] for name in ("p20", "p80"))
            low, high = ([v if p is None else p for p, v in zip(end, values, strict=True)] for end in ends)
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
