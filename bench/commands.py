"""``trimtab bench``: run benchmarks, record their results, keep the documents' tables up to date."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.bench.arguments import RESULTS, UNFINISHED, options_of, recorded, results_option
from trimtab.bench.public.commands import register as register_data
from trimtab.bench.reproduce.commands import register as register_reproduce
from trimtab.bench.searches.commands import register as register_searches
from trimtab.bench.speculation.commands import register as register_speculation
from trimtab.bench.training.commands import register as register_training
from trimtab.decode.options import InputFile, OutputFile, OutputFolder

__all__ = ["register"]


def register(subparsers: Any) -> None:
    """Adds ``bench`` with its benchmarks; without one, the default set runs."""
    bench = subparsers.add_parser(
        "bench",
        help="run benchmarks",
        description="Run benchmarks and record their results; without a benchmark, the default set: decode.",
    )
    _decode_options(bench)
    bench.set_defaults(run=_decode)
    actions = bench.add_subparsers(dest="action", metavar="BENCHMARK")

    # Without defaults of its own, it doesn't undo options that were given before its name.
    decode = actions.add_parser(
        "decode", help="speed of plain decoding, beside transformers", argument_default=argparse.SUPPRESS
    )
    _decode_options(decode)
    decode.set_defaults(run=_decode)

    _kernels_options(actions)

    nudging = actions.add_parser(
        "nudging",
        help="answer the prompts of a data set: base alone, nudger alone, nudged",
        description="Write greedy answers of the base alone, of the nudger alone and nudged, a file of answers each. "
        "A run that was cut short goes on where it was.",
    )
    _nudging_options(nudging)
    nudging.set_defaults(run=_nudging)

    score = actions.add_parser(
        "nudging-report",
        help="score answers to IFEval prompts",
        description="Check the constraints of answers that 'trimtab bench nudging' wrote, and record the result.",
    )
    score.add_argument("--responses", action=InputFile, nargs="+", required=True, metavar="FILE")
    score.add_argument("--case", default="IFEval", metavar="NAME", help="name of the prompts in the table")
    results_option(score)
    score.set_defaults(run=_nudging_report)

    memory = actions.add_parser(
        "memory",
        help="memory that the README's first example takes, and gives back",
        description="Run the README's first example in a process of its own, three engines one after the other, and "
        "record what is resident when.",
    )
    results_option(memory)
    memory.set_defaults(run=_memory)

    startup = actions.add_parser(
        "startup",
        help="time and memory from starting Python to the first token",
        description="Start processes that load one model and ask one question, and record where the time goes.",
    )
    startup.add_argument("--models", nargs="+", metavar="MODEL", help="sources (default: the bundled models)")
    startup.add_argument("--repeats", type=int, metavar="N", help="processes of each that count (default: 5)")
    results_option(startup)
    startup.set_defaults(run=_startup)

    register_data(actions)
    register_reproduce(actions)
    register_speculation(actions)
    register_training(actions)
    register_searches(actions)

    report = actions.add_parser(
        "report",
        help="write the recorded results into the documents",
        description="Write the tables between the markers of README.md and docs/ from the last recorded runs.",
    )
    report.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    report.add_argument("--document", type=Path, action="append", metavar="FILE", help="instead of README.md and docs/")
    report.add_argument(
        "--plot", action=OutputFile, metavar="FILE", help="also draw the speed of decoding, e.g. docs/decode.svg"
    )
    results_option(report)
    report.set_defaults(run=_report)


def _kernels_options(actions: Any) -> None:
    kernels = actions.add_parser(
        "kernels",
        help="speed of the kernels over logits, beside eager formulas",
        description="Time the kernels over logits beside the eager formulas for the same: on a CPU the torch path on "
        "one and on all threads, on a GPU the Triton kernels as plain calls and in CUDA graphs.",
    )
    kernels.add_argument("--quick", action="store_const", const=True, help="a smoke run, whose figures mean nothing")
    kernels.add_argument("--device", metavar="DEVICE", help="auto, cpu or cuda (default: auto)")
    kernels.add_argument("--kernels", nargs="+", metavar="NAME", help="which (default: those that suit the device)")
    kernels.add_argument("--rows", type=int, nargs="+", metavar="N", help="numbers of rows (windows for verify)")
    kernels.add_argument("--vocabularies", type=int, nargs="+", metavar="N", help="sizes of the vocabulary")
    kernels.add_argument("--dtypes", nargs="+", metavar="DTYPE", help="of the logits (default: bfloat16)")
    kernels.add_argument("--threads", type=int, nargs="+", metavar="N", help="on a CPU (default: 1 and all)")
    kernels.add_argument("--compiled", action="store_const", const=True, help="torch.compile as well; a GPU's default")
    kernels.add_argument("--repeats", type=int, metavar="N", help="measured rounds (default: 9)")
    kernels.add_argument("--limit", type=float, metavar="S", help="seconds for the rounds of a case (default: 8)")
    kernels.add_argument("--seed", type=int, metavar="N", help="of the logits (default: 0)")
    kernels.add_argument(
        "--plot", action=OutputFile, metavar="FILE", help="also draw the share of a copy's rate against rows"
    )
    results_option(kernels)
    kernels.set_defaults(run=_kernels)


def _decode_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_const", const=True, help="a smoke run; recorded only with --results")
    parser.add_argument("--model", metavar="MODEL", help="a bundled name, a folder or a hub id")
    parser.add_argument("--batches", type=int, nargs="+", metavar="N", help="prompts at a time (default: 1 4 16)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens per prompt (default: 64)")
    parser.add_argument("--repeats", type=int, metavar="N", help="measured rounds (default: 5)")
    parser.add_argument(
        "--data", action=InputFile, metavar="FILE", help="JSONL of prompts instead of the project's own"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own choice)")
    results_option(parser)


def _nudging_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", action=InputFile, required=True, metavar="FILE", help="JSONL of prompts")
    parser.add_argument(
        "--out", action=OutputFolder, default=Path("build/nudging"), metavar="FOLDER", help="where answers go"
    )
    parser.add_argument("--split", metavar="NAME", help="only rows with this split, e.g. tune or report")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    parser.add_argument("--methods", nargs="+", default=["base", "nudger", "nudged"], metavar="METHOD")
    parser.add_argument("--trigger", metavar="WHEN", help="top_prob:0.3, entropy:2.0 or branching:8")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--concurrency", type=int, default=64, metavar="N", help="answers written at a time")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a trimtab.toml; without it, the demo pair")
    parser.add_argument("--base", default="base", metavar="NAME", help="the base's name in it (default: base)")
    parser.add_argument("--nudger", default="chat", metavar="NAME", help="the nudger's (default: chat)")


def _decode(args: argparse.Namespace) -> int:
    from trimtab.bench.decode.run import Options, bench_decode

    return recorded(args, bench_decode(replace(options_of(args, Options), unfinished=UNFINISHED)))


def _kernels(args: argparse.Namespace) -> int:
    from trimtab.bench.kernels.run import Options, bench_kernels

    recorder = bench_kernels(replace(options_of(args, Options), unfinished=UNFINISHED))
    if args.plot:
        from trimtab.bench.kernels.plot import plot_kernels

        plot_kernels(recorder.rows, args.plot)
        print(args.plot)
    return recorded(args, recorder)


def _memory(args: argparse.Namespace) -> int:
    from trimtab.bench.memory import bench_memory

    return recorded(args, bench_memory())


def _startup(args: argparse.Namespace) -> int:
    from trimtab.bench.startup import Options, bench_startup

    return recorded(args, bench_startup(options_of(args, Options)))


def _nudging(args: argparse.Namespace) -> int:
    from trimtab.bench.nudging.run import Options, nudging

    names = ("data", "out", "trigger", "split", "limit", "max_new_tokens", "concurrency", "config", "base", "nudger")
    options = Options(methods=tuple(args.methods), **{name: getattr(args, name) for name in names})
    for path in nudging(options):
        print(path)
    return 0


def _nudging_report(args: argparse.Namespace) -> int:
    from trimtab.bench.nudging.ifeval import Checkers
    from trimtab.bench.nudging.run import collect, record, score

    return recorded(args, record(score(collect(args.responses), Checkers()), args.case))


def _report(args: argparse.Namespace) -> int:
    from trimtab.bench.record import latest, load
    from trimtab.bench.report import default_documents, stale, update

    results = args.results or RESULTS
    documents = args.document or default_documents(Path())
    if not documents:
        _say("no document has a marker like <!-- bench:decode -->")
    if args.check:
        old = stale(documents, results)
        for path in old:
            _say(f"{path} is not up to date; run: trimtab bench report")
        return 1 if old else 0
    for path in update(documents, results):
        print(path)
    if args.plot:
        from trimtab.bench.decode.plot import plot_decode

        plot_decode(latest(load(results / "decode.jsonl")), args.plot)
        print(args.plot)
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"trimtab: {line}\n")
