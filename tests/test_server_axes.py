"""Every axis over gRPC on the real engine, with tiny models: what a client gets is what an embedded caller gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
import tiny

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.errors import InvalidRequest, RewardFailed, UnsupportedRequest
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.guided import Guided
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.request.events import Chunk, Completed
from trimtab.server.client import Client
from trimtab.server.rpc.background import BackgroundServer
from trimtab.server.wire.status import DeadlineExceeded


def vowels(prompt: str, text: str) -> float:
    return sum(text.count(c) for c in "aeiou") / (1 + len(text))


def sleepy(prompt: str, text: str) -> float:
    time.sleep(0.02)
    return 0.0


def broken(prompt: str, text: str) -> float:
    raise OSError("/opt/secret is missing")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from trimtab.decode.engine.engine import Engine

    folder = tmp_path_factory.mktemp("models")
    models = {
        name: ModelConfig(source=str(tiny.save(tiny.make("llama", seed), folder / name)), dtype="float32")
        for seed, name in enumerate(("base", "chat", "draft"))
    }
    rewards = {
        "vowels": vowels,
        "sleepy": sleepy,
        "broken": broken,
        "short": {"type": "length", "at_most": 8},
    }
    with Engine(models=models, rewards=rewards, options=EngineOptions(memory_bytes=2**24, threads=1)) as engine:
        yield engine
        engine.check()


@pytest.fixture(scope="module")
def address(engine: Any) -> Iterator[str]:
    with BackgroundServer(lambda: engine) as server:
        yield server.address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout=60.0) as client:
        yield client


AXES: dict[str, dict[str, Any]] = {
    "mixture": {"policy": Mixture((Weighted("chat", 0.5), Weighted("draft", -0.25)), 0.05)},
    "guided": {"policy": Guided(1.75, "other", plausibility=0.05)},
    "token reward": {"policy": TokenReward("short", 0.5, 4)},
    "speculative": {"draw": Speculative("draft", Fixed(3))},
    "coupled": {"draw": Speculative("draft", Fixed(3), coupled=True)},
    "lookup under nudging": {"draw": Speculative(PromptLookup(2), Fixed(2)), "policy": Nudged("chat", Entropy(4.5))},
    "best of n": {"search": BestOfN(4, {"short": 1.0, "vowels": 0.5})},
    "rejecting": {"search": BestOfN(4, "short", reject_fraction=0.5, check_every_tokens=4)},
    "majority": {"search": BestOfN(3, choose=Choose.MAJORITY), "policy": Nudged("chat", Entropy(4.5))},
    "segments": {"search": Segments("short", 2, 2, 4, lookahead=2), "draw": Speculative("chat", Fixed(2))},
    "cards": {"search": RejectSegments("short", 0.5, 0.2, max_tokens=4, max_tries=3)},
    "evolution": {"search": Evolution("short", 2, 1, 4, 1)},
    "refine": {"search": Refine("short", 1), "policy": Mixture((Weighted("chat"),))},
}


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
def test_stream_unary_and_embedded_agree(client: Client, engine: Any, axes: dict[str, Any]) -> None:
    options = {"model": "base", "seed": 3, "max_new_tokens": 10, **axes}
    prompt = [{"role": "user", "content": "abc abc abd"}]
    embedded = engine.generate(prompt, **options)
    *events, last = client.stream(prompt, **options)
    assert isinstance(last, Completed)
    for result in (client.generate(prompt, **options), last.result):
        assert (result.selected, result.abstained, result.models) == (
            embedded.selected,
            embedded.abstained,
            embedded.models,
        )
        assert len(result.candidates) == len(embedded.candidates)
        for ours, theirs in zip(result.candidates, embedded.candidates, strict=True):
            assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
            assert [(t.id, t.author, t.draw) for t in ours.tokens] == [(t.id, t.author, t.draw) for t in theirs.tokens]
            assert ours.rewards == pytest.approx(dict(theirs.rewards), rel=1e-5)
    committed = "".join(e.text for e in events if isinstance(e, Chunk))
    assert embedded.text.startswith(committed), "committed text was retracted"


def test_listings_are_the_engines(client: Client, engine: Any) -> None:
    assert dict(client.models()) == dict(engine.models)
    assert dict(client.rewards()) == dict(engine.rewards)
    assert "vowels" in client.rewards()


def test_scores_are_the_engines(client: Client, engine: Any) -> None:
    items = [("abc", "aei"), ("abc", "xyz xyz")]
    for how in ({"reward": "vowels"}, {"model": "base"}, {"model": "chat"}):
        ours, theirs = client.score(items, **how), engine.score(items, **how)
        assert [s.value for s in ours] == pytest.approx([s.value for s in theirs], rel=1e-5)
        assert [[t.id for t in s.tokens] for s in ours] == [[t.id for t in s.tokens] for s in theirs]
    assert client.score(items, reward="vowels")[0].value == pytest.approx(0.75)


def test_a_failing_reward_fails_its_own_request_by_name(client: Client, engine: Any) -> None:
    with pytest.raises(RewardFailed) as caught:
        client.generate("abc", model="base", max_new_tokens=4, search=BestOfN(2, "broken"))
    assert caught.value.reward == "broken"
    assert "OSError" in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(UnsupportedRequest, match=r"draw\.speculative with policy\.token_reward"):
        client.generate("abc", model="base", policy=TokenReward("short"), draw=Speculative("draft"))
    assert client.generate("abc", model="base", max_new_tokens=4).tokens
    assert not any(engine.stats().pages_used.values())


@pytest.mark.parametrize("how", [{"reward": "sleepy"}, {"model": "base"}], ids=["reward", "model"])
def test_a_cancelled_score_is_given_up(address: str, engine: Any, how: dict[str, str]) -> None:
    """The client's time limit passes long before the answers are scored; then the engine has nothing to do."""
    items = [(f"{i} " + "abc " * 90, "abd " * 20) for i in range(200)]
    began = time.monotonic()
    with Client(address, timeout=0.25) as hasty, pytest.raises(DeadlineExceeded):
        hasty.score(items, **how)
    while engine.stats().running + engine.stats().queued:
        assert time.monotonic() - began < 2, "the work goes on"
        time.sleep(0.01)


def test_scores_for_asyncio(engine: Any) -> None:
    items = [("abc", " abd"), ("abd", "")]

    async def scored() -> Any:
        found = await asyncio.gather(engine.ascore(items, reward="vowels"), engine.ascore(items, model="base"))
        with pytest.raises(RewardFailed):
            await engine.ascore(items, reward="broken")
        with pytest.raises(InvalidRequest, match="scorer"):
            await engine.ascore(items)
        return found

    assert asyncio.run(scored()) == [engine.score(items, reward="vowels"), engine.score(items, model="base")]
