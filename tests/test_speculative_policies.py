"""Speculation inside policies, through the composition root: nudging, hand-over between vocabularies and mixtures."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import nudging_models as nm
import pytest
import table_engine as tables
import table_models as tm

from trimtab.decode.methods.build import Prepared, write
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.methods.draws.autoregressive import Autoregressive
from trimtab.decode.methods.draws.length import Confidence, Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy, TopProb
from trimtab.decode.request.method import Draw, Policy
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import TokenDraw, TokenReason
from trimtab.decode.request.sampling import Stopping
from trimtab.kernels.types import Filters, Key

DRAWS = [
    Speculative("draft", Fixed(1)),
    Speculative("draft", Fixed(5)),
    Speculative("draft", Confidence(0.5, 6)),
    Speculative(PromptLookup(2), Fixed(3)),
    Speculative(PromptLookup(2)),
    Speculative("draft", Fixed(3), copying=PromptLookup(2)),
]
POLICIES = {
    "nudged": Nudged("other", Entropy(1.1)),
    "nudged, short spans": Nudged("other", TopProb(0.5), 2),
    "mixture": Mixture((Weighted("other", 0.6),)),
}


def run(
    models: dict[str, Any],
    prompts: dict[str, tuple[int, ...]],
    policy: Policy,
    draw: Draw,
    filters: Filters,
    stopping: Stopping,
    seed: int,
    same: bool,
) -> tuple[Any, Any]:
    context = tables.Tables(models)
    request = Request(
        model="target", prompt=prompts["target"], policy=policy, draw=draw, stopping=stopping, top_logprobs=1
    )
    plan = Prepared(
        request,
        {name: tuple(ids) for name, ids in prompts.items()},
        Drawing(filters, filters, Key(seed)),
        same_ids=frozenset({"target", "draft", *(("other",) if same else ())}),
    )
    outcome = context.drive(write(context, plan))
    assert not context.open_sequences
    return outcome.candidates[0], context


def written(candidate: Any) -> tuple[Any, ...]:
    tokens = [(t.author, t.id, t.logprob, t.entropy, t.top_prob, t.top) for t in candidate.tokens]
    why = [(t.reason, t.base_entropy, t.base_top_prob) for t in candidate.tokens]
    return tokens, why, candidate.text, candidate.finish_reason


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_policies_write_the_same_over_any_draw(policy: Policy, draw: Speculative) -> None:
    """Greedy, and coupled at a temperature."""
    prompts = {"target": (0, 1, 0, 2), "other": (3, 2), "draft": (0, 1, 0, 2)}
    drawn, authors = Counter[TokenDraw](), Counter[str]()
    for seed in range(24):
        rng = random.Random(seed)
        target = tm.table(6, seed, limit=rng.choice((4096, 20)))
        models = {
            "target": target,
            "other": tm.table(6, seed + 1),
            "draft": tm.table(6, seed + 2, like=target, noise=rng.choice((0.3, 2.0))),
        }
        filters = Filters(temperature=(0.0, 0.8)[seed % 2])
        stopping = Stopping(max_new_tokens=rng.choice((4, 30)), stop=rng.choice(((), ("ab",))))
        own = replace(draw, coupled=seed % 2 == 1)
        plain, _ = run(models, prompts, policy, Autoregressive(), filters, stopping, seed, True)
        found, _ = run(models, prompts, policy, own, filters, stopping, seed, True)
        assert written(found) == written(plain), seed
        drawn.update(token.draw for token in found.tokens)
        authors.update(token.author for token in found.tokens)
    assert drawn[TokenDraw.ACCEPTED] > 10
    assert drawn[TokenDraw.CORRECTED] > 10
    if isinstance(policy, Nudged):
        assert authors["other"] > 10
        assert {token.reason for token in found.tokens} <= set(TokenReason)
    else:
        assert {token.reason for token in found.tokens} == {None}


@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_base_spans_of_a_handover_speculate(draw: Speculative) -> None:
    support = [" the", " a", " on", " sing", "s", "\n", "<eos>"]
    prompts = {
        "target": (nm.special("base", "<bos>"), nm.token("base", " the")),
        "other": (nm.special("nudger", "<bos>"), nm.special("nudger", "<turn>")),
    }
    prompts["draft"] = prompts["target"]
    drawn, authors = Counter[TokenDraw](), Counter[str]()
    for seed in range(12):
        own = nm.table("base", seed, support, rare=["<eos>"], order=2)
        noisy = nm.table("base", seed + 50, support, order=2)
        models = {
            "target": own,
            "other": nm.table("nudger", seed, [" the", " o", "n", " sin", "s", "<eos>"], rare=["<eos>"], order=2),
            "draft": tm.Model(own.vocabulary, lambda t, own=own, noisy=noisy: own.logits(t) + 0.2 * noisy.logits(t)),
        }
        filters = Filters(temperature=(0.0, 0.8)[seed % 2])
        policy, stopping = Nudged("other", TopProb(0.4)), Stopping(max_new_tokens=40)
        coupled = replace(draw, coupled=seed % 2 == 1)
        plain, _ = run(models, prompts, policy, Autoregressive(), filters, stopping, seed, False)
        found, _ = run(models, prompts, policy, coupled, filters, stopping, seed, False)
        assert written(found) == written(plain), seed
        drawn.update(token.draw for token in found.tokens)
        authors.update(token.author for token in found.tokens)
    assert drawn[TokenDraw.ACCEPTED] > 10
    assert authors["other"] > 10
