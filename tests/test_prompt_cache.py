"""A request may leave what is cached of others alone: its prompt is computed anew, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import TopProb
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.request.result import Result

PROMPT = tuple(range(40, 240))
NUMBERS: dict[str, Any] = {"model": "base", "temperature": 1.0, "max_new_tokens": 12, "seed": 7, "ignore_eos": True}


@pytest.fixture(params=["float32", "bfloat16"])
def engine(request: pytest.FixtureRequest, tiny_folder: Callable[..., Path]) -> Iterator[Engine]:
    models = {
        name: ModelConfig(source=str(tiny_folder("llama", seed)), dtype=request.param)
        for seed, name in enumerate(("base", "twin"))
    }
    with Engine(models, rewards={"size": len_of}, options=EngineOptions(memory_bytes=2**24)) as made:
        yield made
        made.check()


def len_of(prompt: Any, text: str) -> float:
    return float(len(text))


def figures(result: Result) -> list[Any]:
    return [(c.tokens, c.text, c.rewards) for c in result.candidates]


@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"policy": Nudged("twin", TopProb(0.5))},
        {"policy": Mixture((Weighted("twin", 0.5),))},
        {"draw": Speculative("twin")},
        {"search": BestOfN(3, "size")},
    ],
    ids=repr,
)
def test_without_the_cache_a_prompt_is_computed_anew(engine: Engine, axes: dict[str, Any]) -> None:
    options = {**NUMBERS, **axes}
    if "draw" in axes:  # lengths go by measured times
        options["temperature"] = 0.0
    cold = engine.generate(PROMPT, **options)
    warm = engine.generate(PROMPT, **options)
    again = engine.generate(PROMPT, **options, prompt_cache=False)
    assert warm.usage.cached_prompt_tokens > 0  # or there would be nothing to leave alone
    assert cold.usage.cached_prompt_tokens == again.usage.cached_prompt_tokens == 0
    if "draw" in axes:
        assert [token.id for token in again.tokens] == [token.id for token in cold.tokens]
    else:
        assert figures(again) == figures(cold)  # to the last bit


def test_candidates_of_one_request_share_their_prompt_all_the_same(engine: Engine) -> None:
    result = engine.generate(PROMPT, **NUMBERS, search=BestOfN(4, "size"), prompt_cache=False)
    (usage,) = result.usage.models
    assert usage.tokens_read < 2 * len(PROMPT)
    assert result.usage.cached_prompt_tokens == 0
