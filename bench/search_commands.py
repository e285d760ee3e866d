"""The benchmarks of searches: ``trimtab bench ifeval-search``, ``rejection`` and ``best-of-n``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.bench.record import Recorder

__all__ = ["register"]

_RESULTS = Path("bench/results")


def register(actions: Any) -> None:
    """Adds the three to the benchmarks."""
    _ifeval_search(actions)


def _ifeval_search(actions: Any) -> None:
    parser = actions.add_parser(
        "ifeval-search",
        help="searches on a gold standard: constraints kept against tokens generated",
        description="Answer IFEval's prompts with pools of samples, greedily and by segment search, under the "
        "project's own rules, and score all with the public checkers. A run that was cut short goes on where it was.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSONL of IFEval")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the answers (default: build/ifeval_search)")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="instruct, nudged (default: instruct)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="pool, greedy, segments (default: all)")
    parser.add_argument("--aligned", metavar="MODEL", help="a bundled name, a folder or a hub id")
    parser.add_argument("--base", metavar="MODEL", help="the same, of the system nudged")
    parser.add_argument("--split", metavar="NAME", help="rows of the data (default: report)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--samples", type=int, metavar="N", help="of every prompt (default: 16)")
    parser.add_argument("--deep-samples", type=int, metavar="N", help="of the first few prompts (default: 64)")
    parser.add_argument("--deep-prompts", type=int, metavar="N", help="how many these are (default: 60)")
    parser.add_argument("--nudged-prompts", type=int, metavar="N", help="of the system nudged (default: 40)")
    parser.add_argument("--beams", type=int, metavar="N", help="of segment search (default: 4)")
    parser.add_argument("--samples-per-beam", type=int, metavar="N", help="of segment search (default: 4)")
    parser.add_argument("--segment-tokens", type=int, metavar="N", help="of segment search (default: 32)")
    parser.add_argument("--lookahead", type=int, metavar="N", help="of segment search, in tokens (default: 0)")
    _sampling(parser)
    _running(parser)
    parser.set_defaults(run=_run_ifeval_search)


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, metavar="T", help="of samples (default: 0.8)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="per answer")


def _running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own choice)")
    parser.add_argument("--memory-mb", type=int, metavar="N", help="for the engine's pages (default: 1600)")
    parser.add_argument("--stop-after", type=float, metavar="S", help="begin nothing new after so many seconds")
    _results(parser)


def _results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_const", const=True, help="mark the results as a smoke run's")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help=f"where results are kept (default: {_RESULTS})")


def _run_ifeval_search(args: argparse.Namespace) -> int:
    from trimtab.bench.searching import Options, ifeval_search

    return _recorded(args, ifeval_search(_options(args, Options)))


def _options(args: argparse.Namespace, kind: Any) -> Any:
    """The options that were given; the rest are the defaults of ``kind``."""
    found = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(kind)}
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in found.items() if v is not None})


def _recorded(args: argparse.Namespace, recorder: Recorder | None) -> int:
    """Show and keep what was measured; a smoke run is kept only where ``--results`` says."""
    if recorder is None:
        sys.stderr.write("trimtab: not done yet; the same command goes on\n")
        return 0
    from trimtab.bench.tables import table

    print(table(recorder.rows[0].bench, recorder.rows))
    if args.results or not args.quick:
        sys.stderr.write(f"trimtab: recorded in {recorder.save(args.results or _RESULTS)}\n")
    return 0
