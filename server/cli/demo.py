"""The demonstration: the bundled pair behind a gRPC server, asked with and without nudging."""

from __future__ import annotations

from contextlib import closing
from typing import TextIO

from trimtab.decode.display.figures import nudged_share, summary, tokens_per_second
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.request.method import Policy
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.result import Result
from trimtab.server.cli.display import Marker, colours, show
from trimtab.server.client import Client
from trimtab.server.rpc.background import BackgroundServer
from trimtab.server.rpc.server import OpenEngine

__all__ = ["QUESTIONS", "run"]

QUESTIONS = (
    "Give me three tips for staying healthy.",
    "Explain in two sentences why the sky is blue.",
    "Write a short thank-you note to a neighbour who watered my plants.",
    "What is the difference between a lake and a pond?",
)


def run(open_engine: OpenEngine, out: TextIO, *, model: str, nudger: str, max_new_tokens: int) -> None:
    """Ask every question twice over gRPC, ``model`` alone and nudged by ``nudger``, and show the answers.

    Args:
        open_engine: makes the engine to serve.
        out: where to write.
        model: name of the base model.
        nudger: name of the small aligned model.
        max_new_tokens: length of an answer at most.
    """
    out.write("loading models\n")
    out.flush()
    with BackgroundServer(open_engine) as server, Client(server.address) as client:
        out.write(f"serving on {server.address}\n")
        for name, info in client.models().items():
            out.write(f"  {name}: {info.source} ({info.role}, {info.dtype}, {info.vocab_size} tokens)\n")
        marker = Marker((model, nudger), colour=colours(out))
        out.write(marker.legend() + "\n")
        rows: list[tuple[str, Result, Result]] = []
        for question in QUESTIONS:
            out.write(f"\n=== {question}\n")
            alone = _ask(client, out, question, model, None, max_new_tokens)
            nudged = _ask(client, out, question, model, Nudged(nudger), max_new_tokens)
            rows.append((question, alone, nudged))
    out.write("\n" + _table(rows, model, nudger))


def _ask(client: Client, out: TextIO, question: str, model: str, policy: Policy | None, max_new_tokens: int) -> Result:
    title = f"{model}, nudged by {policy.nudger}" if isinstance(policy, Nudged) else f"{model} alone"
    out.write(f"\n--- {title}\n")
    out.flush()
    events = client.stream(
        [ChatMessage("user", question)],
        model=model,
        policy=policy,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
    )
    with closing(events):  # type: ignore[type-var]  # a generator
        result = show(events, out, marked=True, legend=False)
    out.write(f"    ({summary(result)})\n")
    return result


_HEADS = ("question", "alone tok/s", "exp(H)", "nudged tok/s", "exp(H)", "by nudger")


def _table(rows: list[tuple[str, Result, Result]], model: str, nudger: str) -> str:
    """The summary: one line for each question, then the means."""
    lines = [
        (
            question if len(question) <= 40 else question[:39] + "…",
            f"{tokens_per_second(alone):.1f}",
            f"{alone.exp_mean_entropy:.2f}",
            f"{tokens_per_second(nudged):.1f}",
            f"{nudged.exp_mean_entropy:.2f}",
            f"{nudged_share(nudged):.0%}",
        )
        for question, alone, nudged in rows
    ]
    count = len(rows)
    lines.append(
        (
            "mean",
            f"{sum(tokens_per_second(a) for _, a, _ in rows) / count:.1f}",
            f"{sum(a.exp_mean_entropy for _, a, _ in rows) / count:.2f}",
            f"{sum(tokens_per_second(n) for _, _, n in rows) / count:.1f}",
            f"{sum(n.exp_mean_entropy for _, _, n in rows) / count:.2f}",
            f"{sum(nudged_share(n) for _, _, n in rows) / count:.0%}",
        )
    )
    widths = [max(len(row[i]) for row in (_HEADS, *lines)) for i in range(len(_HEADS))]

    def line(cells: tuple[str, ...]) -> str:
        return "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )

    rule = "-" * len(line(_HEADS))
    return "\n".join((f"{model} alone, and nudged by {nudger}", line(_HEADS), rule, *map(line, lines))) + "\n"
