"""Who wrote each token, and how, as HTML: a page of its own, or a part of one. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from trimtab.decode.display.attribution import Span, spans_of
from trimtab.decode.display.candidates import candidates
from trimtab.decode.display.curve import curve
from trimtab.decode.display.details import DRAWS, about, mark, table
from trimtab.decode.display.figures import forward_passes
from trimtab.decode.display.script import SCRIPT
from trimtab.decode.display.style import PAGE, STYLE, tints
from trimtab.decode.request.result import Candidate, Result, answer_of

__all__ = ["fragment", "page"]

_SHADED = 4.0  # nats from which on the shade of a token does not grow
_HINT = "Point at a token, tap it, or go through them with the arrow keys."


def page(result: Result, prompt: str, trigger: float | None = None) -> str:
    """A page of an answer: one file.

    Args:
        result: the answer.
        prompt: the question, shown above the answer.
        trigger: entropy of the base, in nats, above which the nudger writes, to be drawn into the curve.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Who wrote each token</title>\n<style>{PAGE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>Who wrote each token</h1>\n<p class="prompt">{escape(prompt)}</p>\n{fragment(result, trigger)}</main>\n'
        "</body>\n</html>\n"
    )


def fragment(result: Result, trigger: float | None = None) -> str:
    """The answer, its legend, figures and candidates, to be put into a page; its style holds for itself alone.

    Pointing at a token, or reaching it by the keyboard or by touch, shows its model and figures. Where scripts are
    stripped these are titles of the tokens, and a table of all tokens has them in any case.

    Args:
        result: the answer.
        trigger: see ``page``.
    """
    answer = answer_of(result)
    classes = {name: f"m{index}" for index, name in enumerate(result.models)}
    shown = '<p class="answer">No answer.</p>\n' if answer is None else _answer(answer, result, classes, trigger)
    figures = _figures(result, answer)
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in figures)
    return (
        f'<div class="trimtab">\n<style>{STYLE}{tints(len(classes))}</style>\n{shown}'
        f'<table class="figures">{rows}</table>\n{candidates(result)}{"" if answer is None else _all(answer)}'
        f"<script>{SCRIPT}</script>\n</div>\n"
    )


def _answer(answer: Candidate, result: Result, classes: dict[str, str], trigger: float | None) -> str:
    spans = "".join(_span(span, classes) for span in spans_of(answer))
    tinted = ["" if token.author == result.model else classes.get(token.author, "") for token in answer.tokens]
    own, base = [token.entropy for token in answer.tokens], [token.base_entropy for token in answer.tokens]
    return (
        f'<p class="legend">{"".join(_legend(result, answer, classes))}</p>\n'
        '<label class="switch"><input type="checkbox" class="shade"> shade by entropy</label>\n'
        '<div role="group" aria-label="Answer, token by token">\n'
        f'<p class="answer">{spans}</p>\n<div class="card" role="status" hidden>{_HINT}</div>\n</div>\n'
        f"{curve(own, tinted, trigger, base)}"
    )


def _legend(result: Result, answer: Candidate, classes: dict[str, str]) -> Iterator[str]:
    written = {token.author for token in answer.tokens} | {result.model}
    yield "Written by "
    yield from (f'<b class="{cls}">{escape(name)}</b> ' for name, cls in classes.items() if name in written)
    drawn = {token.draw for token in answer.tokens}
    yield from (f'<b class="{draw}">{said}</b> ' for draw, said in DRAWS.items() if draw in drawn)


def _span(span: Span, classes: dict[str, str]) -> str:
    token = span.token
    if token is None:
        return escape(span.text)
    kinds = ["t", classes.get(token.author, "m0")]
    if token.draw in DRAWS:
        kinds.append(str(token.draw))
    if not span.text:
        kinds.append("mark")
    shade = "" if token.entropy is None else f' style="--h:{min(token.entropy / _SHADED, 1.0):.0%}"'
    attributes = f'class="{" ".join(kinds)}" tabindex="0"{shade} title="{escape(about(token))}"'
    return f"<span {attributes}>{escape(span.text or mark(token))}</span>"


def _all(answer: Candidate) -> str:
    """A table of all tokens, to be opened; it scrolls by itself where it is too wide."""
    if not answer.tokens:
        return ""
    return (
        '<details><summary>All tokens</summary>\n<div class="all" role="region" aria-label="All tokens" tabindex="0">'
        f"{table(answer.tokens)}</div></details>\n"
    )


def _figures(result: Result, answer: Candidate | None) -> Sequence[tuple[str, str]]:
    usage, figures, written = result.usage, list[tuple[str, str]](), 0
    if answer is not None:
        written = len(answer.tokens)
        figures.append(("Finished by", str(answer.finish_reason)))
        figures.append(("Tokens written", str(written)))
        figures.append(("exp(mean entropy)", f"{result.exp_mean_entropy:.2f}"))
        for name in result.models:
            count = sum(token.author == name for token in answer.tokens)
            if count or name == result.model:
                figures.append((f"Written by {name}", f"{count} ({count / max(1, written):.0%})"))
        figures += [(name.capitalize(), f"{value:.4g}") for name, value in answer.rewards.items()]
    figures.append(("Time", f"{usage.total_time:.2f} s"))
    if len(result.candidates) > 1:
        figures.append(("Tokens of all candidates", str(usage.generated_tokens)))
    if usage.drafted_tokens:
        share = usage.accepted_tokens / usage.drafted_tokens
        figures.append(("Drafted tokens", str(usage.drafted_tokens)))
        figures.append(("Accepted", f"{usage.accepted_tokens} ({share:.0%})"))
        figures.append(("Discarded", str(usage.discarded_tokens)))
    if passes := forward_passes(result):
        figures.append((f"Forward passes of {result.model}", f"{passes} ({passes / max(1, written):.2f} per token)"))
    return [*figures, ("Seed", str(result.seed))]
