"""Guidance by a second prompt, against transformers: its own guidance, and its forward passes mixed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from trimtab.decode import (
    BestOfN,
    Engine,
    EngineOptions,
    Fixed,
    Guided,
    InvalidRequest,
    ModelConfig,
    PromptLookup,
    Refine,
    Result,
    Speculative,
    chat,
)

PROMPT = [1, 40, 41, 42, 60, 61]
OTHER = "a bad cab"
GREEDY: dict[str, Any] = {"model": "base", "temperature": 0, "max_new_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def folders(tiny_folder: Callable[..., Path]) -> dict[str, Path]:
    return {"base": tiny_folder("llama", 0), "draft": tiny_folder("llama", 5)}


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path], one_thread: None) -> Iterator[Engine]:
    models = {name: ModelConfig(source=str(folder), dtype="float32") for name, folder in folders.items()}
    vowels = {"type": "python", "function": lambda prompt, text: sum(map(text.count, "aeiou"))}
    options = EngineOptions(memory_bytes=64 << 20, page_tokens=16)
    with Engine(models, rewards={"vowels": vowels}, options=options) as made:
        yield made
        made.check()


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folders["base"]).eval()


@pytest.fixture(scope="module")
def tokenizer(folders: dict[str, Path]) -> Any:
    return hf.AutoTokenizer.from_pretrained(folders["base"])


def ids(result: Result) -> list[int]:
    return [token.id for token in result.tokens]


@pytest.mark.parametrize("scale", [1.3, 3.0])
@pytest.mark.parametrize("other", [None, OTHER])
def test_greedy_answers_are_those_of_transformers(
    engine: Engine, model: Any, tokenizer: Any, scale: float, other: str | None
) -> None:
    negative = None if other is None else torch.tensor([tokenizer(other)["input_ids"]])
    theirs = model.generate(
        torch.tensor([PROMPT]),
        guidance_scale=scale,
        negative_prompt_ids=negative,
        do_sample=False,
        max_new_tokens=GREEDY["max_new_tokens"],
        eos_token_id=None,
        pad_token_id=0,
    )
    ours = engine.generate(PROMPT, policy=Guided(scale, other), **GREEDY)
    assert ids(ours) == theirs[0, len(PROMPT) :].tolist()
    assert ids(ours) != ids(engine.generate(PROMPT, **GREEDY))
    drafted = engine.generate(PROMPT, policy=Guided(scale, other), draw=Speculative("draft", Fixed(3)), **GREEDY)
    copied = engine.generate(PROMPT, policy=Guided(scale, other), draw=Speculative(PromptLookup(1)), **GREEDY)
    assert ids(drafted) == ids(copied) == ids(ours)
    assert drafted.usage.drafted_tokens > 0


@pytest.mark.parametrize("plausibility", [None, 0.2])
def test_figures_are_the_mixtures(engine: Engine, model: Any, tokenizer: Any, plausibility: float | None) -> None:
    policy = Guided(2.0, OTHER, plausibility=plausibility)
    result = engine.generate(PROMPT, model="base", policy=policy, max_new_tokens=16, seed=5, ignore_eos=True)
    negative, written = tokenizer(OTHER)["input_ids"], ids(result)

    def said(prompt: list[int]) -> Any:
        with torch.inference_mode():
            rows = model(input_ids=torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1]
        return rows.double().log_softmax(-1)

    asked = said(PROMPT)
    mixed = 2.0 * asked - said(negative)
    if plausibility is not None:
        mixed[asked.exp() < plausibility * asked.exp().amax(-1, keepdim=True)] = -torch.inf
    rows = mixed.log_softmax(-1)
    for token, row in zip(result.tokens, rows, strict=True):
        assert token.author == "base"
        assert token.logprob == pytest.approx(float(row[token.id]), abs=2e-4)
        p = row.exp()
        assert token.entropy == pytest.approx(float(-(p * row.nan_to_num(neginf=0)).sum()), abs=2e-4)
        assert token.top_prob == pytest.approx(float(p.max()), abs=1e-4)


@pytest.mark.parametrize("prompt", [PROMPT, "the sin", chat("the sin", system="and so")], ids=["ids", "text", "chat"])
def test_scale_one_is_the_model_alone(engine: Engine, prompt: Any) -> None:
    options = GREEDY | {"temperature": 1.0, "seed": 3}
    alone = engine.generate(prompt, **options)
    for policy in (Guided(1.0), Guided(1.0, OTHER)):
        guided = engine.generate(prompt, policy=policy, **options)
        assert ids(guided) == ids(alone)
        assert [t.logprob for t in guided.tokens] == pytest.approx([t.logprob for t in alone.tokens], abs=1e-4)


ASKED = chat("the sin", system="and so")
WHICH = {
    "its question": (Guided(0.0, "a bad cab"), chat("a bad cab", system="and so")),
    "its system message": (Guided(0.0, system="no"), chat("the sin", system="no")),
    "no system message": (Guided(0.0, system=""), chat("the sin")),
    "both": (Guided(0.0, "a bad cab", "no"), chat("a bad cab", system="no")),
}


@pytest.mark.parametrize("which", WHICH)
def test_scale_zero_is_the_model_on_the_other_prompt(engine: Engine, which: str) -> None:
    policy, other = WHICH[which]
    expected = ids(engine.generate(other, **GREEDY))
    assert ids(engine.generate(ASKED, policy=policy, **GREEDY)) == expected
    assert expected != ids(engine.generate(ASKED, **GREEDY))


def test_the_last_message_of_several_and_a_begun_answer(engine: Engine) -> None:
    turns = [("user", "the sin"), ("assistant", "and"), ("user", "so on"), ("assistant", "a c")]
    asked = [{"role": role, "content": content} for role, content in turns]
    other = [*asked[:2], {"role": "user", "content": OTHER}, asked[3]]
    guided = engine.generate(asked, policy=Guided(0.0, OTHER), **GREEDY)
    assert ids(guided) == ids(engine.generate(other, **GREEDY))


def test_searches_fork_both_prompts(engine: Engine) -> None:
    options: dict[str, Any] = {"model": "base", "policy": Guided(2.0, OTHER), "max_new_tokens": 12, "ignore_eos": True}
    alone = engine.generate(PROMPT, seed=4, **options)
    several = engine.generate(PROMPT, seed=4, search=BestOfN(4, "vowels"), **options)
    assert ids(alone) in [[token.id for token in candidate.tokens] for candidate in several.candidates]
    assert len({candidate.text for candidate in several.candidates}) > 1
    refined = engine.generate(chat("the sin"), seed=4, search=Refine("vowels", rounds=1), **options)
    assert len(refined.candidates) > 1


def test_requests_that_can_not_be(engine: Engine) -> None:
    def refused(prompt: Any, policy: Guided) -> str:
        with pytest.raises(InvalidRequest) as error:
            engine.generate(prompt, policy=policy, **GREEDY)
        (violation,) = error.value.violations
        return violation.field

    assert refused("x", Guided(1.5, system="no")) == "policy.guided.system"
    assert refused([{"role": "system", "content": "x"}], Guided(1.5, "no")) == "policy.guided.prompt"
    assert refused("x", Guided(1.5, "")) == "policy.guided.prompt"
    for scale in (-0.1, 1e7, math.nan, math.inf):
        assert refused("x", Guided(scale)) == "policy.guided.scale"
    assert refused("x", Guided(1.5, "ab " * 4000)) == "prompt"


def test_both_prompts_need_pages(folders: dict[str, Path]) -> None:
    """Room for one sequence of such a length, and not for two."""
    models = {"base": ModelConfig(source=str(folders["base"]), dtype="float32")}
    with Engine(models, options=EngineOptions(memory_bytes=1 << 18, page_tokens=16)) as small:
        total = 16 * small.stats().pages_total["base"]
        assert 128 <= total <= 2048, "else this shows nothing"
        options = GREEDY | {"max_new_tokens": total - 32}
        assert len(small.generate(PROMPT, **options).tokens) == total - 32
        with pytest.raises(InvalidRequest, match="max_new_tokens"):
            small.generate(PROMPT, policy=Guided(1.5, OTHER), **options)
        options = GREEDY | {"max_new_tokens": total // 2 - 32}
        assert len(small.generate(PROMPT, policy=Guided(1.5, OTHER), **options).tokens) == total // 2 - 32
        small.check()
