"""Results as markdown tables, one function per benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trimtab.bench.cells import run_of
from trimtab.bench.decode.table import decode_table
from trimtab.bench.kernels.table import kernels_table
from trimtab.bench.memory import memory_table
from trimtab.bench.nudging.table import nudging_table
from trimtab.bench.record import Row
from trimtab.bench.searches.tables import best_of_n_table, ifeval_search_table, rejection_table
from trimtab.bench.speculation.tables import assisted_table, lengths_table, speculation_table
from trimtab.bench.startup import startup_table
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


def _kernels(rows: Sequence[Row]) -> list[str]:
    return [*kernels_table(rows), run_of(rows[0])]


def _with_run(lines: Callable[[Sequence[Row]], list[str]]) -> Callable[[Sequence[Row]], list[str]]:
    return lambda rows: [*(made := lines(rows))[:-1], f"{made[-1]} {run_of(rows[0])}"]


TABLES: Mapping[str, Callable[[Sequence[Row]], list[str]]] = {
    "decode": decode_table,
    "kernels": _kernels,
    "memory": memory_table,
    "nudging": nudging_table,
    "draft_training": draft_table,
    "head_training": head_table,
    "reward_training": reward_table,
    "ifeval_search": _with_run(ifeval_search_table),
    "startup": startup_table,
    "rejection": _with_run(rejection_table),
    "best_of_n": _with_run(best_of_n_table),
    "speculation": _with_run(speculation_table),
    "speculation_lengths": _with_run(lengths_table),
    "assisted": _with_run(assisted_table),
}
