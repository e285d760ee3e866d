"""Numbers at the ends of what requests accept: an answer with finite figures, never a fault of the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.decode import (
    BestOfN,
    Branching,
    Choose,
    Combine,
    Confidence,
    Engine,
    EngineOptions,
    Entropy,
    Evolution,
    Guided,
    InvalidRequest,
    Mixture,
    ModelConfig,
    Nudged,
    Objective,
    RejectSegments,
    Result,
    RewardFailed,
    RewardTerm,
    Segments,
    Speculative,
    TokenReward,
    Weighted,
)

HUGE, MOST, TINY = 1e30, 1e6, 1e-300


@pytest.fixture(scope="module")
def engine(tiny_folder: Callable[..., Path], one_thread: None) -> Iterator[Engine]:
    models = {name: ModelConfig(source=str(tiny_folder("llama", seed))) for seed, name in enumerate(("base", "chat"))}
    rewards = {
        "huge": {"type": "python", "function": lambda p, t: HUGE * (-1) ** len(t), "kind": "token"},
        "vowels": {"type": "python", "function": lambda p, t: sum(map(t.count, "aeiou")), "kind": "token"},
        "beyond": {"type": "python", "function": lambda p, t: 1.01 * HUGE, "kind": "token"},
        "integer": {"type": "python", "function": lambda p, t: 10**400, "kind": "token"},
    }
    with Engine(models, rewards=rewards, options=EngineOptions(memory_bytes=16 << 20)) as made:
        yield made
        made.check()


CONSERVATIVE = Objective((RewardTerm("huge", MOST), RewardTerm("huge", -MOST)), Combine.CONSERVATIVE, MOST)
EXTREME: dict[str, dict[str, Any]] = {
    "token reward": {"policy": TokenReward("huge", MOST, 4)},
    "token reward, negative, cold": {"policy": TokenReward("huge", -MOST, 4), "temperature": TINY},
    "mixture": {"policy": Mixture((Weighted("chat", MOST),))},
    "mixture, negative": {"policy": Mixture((Weighted("chat", -MOST),))},
    "guided": {"policy": Guided(MOST)},
    "entropy": {"policy": Nudged("chat", when=Entropy(1e308))},
    "branching": {"policy": Nudged("chat", when=Branching(1e308))},
    "confidence": {"draw": Speculative("chat", Confidence(1 - 1e-16, 4))},
    "segments": {"search": Segments("huge", 2, 2, 4, reward_weight=MOST, logprob_weight=-MOST)},
    "soft, cold": {"search": BestOfN(3, "huge", Choose.SOFT, temperature=TINY)},
    "soft, hot": {"search": BestOfN(3, "huge", Choose.SOFT, temperature=1e308)},
    "weighted vote": {"search": BestOfN(3, {"huge": MOST}, Choose.WEIGHTED)},
    "threshold": {"search": BestOfN(3, {"huge": -MOST}, threshold=1e308)},
    "conservative": {"search": BestOfN(3, CONSERVATIVE)},
    "conservative, soft": {"search": BestOfN(3, CONSERVATIVE, Choose.SOFT, temperature=TINY)},
    "rejection": {"search": RejectSegments("huge", 1e308, TINY, max_tokens=4, max_tries=2)},
    "rejection, low": {"search": RejectSegments("huge", -1e308, 1e308, max_tokens=4, max_tries=2)},
    "evolution": {"search": Evolution({"huge": MOST}, 2, 1, 4, 1)},
    "bias": {"logit_bias": {5: 3e38, 6: -3e38}},
    "penalty": {"repetition_penalty": 1e-30},
    "cold": {"temperature": TINY},
    "narrow": {"top_p": TINY, "min_p": 1 - 1e-16},
    "no time": {"time_budget": TINY},
    "all time": {"time_budget": 1e308},
}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}], ids=str)
@pytest.mark.parametrize("case", EXTREME)
def test_extremes_are_answered(engine: Engine, case: str, sampling: dict[str, Any]) -> None:
    options: dict[str, Any] = {"model": "base", "max_new_tokens": 8, "seed": 1} | sampling | EXTREME[case]
    result: Result = engine.generate("the sin and", **options)
    for candidate in result.candidates:
        assert all(map(math.isfinite, candidate.rewards.values())), candidate.rewards
        for token in candidate.tokens:
            assert token.logprob is not None
            assert not math.isnan(token.logprob)
            assert token.entropy is None or math.isfinite(token.entropy)


def test_a_cold_draw_is_greedy(engine: Engine) -> None:
    asked: dict[str, Any] = {"model": "base", "max_new_tokens": 8}
    for policy in (None, TokenReward("vowels", 3.0, 8)):
        greedy = engine.generate("the sin and", policy=policy, temperature=0, **asked)
        cold = engine.generate("the sin and", policy=policy, temperature=TINY, seed=1, **asked)
        assert [token.id for token in cold.tokens] == [token.id for token in greedy.tokens]


def test_beyond_the_ends_is_refused(engine: Engine) -> None:
    for axes in (
        {"policy": TokenReward("huge", 1.1 * MOST)},
        {"search": Segments("huge", reward_weight=-1.1 * MOST)},
        {"search": BestOfN(2, {"huge": 1.1 * MOST})},
        {"repetition_penalty": 1e-31},
    ):
        with pytest.raises(InvalidRequest, match=r"\[-1000000, 1000000\]|\[1e-30, 10\]"):
            engine.generate("the sin and", model="base", **axes)
    for reward in ("beyond", "integer"):
        with pytest.raises(RewardFailed, match=reward + r".*numbers in \[-1e\+30, 1e\+30\]"):
            engine.generate("the sin and", model="base", search=BestOfN(2, reward), max_new_tokens=4)
