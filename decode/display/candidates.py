"""The candidates of a search side by side, as HTML."""

from __future__ import annotations

from html import escape

from trimtab.decode.request.result import Candidate, FinishReason, Result, answer_of

__all__ = ["candidates"]


def candidates(result: Result) -> str:
    """All candidates: the chosen one, then the others with the best reward first; empty where there is no other."""
    chosen = answer_of(result)
    others = [candidate for candidate in result.candidates if candidate is not chosen]
    if not others:
        return ""
    others.sort(key=lambda candidate: -candidate.rewards.get("objective", float("-inf")))
    shown = ([] if chosen is None else [_candidate(chosen, "chosen")]) + [_candidate(other) for other in others]
    return f'<h2>Candidates</h2>\n<div class="candidates">{"".join(shown)}</div>\n'


def _candidate(candidate: Candidate, kind: str = "") -> str:
    pruned = candidate.finish_reason is FinishReason.PRUNED
    kind = kind or ("pruned" if pruned else "whole")
    chosen = " <b>chosen</b>" if kind == "chosen" else ""
    return (
        f'<section class="{kind}"><h3>Candidate {candidate.index}{chosen}</h3>'
        f'<p class="ended">{escape(_ended(candidate))}</p><p>{escape(candidate.text)}</p></section>\n'
    )


def _ended(candidate: Candidate) -> str:
    """How far it came and how good it is; of a rejected one, where it was rejected and at which reward."""
    rewards = dict(candidate.rewards)
    count, objective = len(candidate.tokens), rewards.pop("objective", None)
    tokens = f"{count} token{'' if count == 1 else 's'}"
    if candidate.finish_reason is FinishReason.PRUNED:
        first = f"rejected after {tokens}" + ("" if objective is None else f" at reward {objective:.4g}")
    else:
        first = f"{tokens}, {candidate.finish_reason}" + ("" if objective is None else f"\nreward {objective:.4g}")
    if list(rewards.values()) == [objective]:  # one reward, which is all of the objective
        rewards = {}
    return "\n".join([first, *(f"{name} {value:.4g}" for name, value in rewards.items())])
