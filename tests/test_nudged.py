"""Nudging with one vocabulary, on tables of logits: equality with a token-by-token oracle, and its rules one by one."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nudging_models as nm
import numpy as np
import pytest
import table_engine as tables
import table_models as tm
import test_cross_vocabulary as across
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.policies import nudged
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Branching, Entropy, TopProb, fires
from trimtab.decode.ops import Read
from trimtab.decode.request.result import Candidate, FinishReason, TokenReason
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.text.ends import Ends
from trimtab.kernels.types import Filters, Key, Pick

PROMPT = (nm.special("base", "<bos>"), nm.token("base", " the"))
TURN = (*PROMPT, nm.special("base", "<turn>"))
SUPPORT = [" the", " a", " on", " sing", "s", "\n", "Que", b"\xc3", b"\xa9", "<eos>", "<turn>"]
EOS = nm.special("base", "<eos>")


def random_case(seed: int) -> Any:
    rng = random.Random(seed)
    when = rng.choice(
        [Entropy(rng.choice((0.0, 1.0))), TopProb(rng.choice((0.4, 0.7))), Branching(rng.choice((2.0, 3.0)))]
    )
    most = rng.choice((1, 30, 30))
    order = rng.choice((1, 3))
    return nm.Case(
        nm.table("base", seed, SUPPORT, rare=["<eos>"], order=order, limit=rng.choice((4096, 4096, len(PROMPT) + 9))),
        nm.table("base", seed + 1, SUPPORT, rare=["<eos>"], order=order, limit=rng.choice((4096, 4096, len(TURN) + 9))),
        Nudged("nudger", when, rng.choice((None, 1, 3))),
        PROMPT,
        TURN,
        Stopping(
            max_new_tokens=most,
            min_new_tokens=rng.choice((0, 0, most)),
            stop=rng.choice(((), ("ss", " a"))),
            stop_token_ids=rng.choice(((), (nm.token("base", "Que"),))),
            ignore_eos=rng.random() < 0.2,
        ),
        Filters(
            temperature=rng.choice((0.0, 0.8)),
            repetition_penalty=rng.choice((1.0, 1.2)),
            bias=rng.choice(({}, {nm.token("base", "s"): 2.0})),
        ),
        seed,
        rng.choice(((), ("\nQue",))),
        same_vocabulary=True,
    )


def beyond(when: Any, entropy: float, top_prob: float) -> bool:
    """Whether a trigger fires, by its definition."""
    match when:
        case Entropy(above):
            return entropy > above
        case Branching(above):
            return math.exp(entropy) > above
        case TopProb(below):
            return top_prob < below
    raise AssertionError(when)


def told(case: Any) -> tuple[list[tuple[str, int]], FinishReason, int, int, list[tuple[str, float, float]]]:
    """Token by token, each model reading everything anew: tokens, why it ended, what each model was asked.

    And for each token why its author wrote it, with the base's entropy and top probability.
    """
    stopping, own = case.stopping, nm.vocabulary("base")
    tokens: list[tuple[str, int]] = []
    why: list[tuple[str, float, float]] = []
    asked = Counter[str]()
    span = 0
    keys = {"base": Key(case.seed), "nudger": Key(case.seed).child(0, 2**32 - 1)}

    def ask(name: str) -> Read | None:
        model, prompt = (case.base, PROMPT) if name == "base" else (case.nudger, TURN)
        everything = [*prompt, *(token for _, token in tokens)]
        if len(everything) >= model.limit:
            return None
        asked[name] += 1
        early = len(tokens) < stopping.min_new_tokens
        banned = (EOS, *stopping.stop_token_ids) if early else ()
        read: Read = tm.read(model, everything, Pick(case.filters, keys[name], len(tokens), banned=banned))
        return read

    while True:
        author, found = "base", ask("base")
        read = found
        if found is not None:
            gives_up = found.token == EOS and not stopping.ignore_eos
            spent = case.policy.max_span_tokens is not None and span >= case.policy.max_span_tokens
            if gives_up or (fires(case.policy.when, found) and not spent):
                author, found = "nudger", ask("nudger")
        if found is None or read is None:
            return tokens, FinishReason.CONTEXT_FULL, asked["base"], asked["nudger"], why
        unsure = beyond(case.policy.when, read.entropy, read.top_prob)
        of_base, of_nudger = "span_spent" if unsure else "sure", "base_ends" if gives_up else "unsure"
        why.append((of_base if author == "base" else of_nudger, read.entropy, read.top_prob))
        span = span + 1 if author == "nudger" else 0
        before = own.decode([token for _, token in tokens], skip_special_tokens=True)
        tokens.append((author, found.token))
        reason = None
        text = own.decode([token for _, token in tokens], skip_special_tokens=True)
        stops = (*stopping.stop, *case.stops) if len(tokens) >= stopping.min_new_tokens else ()
        if found.token == EOS and not stopping.ignore_eos:
            reason = FinishReason.EOS
        # A stop string ends the answer with the token that completes it, which a token without text doesn't.
        elif found.token in stopping.stop_token_ids or (text != before and text.endswith(stops)):
            reason = FinishReason.STOP
        elif len(tokens) == stopping.max_new_tokens:
            reason = FinishReason.MAX_NEW_TOKENS
        if reason is not None:
            return tokens, reason, asked["base"], asked["nudger"], why


def reasons_of(candidate: Candidate) -> list[tuple[str | None, float | None, float | None]]:
    return [(token.reason, token.base_entropy, token.base_top_prob) for token in candidate.tokens]


def authors(candidate: Candidate) -> list[tuple[str, int]]:
    return [(token.author, token.id) for token in candidate.tokens]


@given(st.integers(0, 2**31))
@example(641)  # a special token after a stop string that came before the minimum
@settings(max_examples=150)
def test_equals_the_oracle(seed: int) -> None:
    case = random_case(seed)
    candidate, context = case.run()
    tokens, reason, base_asked, nudger_asked, why = told(case)
    assert (authors(candidate), candidate.finish_reason) == (tokens, reason)
    assert reasons_of(candidate) == why
    assert context.work["base"].passes == base_asked, "one pass of the base per token"
    assert context.work.get("nudger", tables.Work()).passes == nudger_asked, "one pass of the nudger per nudged token"


def test_the_cases_meet_every_end_and_both_authors() -> None:
    found = [told(random_case(seed)) for seed in range(200)]
    reasons = Counter(reason for _, reason, _, _, _ in found)
    assert set(reasons) == set(FinishReason) - {FinishReason.TIME_BUDGET, FinishReason.REPETITION, FinishReason.PRUNED}
    assert sum(len({author for author, _ in tokens}) == 2 for tokens, _, _, _, _ in found) > 60
    why = Counter(reason for *_, whys in found for reason, _, _ in whys)
    assert set(why) == {"sure", "span_spent", "unsure", "base_ends"}
    assert min(why.values()) >= 5, why


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (nudged, "fires", lambda when, read: read.token % 2 == 0),
        (Ends, "is_eos", lambda self, model, token: False),
        (Ends, "holds", Ends.is_eos),
    ],
)
def test_a_wrong_rule_is_seen(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, wrong: Any) -> None:
    cases = [random_case(seed) for seed in range(100)]
    expected = [told(case)[0] for case in cases]
    monkeypatch.setattr(owner, name, wrong)
    assert any(authors(case.run()[0]) != tokens for case, tokens in zip(cases, expected, strict=True))


@given(st.integers(0, 2**31), st.sampled_from([Entropy(0.7), Branching(2.5), TopProb(0.6)]))
@settings(max_examples=60)
def test_the_reason_is_on_the_side_of_the_trigger_that_it_names(seed: int, when: Any) -> None:
    """Of both policies; the base's figures are those of its distribution after the answer so far."""
    for case in (random_case(seed), across.random_case(seed)):
        case = replace(case, policy=replace(case.policy, when=when))
        written = list[int]()
        for token in case.run()[0].tokens:
            if token.author == "base":
                assert (token.base_entropy, token.base_top_prob) == (token.entropy, token.top_prob)
            if case.same_vocabulary:
                _, entropy, top_prob, _ = tm.statistics(case.base.logits([*PROMPT, *written]))
                assert (token.base_entropy, token.base_top_prob) == (entropy, top_prob)
            written.append(token.id)
            if token.base_entropy is None or token.base_top_prob is None:
                assert token.author == "nudger"
                assert token.reason in ("within_word", "nudger_ends")
                continue
            fired = beyond(when, token.base_entropy, token.base_top_prob)
            if (token.author, token.reason) in SIDES:
                assert fired == SIDES[token.author, token.reason], token
            else:
                assert (token.author, token.reason) == ("nudger", "base_ends")


# On which side of the trigger the base's read is.
SIDES = {
    ("base", "sure"): False,
    ("base", "within_word"): True,
    ("base", "agreed"): True,
    ("base", "span_spent"): True,
    ("base", "looping"): True,
    ("nudger", "unsure"): True,
    ("nudger", "looping"): False,
}


def test_the_document_explains_each_reason() -> None:
    text = (Path(__file__).parents[1] / "docs" / "nudging.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (base|nudger|either) \| \S", text, re.MULTILINE))
    assert set(rows) == set(TokenReason)
    for author, reason in SIDES:
        assert rows[reason] in (author, "either")


def test_the_nudger_reads_what_it_missed_in_one_chunk() -> None:
    for seed in range(60):
        case = random_case(seed)
        candidate, context = case.run()
        work = context.work.get("nudger", tables.Work())
        missed, chunks = len(TURN), []
        for token in candidate.tokens:
            if token.author == "nudger":
                chunks.append(missed)
                missed = 0
            missed += 1
        assert work.read == chunks
        assert not any(work.again)
        assert not any(context.work["base"].again)
        assert set(context.work["base"].read[1:]) <= {1}


def _alone(case: Any, name: str) -> list[int]:
    """Greedy tokens of one model."""
    model, tokens = (case.base, list(PROMPT)) if name == "base" else (case.nudger, list(TURN))
    start = len(tokens)
    while len(tokens) - start < case.stopping.max_new_tokens and EOS not in tokens:
        tokens.append(int(model.logits(tokens).argmax()))
    return tokens[start:]


@pytest.mark.parametrize("seed", range(20))
def test_a_trigger_at_its_end_leaves_one_model(seed: int) -> None:
    pair = [nm.table("base", seed + k, SUPPORT, rare=["<eos>"]) for k in (0, 1)]
    case = nm.Case(
        *pair, Nudged("nudger", TopProb(0.0)), PROMPT, TURN, Stopping(max_new_tokens=25), same_vocabulary=True
    )
    base = _alone(case, "base")
    never = case.run()[0]
    until = base.index(EOS) if EOS in base else len(base)
    assert authors(never)[:until] == [("base", token) for token in base[:until]]
    assert all(token.author == "nudger" for token in never.tokens[until : until + 1]), "asked about the end"
    always = nm.Case(
        *pair, Nudged("nudger", TopProb(1.0)), PROMPT, TURN, Stopping(max_new_tokens=25), same_vocabulary=True
    )
    assert authors(always.run()[0]) == [("nudger", token) for token in _alone(case, "nudger")]


def test_the_gate_is_the_bases() -> None:
    """A base that is sure of every second token, and a nudger that is unsure of all, and the other way round."""

    def rows(kind: str, sure: Any) -> Any:
        def logits(tokens: Sequence[int]) -> Any:
            row = np.zeros(nm.vocabulary("base").size)
            row[nm.token("base", kind)] = 9.0 if sure(len(tokens)) else 1.0
            return row

        return tm.Model(nm.vocabulary("base"), logits)

    stopping = Stopping(max_new_tokens=12, ignore_eos=True)
    for nudger_sure in (True, False):
        base = rows("s", lambda length: length % 2 == 0)
        nudger = rows(" a", lambda length, sure=nudger_sure: sure)
        case = nm.Case(base, nudger, Nudged("nudger", Entropy(2.0)), PROMPT, TURN, stopping, same_vocabulary=True)
        found = [token.author for token in case.run()[0].tokens]
        assert found == ["base", "nudger"] * 6 if len(PROMPT) % 2 == 0 else ["nudger", "base"] * 6


def test_a_token_reports_its_authors_distribution() -> None:
    for seed in range(40):
        case = random_case(seed)
        tokens = list[int]()
        for token in case.run()[0].tokens:
            model, prompt = (case.base, PROMPT) if token.author == "base" else (case.nudger, TURN)
            logp, entropy, top_prob, _ = tm.statistics(model.logits([*prompt, *tokens]))
            assert token.logprob == pytest.approx(float(logp[token.id]))
            assert (token.entropy, token.top_prob) == pytest.approx((entropy, top_prob))
            tokens.append(token.id)


# ------------------------------------------------------------------------------------------------------- distribution


def _first_tokens(samples: int) -> Counter[int]:
    """First tokens where the base often says EOS and the nudger has much the same distribution."""

    def logits(tokens: Sequence[int]) -> Any:
        row = np.full(nm.vocabulary("base").size, -60.0)
        for piece, p in ((" the", 0.25), ("s", 0.15), ("<eos>", 0.6)):
            row[nm.token("base", piece)] = np.log(p)
        return row

    model = tm.Model(nm.vocabulary("base"), logits)
    found: Counter[int] = Counter()
    for seed in range(samples):
        case = nm.Case(
            model,
            model,
            Nudged("nudger", TopProb(0.0)),
            PROMPT,
            TURN,
            Stopping(max_new_tokens=1),
            Filters(temperature=1.0),
            seed,
            same_vocabulary=True,
        )
        found[case.run()[0].tokens[0].id] += 1
    return found


def _chi_square(found: Counter[int]) -> float:
    """Against p_base(v) + p_base(EOS) p_nudger(v) for v other than EOS, and p_base(EOS) p_nudger(EOS); 2 degrees."""
    total = sum(found.values())
    expected = {" the": 0.25 + 0.6 * 0.25, "s": 0.15 + 0.6 * 0.15, "<eos>": 0.36}
    return sum((found[nm.token("base", k)] - p * total) ** 2 / (p * total) for k, p in expected.items())


CRITICAL = 20.7  # chi-square, 2 degrees of freedom: p = 3e-5


def test_the_nudgers_token_does_not_depend_on_what_the_base_drew() -> None:
    assert _chi_square(_first_tokens(3000)) < CRITICAL


def test_with_the_same_random_numbers_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    pick = Answer.pick

    def shared(self: Answer, model: str, ahead: int = 0) -> Pick:
        own = pick(self, model, ahead)
        return Pick(own.filters, pick(self, "base", ahead).key, own.position, banned=own.banned)

    monkeypatch.setattr(Answer, "pick", shared)
    assert _chi_square(_first_tokens(3000)) > CRITICAL
