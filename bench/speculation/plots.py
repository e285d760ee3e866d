"""The pictures of speculation: how well each length rule drafts, and how much faster it is than plain decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.bench.figures import COLOURS, figure_module, save
from trimtab.bench.record import Row
from trimtab.bench.speculation.tables import Case, cases_of
from trimtab.decode.errors import InvalidRequest

__all__ = ["plot_rates", "plot_speed"]

_RULES = {
    "acceptance": ("o", COLOURS[0]),
    "confidence": ("s", "#c26a1b"),
    "lookup": ("^", "#5a8f3c"),
    "both": ("D", "#8a4fa3"),
}
_FIXED = "fixed "


def plot_rates(rows: Sequence[Row], path: Path) -> None:
    """Target passes per token against drafts discarded per token: lower and further left is better.

    Args:
        rows: of one run of the benchmark ``speculation``; its smallest batch is drawn.
        path: of the picture; its ending says the format.

    Raises:
        InvalidRequest: no rows. TrimtabError: matplotlib is not installed.
    """

    def draw(axes: Any, case: Case) -> None:
        passes, discarded = (_values(rows, case, metric) for metric in ("target passes", "discarded"))
        fixed = [name for name in passes if name.startswith(_FIXED)]
        x, y = [discarded[name] for name in fixed], [passes[name] for name in fixed]
        axes.plot(x, y, color=COLOURS[1], marker="o", markersize=4, label="fixed length")
        for name in fixed:
            place = discarded[name], passes[name]
            axes.annotate(
                name.removeprefix(_FIXED), place, xytext=(3, 3), textcoords="offset points", fontsize=7, color="#555555"
            )
        for name, (marker, colour) in _RULES.items():
            if name in passes:
                axes.plot(
                    discarded[name], passes[name], linestyle="", marker=marker, markersize=7, color=colour, label=name
                )

    _panels(rows, path, draw, "drafts discarded per token", "target passes per token")


def plot_speed(rows: Sequence[Row], path: Path) -> None:
    """Tokens per second as multiples of plain decoding's, against the fixed length; rules that adapt are lines.

    Args:
        rows: of one run of the benchmark ``speculation``; its smallest batch is drawn.
        path: of the picture; its ending says the format.

    Raises:
        InvalidRequest: no rows. TrimtabError: matplotlib is not installed.
    """

    def draw(axes: Any, case: Case) -> None:
        speeds = _values(rows, case, "speed")
        times = {name.removesuffix(" / plain"): v for name, v in speeds.items() if name.endswith(" / plain")}
        fixed = {int(name.removeprefix(_FIXED)): v for name, v in times.items() if name.startswith(_FIXED)}
        axes.plot(list(fixed), list(fixed.values()), color=COLOURS[1], marker="o", markersize=4, label="fixed length")
        for name, (_, colour) in _RULES.items():
            if name in times:
                axes.axhline(times[name], color=colour, linewidth=1.4, label=name)
        axes.axhline(1, color="#333333", linewidth=0.8, linestyle=":")
        axes.set_xticks(list(fixed))

    _panels(rows, path, draw, "tokens drafted at a time", "× plain decoding")


def _values(rows: Sequence[Row], case: Case, metric: str) -> dict[str, float]:
    return {row.subject: row.value for row in rows if row.case == case.name and row.metric == metric}


def _panels(rows: Sequence[Row], path: Path, draw: Callable[[Any, Case], None], across: str, up: str) -> None:
    """A row of panels for each temperature, a column for each kind of text; of the smallest batch."""
    batch = min((case.batch for case in cases_of(rows)), default=1)
    chosen = [case for case in cases_of(rows) if case.batch == batch]
    if not chosen:
        raise InvalidRequest.of("results", [], "a recorded run of 'trimtab bench speculation'")
    kinds = list(dict.fromkeys(case.data for case in chosen))
    temperatures = list(dict.fromkeys(case.temperature for case in chosen))
    figure = figure_module().Figure(
        figsize=(2.6 * len(kinds) + 1.2, 2.4 * len(temperatures) + 0.3), layout="constrained"
    )
    panels = figure.subplots(len(temperatures), len(kinds), sharey="row", squeeze=False)
    for line, temperature in zip(panels, temperatures, strict=True):
        for axes, kind in zip(line, kinds, strict=True):
            draw(axes, Case(kind, temperature, batch))
            axes.set_title(f"{kind}, T = {temperature:g}", fontsize=9, loc="left")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
        line[0].set_ylabel(up, fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel(across, fontsize=9)
    figure.legend(*panels[0][0].get_legend_handles_labels(), frameon=False, loc="outside right upper", fontsize=8)
    save(figure, path)
