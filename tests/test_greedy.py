"""Greedy answers of the bundled models are those of transformers' ``generate``, token for token, in float32.

Where two tokens are so nearly tied that the order of additions decides, either is right: the margin is computed with
transformers' own forward and shown.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import transformers as hf

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.engine.memory import give_back
from trimtab.decode.request.result import FinishReason, Result

if TYPE_CHECKING:
    from conftest import RealModels

pytestmark = pytest.mark.real

NEW = 48
NEAR_TIE = 1e-4  # nats between the two most likely tokens
PROMPTS = (
    "What is the capital of Portugal, and which river flows through it?",
    "Give me three tips for sleeping better.",
    "Write a haiku about the sea in winter.",
    "def fibonacci(n):\n    ",
    "Explain the difference between a list and a tuple in Python.",
    "SELECT name, COUNT(*) FROM orders WHERE",
    "Calculate 17 * 23 step by step.",
    "If a train travels 120 km in 1.5 hours, what is its average speed?",
    "Was ist der Unterschied zwischen Wetter und Klima?",
    "¿Cuáles son los planetas del sistema solar?",
    "Traduisez en anglais : « La petite maison est près de la gare. »",
    "日本の首都はどこですか。",
    "Привет! Как дела?",
    "Summarise in one sentence: The committee could not agree on a budget and will meet again next week.",
    'Return a JSON object with the keys "name" and "age" for a person called Ada who is 36.',
    "Once upon a time, in a village at the edge of a great forest,",
    "List the prime numbers below 30.",
    "🙂🙃 What do these two emojis express?",
    "Correct the grammar: he go to school every days and like it much",
    "x",
)
FEW = 8  # asked where no slow test is run
PLAIN = (3, 5, 15)  # given as text; the others are questions of a chat
ALONE = (0, 3, 6)  # also run one at a time
GREEDY: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.0}


class Answered(NamedTuple):
    """Token ids that were asked, and the answer."""

    prompt: list[int]
    result: Result


Answers = dict[str, list[Answered]]


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, real_models: RealModels) -> Answers:
    """All that the tests compare. The engine is closed before transformers' models are loaded, for want of memory."""
    slow = any(item.get_closest_marker("full") for item in request.session.items if item.path == request.path)
    asked = PROMPTS if slow else PROMPTS[:FEW]
    models = {
        "chat": ModelConfig(source=str(real_models.aligned), dtype="float32"),
        "base": ModelConfig(source=str(real_models.base), dtype="float32"),
    }
    options = EngineOptions(memory_bytes=1 << 27, token_budget=200)  # so that prompts are cut into chunks
    with Engine(models=models, options=options) as engine:
        templates = {name: engine._loop.scheduler.models[name].template for name in models}

        def ask(prompts: list[list[int]], **options: Any) -> list[Answered]:
            return [Answered(*pair) for pair in zip(prompts, engine.generate(prompts, **options), strict=True)]

        chats = [p if i in PLAIN else [{"role": "user", "content": p}] for i, p in enumerate(asked)]
        sent = [templates["chat"].encode(chat) for chat in chats]
        made = {"together": ask(sent, model="chat", max_new_tokens=NEW, **GREEDY)}
        made["alone"] = [ask([sent[i]], model="chat", max_new_tokens=24, **GREEDY)[0] for i in ALONE]
        plain = [templates["chat"].encode(prompt) for prompt in PROMPTS[:6]]
        made["drawn"] = ask(plain[1:2], model="chat", temperature=0.8, seed=3, max_new_tokens=24, top_logprobs=3)
        other = [[*prompt[:-2], (prompt[-2] + 1) % 40_000, prompt[-1]] for prompt in plain]
        for name, prompts in (("plain", plain), ("other", other)):
            made[name] = ask(prompts, model="chat", temperature=0, max_new_tokens=16)
        foreign = [templates["base"].encode(PROMPTS[i]) for i in (0, 3, 7, 9, 15)]
        made["base"] = ask(foreign, model="base", max_new_tokens=32, **GREEDY)
        engine.check()
    gc.collect()
    give_back()
    return made


def reference(folder: Any) -> Any:
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    give_back()  # what its loading took
    return model


@pytest.fixture(scope="module")
def aligned(answers: Answers, real_models: RealModels) -> Any:
    return reference(real_models.aligned)


def generate(model: Any, prompts: Sequence[list[int]], new: int) -> list[list[int]]:
    """transformers' greedy continuations, in one batch padded on the left."""
    longest = max(map(len, prompts))
    ends = ends_of(model)
    ids = torch.tensor([[ends[0]] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    config = hf.GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=ends, pad_token_id=ends[0])
    with torch.inference_mode():
        rows = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    answers = []
    for row in rows[:, longest:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:end])
    return answers


def check(model: Any, prompt: list[int], result: Result, new: int) -> None:
    """Every token is the one that transformers' forward over all before it finds most likely, up to a near tie.

    By induction this is the greedy answer, at the cost of one forward pass.
    """
    found = [token.id for token in result.tokens]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + found[:-1]])).logits[0, len(prompt) - 1 :].double()
    for at, (token, row) in enumerate(zip(found, logits, strict=True)):
        margin = float(row.max() - row[token])
        if margin:
            print(f"near tie at token {at}: {token} is {margin:.2e} below {int(row.argmax())}")  # noqa: T201
        assert margin < NEAR_TIE, (at, token, int(row.argmax()))
    ended = found[-1] in ends_of(model)
    assert ended or len(found) == new
    assert result.finish_reason is (FinishReason.EOS if ended else FinishReason.MAX_NEW_TOKENS)


def ends_of(model: Any) -> list[int]:
    eos = model.generation_config.eos_token_id
    return [eos] if isinstance(eos, int) else list(eos)


def check_same(model: Any, answers: list[Answered], new: int) -> None:
    """The answers are those of ``generate``, or part from them at a near tie."""
    theirs = generate(model, [answer.prompt for answer in answers], new)
    for (prompt, result), expected in zip(answers, theirs, strict=True):
        check(model, prompt, result, new)
        found = [token.id for token in result.tokens]
        if found != expected:
            at = next(i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
            with torch.inference_mode():
                row = model(input_ids=torch.tensor([prompt + found[:at]])).logits[0, -1].double()
            assert abs(float(row[found[at]] - row[expected[at]])) < NEAR_TIE, (at, found[at], expected[at])


def test_many_prompts_at_once(answers: Answers, aligned: Any) -> None:
    for prompt, result in answers["together"]:
        check(aligned, prompt, result, NEW)
    texts = {result.text for _, result in answers["together"]}
    assert len(texts) == len(answers["together"]) >= FEW, "the prompts do not tell the answers apart"


def test_generate_itself_says_the_same(answers: Answers, aligned: Any) -> None:
    """Some of them one at a time, against ``generate`` as a user calls it."""
    for answer in answers["alone"]:
        check_same(aligned, [answer], 24)


@pytest.mark.full
def test_generate_itself_says_the_same_of_all(answers: Answers, aligned: Any) -> None:
    check_same(aligned, answers["together"], NEW)


def test_statistics_are_those_of_the_model(answers: Answers, aligned: Any) -> None:
    """Log-probability, entropy and top probability of every written token, from transformers' logits in float64."""
    ((prompt, result),) = answers["drawn"]
    ids = [token.id for token in result.tokens]
    with torch.inference_mode():
        logits = aligned(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
    logprobs = logits.log_softmax(-1)
    for token, row in zip(result.tokens, logprobs, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-3)
        assert token.entropy == pytest.approx(float(-(row.exp() * row).sum()), abs=1e-3)
        assert token.top_prob == pytest.approx(float(row.max().exp()), abs=1e-3)
        assert [top.logprob for top in token.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)


def test_gemma(answers: Answers, real_models: RealModels) -> None:
    model = reference(real_models.base)
    for prompt, result in answers["base"]:
        assert prompt[0] == model.config.bos_token_id, "Gemma needs its BOS"
        check(model, prompt, result, 32)


def test_negative_control_one_other_token_in_the_prompt_changes_answers(answers: Answers) -> None:
    pairs = zip(answers["plain"], answers["other"], strict=True)
    assert sum(ours.result.text != theirs.result.text for ours, theirs in pairs) >= 5
