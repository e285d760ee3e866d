"""Spec strings and plain functions in a request: as values and names of rewards, for that request alone."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import InvalidRequest, RewardFailed, UnsupportedRequest
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.request.as_json import FormatError, to_json
from trimtab.decode.request.events import Completed
from trimtab.decode.request.keywords import request_from_kwargs
from trimtab.decode.request.objective import Objective
from trimtab.decode.request.request import Request
from trimtab.decode.rewards.own import bound
from trimtab.server.client import Client

OPTIONS: Any = {"max_new_tokens": 12, "temperature": 0.9, "seed": 3}


def vowels(prompt: str, text: str) -> float:
    return sum(text.count(letter) for letter in "aeiou") / (1 + len(text))


def few(prompt: str, text: str) -> float:
    return -vowels(prompt, text)


@pytest.fixture(scope="module")
def engine(tiny_folder: Callable[..., Path], one_thread: None) -> Iterator[Engine]:
    models = {"base": ModelConfig(source=str(tiny_folder("llama")), dtype="float32")}
    with Engine(
        models, rewards={"vowels": vowels}, options=EngineOptions(memory_bytes=16 << 20, page_tokens=16)
    ) as made:
        yield made
        made.check()


def texts(result: Any) -> list[str]:
    return [candidate.text for candidate in result.candidates]


# ------------------------------------------------------------------------------------------------------- spec strings


@pytest.mark.parametrize(
    ("options", "axes"),
    [
        ({"policy": "nudged:chat,when=entropy:1.5"}, {"policy": Nudged("chat", Entropy(1.5))}),
        ({"draw": "speculative:lookup"}, {"draw": Speculative(PromptLookup())}),
        ({"search": "best_of_n:16", "objective": "h"}, {"search": BestOfN(16, Objective.of("h"))}),
        ({"search": "segments:beams=2", "objective": {"h": 2.0}}, {"search": Segments(Objective.of({"h": 2.0}), 2)}),
        ({"search": "refine:h"}, {"search": Refine(Objective.of("h"))}),
        ({"search": BestOfN(4), "objective": "h"}, {"search": BestOfN(4, Objective.of("h"))}),
    ],
)
def test_a_spec_string_is_the_value_it_stands_for(options: Any, axes: dict[str, Any]) -> None:
    assert request_from_kwargs("hi", model="base", **options) == Request(model="base", prompt="hi", **axes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"policy": "nudge:chat"}, "policy = 'nudge': accepted: one of base, guided, mixture, nudged"),
        ({"draw": "speculative:d,length=fixed:x"}, "draw speculative.length.fixed.tokens = 'x'"),
        ({"search": "best_of_n:many"}, "search best_of_n.n = 'many'"),
        ({"search": "segments"}, "search segments.objective = None"),
        ({"objective": "h"}, "objective = 'h': accepted: an objective beside a search"),
        ({"search": "single", "objective": "h"}, "search objective = 'single': accepted: a search that has one"),
        ({"search": BestOfN(2, "a"), "objective": "b"}, "accepted: one objective"),
        ({"search": "best_of_n:2,objective=a", "objective": vowels}, "accepted: one objective"),
    ],
)
def test_a_mistake_names_its_argument(options: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_from_kwargs("hi", model="base", **options)
    assert says in str(caught.value)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_from_kwargs("hi", model="base", policy="nudge", search="best", temprature=1)
    assert [violation.field for violation in caught.value.violations] == ["temprature", "policy", "search"]


# ---------------------------------------------------------------------------------------------------------- functions


@pytest.mark.parametrize(
    "options",
    [
        {"search": "best_of_n:6", "objective": few},
        {"search": BestOfN(6), "objective": few},
        {"search": BestOfN(6, few)},
    ],
)
def test_a_function_rates_the_answers_of_its_request(engine: Engine, options: Any) -> None:
    result = engine.generate("go on", **options, **OPTIONS)
    rated = [few("go on", text) for text in texts(result)]
    assert [candidate.rewards["few"] for candidate in result.candidates] == pytest.approx(rated)
    assert result.selected == rated.index(max(rated))
    assert set(engine.rewards) == {"vowels"}, "the next request has only the engine's"
    assert result.usage.reward_calls == 1


def test_a_function_is_given_the_prompt(engine: Engine) -> None:
    seen = []

    def spy(prompt: str, text: str) -> float:
        seen.append((prompt, text))
        return 0.0

    result = engine.generate([{"role": "user", "content": "go on"}], search=BestOfN(3), objective=spy, **OPTIONS)
    assert sorted(set(seen)) == sorted({("go on", text) for text in texts(result)})


def test_a_function_may_have_the_name_of_a_reward(engine: Engine) -> None:
    def other(prompt: str, text: str) -> float:
        return len(text)

    other.__name__ = "vowels"
    result = engine.generate("go on", search=BestOfN(4, other), **OPTIONS)
    assert [candidate.rewards["vowels-2"] for candidate in result.candidates] == list(map(len, texts(result)))
    result = engine.generate("go on", search=BestOfN(4, lambda prompt, text: 1.0), **OPTIONS)
    assert [set(candidate.rewards) for candidate in result.candidates] == [{"lambda", "objective"}] * 4


def test_requests_keep_their_functions_apart(engine: Engine) -> None:
    def ask(k: int) -> list[float]:
        result = engine.generate("go on", search=BestOfN(3), objective=lambda prompt, text: float(k), **OPTIONS)
        return [candidate.rewards["objective"] for candidate in result.candidates]

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(ask, range(6))) == [[float(k)] * 3 for k in range(6)]


def test_a_function_streams_and_is_submitted(engine: Engine) -> None:
    request = request_from_kwargs("go on", model="base", search=BestOfN(4, few), **OPTIONS)
    *_, last = engine.stream_request(request)
    assert isinstance(last, Completed)
    assert last.result.candidates == engine.generate("go on", search=BestOfN(4, few), **OPTIONS).candidates


def test_a_function_that_fails_ends_its_request(engine: Engine) -> None:
    def broken(prompt: str, text: str) -> float:
        raise ArithmeticError("no such answer")

    with pytest.raises(RewardFailed, match=r"reward 'broken' failed: .*no such answer"):
        engine.generate("go on", search=BestOfN(2), objective=broken, **OPTIONS)


def test_what_a_function_cant_do_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=r"search\.best_of_n\.objective = .*accepted: a plain function f\(prompt"):
        engine.generate("go on", search=BestOfN(2), objective=lambda: 1.0)  # type: ignore[misc]
    with pytest.raises(UnsupportedRequest, match=r"search\.segments with 'few', which rates whole answers only"):
        engine.generate("go on", search="segments", objective=few)


def test_the_request_itself_is_left_as_it_is() -> None:
    request = request_from_kwargs("go on", model="base", search=BestOfN(4, few))
    named, own = bound(request, {"few"})
    assert request.search == BestOfN(4, few)
    assert named.search == BestOfN(4, Objective.of("few-2"))
    assert set(own) == {"few-2"}
    assert bound(named, {"few"}) == (named, {})
    assert pickle.loads(pickle.dumps(request)) == request


def test_where_a_function_cant_go_the_error_says_what_to_do() -> None:
    request = request_from_kwargs("go on", model="base", search=BestOfN(4, few))
    with pytest.raises(FormatError, match=r"search\.objective = .*Engine\(rewards={NAME: function}\)"):
        to_json(request)
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequest) as caught:
        client.generate("go on", model="base", search="best_of_n:4", objective=few)
    assert [violation.field for violation in caught.value.violations] == ["search.best_of_n.objective"]
    assert "a server's configuration as type = 'python'" in str(caught.value)
