"""Speculation on the bundled models, in float32: greedy answers are those of plain decoding, token for token.

Where the two most likely tokens are so nearly tied that the order of additions decides, either is right.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from trimtab.bench.prompts import PROMPTS
from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.engine.memory import give_back
from trimtab.decode.methods.draws.length import Acceptance, Confidence, Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.request.result import Result, TokenDraw

if TYPE_CHECKING:
    from conftest import RealModels

pytestmark = pytest.mark.real

NEAR_TIE = 1e-3  # nats between the two most likely tokens
NEW = 24
LENGTHS = (Fixed(2), Fixed(6), Confidence(), Acceptance(), Acceptance(stop=0.6))
DRAWS = (
    *(Speculative("draft", length) for length in LENGTHS),
    Speculative(PromptLookup()),
    Speculative("draft", copying=PromptLookup()),
)


# The models that a test needs: all at once take 2.2 GB, in a process that has imported everything.
@pytest.fixture(scope="module", params=["chat draft"])
def engine(request: pytest.FixtureRequest, real_models: RealModels) -> Iterator[Engine]:
    models = {
        "chat": ModelConfig(source=str(real_models.aligned), dtype="float32"),
        "draft": ModelConfig(source="smollm2-135m-draft", role="draft", dtype="float32"),
        "base": ModelConfig(source=str(real_models.base), dtype="float32"),
    }
    used = {name: models[name] for name in request.param.split()}
    rewards = {"brief": {"type": "length", "at_most": 20}}
    with Engine(used, rewards=rewards, options=EngineOptions(memory_bytes=1 << 27)) as engine:
        yield engine
        engine.check()
    del engine
    gc.collect()
    give_back()


def chats(count: int) -> list[Any]:
    texts = [
        PROMPTS[i % len(PROMPTS)] if i < len(PROMPTS) else f"[{i}] {PROMPTS[i % len(PROMPTS)]}" for i in range(count)
    ]
    return [[{"role": "user", "content": text}] for text in texts]


def check_same(results: Sequence[Result], plain: Sequence[Result]) -> None:
    """Equal tokens, or a near tie where they part."""
    for result, expected in zip(results, plain, strict=True):
        pairs = zip(result.tokens, expected.tokens, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a.id != b.id), None)
        if at is None:
            assert len(result.tokens) == len(expected.tokens)
            assert result.finish_reason == expected.finish_reason
            continue
        first, second = expected.tokens[at].top[:2]
        assert first.logprob - second.logprob < NEAR_TIE, (at, result.tokens[at].id, first, second)


def one_at_a_time(engine: Engine, prompts: Sequence[Any], **options: Any) -> list[Result]:
    return [engine.generate(prompt, **options) for prompt in prompts]


@pytest.fixture(scope="module")
def plain(engine: Engine) -> list[Result]:
    found: list[Result] = engine.generate(chats(6), model="chat", temperature=0, max_new_tokens=NEW, top_logprobs=2)
    return found


@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_greedy(engine: Engine, plain: list[Result], draw: Speculative) -> None:
    """All together, and some alone."""
    options: dict[str, Any] = {"model": "chat", "temperature": 0, "max_new_tokens": NEW, "draw": draw}
    together = engine.generate(chats(6), **options)
    check_same(together, plain)
    check_same(one_at_a_time(engine, chats(2), **options), plain[:2])
    if draw.length == Fixed(2):
        assert sum(r.usage.accepted_tokens for r in together) > 0.1 * sum(r.usage.drafted_tokens for r in together)


@pytest.mark.full
@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_greedy_many(engine: Engine, draw: Speculative) -> None:
    options: dict[str, Any] = {"model": "chat", "temperature": 0, "max_new_tokens": 48}
    prompts = chats(100)
    plain = engine.generate(prompts, top_logprobs=2, **options)
    check_same(engine.generate(prompts, draw=draw, **options), plain)
    check_same(one_at_a_time(engine, prompts[:16], draw=draw, **options), plain[:16])


def test_coupled_sampling(engine: Engine) -> None:
    """The same seeds give the same tokens; near ties of races can't be told, so one answer in ten may part."""
    options: dict[str, Any] = {"model": "chat", "temperature": 0.8, "top_p": 0.95, "max_new_tokens": NEW, "seed": 5}
    plain = engine.generate(chats(10), **options)
    fast = engine.generate(chats(10), draw=Speculative("draft", Fixed(3), coupled=True), **options)
    same = [[t.id for t in a.tokens] == [t.id for t in b.tokens] for a, b in zip(fast, plain, strict=True)]
    assert sum(same) >= 9
    assert sum(r.usage.accepted_tokens for r in fast) > 0


@pytest.mark.parametrize("engine", ["chat base"], indirect=True)
def test_a_draft_of_another_vocabulary(engine: Engine, plain: list[Result]) -> None:
    options: dict[str, Any] = {"model": "chat", "temperature": 0, "max_new_tokens": NEW}
    fast = engine.generate(chats(6), draw=Speculative("base", Fixed(3)), **options)
    check_same(fast, plain[:6])
    assert sum(r.usage.accepted_tokens for r in fast) > 0


def test_under_best_of_n(engine: Engine) -> None:
    draw = Speculative("draft", Fixed(3))
    options: dict[str, Any] = {"max_new_tokens": NEW, "seed": 2}
    best = engine.generate(chats(1)[0], model="chat", draw=draw, search=BestOfN(4, "brief"), **options)
    assert len(best.candidates) == 4
    assert any(t.draw is TokenDraw.ACCEPTED for c in best.candidates for t in c.tokens)


@pytest.mark.parametrize("engine", ["chat base"], indirect=True)
def test_inside_nudging(engine: Engine) -> None:
    lookup = Speculative(PromptLookup(), Fixed(4))
    options: dict[str, Any] = {"max_new_tokens": NEW, "seed": 2}
    nudged = engine.generate(chats(3), model="base", policy=Nudged("chat"), draw=lookup, temperature=0, **options)
    expected = engine.generate(chats(3), model="base", policy=Nudged("chat"), temperature=0, top_logprobs=2, **options)
    check_same(nudged, expected)
    assert sum(r.usage.drafted_tokens for r in nudged) > 0
