"""Results of the benchmarks of searches as markdown tables; the line that says what they ran on is added outside."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.bench.cells import count, interval, medians, share, spread
from trimtab.bench.record import Row
from trimtab.bench.weights import weights

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
        kept, single, tokens = (found.get((case, subject, m)) for m in (whole, "constraints kept", "tokens generated"))
        multiple = found.get((case, f"{subject} / greedy", whole))
        n = subject.removeprefix("best of ")
        ceiling = found.get((case, f"pass@{n}", whole)) if n != subject else None
        name = f"**{subject}**" if ceiling else subject
        lines.append(
            f"| {case} | {name} | {'' if kept is None else share(kept)} "
            f"| {'' if multiple is None else f'{multiple.value:.2f}'} | {'' if single is None else share(single)} "
            f"| {'' if tokens is None else f'{tokens.value:.0f}'} "
            f"| {'' if ceiling is None else f'{100 * ceiling.value:.1f} %'} |"
        )
    return [*lines, "", _ifeval_caption(rows)]


def _ifeval_caption(rows: Sequence[Row]) -> str:
    settings = rows[0].settings
    intervals = ", with 95 % intervals" * any(interval(row, "{}") for row in rows)
    systems = {
        "instruct": settings["aligned"],
        "nudged": f"{settings['base']} with {settings['aligned']} as its nudger",
    }
    used = [f"{name}: {what}" for name, what in systems.items() if any(row.case.startswith(name) for row in rows)]
    names = (settings["aligned"], settings["base"])[: len(used)]
    caption = (
        f"IFEval, strict{intervals}; samples at temperature {settings['temperature']:g}, at most "
        f"{settings['max_new_tokens']} tokens. Searches go by the project's own rules, the public checkers only score. "
        f"{'; '.join(used)}; {weights(rows[0], *names)}."
    )
    if any(row.subject == "segments" for row in rows):
        caption += f" Segment search: {settings['segments']}."
    agreed = [f"{100 * row.value:.1f} %" for row in rows if row.metric == "agree with the checkers"]
    if agreed:
        caption += (
            f" On whether a sample keeps all constraints, rules and checkers agree in {' and '.join(agreed)} of the "
            f"cases{' (in the order of the table)' * (len(agreed) > 1)}."
        )
    return caption


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
    rewards = [row for row in rows if row.metric == "reward"] or rows
    gain = next((row for row in rows if row.metric == "reward" and " - " in row.subject), None)
    if gain is not None:
        spent = next((row for row in rows if row.metric == "tokens generated" and " / " in row.subject), None)
        text = (
            f"{gain.subject.replace(' - ', ' against ')}: reward {gain.value:+.3f} {interval(gain, '{:+.3f}')}".rstrip()
        )
        if spent is not None:
            text += f", with {100 * spent.value:.0f} % {interval(spent, '{:.0f}', 100)}".rstrip() + " of the tokens"
        captions.append(f"{text}.")
    early = [row for row in rows if row.metric.startswith("rank correlation")]
    if early:
        listed = ", ".join(f"{row.case.split()[2]}: {row.value:.2f}" for row in early)
        captions.append(f"Rank correlation of a beginning's reward with the whole answer's, by tokens: {listed}.")
    real = next((row for row in rows if row.metric == "same answer"), None)
    if real is not None:
        runs = f"{real.repeats} real run{'s' * (real.repeats != 1)}"
        captions.append(f"Replayed from full pools; {runs} chose the same {100 * real.value:.0f} %.")
    captions.append(
        f"{settings['model']}, {weights(rows[0], settings['model'])}, at temperature {settings['temperature']:g}, at "
        f"most {settings['max_new_tokens']} tokens, reward model {settings['reward']}; means over {count(rewards)} "
        f"prompts, rejection of {settings['rule']} tokens and its {settings['chosen']} candidates chosen on other "
        "prompts."
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
        multiple = "" if ratio is None else f"**{ratio.value:.2f}** {interval(ratio, '{:.2f}')}".rstrip()
        counted = [found.get((case, subject, metric)) for metric in _PAGES]
        pages = " | ".join(f"{row.value:.0f}" if row else "" for row in counted)
        lines.append(f"| {subject} | {spread(speed)} | {multiple} | {pages} |")
    settings = rows[0].settings
    shortest, longest = settings["prompt_tokens"]
    asked = f"{settings['prompts']} prompt{'s' * (settings['prompts'] != 1)} of {shortest} to {longest} tokens"
    measured = medians([row for row in rows if row.metric == "speed" and " / " not in row.subject])
    caption = (
        f"{settings['model']}, {weights(rows[0], settings['model'])}, {settings['n']} candidates of "
        f"{settings['max_new_tokens']} tokens to each of {asked}, one prompt at a time, at temperature "
        f"{settings['temperature']:g}: {measured}. Pages: at most held at a time while the longest prompt is answered."
    )
    return [*lines, "", caption]
