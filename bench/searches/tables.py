"""Results of the benchmarks of searches as markdown tables; the line that says what they ran on is added outside."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.bench.cells import interval, share, spread
from trimtab.bench.record import Row

__all__ = ["best_of_n_table", "ifeval_search_table", "rejection_table"]

_PAGES = ("pages held", "pages if the prompt's are held once", "pages of as many requests")


def ifeval_search_table(rows: Sequence[Row]) -> list[str]:
    """One line per system and method, with what the best of as many candidates could have had at most."""
    found = {(row.case, row.subject, row.metric): row for row in rows}
    lines = [
        "| system | method | prompts kept whole | × greedy | constraints kept | tokens generated | ceiling (pass@N) |",
        "|---|---|---|---|---|---|---|",
    ]
    whole = "prompts kept whole"
    for case, subject in dict.fromkeys((row.case, row.subject) for row in rows):
        if subject == "rules" or subject.startswith("pass@") or " / " in subject:
            continue
        kept, single, tokens = (found[case, subject, m] for m in (whole, "constraints kept", "tokens generated"))
        multiple = found.get((case, f"{subject} / greedy", whole))
        n = subject.removeprefix("best of ")
        ceiling = found.get((case, f"pass@{n}", whole)) if n != subject else None
        name = f"**{subject}**" if ceiling else subject
        lines.append(
            f"| {case} | {name} | {share(kept)} | {'' if multiple is None else f'{multiple.value:.2f}'} "
            f"| {share(single)} | {tokens.value:.0f} | {'' if ceiling is None else f'{100 * ceiling.value:.1f} %'} |"
        )
    settings = rows[0].settings
    agreed = [row for row in rows if row.metric == "agree with the checkers"]
    caption = (
        f"IFEval, strict, with 95 % intervals; samples at temperature {settings['temperature']:g}, at most "
        f"{settings['max_new_tokens']} tokens. Searches go by the project's own rules, the public checkers only score. "
        f"instruct: {settings['aligned']}; nudged: {settings['base']} with {settings['aligned']} as its nudger. "
        f"Segment search: {settings['segments']}. On whether a sample keeps all constraints, rules and checkers agree "
        f"in {' and '.join(f'{100 * row.value:.1f} %' for row in agreed)} of the cases (in the order of the table)."
    )
    return [*lines, "", caption]


def rejection_table(rows: Sequence[Row]) -> list[str]:
    """Plain best-of-n and with rejection, and the two that are compared."""
    found = {(row.case, row.subject, row.metric): row for row in rows}
    lines = ["| candidates | plain: reward | tokens | with rejection: reward | tokens |", "|---|---|---|---|---|"]
    for case in dict.fromkeys(row.case for row in rows if (row.subject, row.metric) == ("plain", "reward")):
        cells = []
        for subject in ("plain", "rejecting"):
            reward, tokens = (found.get((case, subject, metric)) for metric in ("reward", "tokens generated"))
            cells += [f"{reward.value:.3f}" if reward else "", f"{tokens.value:.0f}" if tokens else ""]
        lines.append(f"| {case.split()[0]} | {' | '.join(cells)} |")
    captions = []
    settings = rows[0].settings
    gain = next((row for row in rows if row.metric == "reward" and " - " in row.subject), None)
    if gain is not None:
        share = next(row for row in rows if row.metric == "tokens generated" and " / " in row.subject)
        captions.append(
            f"{gain.subject.replace(' - ', ' against ')}: reward {gain.value:+.3f} {interval(gain, '{:+.3f}')}, with "
            f"{100 * share.value:.0f} % {interval(share, '{:.0f}', 100)} of the tokens."
        )
    early = [row for row in rows if row.metric.startswith("rank correlation")]
    if early:
        listed = ", ".join(f"{row.case.split()[2]}: {row.value:.2f}" for row in early)
        captions.append(f"Rank correlation of a beginning's reward with the whole answer's, by tokens: {listed}.")
    real = next((row for row in rows if row.metric == "same answer"), None)
    if real is not None:
        captions.append(f"Replayed from full pools; {real.repeats} real runs chose the same {100 * real.value:.0f} %.")
    captions.append(
        f"{settings['model']} at temperature {settings['temperature']:g}, at most {settings['max_new_tokens']} tokens, "
        f"reward model {settings['reward']}; means over {gain.repeats if gain else rows[0].repeats} prompts, rejection "
        f"of {settings['rule']} tokens and its {settings['chosen']} candidates chosen on other prompts."
    )
    return [*lines, "", " ".join(captions)]


def best_of_n_table(rows: Sequence[Row]) -> list[str]:
    """Tokens per second of each contestant, and the pages that n candidates of one prompt hold."""
    found = {(row.case, row.subject, row.metric): row for row in rows}
    lines = [
        "| contestant | tokens/s | × transformers | pages held | prompt held once | nothing shared |",
        "|---|---|---|---|---|---|",
    ]
    for case, subject in dict.fromkeys((row.case, row.subject) for row in rows if row.metric == "speed"):
        if " / " in subject:
            continue
        speed = found[case, subject, "speed"]
        ratio = found.get((case, f"{subject} / transformers", "speed"))
        multiple = "" if ratio is None else f"**{ratio.value:.2f}** {interval(ratio, '{:.2f}')}"
        counted = [found.get((case, subject, metric)) for metric in _PAGES]
        pages = " | ".join(f"{row.value:.0f}" if row else "" for row in counted)
        lines.append(f"| {subject} | {spread(speed)} | {multiple} | {pages} |")
    settings = rows[0].settings
    caption = (
        f"{settings['model']}, {rows[0].dtype}, {settings['n']} candidates of {settings['max_new_tokens']} tokens to "
        f"each of {settings['prompts']} prompts of {settings['prompt_tokens'][0]} to {settings['prompt_tokens'][1]} "
        f"tokens, one prompt at a time, at temperature {settings['temperature']:g}: median (20th to 80th percentile) "
        "of interleaved repeats. Pages: at most held at a time while the longest prompt is answered."
    )
    return [*lines, "", caption]
