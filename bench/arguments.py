"""What the commands of all benchmarks share: options from arguments, and where results go."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trimtab.decode.options import OutputFolder, writable_folder

if TYPE_CHECKING:  # it brings numpy, and every command line reads this module
    from trimtab.bench.record import Recorder

__all__ = ["RESULTS", "UNFINISHED", "options_of", "recorded", "results_option"]

# From the root of the repository: where results are kept, and the cases of runs that are not done.
RESULTS = Path("bench/results")
UNFINISHED = Path("build/unfinished")

T = TypeVar("T")


def results_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--results``."""
    parser.add_argument(
        "--results", action=OutputFolder, metavar="FOLDER", help=f"where results are kept (default: {RESULTS})"
    )


def options_of(args: argparse.Namespace, kind: type[T]) -> T:
    """The options that were given; the rest are the defaults of ``kind``, a dataclass.

    Raises:
        InvalidRequest: the results could not be kept in the end.
    """
    if getattr(args, "results", None) is None and not getattr(args, "quick", None):
        writable_folder(RESULTS, "--results")  # where ``recorded`` will keep them
    found = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in found.items() if v is not None})


def recorded(args: argparse.Namespace, recorder: Recorder | None) -> int:
    """Show and keep what was measured; a smoke run is kept only where ``--results`` says. None: there is more to do."""
    if recorder is None:
        sys.stderr.write("trimtab: not done yet; the same command goes on\n")
        return 0
    from trimtab.bench.tables import table

    print(table(recorder.bench, recorder.rows))
    if args.results or not getattr(args, "quick", None):
        sys.stderr.write(f"trimtab: recorded in {recorder.save(args.results or RESULTS)}\n")
    return 0
