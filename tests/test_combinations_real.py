"""Policies, draws and searches composed on the bundled models, in the library and over gRPC.

Each has a name, and where a law says so, another combination that must write the same tokens.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.engine.memory import give_back
from trimtab.decode.methods.draws.length import Acceptance, Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.policies.trigger import TopProb
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.request.events import Chunk, Completed
from trimtab.decode.request.result import Result
from trimtab.server.client import Client
from trimtab.server.rpc.background import BackgroundServer

pytestmark = pytest.mark.real

NEAR_TIE = 1e-3  # nats between the two most likely tokens
QUESTION = [{"role": "user", "content": "Name three fruits and say in a word which is best."}]
NUDGED = Nudged("chat", TopProb(0.4))
DRAFT = Speculative("draft", Fixed(3))


class Combination(NamedTuple):
    """Options of a request, and those of one that must write the same tokens, if there is one."""

    options: dict[str, Any]
    same: dict[str, Any] | None = None
    reproducible: bool = True


CHAT, BASE = {"model": "chat"}, {"model": "base"}
GREEDY, SAMPLED = {"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.95}
COMBINATIONS = {
    "adaptive speculation, greedy": Combination(
        {**CHAT, **GREEDY, "draw": Speculative("draft", Acceptance())}, {**CHAT, **GREEDY}
    ),
    "coupled speculation under best of n": Combination(
        {**CHAT, **SAMPLED, "draw": Speculative("draft", Fixed(3), coupled=True), "search": BestOfN(3, "brief")},
        {**CHAT, **SAMPLED, "search": BestOfN(3, "brief")},
    ),
    "speculation inside nudging's base spans, another vocabulary's draft": Combination(
        {**BASE, **GREEDY, "policy": NUDGED, "draw": Speculative("chat", Fixed(2))},
        {**BASE, **GREEDY, "policy": NUDGED},
    ),
    "prompt lookup under a nudged best of n": Combination(
        {**BASE, **SAMPLED, "policy": NUDGED, "draw": Speculative(PromptLookup(2)), "search": BestOfN(3, "brief")},
        reproducible=False,
    ),
    "early rejection of nudged candidates": Combination(
        {
            **BASE,
            **SAMPLED,
            "policy": NUDGED,
            "search": BestOfN(6, "brief", reject_fraction=0.5, check_every_tokens=4),
        }
    ),
    "rejection by memory, speculating": Combination(
        {**CHAT, **SAMPLED, "draw": DRAFT, "search": BestOfN(6, "brief", reject_fraction=0.5, max_held_tokens=48)}
    ),
    "majority of a mixture": Combination(
        {**CHAT, **SAMPLED, "policy": Mixture((Weighted("twin", 0.5),)), "search": BestOfN(3, choose=Choose.MAJORITY)}
    ),
    "speculation of a contrastive mixture, greedy": Combination(
        {**CHAT, **GREEDY, "policy": Mixture((Weighted("twin", -0.5),), 0.1), "draw": DRAFT},
        {**CHAT, **GREEDY, "policy": Mixture((Weighted("twin", -0.5),), 0.1)},
    ),
    "best of n under a reward per token": Combination(
        {**CHAT, **SAMPLED, "policy": TokenReward("fruit", 1.0, 4), "search": BestOfN(2, "brief")}
    ),
    "speculating look-ahead over nudged segments": Combination(
        {
            **BASE,
            **SAMPLED,
            "policy": NUDGED,
            "draw": Speculative("chat", Fixed(2)),
            "search": Segments("fruit", beams=2, samples_per_beam=2, max_tokens=5, lookahead=2),
        }
    ),
    "speculating segments, redrawn": Combination(
        {**CHAT, **SAMPLED, "draw": DRAFT, "search": RejectSegments("fruit", 0.9, max_tokens=6, max_tries=3)}
    ),
    "evolution of a mixture": Combination(
        {
            **CHAT,
            **SAMPLED,
            "policy": Mixture((Weighted("twin", 0.5),)),
            "search": Evolution("brief", population=2, survivors=1, period_tokens=6, rounds=1),
        }
    ),
    "refinement of nudged answers, criticised by the small model": Combination(
        {**BASE, **SAMPLED, "policy": NUDGED, "search": Refine("brief", rounds=1, critic="chat")}
    ),
}


def models_of(combination: Combination) -> str:
    """What an engine needs for it: all models at once take 2.7 GB, in a process that has imported everything."""
    return "base chat" if combination.options["model"] == "base" else "chat twin draft"


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, real_models: Any) -> Iterator[Engine]:
    models = {
        "base": ModelConfig(source=str(real_models.base), dtype="float32"),
        "chat": ModelConfig(source=str(real_models.aligned), dtype="float32"),
        "twin": ModelConfig(source=str(real_models.aligned), dtype="float32"),
        "draft": ModelConfig(source="smollm2-135m-draft", role="draft", dtype="float32"),
    }
    rewards = {
        "brief": {"type": "length", "at_most": 12},
        "fruit": {"type": "keywords", "wanted": ["apple", "banana", "cherry"]},
    }
    used = {name: models[name] for name in request.param.split()}
    with Engine(used, rewards=rewards, options=EngineOptions(memory_bytes=2**27)) as engine:
        yield engine
    del engine
    gc.collect()
    give_back()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Client]:
    with BackgroundServer(lambda: engine) as server, Client(server.address, timeout=120.0) as client:
        yield client


def check_same(ours: Result, theirs: Result) -> None:
    """Equal tokens, or a near tie where they part."""
    for mine, other in zip(ours.candidates, theirs.candidates, strict=True):
        ids, wanted = ([t.id for t in c.tokens] for c in (mine, other))
        if ids == wanted:
            continue
        at = next(i for i, pair in enumerate(zip(ids, wanted, strict=False)) if pair[0] != pair[1])
        tops = [top.logprob for top in other.tokens[at].top]
        assert len(tops) == 2, f"token {at}: {mine.text!r} in place of {other.text!r}"
        assert tops[0] - tops[1] < NEAR_TIE, f"token {at}: {mine.text!r} in place of {other.text!r}"


# One of each kind in continuous integration, the others in the long run.
LONG = {
    "adaptive speculation, greedy",
    "early rejection of nudged candidates",
    "evolution of a mixture",
    "majority of a mixture",
    "prompt lookup under a nudged best of n",
    "refinement of nudged answers, criticised by the small model",
    "speculating segments, redrawn",
}


@pytest.mark.parametrize(
    ("engine", "combination"),
    [
        pytest.param(models_of(c), c, id=name, marks=[pytest.mark.full] * (name in LONG))
        for name, c in COMBINATIONS.items()
    ],
    indirect=["engine"],
)
def test_combined(client: Client, engine: Engine, combination: Combination) -> None:
    options: dict[str, Any] = {"seed": 5, "max_new_tokens": 14, "top_logprobs": 2, **combination.options}
    embedded = engine.generate(QUESTION, **options)
    assert embedded.text.strip()
    assert embedded.reproducible is combination.reproducible
    usage, draw = embedded.usage, options.get("draw")
    assert (usage.drafted_tokens > 0) == (draw is not None) or draw == Speculative(PromptLookup(2)), "nothing to copy"
    if "search" not in options:  # a search discards answers, too
        assert usage.drafted_tokens == usage.accepted_tokens + usage.discarded_tokens
    *events, last = client.stream(QUESTION, **options)
    assert isinstance(last, Completed)
    committed = "".join(event.text for event in events if isinstance(event, Chunk))
    assert last.result.text.startswith(committed), "committed text was retracted"
    if combination.reproducible:
        check_same(last.result, embedded)
        check_same(client.generate(QUESTION, **options), embedded)
    if combination.same is not None:
        check_same(embedded, engine.generate(QUESTION, **{**options, "draw": None, **combination.same}))
    assert not any(engine.stats().pages_used.values()), "pages of finished requests are given back"
    engine.check()
