"""The benchmarks of searches: ``trimtab bench ifeval-search``, ``rejection`` and ``best-of-n``."""

from __future__ import annotations

import argparse
from typing import Any

from trimtab.bench.arguments import options_of, recorded, results_option
from trimtab.decode.options import InputFile, OutputFile, OutputFolder

__all__ = ["register"]


def register(actions: Any) -> None:
    """Adds the three to the benchmarks."""
    _ifeval_search(actions)
    _rejection(actions)
    _best_of_n(actions)


def _ifeval_search(actions: Any) -> None:
    parser = actions.add_parser(
        "ifeval-search",
        help="searches on a gold standard: constraints kept against tokens generated",
        description="Answer IFEval's prompts with pools of samples, greedily and by segment search, under the "
        "project's own rules, and score all with the public checkers. A run that was cut short goes on where it was.",
    )
    parser.add_argument("--data", action=InputFile, required=True, metavar="FILE", help="JSONL of IFEval")
    parser.add_argument(
        "--out", action=OutputFolder, metavar="FOLDER", help="of the answers (default: build/ifeval_search)"
    )
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


def _rejection(actions: Any) -> None:
    parser = actions.add_parser(
        "rejection",
        help="early rejection: reward of the chosen answer against tokens generated",
        description="Write pools of candidates, rate all their beginnings with a reward model, and replay best-of-n "
        "with and without early rejection. A run that was cut short goes on where it was.",
    )
    parser.add_argument("--data", action=InputFile, required=True, metavar="FILE", help="JSONL of prompts with splits")
    parser.add_argument("--reward", required=True, metavar="MODEL", help="folder or hub id of a reward model")
    parser.add_argument("--out", action=OutputFolder, metavar="FOLDER", help="of the work (default: build/rejection)")
    parser.add_argument("--model", metavar="MODEL", help="a bundled name, a folder or a hub id")
    parser.add_argument("--prompts", type=int, metavar="N", help="of the split report (default: 60)")
    parser.add_argument("--tune-prompts", type=int, metavar="N", help="of the split tune (default: 30)")
    parser.add_argument("--samples", type=int, metavar="N", help="candidates of a pool (default: 64)")
    parser.add_argument("--step", type=int, metavar="N", help="tokens between two ratings (default: 16)")
    parser.add_argument("--fractions", type=float, nargs="+", metavar="F", help="that a check may drop")
    parser.add_argument("--every", type=int, nargs="+", metavar="N", help="tokens that may lie between checks")
    parser.add_argument("--against", type=int, metavar="N", help="plain best-of-n to be matched (default: 32)")
    parser.add_argument("--budget", type=float, metavar="F", help="share of its tokens (default: 0.4)")
    parser.add_argument("--confirm", type=int, metavar="N", help="prompts to run for real (default: 4)")
    parser.add_argument(
        "--plot", action=OutputFile, metavar="FILE", help="also draw the curves, e.g. docs/rejection.svg"
    )
    _sampling(parser)
    _running(parser)
    parser.set_defaults(run=_run_rejection)


def _best_of_n(actions: Any) -> None:
    parser = actions.add_parser(
        "best-of-n",
        help="speed of best-of-n, beside transformers' num_return_sequences",
        description="Time n candidates per prompt in this engine, by size of its pages, and in transformers' generate, "
        "and count the pages that the candidates hold.",
    )
    parser.add_argument("--model", metavar="MODEL", help="a bundled name, a folder or a hub id")
    parser.add_argument("-n", type=int, metavar="N", help="candidates (default: 16)")
    parser.add_argument("--page-tokens", type=int, nargs="+", metavar="N", help="sizes; 0: its own (default: 0 64)")
    parser.add_argument("--prompts", type=int, metavar="N", help="how many are asked (default: 4)")
    parser.add_argument(
        "--data", action=InputFile, metavar="FILE", help="JSONL of prompts instead of the project's own"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="measured rounds (default: 5)")
    _sampling(parser)
    _running(parser, resumes=False)
    parser.set_defaults(run=_run_best_of_n)


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, metavar="T", help="of samples")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="per answer")


def _running(parser: argparse.ArgumentParser, resumes: bool = True) -> None:
    parser.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own choice)")
    parser.add_argument("--memory-mb", type=int, metavar="N", help="for the engine's pages")
    if resumes:
        parser.add_argument("--stop-after", type=float, metavar="S", help="begin nothing new after so many seconds")
    parser.add_argument("--quick", action="store_const", const=True, help="mark the results as a smoke run's")
    results_option(parser)


def _run_ifeval_search(args: argparse.Namespace) -> int:
    from trimtab.bench.searches.ifeval_search import Options, ifeval_search

    return recorded(args, ifeval_search(options_of(args, Options)))


def _run_rejection(args: argparse.Namespace) -> int:
    from trimtab.bench.searches.rejection import Options, rejection

    recorder = rejection(options_of(args, Options))
    if recorder is not None and args.plot:
        from trimtab.bench.searches.plot import plot_rejection

        plot_rejection(recorder.rows, args.plot)
    return recorded(args, recorder)


def _run_best_of_n(args: argparse.Namespace) -> int:
    from trimtab.bench.searches.best_of_n import Options, bench_best_of_n

    return recorded(args, bench_best_of_n(options_of(args, Options)))
