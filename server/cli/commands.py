"""The subcommands ``trimtab serve``, ``trimtab generate``, ``trimtab demo`` and ``trimtab config``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.options import OutputFile, once, write_text
from trimtab.server.cli import configuration

if TYPE_CHECKING:  # what is heavy is imported by the handlers
    from trimtab.decode.config import EngineConfig
    from trimtab.decode.request.events import Event
    from trimtab.decode.request.method import Policy
    from trimtab.decode.request.prompt import Prompt
    from trimtab.decode.request.result import Result
    from trimtab.server.rpc.server import OpenEngine

__all__ = ["register"]

_DEFAULT_NUDGER = "chat"
# Fields of ``Sampling`` and ``Stopping`` that are one number each. Their bounds are checked with the request.
_OPTIONS: Mapping[str, tuple[type, str, str]] = {
    "max_new_tokens": (int, "N", "the most tokens of an answer (default: 256)"),
    "min_new_tokens": (int, "N", "no answer ends before so many (default: 0)"),
    "temperature": (float, "T", "0 is greedy; without it and the next four the model's own defaults hold"),
    "top_p": (float, "P", "draw from the most likely tokens of this mass"),
    "top_k": (int, "K", "draw from the K most likely tokens"),
    "min_p": (float, "P", "draw from tokens of at least P times the top probability"),
    "repetition_penalty": (float, "X", "above 1: tokens that are there already become less likely"),
    "seed": (int, "N", "the same seed, the same answer"),
}


def register(subparsers: Any) -> None:
    """Add the commands to the ``subparsers`` of ``trimtab``."""
    configuration.register(subparsers)
    _register_serve(subparsers)
    _register_generate(subparsers)
    _register_demo(subparsers)


# ------------------------------------------------------------------------------------------------------------ serve


def _register_serve(subparsers: Any) -> None:
    parser = subparsers.add_parser("serve", help="serve models over gRPC", description="Serve models over gRPC.")
    once(parser)
    parser.add_argument("--config", type=Path, metavar="FILE", help="a trimtab.toml; without it, the demo pair")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 50051; 0 takes a free one)")
    parser.add_argument("--verbose", action="store_true", help="log every call")
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    import asyncio

    from trimtab.server.config import ServerConfig
    from trimtab.server.rpc.server import Server

    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    config = _config(args.config)
    given = {key: value for key, value in (("host", args.host), ("port", args.port)) if value is not None}
    server_config = ServerConfig.from_table({**config.server, **given})

    def announce(line: str) -> None:
        sys.stderr.write(f"trimtab: {line}\n")
        sys.stderr.flush()

    async def serve() -> int:
        return await Server(_open_engine(config, warm=True), server_config).run(announce)

    return asyncio.run(serve())


def _config(path: Path | None) -> EngineConfig:
    from trimtab.decode.config import EngineConfig

    return EngineConfig.demo() if path is None else EngineConfig.load(path)


def _open_engine(config: EngineConfig, *, warm: bool = False) -> OpenEngine:
    def open_engine() -> Any:
        from trimtab.decode.engine.engine import Engine
        from trimtab.decode.engine.warm_up import warm_up

        engine = Engine.from_config(config)
        if warm:
            warm_up(engine)
        return engine

    return open_engine


# --------------------------------------------------------------------------------------------------------- generate


def _register_generate(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="answer one prompt",
        description="Answer one prompt, with the models in this process or on a server.",
    )
    once(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt; - reads standard input")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--server", metavar="HOST:PORT", help="ask this server instead of loading models here")
    where.add_argument("--config", type=Path, metavar="FILE", help="a trimtab.toml; without it, the demo pair")
    parser.add_argument("--model", default="base", metavar="NAME", help="the model to decode with (default: base)")
    parser.add_argument("--nudger", metavar="NAME", help="small aligned model that writes where the model is unsure")
    trigger = parser.add_mutually_exclusive_group()
    trigger.add_argument("--above", type=float, metavar="NATS", help="nudge where the entropy is above this")
    trigger.add_argument("--top-prob-below", type=float, metavar="P", help="nudge where the top probability is below")
    trigger.add_argument("--branching-above", type=float, metavar="X", help="nudge where exp(entropy) is above this")
    parser.add_argument("--policy", metavar="SPEC", help="e.g. nudged:chat,when=entropy:1.5 or mixture:chat=1,base2=-1")
    parser.add_argument("--draw", metavar="SPEC", help="e.g. speculative:draft or speculative:lookup,length=fixed:4")
    parser.add_argument("--search", metavar="SPEC", help="e.g. best_of_n:16 or segments:beams=4,samples_per_beam=4")
    parser.add_argument("--objective", metavar="SPEC", help="what the search maximises, e.g. helpful=1,short=0.2")
    parser.add_argument(
        "--reward",
        action="append",
        metavar="NAME=TYPE,...",
        help="a reward in addition to the configuration's, e.g. short=length,at_most=50; may be repeated",
    )
    parser.add_argument(
        "--reference", action="append", metavar="TEXT", help="an answer that rewards may compare with; may be repeated"
    )
    parser.add_argument("--raw", action="store_true", help="give the prompt to the model as it is, not as a chat")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    parser.add_argument("--begin", metavar="TEXT", help="how the answer begins; the model goes on from there")
    for name, (kind, metavar, help_) in _OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=help_)
    parser.add_argument(
        "--no-prompt-cache",
        dest="prompt_cache",
        action="store_const",
        const=False,
        help="compute the prompt anew, whatever the server still holds of it",
    )
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="write the whole result as JSON")
    output.add_argument("--show", action="store_true", help="mark who wrote each word, and give figures")
    parser.add_argument(
        "--candidates", action="store_true", help="also write every candidate of a search, with its rewards"
    )
    parser.add_argument(
        "--html", action=OutputFile, metavar="FILE", help="also write a page that shows who wrote each token"
    )
    parser.set_defaults(run=_generate, parser=parser)


def _generate(args: argparse.Namespace) -> int:
    triggered = next((o for o in ("above", "top_prob_below", "branching_above") if getattr(args, o) is not None), None)
    if triggered and not args.nudger:
        args.parser.error(f"--{triggered.replace('_', '-')} needs --nudger NAME (of the demo pair: {_DEFAULT_NUDGER})")
    if args.raw and args.system is not None:
        args.parser.error("--system is a chat message, and --raw gives the prompt as it is: use one of them")
    if args.raw and args.begin is not None:
        args.parser.error("--begin is a chat message, and --raw gives the prompt as it is: use one of them")
    if args.nudger and args.policy is not None:
        args.parser.error("--nudger NAME stands for --policy nudged:NAME: use one of them")
    if args.objective is not None and args.search is None:
        args.parser.error("--objective needs a search, e.g. --search best_of_n:16")
    if args.reward and args.server is not None:
        args.parser.error("--reward is for models in this process: the rewards of a server are in its configuration")
    if args.candidates and args.json:
        args.parser.error("--json has every candidate already: leave --candidates out")
    axes = _axes(args)  # mistakes in them are found before anything is loaded
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    with _events(args, _prompt(args, text), axes) as events:
        result = _written(args, events)
    if args.html is not None:
        from trimtab.decode.display.page import page

        write_text(args.html, page(result, text, _trigger_level(axes["policy"])))
    return 0


def _trigger_level(policy: Policy | None) -> float | None:
    """The base's entropy, in nats, above which the nudger writes, if that is what it goes by."""
    from trimtab.decode.methods.policies.nudged import Nudged
    from trimtab.decode.methods.policies.trigger import DEFAULT_TRIGGER, entropy_level

    return entropy_level(policy.when or DEFAULT_TRIGGER) if isinstance(policy, Nudged) else None


def _written(args: argparse.Namespace, events: Iterator[Event]) -> Result:
    """Write the answer to standard output in the form that was asked for."""
    from trimtab.decode.display.figures import summary
    from trimtab.server.cli.display import candidates, show

    if args.json:
        import io
        import json

        from trimtab.decode.request.as_json import to_json

        result = show(events, io.StringIO(), marked=False)
        sys.stdout.write(json.dumps(to_json(result), ensure_ascii=False) + "\n")
        return result
    result = show(events, sys.stdout, marked=args.show, status=sys.stderr)
    if result.abstained:
        sys.stderr.write("trimtab: no candidate reached the threshold; this is the best of them\n")
    if args.candidates:
        sys.stdout.write(candidates(result))
    if args.show:
        sys.stdout.write(f"({summary(result)})\n")
    return result


def _prompt(args: argparse.Namespace, text: str) -> Prompt:
    from trimtab.decode.request.prompt import chat

    return text if args.raw else chat(text, system=args.system, begin=args.begin)


def _axes(args: argparse.Namespace) -> dict[str, Any]:
    """The three axes, by keyword."""
    from trimtab.decode.request.spec_string import parse_draw, parse_objective, parse_policy, parse_search

    objective = None if args.objective is None else parse_objective(args.objective, "--objective")
    return {
        "policy": _nudged(args) if args.policy is None else parse_policy(args.policy, "--policy"),
        "draw": None if args.draw is None else parse_draw(args.draw, "--draw"),
        "search": None if args.search is None else parse_search(args.search, objective, "--search"),
    }


def _nudged(args: argparse.Namespace) -> Policy | None:
    from trimtab.decode.methods.policies.nudged import Nudged
    from trimtab.decode.methods.policies.trigger import Branching, Entropy, TopProb

    if not args.nudger:
        return None
    if args.above is not None:
        return Nudged(args.nudger, Entropy(args.above))
    if args.top_prob_below is not None:
        return Nudged(args.nudger, TopProb(args.top_prob_below))
    if args.branching_above is not None:
        return Nudged(args.nudger, Branching(args.branching_above))
    return Nudged(args.nudger)


@contextmanager
def _events(args: argparse.Namespace, prompt: Prompt, axes: Mapping[str, Any]) -> Iterator[Iterator[Event]]:
    """The events of the answer; leaving cancels it if it is not complete."""
    given = {name: getattr(args, name) for name in (*_OPTIONS, "stop", "prompt_cache")}
    given["references"] = args.reference
    options = {name: value for name, value in {**given, **axes}.items() if value is not None}
    source: Any  # an engine and a client have the same method, and close in the same way
    if args.server is not None:
        from trimtab.server.client import Client

        source = Client(args.server)
    else:
        from trimtab.server.cli.needed import needed

        config = _with_rewards(_config(args.config), args.reward)
        methods = [method for method in axes.values() if method is not None]
        source = _open_engine(needed(config, args.model, methods))()
    with (
        source as opened,
        closing(opened.stream(prompt, model=args.model, **options)) as events,
        _interruptible(events) as watched,
    ):
        yield watched


@contextmanager
def _interruptible(events: Iterator[Event]) -> Iterator[Iterator[Event]]:
    """The same events; ``KeyboardInterrupt`` at the latest with the next one once Ctrl-C was pressed.

    Python drops the exception where it is raised in a callback or a finalizer, and then nothing would stop.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    def watched() -> Iterator[Event]:
        for event in events:
            if pressed:
                raise KeyboardInterrupt
            yield event

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield events
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield watched()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def _with_rewards(config: EngineConfig, rewards: Sequence[str] | None) -> EngineConfig:
    """The configuration with further rewards, which replace those of the same names."""
    from dataclasses import replace

    from trimtab.decode.request.spec_string import parse_reward

    if not rewards:
        return config
    tables: dict[str, dict[str, object]] = {}
    for text in rewards:
        name, table = parse_reward(text, "--reward")
        if name in tables:
            raise InvalidRequest.of(f"--reward {name}", text, "one reward of that name: it is given twice")
        tables[name] = table
    return replace(config, rewards={**config.rewards, **tables})


# ------------------------------------------------------------------------------------------------------------- demo


def _register_demo(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="see the bundled pair answer, with and without nudging",
        description="Start a server with the bundled pair on a free port and ask it questions over gRPC: the base "
        "model alone, and nudged by the small aligned one.",
    )
    parser.add_argument("--max-new-tokens", type=int, default=96, metavar="N", help="length of an answer at most")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from trimtab.server.cli import demo

    open_engine = _open_engine(_config(None))
    demo.run(open_engine, sys.stdout, model="base", nudger=_DEFAULT_NUDGER, max_new_tokens=args.max_new_tokens)
    return 0
