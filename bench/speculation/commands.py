"""The benchmarks of speculation: ``trimtab bench speculation``, ``speculation-lengths`` and ``assisted``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from trimtab.bench.arguments import UNFINISHED, options_of, recorded, results_option
from trimtab.decode.options import InputFile, OutputFile, OutputFolder

__all__ = ["register"]


def register(actions: Any) -> None:
    """Adds them to the benchmarks."""
    _speculation(actions)
    _lengths(actions)
    _assisted(actions)


def _speculation(actions: Any) -> None:
    parser = actions.add_parser(
        "speculation",
        help="speculation: every length rule beside plain decoding",
        description="Measure how well and how fast each length rule drafts. A run that was cut short goes on where it "
        "was.",
    )
    parser.add_argument(
        "--data", action=InputFile, nargs="+", required=True, metavar="FILE", help="JSONL of prompts, each a case"
    )
    parser.add_argument("--out", action=OutputFile, metavar="FILE", help="of single measurements")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="e.g. plain 'fixed 4' acceptance (default: all)")
    parser.add_argument("--prompts", type=int, metavar="N", help="per case (default: 40)")
    parser.add_argument("--timed", type=int, metavar="N", help="of these, timed (default: 24)")
    parser.add_argument("--repeats", type=int, metavar="N", help="timed rounds (default: 2)")
    parser.add_argument("--stop-after", type=float, metavar="S", help="begin nothing new after so many seconds")
    parser.add_argument(
        "--plots", action=OutputFolder, metavar="FOLDER", help="also draw speculation-rates and -speed.svg there"
    )
    _common(parser)
    parser.set_defaults(run=_run_speculation)


def _lengths(actions: Any) -> None:
    parser = actions.add_parser(
        "speculation-lengths",
        help="speculation: ways to decide lengths, replayed at costs measured once, and timed",
        description="Record blocks of drafts, replay every way to decide how long they should be, and time these. A "
        "run that was cut short goes on where it was.",
    )
    parser.add_argument("--data", action=InputFile, nargs="+", required=True, metavar="FILE", help="JSONL of prompts")
    parser.add_argument("--out", action=OutputFile, metavar="FILE", help="of single measurements")
    parser.add_argument("--prompts", type=int, metavar="N", help="of each file (default: 12)")
    parser.add_argument("--repeats", type=int, metavar="N", help="timed rounds (default: 2)")
    parser.add_argument("--stop-after", type=float, metavar="S", help="begin nothing new after so many seconds")
    _common(parser)
    parser.set_defaults(run=_run_lengths)


def _assisted(actions: Any) -> None:
    parser = actions.add_parser(
        "assisted",
        help="speculation beside assisted generation of transformers",
        description="Time this engine's speculation and transformers' assisted generation with one target and draft.",
    )
    parser.add_argument(
        "--data", action=InputFile, nargs="+", metavar="FILE", help="JSONL of prompts instead of its own"
    )
    parser.add_argument("--draw", metavar="DRAW", help="of this engine (default: speculative:draft)")
    parser.add_argument("--assistant-tokens", type=int, metavar="N", help="of theirs, beside its defaults (default: 3)")
    parser.add_argument("--prompts", type=int, metavar="N", help="asked in a round (default: 8)")
    parser.add_argument("--repeats", type=int, metavar="N", help="measured rounds (default: 3)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own choice)")
    parser.add_argument("--memory-mb", type=int, metavar="N", help="for this engine's pages")
    parser.add_argument("--quick", action="store_const", const=True, help="a smoke run; recorded only with --results")
    _common(parser)
    parser.set_defaults(run=_run_assisted)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", metavar="MODEL", help="a bundled name, a folder or a hub id")
    parser.add_argument("--draft", metavar="MODEL", help="a bundled name or a folder")
    parser.add_argument("--split", metavar="NAME", help="only rows with this split")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="per answer (default: 96)")
    parser.add_argument("--temperatures", type=float, nargs="+", metavar="T", help="each a case (default: 0 1)")
    parser.add_argument("--batches", type=int, nargs="+", metavar="N", help="answers at a time (default: 1 8)")
    results_option(parser)


def _run_speculation(args: argparse.Namespace) -> int:
    from trimtab.bench.speculation.run import Options, speculation

    recorder = speculation(options_of(args, Options))
    if recorder is not None and args.plots:
        from trimtab.bench.speculation.plots import plot_rates, plot_speed

        plot_rates(recorder.rows, args.plots / "speculation-rates.svg")
        plot_speed(recorder.rows, args.plots / "speculation-speed.svg")
    return recorded(args, recorder)


def _run_lengths(args: argparse.Namespace) -> int:
    from trimtab.bench.speculation.lengths import Options, speculation_lengths

    return recorded(args, speculation_lengths(options_of(args, Options)))


def _run_assisted(args: argparse.Namespace) -> int:
    from trimtab.bench.speculation.assisted import Options, bench_assisted

    return recorded(args, bench_assisted(replace(options_of(args, Options), unfinished=UNFINISHED)))
