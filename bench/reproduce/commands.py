"""``trimtab bench reproduce``: make a table of the documents anew."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from trimtab.bench.reproduce.recipes import RECIPES, WORK, Recipe, find
from trimtab.decode.options import OutputFolder

__all__ = ["register"]

_WITHOUT_RESULTS = ("nudging",)  # commands that only write answers


def register(actions: Any) -> None:
    """Adds it to the benchmarks."""
    parser = actions.add_parser(
        "reproduce",
        help="make a table of the documents anew; without a name, list them with what each takes",
        description="Fetch what a table's data are, run its commands and show it. A run that was cut short goes on "
        "where it was. Without a name, list the tables with their commands, minutes and data.",
    )
    parser.add_argument("table", nargs="?", metavar="NAME", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--short", action="store_true", help="with little of everything, to see that it works")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="copies of the public data instead of fetching: a folder with NAME.jsonl, or the file of one set",
    )
    parser.add_argument(
        "--results",
        action=OutputFolder,
        metavar="FOLDER",
        help=f"where results are kept (default: {WORK}/results; bench/results are the documents')",
    )
    parser.set_defaults(run=_reproduce)


def _reproduce(args: argparse.Namespace) -> int:
    if args.table is None:
        sys.stdout.write("\n".join(map(_described, RECIPES.values())) + "\n")
        return 0
    from trimtab.bench.public.fetch import ensure

    recipe = find(args.table)
    ensure(recipe.data(args.short), args.data)
    work = WORK / "short" if args.short else WORK
    results = args.results or work / "results"
    for words in recipe.commands(args.short, work=work):
        command = ["bench", *words, *(["--results", str(results)] if words[0] not in _WITHOUT_RESULTS else [])]
        sys.stderr.write(f"trimtab: $ trimtab {shlex.join(command)}\n")
        done = subprocess.run([sys.executable, "-m", "trimtab", *command], check=False)
        if done.returncode:
            sys.stderr.write(f"trimtab: {recipe.table} is not done; the same command goes on\n")
            return done.returncode
    return 0


def _described(recipe: Recipe) -> str:
    how = "measured" if recipe.measured else "estimated"
    lines = [f"{recipe.table}: {recipe.minutes:g} min on 2 cores ({how}); data: {', '.join(recipe.data()) or 'none'}"]
    lines += [f"  {recipe.note}"] if recipe.note else []
    lines += [f"  $ trimtab bench {shlex.join(words)}" for words in recipe.commands()]
    return "\n".join(lines)
