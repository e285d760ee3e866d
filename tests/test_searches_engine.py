"""Searches in the engine, with random models: pages, batches and threads change nothing of what tables prove."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import RewardFailed
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.request.events import Chunk, Completed, Progress
from trimtab.decode.request.result import FinishReason, Result
from trimtab.decode.rewards.functions import Function

Folder = Callable[..., Path]


def vowels(prompt: str, text: str) -> float:
    return sum(text.count(letter) for letter in "aeiou") / (1 + len(text))


def broken(prompt: str, text: str) -> float:
    raise ArithmeticError("no such answer")


SEARCHES: dict[str, Any] = {
    "best": BestOfN(4, "vowels"),
    "rejecting": BestOfN(8, "vowels", reject_fraction=0.5, check_every_tokens=4),
    "segments": Segments("vowels", 2, 2, max_tokens=4, lookahead=3, logprob_weight=0.1),
    "reject": RejectSegments("vowels", target=0.5, beta=0.1, min_tokens=2, max_tokens=6, max_tries=3),
    "evolution": Evolution("vowels", population=3, survivors=1, period_tokens=5, rounds=1),
    "refine": Refine("vowels", rounds=1),
}
AXES: dict[str, dict[str, Any]] = {
    "base": {},
    "nudged": {"policy": Nudged("chat", Entropy(3.0))},
    "mixture": {"policy": Mixture((Weighted("chat", 0.5),), 0.01)},
    "token reward": {"policy": TokenReward("vowels", 3.0, 4)},
    "speculative": {"draw": Speculative("chat", Fixed(3))},
}
OPTIONS: dict[str, Any] = {"max_new_tokens": 14, "temperature": 0.9, "seed": 11}
PROMPT = "go on then"


@pytest.fixture(scope="module")
def engine(tiny_folder: Folder) -> Iterator[Engine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on two
    kinds = {"base": ("llama", 0), "chat": ("mistral", 2)}
    models = {n: ModelConfig(source=str(tiny_folder(k, seed)), dtype="float32") for n, (k, seed) in kinds.items()}
    rewards = {"vowels": Function(vowels, "token"), "broken": Function(broken, "token")}
    with Engine(models, rewards=rewards, options=EngineOptions(memory_bytes=64 << 20, page_tokens=16)) as made:
        yield made
        made.check()
    torch.set_num_threads(threads)


def told(result: Result) -> Any:
    return [([t.id for t in c.tokens], c.text, c.finish_reason) for c in result.candidates], result.selected


@pytest.mark.parametrize("axis", AXES)
def test_searches_in_the_engine(engine: Engine, axis: str) -> None:
    """Alone, and all side by side: the same candidates; what is streamed is the chosen one; no page is kept."""
    alone: dict[str, Result] = {}
    for name, search in SEARCHES.items():
        events = list(engine.stream(PROMPT, search=search, **AXES[axis], **OPTIONS))
        result = events[-1].result if isinstance(events[-1], Completed) else pytest.fail("no result")
        chunks = [event for event in events if isinstance(event, Chunk)]
        assert "".join(chunk.text for chunk in chunks) == result.text
        assert any(isinstance(event, Progress) for event in events)
        assert result.usage.reward_calls > 0
        assert result.reproducible
        alone[name] = result
    assert set(engine.stats().pages_used.values()) == {0}
    streams = {name: engine.stream(PROMPT, search=search, **AXES[axis], **OPTIONS) for name, search in SEARCHES.items()}
    for name, stream in streams.items():
        last = list(stream)[-1]
        assert isinstance(last, Completed)
        assert told(last.result) == told(alone[name]), name


def test_a_search_of_one_is_the_inner_draw(engine: Engine) -> None:
    ones = (
        BestOfN(1, "vowels"),
        Segments("vowels", 1, 1, max_tokens=3, lookahead=2),
        RejectSegments("vowels", target=1.0, min_tokens=1, max_tokens=4, max_tries=1),
    )
    for axis in AXES.values():
        plain = engine.generate(PROMPT, **axis, **OPTIONS)
        for search in ones:
            assert told(engine.generate(PROMPT, search=search, **axis, **OPTIONS)) == told(plain)


def test_candidates_share_the_prompt(engine: Engine) -> None:
    """Sixteen candidates of a long prompt hold its pages once, and read it once."""
    prompt = list(range(3, 203))
    stream = engine.stream(prompt, search=BestOfN(16, "vowels"), **{**OPTIONS, "ignore_eos": True})
    most = 0
    for event in stream:
        most = max(most, engine.stats().pages_used["base"])
        if isinstance(event, Completed):
            usage = event.result.usage
    assert most <= 200 // 16 + 1 + 2 * 16, "13 pages of prompt, and at most two of each candidate's own"
    (model,) = usage.models
    assert model.tokens_read <= 200 + 16 * 14


def test_a_failing_reward_ends_its_own_request(engine: Engine) -> None:
    good = engine.stream(PROMPT, search=SEARCHES["segments"], **OPTIONS)
    with pytest.raises(RewardFailed, match="'broken' failed: it raised ArithmeticError: no such answer"):
        engine.generate(PROMPT, search=BestOfN(4, "broken"), **OPTIONS)
    last = list(good)[-1]
    assert isinstance(last, Completed)
    assert last.result.finish_reason != FinishReason.PRUNED
    assert set(engine.stats().pages_used.values()) == {0}
