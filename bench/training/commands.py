"""The trainers: ``trimtab bench train-draft``, ``train-head`` and ``train-reward``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trimtab.bench.arguments import options_of, recorded, results_option
from trimtab.decode.options import InputFile, OutputFolder

__all__ = ["register"]


def register(actions: Any) -> None:
    """Adds the three to the benchmarks."""
    _train_draft_options(actions)
    _train_head_options(actions)
    _train_reward_options(actions)


def _train_draft_options(actions: Any) -> None:
    draft = actions.add_parser(
        "train-draft",
        help="distil a draft for a target",
        description="Write a target's answers, distil a draft of a few of its layers on them, evaluate it, and write "
        "OUT/draft, which any model's source can be. A run that was cut short goes on where it was.",
    )
    draft.add_argument("--target", required=True, metavar="MODEL", help="a bundled name, a folder or a hub id")
    draft.add_argument("--out", action=OutputFolder, required=True, metavar="FOLDER", help="of the work and its result")
    draft.add_argument(
        "--data",
        nargs="+",
        metavar="FILE[@SPLIT][*TIMES][#LIMIT]",
        help="JSONL of prompts: rows of a split, how often each is asked, how many rows at most (or #FROM-TO)",
    )
    draft.add_argument("--held-out", nargs="+", metavar="FILE[@SPLIT][#LIMIT]", help="prompts to evaluate on")
    draft.add_argument("--own-prompts", type=int, metavar="N", help="prompts that a chat model writes itself")
    draft.add_argument("--more", type=Path, nargs="+", metavar="FOLDER", help="of other runs, to learn from as well")
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


def _train_head_options(actions: Any) -> None:
    head = actions.add_parser(
        "train-head",
        help="train a draft's acceptance head",
        description="Train the head that predicts acceptance on answers that 'train-draft' kept from the draft, and "
        "write it into OUT/draft.",
    )
    head.add_argument(
        "--out", action=OutputFolder, required=True, metavar="FOLDER", help="that 'train-draft' worked in"
    )
    head.add_argument("--more", type=Path, nargs="+", metavar="FOLDER", help="of other runs, to learn from as well")
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
        description="Train a model's lower layers and a head on answers and how well they were liked, write "
        "OUT/model, which the reward type 'classifier' takes, and compare it with two baselines. A run that was cut "
        "short goes on where it was.",
    )
    reward.add_argument(
        "--data", action=InputFile, required=True, metavar="FILE", help="JSONL of preferences, perhaps .gz"
    )
    reward.add_argument(
        "--out", action=OutputFolder, metavar="FOLDER", help="of the work and its result (default: build/reward)"
    )
    reward.add_argument("--source", metavar="MODEL", help="a bundled name, a folder or a hub id")
    reward.add_argument("--depth", type=int, metavar="N", help="layers that are kept (default: two fifths of them)")
    reward.add_argument("--layers", type=int, metavar="N", help="the last of these, which are trained (default: 4)")
    reward.add_argument("--answer-tokens", type=int, metavar="N", help="of an answer that are read (default: 192)")
    reward.add_argument("--pooling", metavar="KIND", help="what the head reads: last or mean (default: mean)")
    reward.add_argument("--answers", type=int, metavar="N", help="per instruction to learn from (default: all)")
    reward.add_argument("--beginnings", type=int, metavar="N", help="of each answer, learned from too (default: 1)")
    reward.add_argument("--instructions", type=int, metavar="N", help="to learn from (default: all)")
    reward.add_argument("--report-instructions", type=int, metavar="N", help="to evaluate on (default: all)")
    reward.add_argument("--unseen", type=int, metavar="N", help="generators of which nothing is learned (default: 6)")
    reward.add_argument("--epochs", type=float, metavar="N", help="of the layers after the head (default: 2)")
    reward.add_argument("--group", type=int, metavar="N", help="answers to an instruction in a step (default: 8)")
    reward.add_argument("--learning-rate", type=float, metavar="R", help="at its highest (default: 0.00005)")
    reward.add_argument("--stop-after", type=float, metavar="S", help="leave after so many seconds, to go on later")
    _training_options(reward)
    reward.set_defaults(run=_train_reward)


def _training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")
    parser.add_argument("--quick", action="store_const", const=True, help="mark the results as a smoke run's")
    results_option(parser)


def _train_draft(args: argparse.Namespace) -> int:
    from trimtab.bench.training.workflow import DraftOptions, make_draft

    return recorded(args, make_draft(options_of(args, DraftOptions)))


def _train_head(args: argparse.Namespace) -> int:
    from trimtab.bench.training.workflow import HeadOptions, make_head

    return recorded(args, make_head(options_of(args, HeadOptions)))


def _train_reward(args: argparse.Namespace) -> int:
    from trimtab.bench.training.reward import Options, train_reward

    return recorded(args, train_reward(options_of(args, Options)))
