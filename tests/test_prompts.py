"""Which prompt each model of a request reads: in the form in which it came, whatever the policy and the draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.request.prompt import ChatMessage, chat
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Result, TokenDraw

Folder = Callable[..., Path]

CHAT = [{"role": "user", "content": "the sin and"}]
PROMPTS: dict[str, Any] = {"text": "the sin and", "ids": [9, 77, 140, 31], "chat": CHAT}
ALWAYS = Entropy(above=0.0)


@pytest.fixture(scope="module")
def engine(tiny_folder: Folder, foreign_folder: Path) -> Iterator[Engine]:
    """A base, its twin, a twin whose template differs, and a model of another vocabulary."""
    base = str(tiny_folder("llama", 0))
    other = "{% for m in messages %}<user>{{ m['content'] }}!{% endfor %}<bot>"
    models = {
        "base": ModelConfig(source=base, dtype="float32"),
        "twin": ModelConfig(source=str(tiny_folder("llama", 0, rms_norm_eps=1e-6)), dtype="float32"),
        "other": ModelConfig(source=base, dtype="float32", template=other),
        "foreign": ModelConfig(source=str(foreign_folder), dtype="float32"),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on two
    with Engine(models, options=EngineOptions(memory_bytes=64 << 20, page_tokens=16)) as made:
        yield made
        made.check()
    torch.set_num_threads(threads)


def ids(result: Result) -> list[int]:
    return [token.id for token in result.tokens]


def read(engine: Engine, name: str, **axes: Any) -> dict[str, list[int]]:
    """Token ids that each model reads."""
    request = engine._preparer.request(PROMPTS[name], {"model": "base", **axes})
    assert isinstance(request, Request)
    return {model: list(ids) for model, ids in engine._preparer.plan(request).prompts.items()}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("weight", [-0.5, 1.0])
def test_an_expert_like_its_base_changes_nothing(engine: Engine, name: str, weight: float) -> None:
    """(1 + w) ln p has the argmax of ln p, where both read the same prompt."""
    options: dict[str, Any] = {"model": "base", "temperature": 0, "max_new_tokens": 16, "ignore_eos": True}
    alone = engine.generate(PROMPTS[name], **options)
    mixed = engine.generate(PROMPTS[name], policy=Mixture((Weighted("twin", weight),)), **options)
    assert ids(mixed) == ids(alone)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_nudger_like_its_base_changes_nothing(engine: Engine, name: str) -> None:
    options: dict[str, Any] = {"model": "base", "temperature": 0, "max_new_tokens": 16, "ignore_eos": True}
    alone = engine.generate(PROMPTS[name], **options)
    nudged = engine.generate(PROMPTS[name], policy=Nudged("twin", when=ALWAYS), **options)
    assert {token.author for token in nudged.tokens} == {"twin"}
    assert ids(nudged) == ids(alone)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_draft_like_its_base_is_always_accepted(engine: Engine, name: str) -> None:
    fast = engine.generate(PROMPTS[name], model="base", draw=Speculative("twin", Fixed(4)), max_new_tokens=16, seed=3)
    assert fast.usage.drafted_tokens == fast.usage.accepted_tokens > 0
    assert not any(token.draw is TokenDraw.CORRECTED for token in fast.tokens)


@pytest.mark.parametrize("axes", [{"policy": Nudged("foreign")}, {"draw": Speculative("foreign")}], ids=str)
def test_another_vocabulary_reads_the_text(engine: Engine, axes: dict[str, Any]) -> None:
    tokenizer = engine._loop.scheduler.models["foreign"].vocabulary
    spelled = engine._loop.scheduler.models["base"].vocabulary.decode(PROMPTS["ids"])
    assert read(engine, "text", **axes)["foreign"] == tokenizer.encode(PROMPTS["text"])
    assert read(engine, "ids", **axes)["foreign"] == tokenizer.encode(spelled)
    # a base model's frame is put around a chat, and around nothing else
    framed = tokenizer.encode("Question: the sin and\nAnswer:")
    assert read(engine, "chat", **axes)["foreign"] == framed != read(engine, "text", **axes)["foreign"]


@pytest.mark.parametrize("policy", [Nudged("other"), Mixture((Weighted("other"),))], ids=str)
def test_only_a_chat_goes_through_templates_of_each(engine: Engine, policy: Any) -> None:
    for name in ("text", "ids"):
        prompts = read(engine, name, policy=policy)
        assert prompts["other"] == prompts["base"]
    prompts = read(engine, "chat", policy=policy)
    assert prompts["other"] != prompts["base"]
    assert prompts["other"] == engine._loop.scheduler.models["other"].template.encode(CHAT)
    # a draft with the base's ids follows the base's own prompt
    drafted = read(engine, "chat", draw=Speculative("other"))
    assert drafted["other"] == drafted["base"]


def test_chat_makes_the_messages_that_ask() -> None:
    assert [asdict(turn) for turn in chat("the sin and")] == CHAT
    turns = [("system", "Be brief."), ("user", "Why?"), ("assistant", "For")]
    assert chat("Why?", system="Be brief.", begin="For") == [ChatMessage(*turn) for turn in turns]


def test_text_is_no_question(engine: Engine) -> None:
    """As the docstring of ``generate`` says: the model goes on with a text, and answers ``chat`` of it."""
    asked, gone_on = (engine.generate(p, max_new_tokens=8, temperature=0) for p in (chat("the sin and"), "the sin and"))
    own = engine._loop.scheduler.models["base"]
    assert gone_on.usage.prompt_tokens == len(own.vocabulary.encode("the sin and", True))
    assert asked.usage.prompt_tokens == len(own.template.encode(CHAT)) != gone_on.usage.prompt_tokens
    assert asked.text == engine.generate(CHAT, max_new_tokens=8, temperature=0).text
