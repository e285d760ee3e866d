"""``trimtab bench data``: fetch the public data sets that benchmarks read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from trimtab.bench.public.sets import FOLDER, SETS, find
from trimtab.decode.options import OutputFolder

__all__ = ["register"]


def register(actions: Any) -> None:
    """Adds it to the benchmarks."""
    parser = actions.add_parser(
        "data",
        help="fetch the public data sets that benchmarks read",
        description=f"Fetch public data sets and keep the rows that benchmarks read in {FOLDER}; without a name, list "
        "them.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(SETS)}")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="a copy to take instead: a folder with NAME.jsonl, or one set's file"
    )
    parser.add_argument("--out", action=OutputFolder, default=FOLDER, metavar="FOLDER", help=f"(default: {FOLDER})")
    parser.set_defaults(run=_data)


def _data(args: argparse.Namespace) -> int:
    from trimtab.bench.public.fetch import ensure

    for name in args.names:
        find(name)  # a misspelt name is refused before anything is fetched
    if args.names:
        for path in ensure(args.names, args.data, args.out):
            sys.stdout.write(f"{path}\n")
        return 0
    for of in SETS.values():
        path = args.out / of.file_name
        state = str(path) if path.exists() else "not fetched"
        sys.stdout.write(f"{of.name:<12} {of.source.name:<24} {of.licence:<13} {state}\n")
    return 0
