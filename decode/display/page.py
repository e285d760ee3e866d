"""Who wrote each token, and how, as HTML: a page of its own, or a part of one. No scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import exp

from trimtab.decode.display.attribution import Span, spans_of
from trimtab.decode.display.curve import curve
from trimtab.decode.display.figures import forward_passes
from trimtab.decode.display.style import PAGE, STYLE, tints
from trimtab.decode.request.result import Candidate, FinishReason, Result, Token, TokenDraw

__all__ = ["fragment", "page"]

# How tokens of a draft came about: a line under them. Tokens of plain drawing have none.
_DRAWS = {
    TokenDraw.ACCEPTED: "drafted and accepted",
    TokenDraw.CORRECTED: "in place of a rejected one",
    TokenDraw.BONUS: "after a draft that was accepted whole",
}
_SHADED = 4.0  # nats from which on the shade of a token does not grow


def page(result: Result, prompt: str) -> str:
    """A page of an answer: one file.

    Args:
        result: the answer.
        prompt: the question, shown above the answer.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Who wrote each token</title>\n<style>{PAGE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>Who wrote each token</h1>\n<p class="prompt">{escape(prompt)}</p>\n{fragment(result)}</main>\n'
        "</body>\n</html>\n"
    )


def fragment(result: Result) -> str:
    """The answer, its legend, figures and candidates, to be put into a page; its style holds for itself alone.

    Pointing at a token, or reaching it by the keyboard or by touch, shows its model and figures.
    """
    classes = {name: f"m{index}" for index, name in enumerate(result.models)}
    answer = "".join(_span(span, classes) for span in spans_of(result))
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in _figures(result))
    return (
        f'<div class="trimtab">\n<style>{STYLE}{tints(len(classes))}</style>\n'
        f'<p class="legend">{"".join(_legend(result, classes))}</p>\n'
        '<label class="switch"><input type="checkbox" class="shade"> shade by entropy</label>\n'
        f'<p class="answer">{answer}</p>\n{curve([token.entropy for token in result.tokens])}'
        f"<table>{rows}</table>\n{_candidates(result)}</div>\n"
    )


def _legend(result: Result, classes: dict[str, str]) -> Iterator[str]:
    written = {token.author for token in result.tokens} | {result.model}
    yield from (f'<b class="{cls}">{escape(name)}</b> ' for name, cls in classes.items() if name in written)
    drawn = {token.draw for token in result.tokens}
    yield from (f'<b class="{draw}">{said}</b> ' for draw, said in _DRAWS.items() if draw in drawn)


def _span(span: Span, classes: dict[str, str]) -> str:
    if span.token is None:
        return escape(span.text)
    kinds = ["t", classes.get(span.token.author, "m0")]
    if span.token.draw in _DRAWS:
        kinds.append(str(span.token.draw))
    entropy = span.token.entropy
    shade = "" if entropy is None else f' style="--h:{min(entropy / _SHADED, 1.0):.0%}"'
    about = escape(_about(span.token))
    return f'<span class="{" ".join(kinds)}" tabindex="0"{shade} data-about="{about}">{escape(span.text)}</span>'


def _candidates(result: Result) -> str:
    """The other candidates, side by side, the best reward first."""
    others = [candidate for candidate in result.candidates if candidate is not result.chosen]
    if not others:
        return ""
    others.sort(key=lambda candidate: -candidate.rewards.get("objective", float("-inf")))
    return f'<h2>Other candidates</h2>\n<div class="candidates">{"".join(map(_candidate, others))}</div>\n'


def _candidate(candidate: Candidate) -> str:
    count, reason = len(candidate.tokens), candidate.finish_reason
    ended = f"rejected after {count} tokens" if reason is FinishReason.PRUNED else f"{count} tokens, {reason}"
    rewards = "".join(f"<br>{escape(name)} {value:.4g}" for name, value in candidate.rewards.items())
    cls = "pruned" if reason is FinishReason.PRUNED else "whole"
    return (
        f'<section class="{cls}"><h3>Candidate {candidate.index}</h3><p class="ended">{ended}{rewards}</p>'
        f"<p>{escape(candidate.text)}</p></section>\n"
    )


def _about(token: Token) -> str:
    lines = [f"{token.author}  id {token.id}  {token.draw}"]
    if token.logprob is not None:
        lines.append(f"logprob   {token.logprob:.3f}  (p {exp(token.logprob):.3f})")
    if token.entropy is not None:
        lines.append(f"entropy   {token.entropy:.3f} nats  (exp {exp(min(token.entropy, 700.0)):.1f})")
    if token.top_prob is not None:
        lines.append(f"top prob  {token.top_prob:.3f}")
    if token.reward is not None:
        lines.append(f"reward    {token.reward:.4g}")
    lines += [f"  {t.piece.decode(errors='replace')!r}  {t.logprob:.3f}" for t in token.top[:5]]
    return "\n".join(lines)


def _figures(result: Result) -> Sequence[tuple[str, str]]:
    usage = result.usage
    written = len(result.tokens)
    figures = [
        ("Finished by", str(result.finish_reason)),
        ("Tokens written", str(written)),
        ("exp(mean entropy)", f"{result.exp_mean_entropy:.2f}"),
        ("Time", f"{usage.total_time:.2f} s"),
    ]
    for name in result.models:
        count = sum(token.author == name for token in result.tokens)
        if count or name == result.model:
            figures.append((f"Written by {name}", f"{count} ({count / max(1, written):.0%})"))
    figures += [(name.capitalize(), f"{value:.4g}") for name, value in result.chosen.rewards.items()]
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
