"""The policies Mixture and TokenReward on tables, against oracles that read everything anew."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import search_tables as s
import table_models as tm
from reward_doubles import Rated

from trimtab.decode.methods.chance import Choice, chance
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.request.result import FinishReason
from trimtab.decode.request.sampling import Stopping
from trimtab.kernels.types import Filters, Key, Pick

# ------------------------------------------------------------------------------------------------------------- mixture


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("draw", list(s.DRAWS))
def test_a_mixture_equals_the_oracle(seed: int, draw: str) -> None:
    """Proxy tuning and contrastive decoding, greedy, every model reading everything after a prompt of its own."""
    models = s.letters(6, seed)
    policy = Mixture((Weighted("expert", 1.0), Weighted("chat", -0.8)), plausibility=0.2)
    plan = s.made(models, policy=policy)
    ran = s.run(models, policy=policy, draw=s.DRAWS[draw], filters=Filters(), seed=seed)
    tokens: list[int] = []
    for token in ran.chosen.tokens:
        logits = {name: models[name].logits([*plan.prompts[name], *tokens]) for name in ("base", "expert", "chat")}
        mixed = logits["base"] + logits["expert"] - 0.8 * logits["chat"]
        mixed[tm.softmax(logits["base"]) < 0.2 * tm.softmax(logits["base"]).max()] = -np.inf
        tokens.append(int(mixed.argmax()))
        assert token.author == "base"
    assert s.ids_of(ran.chosen) == tuple(tokens)


def test_no_weight_leaves_the_base() -> None:
    models = s.letters(6, 2)
    policy = Mixture((Weighted("expert", 0.0),))
    for seed in range(5):
        assert s.run(models, policy=policy, seed=seed).ids == s.run(models, seed=seed).ids
    assert any(
        s.run(models, policy=Mixture((Weighted("expert", 2.0),)), seed=seed).ids != s.run(models, seed=seed).ids
        for seed in range(5)
    )


def test_a_full_context_of_an_expert_ends_the_answer() -> None:
    models = s.letters(6, 2)
    models["expert"] = tm.table(6, 3, limit=len(s.PROMPT) + 1 + 3)
    ran = s.run(
        models, policy=Mixture((Weighted("expert", 0.1),)), stopping=Stopping(max_new_tokens=9, ignore_eos=True)
    )
    assert (len(ran.chosen.tokens), ran.chosen.finish_reason) == (3, FinishReason.CONTEXT_FULL)


# -------------------------------------------------------------------------------------------------------- token rewards


def chosen_tokens(
    models: dict[str, Any], policy: TokenReward, filters: Filters, seed: int, most: int, reward: Any
) -> tuple[list[int], list[float]]:
    """ARGS, everything anew: tokens and the rewards of the answers up to each."""
    base, key = models["base"], Key(seed)
    vocabulary = base.vocabulary
    eos = vocabulary.eos_token_ids[0]
    tokens: list[int] = []
    rewards: list[float] = []

    def text(found: Sequence[int]) -> str:
        return b"".join(vocabulary.piece(token) for token in found if token != eos).decode()

    while len(tokens) < most and eos not in tokens:
        logits = base.logits([*s.PROMPT, *tokens])
        logp = np.log(tm.softmax(logits))
        for token, bias in filters.bias.items():
            logp[token] += bias
        top = [int(i) for i in np.argsort(-logp, kind="stable")[: min(policy.width, filters.top_k or 99)]]
        if filters.temperature and filters.top_p < 1:
            p = tm.softmax(logp[top] / filters.temperature)
            top = [token for i, token in enumerate(top) if p[:i].sum() < filters.top_p]
        rated = [reward(text([*tokens, token]), token == eos or len(tokens) + 1 == most) for token in top]
        scores = logp[top] + policy.weight * np.array(rated)
        best = int(scores.argmax())
        if filters.temperature:
            p = tm.softmax(scores / filters.temperature)
            u = chance(key, len(tokens), Choice.TOKEN)
            best = min(int(np.searchsorted(np.cumsum(p), u, side="right")), len(top) - 1)
        tokens.append(top[best])
        rewards.append(rated[best])
    return tokens, rewards


@pytest.mark.parametrize("seed", range(16))
def test_token_rewards_equal_the_oracle(seed: int) -> None:
    models = s.letters(7, seed)
    policy = TokenReward("liked", (0.0, 1.0, 5.0)[seed % 3], (2, 4)[seed % 2])
    filters = Filters(
        temperature=(0.0, 1.0, 0.5)[seed % 3 if seed % 5 else 0],
        top_p=(1.0, 0.7)[seed % 2],
        top_k=(0, 3)[seed // 2 % 2],
        bias=({}, {1: 1.5, 2: -math.inf})[seed // 4 % 2],
    )

    def reward(text: str, finished: bool) -> float:
        return s.scattered(text) + finished  # type: ignore[no-any-return]

    table = Rated(lambda sample: reward(sample.text, sample.finished))
    ran = s.run(models, policy=policy, filters=filters, seed=seed, rewards={"liked": table})
    tokens, rewards = chosen_tokens(models, policy, filters, seed, 12, reward)
    assert s.ids_of(ran.chosen) == tuple(tokens)
    assert [token.reward for token in ran.chosen.tokens] == rewards
    assert len(table.calls) == len(tokens), "one call per position"
    assert max(table.calls) <= policy.width


def test_the_end_is_chosen_where_it_is_good() -> None:
    """The published code never ends an answer; here EOS is rated like any other token."""
    models = s.letters(5, 3)
    keen = Rated(lambda sample: 10.0 * sample.finished)
    loth = Rated(lambda sample: -10.0 * sample.finished)
    policy = TokenReward("liked", 5.0, 5)
    ended = s.run(models, policy=policy, rewards={"liked": keen}).chosen
    assert (ended.finish_reason, len(ended.tokens)) == (FinishReason.EOS, 1)
    assert s.run(models, policy=policy, rewards={"liked": loth}).chosen.finish_reason == FinishReason.MAX_NEW_TOKENS


def test_no_weight_draws_from_the_base() -> None:
    """With weight 0 and a width of the whole vocabulary the tokens follow the base's distribution."""
    models = s.letters(4, 5)
    p = tm.softmax(models["base"].logits(s.PROMPT))
    found = Counter(
        s.run(models, policy=TokenReward("liked", 0.0, 4), seed=seed, stopping=Stopping(max_new_tokens=1)).ids[0]
        for seed in range(1500)
    )
    wide = sum((found[i] - 1500 * p[i]) ** 2 / (1500 * p[i]) for i in range(4))
    assert wide < 21.1, "chi-square with 3 degrees: p = 1e-4"
    liked = Counter(
        s.run(models, policy=TokenReward("liked", 4.0, 4), seed=seed, stopping=Stopping(max_new_tokens=1)).ids[0]
        for seed in range(600)
    )
    assert sum((liked[i] - 600 * p[i]) ** 2 / (600 * p[i]) for i in range(4)) > 21.1


def test_early_ends_are_banned() -> None:
    models = s.letters(4, 5)
    keen = Rated(lambda sample: 10.0 * sample.finished)
    ran = s.run(
        models,
        policy=TokenReward("liked", 5.0, 4),
        rewards={"liked": keen},
        stopping=Stopping(max_new_tokens=12, min_new_tokens=5),
    )
    assert len(ran.chosen.tokens) == 6


def test_a_pick_is_not_asked_of_the_engine() -> None:
    """The reward decides, so nothing is drawn that would be thrown away."""

    class Watching(s.Tables):  # type: ignore[misc]
        def extend(self, op: Any) -> Any:
            assert not any(isinstance(pick, Pick) for pick in op.picks)
            return super().extend(op)

    models = s.letters(4, 5)
    s.run(models, context=Watching(models, rewards={"liked": s.REWARDS["liked"]()}), policy=s.POLICIES["token_reward"])
