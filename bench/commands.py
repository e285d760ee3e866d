"""``trimtab bench``: run benchmarks, record their results, keep the documents' tables up to date."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from trimtab.bench.search_commands import register as register_searches

__all__ = ["register"]

_RESULTS = Path("bench/results")


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
    score.add_argument("--responses", type=Path, nargs="+", required=True, metavar="FILE")
    score.add_argument("--case", default="IFEval", metavar="NAME", help="name of the prompts in the table")
    _results_option(score)
    score.set_defaults(run=_nudging_report)

    _speculation_options(actions)
    _training(actions)
    _train_reward_options(actions)
    register_searches(actions)

    report = actions.add_parser(
        "report",
        help="write the recorded results into the documents",
        description="Write the tables between the markers of README.md and docs/ from the last recorded runs.",
    )
    report.add_argument("--check", action="store_true", help="only say whether the tables are up to date")
    report.add_argument("--document", type=Path, action="append", metavar="FILE", help="instead of README.md and docs/")
    report.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw the speed of decoding, e.g. docs/decode.svg"
    )
    _results_option(report)
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
    kernels.add_argument("--plot", type=Path, metavar="FILE", help="also draw the share of a copy's rate against rows")
    _results_option(kernels)
    kernels.set_defaults(run=_kernels)


def _speculation_options(actions: Any) -> None:
    parser = actions.add_parser(
        "speculation",
        help="speculation: every length rule beside plain decoding",
        description="Measure how well and how fast each length rule drafts. A run that was cut short goes on where it "
        "was.",
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="FILE", help="JSONL of prompts, each a case"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="of single measurements")
    parser.add_argument("--target", metavar="MODEL", help="a bundled name, a folder or a hub id")
    parser.add_argument("--draft", metavar="MODEL", help="the same")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="e.g. plain 'fixed 4' acceptance (default: all)")
    parser.add_argument("--split", metavar="NAME", help="only rows with this split")
    parser.add_argument("--prompts", type=int, metavar="N", help="per case (default: 40)")
    parser.add_argument("--timed", type=int, metavar="N", help="of these, timed (default: 24)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="per answer (default: 96)")
    parser.add_argument("--temperatures", type=float, nargs="+", metavar="T", help="each a case (default: 0 1)")
    parser.add_argument("--batches", type=int, nargs="+", metavar="N", help="answers at a time (default: 1 8)")
    parser.add_argument("--repeats", type=int, metavar="N", help="timed rounds (default: 2)")
    _results_option(parser)
    parser.set_defaults(run=_speculation)


def _training(actions: Any) -> None:
    draft = actions.add_parser(
        "train-draft",
        help="distil a draft for a target",
        description="Write a target's answers, distil a draft of a few of its layers on them, evaluate it, and write "
        "OUT/draft, which any model's source can be. A run that was cut short goes on where it was.",
    )
    draft.add_argument("--target", required=True, metavar="MODEL", help="a bundled name, a folder or a hub id")
    draft.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the work and its result")
    draft.add_argument(
        "--data",
        nargs="+",
        metavar="FILE[@SPLIT][*TIMES][#LIMIT]",
        help="JSONL of prompts: rows of a split, how often each is asked, how many rows at most",
    )
    draft.add_argument("--held-out", nargs="+", metavar="FILE[@SPLIT][#LIMIT]", help="prompts to evaluate on")
    draft.add_argument("--own-prompts", type=int, metavar="N", help="prompts that a chat model writes itself")
    draft.add_argument("--answer-tokens", type=int, metavar="N", help="length limit of an answer (default: 160)")
    draft.add_argument("--prompt-tokens", type=int, metavar="N", help="longer prompts are left out (default: 768)")
    draft.add_argument("--answer-seconds", type=float, metavar="S", help="time limit for writing answers")
    draft.add_argument("--slots", type=int, metavar="N", help="answers written at a time (default: 64)")
    draft.add_argument("--layers", type=int, nargs="+", metavar="N", help="of the target, to start from (default: 0 1)")
    draft.add_argument("--start", type=Path, metavar="DRAFT", help="a draft to start from, in place of the layers")
    draft.add_argument("--ids", type=int, metavar="N", help="tokens that the draft can propose (default: 8192)")
    draft.add_argument("--loss", metavar="LOSS", help="kl, tv or nla (default: nla)")
    draft.add_argument("--warm-steps", type=int, metavar="N", help="first steps, with loss kl (default: 100)")
    draft.add_argument("--steps", type=int, metavar="N", help="optimiser steps (default: 2000)")
    draft.add_argument("--stop-after", type=int, metavar="N", help="leave after so many steps, to go on later")
    draft.add_argument("--batch-tokens", type=int, metavar="N", help="in one step (default: 4096)")
    draft.add_argument("--learning-rate", type=float, metavar="R", help="at its highest (default: 0.002)")
    draft.add_argument("--weight-decay", type=float, metavar="W", help="of AdamW (default: 0.05)")
    draft.add_argument("--dtype", metavar="DTYPE", help="of the products: auto, bfloat16 or float32")
    _training_options(draft)
    draft.set_defaults(run=_train_draft)

    head = actions.add_parser(
        "train-head",
        help="train a draft's acceptance head",
        description="Train the head that predicts acceptance on answers that 'train-draft' kept from the draft, and "
        "write it into OUT/draft.",
    )
    head.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="that 'train-draft' worked in")
    head.add_argument("--blocks", type=int, metavar="N", help="residual blocks (default: 2)")
    head.add_argument("--width", type=int, metavar="N", help="of the blocks (default: 192)")
    head.add_argument("--labels", metavar="KIND", help="analytic or drawn (default: analytic)")
    head.add_argument("--reject-weight", type=float, metavar="W", help="of what is rejected, in the loss (default: 1)")
    head.add_argument("--steps", type=int, metavar="N", help="optimiser steps (default: 300)")
    head.add_argument("--learning-rate", type=float, metavar="R", help="at its highest (default: 0.001)")
    head.add_argument("--compare", action="store_true", default=None, help="also train the other kinds, and record all")
    _training_options(head)
    head.set_defaults(run=_train_head)


def _train_reward_options(actions: Any) -> None:
    reward = actions.add_parser(
        "train-reward",
        help="train a reward model on preferences",
        description="Train the upper layers of a model and a head on answers and how well they were liked, write "
        "OUT/model, which the reward type 'classifier' takes, and compare it with two baselines. A run that was cut "
        "short goes on where it was.",
    )
    reward.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSONL of preferences, perhaps .gz")
    reward.add_argument("--out", type=Path, metavar="FOLDER", help="of the work and its result (default: build/reward)")
    reward.add_argument("--source", metavar="MODEL", help="a bundled name, a folder or a hub id")
    reward.add_argument("--layers", type=int, metavar="N", help="upper layers that are trained (default: 4)")
    reward.add_argument("--answer-tokens", type=int, metavar="N", help="of an answer that are read (default: 192)")
    reward.add_argument("--answers", type=int, metavar="N", help="per instruction to learn from (default: all)")
    reward.add_argument("--instructions", type=int, metavar="N", help="to learn from (default: all)")
    reward.add_argument("--report-instructions", type=int, metavar="N", help="to evaluate on (default: all)")
    reward.add_argument("--unseen", type=int, metavar="N", help="generators of which nothing is learned (default: 6)")
    reward.add_argument("--epochs", type=float, metavar="N", help="of the layers after the head (default: 1)")
    reward.add_argument("--group", type=int, metavar="N", help="answers to an instruction in a step (default: 8)")
    reward.add_argument("--learning-rate", type=float, metavar="R", help="at its highest (default: 0.00002)")
    reward.add_argument("--stop-after", type=float, metavar="S", help="leave after so many seconds, to go on later")
    _training_options(reward)
    reward.set_defaults(run=_train_reward)


def _training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--quick", action="store_const", const=True, help="mark the results as a smoke run's")
    _results_option(parser)


def _results_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, metavar="FOLDER", help=f"where results are kept (default: {_RESULTS})")


def _decode_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_const", const=True, help="a smoke run; recorded only with --results")
    parser.add_argument("--model", metavar="MODEL", help="a bundled name, a folder or a hub id")
    parser.add_argument("--batches", type=int, nargs="+", metavar="N", help="prompts at a time (default: 1 4 16)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens per prompt (default: 64)")
    parser.add_argument("--repeats", type=int, metavar="N", help="measured rounds (default: 5)")
    parser.add_argument("--data", type=Path, metavar="FILE", help="JSONL of prompts instead of the project's own")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (default: its own choice)")
    _results_option(parser)


def _nudging_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSONL of prompts")
    parser.add_argument("--out", type=Path, default=Path("build/nudging"), metavar="FOLDER", help="where answers go")
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
    from trimtab.bench.decode import Options, bench_decode
    from trimtab.bench.tables import table

    names = ("quick", "model", "max_new_tokens", "repeats", "data", "threads")
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.batches is not None:
        given["batches"] = tuple(args.batches)
    recorder = bench_decode(Options(**given))
    print(table("decode", recorder.rows))
    if args.results or not args.quick:
        _say(f"recorded in {recorder.save(args.results or _RESULTS)}")
    return 0


def _kernels(args: argparse.Namespace) -> int:
    from trimtab.bench.kernels import Options, bench_kernels
    from trimtab.bench.tables import table

    recorder = bench_kernels(Options(**_given(args, Options)))
    print(table("kernels", recorder.rows))
    if args.results or not args.quick:
        _say(f"recorded in {recorder.save(args.results or _RESULTS)}")
    if args.plot:
        from trimtab.bench.plot import plot_kernels

        plot_kernels(recorder.rows, args.plot)
        print(args.plot)
    return 0


def _nudging(args: argparse.Namespace) -> int:
    from trimtab.bench.quality import Options, nudging

    names = ("data", "out", "trigger", "split", "limit", "max_new_tokens", "concurrency", "config", "base", "nudger")
    options = Options(methods=tuple(args.methods), **{name: getattr(args, name) for name in names})
    for path in nudging(options):
        print(path)
    return 0


def _nudging_report(args: argparse.Namespace) -> int:
    from trimtab.bench.ifeval import Checkers
    from trimtab.bench.quality import collect, record, score
    from trimtab.bench.tables import table

    recorder = record(score(collect(args.responses), Checkers()), args.case)
    print(table("nudging", recorder.rows))
    _say(f"recorded in {recorder.save(args.results or _RESULTS)}")
    return 0


def _speculation(args: argparse.Namespace) -> int:
    from trimtab.bench.speculation import Options, speculation

    recorder = speculation(Options(**_given(args, Options)))
    _say(f"recorded in {recorder.save(args.results or _RESULTS)}")
    return _trained(recorder)


def _train_draft(args: argparse.Namespace) -> int:
    from trimtab.bench.training.workflow import DraftOptions, make_draft

    return _trained(make_draft(DraftOptions(**_given(args, DraftOptions))))


def _train_head(args: argparse.Namespace) -> int:
    from trimtab.bench.training.workflow import HeadOptions, make_head

    return _trained(make_head(HeadOptions(**_given(args, HeadOptions))))


def _train_reward(args: argparse.Namespace) -> int:
    from trimtab.bench.training.reward import Options, train_reward

    recorder = train_reward(Options(**_given(args, Options)))
    if recorder is None:
        _say("not done yet; the same command goes on")
        return 0
    if args.results or not args.quick:
        _say(f"recorded in {recorder.save(args.results or _RESULTS)}")
    return _trained(recorder)


def _given(args: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """The options that were given, by the names of the fields of ``kind``."""
    found = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(kind)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in found.items() if v is not None}


def _trained(recorder: Any) -> int:
    for row in recorder.rows:
        print(f"{row.case}\t{row.subject}\t{row.metric}\t{row.value:.4f}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from trimtab.bench.record import latest, load
    from trimtab.bench.report import default_documents, stale, update

    results = args.results or _RESULTS
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
        from trimtab.bench.plot import plot_decode

        plot_decode(latest(load(results / "decode.jsonl")), args.plot)
        print(args.plot)
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"trimtab: {line}\n")
