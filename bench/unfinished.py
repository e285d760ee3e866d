"""Cases of a run that is not done: they are kept as they come, and the same command goes on with them.

A case is all rows of what was measured interleaved, e.g. of one number of prompts. Runs are the same if all is the same
that their rows say of them, but for the time; each has a file of its own, so that different ones leave each other's
cases alone.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trimtab.bench.data import append_rows, going_on

__all__ = ["Unfinished"]


class Unfinished:
    """The cases of one run.

    Args:
        run: what its rows say of it: benchmark, device, commit, seed, command, settings.
        folder: of the files.

    Attributes:
        cases: rows by case, of a run of the same kind that was cut short.
    """

    def __init__(self, run: Mapping[str, Any], folder: Path) -> None:
        self._run = json.loads(json.dumps(dict(run)))
        name = zlib.crc32(json.dumps(self._run, sort_keys=True).encode())
        self._path = folder / f"{run['bench']}-{name:08x}.jsonl"
        self.cases: dict[str, list[dict[str, Any]]] = {
            line["case"]: line["rows"] for line in going_on(self._path, {"run": self._run})
        }

    def add(self, case: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """A case is done."""
        append_rows(self._path, [{"run": self._run, "case": case, "rows": list(rows)}])

    def done(self) -> None:
        """The run is done, and its rows are kept elsewhere."""
        self._path.unlink(missing_ok=True)
