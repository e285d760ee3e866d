"""A page of one answer that shows who wrote each token, and how: one file, no scripts, nothing fetched."""

from __future__ import annotations

from html import escape
from math import exp

from trimtab.decode.request.result import (
    Candidate,
    Result,
    Token,
    TokenDraw,
)
from trimtab.server.cli.attribution import Span, spans_of
from trimtab.server.cli.figures import forward_passes

__all__ = ["page"]

_HUES = (35, 200, 300, 140)  # of the models after the first
# How tokens of a draft came about: a line under them. Tokens of plain drawing have none.
_DRAWS = {
    TokenDraw.ACCEPTED: "drafted and accepted",
    TokenDraw.CORRECTED: "in place of a rejected one",
    TokenDraw.BONUS: "after a draft that was accepted whole",
}
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fdfdfb; --soft: #6a6a72; --line: #dcdcd6;
        --tint: 88%; --edge: 42%; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ec; --paper: #17171a; --soft: #9a9aa4; --line: #34343a; --tint: 24%; --edge: 62%; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 2.5rem 1.25rem; background: var(--paper); color: var(--ink);
       font: 17px/1.65 Georgia, "Times New Roman", serif; }
h1 { font: 600 1rem/1.4 system-ui, sans-serif; margin: 0 0 .75rem; }
.prompt { color: var(--soft); white-space: pre-wrap; border-left: 3px solid var(--line); padding-left: .9rem; }
.answer { white-space: pre-wrap; overflow-wrap: break-word; margin: 1.5rem 0; }
.legend, table { font: .82rem/1.5 system-ui, sans-serif; color: var(--soft); }
.legend b { font-weight: 500; padding: .1em .45em; margin-right: .5em; color: var(--ink); }
.t { position: relative; border-radius: 2px; cursor: default; }
.accepted, .corrected, .bonus { text-decoration: underline 1px var(--soft); text-underline-offset: .3em; }
.accepted { text-decoration-style: dotted; }
.corrected { text-decoration-style: solid; text-decoration-thickness: 2px; }
.bonus { text-decoration-style: double; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { font: .82rem/1.5 system-ui, sans-serif; color: var(--soft); cursor: pointer; }
details p { white-space: pre-wrap; overflow-wrap: break-word; }
.t:hover { outline: 1px solid var(--soft); }
.t:hover::after { content: attr(data-about); position: absolute; left: 0; top: 1.7em; z-index: 1; white-space: pre;
  background: var(--ink); color: var(--paper); padding: .45em .7em; border-radius: 5px; pointer-events: none;
  font: 12px/1.5 ui-monospace, monospace; }
table { border-collapse: collapse; border-top: 1px solid var(--line); width: 100%; margin-top: 2rem; }
td { padding: .3rem 0; border-bottom: 1px solid var(--line); }
td + td { text-align: right; color: var(--ink); font-variant-numeric: tabular-nums; }
"""


def page(result: Result, prompt: str) -> str:
    """An HTML page of the chosen candidate; pointing at a token shows its model and figures.

    Args:
        result: the answer.
        prompt: the question, shown above the answer.
    """
    classes = {name: f"m{index}" for index, name in enumerate(result.models)}
    answer = "".join(_span(span, classes) for span in spans_of(result))
    written = {token.author for token in result.tokens} | {result.model}
    legend = "".join(f'<b class="{cls}">{escape(name)}</b>' for name, cls in classes.items() if name in written)
    drawn = {token.draw for token in result.tokens}
    legend += "".join(f'<b class="{draw}">{said}</b>' for draw, said in _DRAWS.items() if draw in drawn)
    others = "".join(map(_candidate, (c for c in result.candidates if c is not result.chosen)))
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in _figures(result))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Who wrote each token</title>\n<style>{_STYLE}{_tints(len(classes))}</style>\n"
        f'<h1>Who wrote each token</h1>\n<p class="prompt">{escape(prompt)}</p>\n'
        f'<p class="answer">{answer}</p>\n<p class="legend">{legend}</p>\n<table>{rows}</table>\n{others}</html>\n'
    )


def _tints(count: int) -> str:
    """The first model's tokens stay plain; each other model has a hue."""
    rules = []
    for index in range(1, count):
        hue = _HUES[(index - 1) % len(_HUES)]
        rules.append(
            f".m{index} {{ background: hsl({hue} 85% var(--tint)); box-shadow: 0 2px 0 hsl({hue} 75% var(--edge)); }}"
        )
    return "\n".join(rules)


def _span(span: Span, classes: dict[str, str]) -> str:
    if span.token is None:
        return escape(span.text)
    kinds = ["t", classes.get(span.token.author, "m0")]
    if span.token.draw in _DRAWS:
        kinds.append(str(span.token.draw))
    return f'<span class="{" ".join(kinds)}" data-about="{escape(_about(span.token))}">{escape(span.text)}</span>'


def _candidate(candidate: Candidate) -> str:
    rewards = "".join(f", {escape(name)} {value:.4g}" for name, value in candidate.rewards.items())
    title = f"Candidate {candidate.index}: {len(candidate.tokens)} tokens, {candidate.finish_reason}{rewards}"
    return f"<details><summary>{title}</summary><p>{escape(candidate.text)}</p></details>\n"


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


def _figures(result: Result) -> list[tuple[str, str]]:
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
