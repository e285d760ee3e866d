"""What rewards say "of model X" is what model X says: of an answer's text, however and by whom it was written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.channel import results
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
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
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Candidate, FinishReason
from trimtab.decode.rewards.base import Sample
from trimtab.decode.rewards.rating import rate

Folder = Callable[..., Path]

TEXT = "say something about the sea"
PROMPTS: dict[str, Any] = {"text": TEXT, "chat": [{"role": "user", "content": TEXT}]}
SOURCES = {"base": ("llama", 0), "chat": ("mistral", 2), "foreign": ("qwen2", 7)}  # the last has ids of its own
POLICIES: dict[str, dict[str, Any]] = {
    "base": {},
    "nudged": {"policy": Nudged("chat", Entropy(3.0))},
    "always nudged": {"policy": Nudged("chat", Entropy(0.0))},
    "cross vocabulary": {"policy": Nudged("foreign", Entropy(3.0))},
    "mixture": {"policy": Mixture((Weighted("chat", -0.5),))},
    "token reward": {"policy": TokenReward("vowels", 3.0, 4)},
}
DRAWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "speculative": {"draw": Speculative("chat", Fixed(3))},
    "lookup": {"draw": Speculative(PromptLookup(2), Fixed(2))},
}
OF = {"likelihood": 1.0, "certainty": 0.5, "implicit": 0.1}  # an objective, all parts of which are reported
SEARCHES: dict[str, Any] = {
    "best": BestOfN(3, OF),
    "rejecting": BestOfN(4, OF, reject_fraction=0.5, check_every_tokens=4),
    "segments": Segments(OF, 2, 2, max_tokens=4, lookahead=2),
    "reject": RejectSegments(OF, target=-1.0, min_tokens=2, max_tokens=6, max_tries=3),
    "evolution": Evolution(OF, population=3, survivors=1, period_tokens=5, rounds=1),
    "refine": Refine(OF, rounds=1),
}
OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.9, "seed": 11, "model": "base"}


def vowels(prompt: str, text: str) -> float:
    return sum(map(text.count, "aeiou")) / (1 + len(text))


@pytest.fixture(scope="module")
def engine(tiny_folder: Folder) -> Iterator[Engine]:
    models = {n: ModelConfig(source=str(tiny_folder(k, seed)), dtype="float32") for n, (k, seed) in SOURCES.items()}
    rewards: dict[str, Any] = {
        "vowels": {"type": "python", "function": vowels, "kind": "token"},
        "never asks": {"type": "python", "function": lambda samples: [float(len(one.text)) for one in samples]},
        "likelihood": {"type": "likelihood", "model": "base"},
        "plain": {"type": "likelihood", "model": "base", "chat": False},
        "total": {"type": "likelihood", "model": "base", "power": 0.0},
        "of the helper": {"type": "likelihood", "model": "chat"},
        "certainty": {"type": "certainty", "model": "base"},
        "implicit": {"type": "implicit", "aligned": "chat", "base": "base"},
        "per token": {"type": "implicit", "aligned": "chat", "base": "base", "per_token": True},
    }  # fmt: skip
    with Engine(models, rewards=rewards, options=EngineOptions(memory_bytes=32 << 20, page_tokens=16)) as made:
        yield made
        made.check()


@pytest.fixture(scope="module")
def forwards(tiny_folder: Folder) -> dict[str, Any]:
    return {n: hf.AutoModelForCausalLM.from_pretrained(tiny_folder(k, seed)) for n, (k, seed) in SOURCES.items()}


@pytest.fixture(scope="module")
def spelled(tiny: Any) -> dict[str, Any]:
    """A bias that leaves tokens which no merge joins, and the end: what is written is read as the same tokens."""
    own = tiny.tokenizer()
    kept = {*own.convert_tokens_to_ids(list("bcjklmpquvxyz.,")), own.eos_token_id}
    return {"logit_bias": {token: -math.inf for token in range(tiny.VOCAB) if token not in kept}}


Said = Callable[[str, Any, str], list[tuple[float, float]]]


@pytest.fixture(scope="module")
def said(forwards: dict[str, Any], tiny: Any) -> Said:
    """``said(model, prompt, text)``: ln p of each of the text's tokens, and the entropy there, by the own forward."""
    own = tiny.tokenizer()

    def find(model: str, prompt: Any, text: str) -> list[tuple[float, float]]:
        if isinstance(prompt, str):
            ids = own(prompt, add_special_tokens=False)["input_ids"]
        else:
            shown = own.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            ids = own(shown, add_special_tokens=False)["input_ids"]
        answer = own(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            rows = forwards[model](input_ids=torch.tensor([ids + answer])).logits[0].double().log_softmax(-1)
        read = rows[len(ids) - 1 : len(ids) - 1 + len(answer)]
        return [(float(row[t]), float(-(row.exp() * row).sum())) for row, t in zip(read, answer, strict=True)]

    return find


def expected(said: Said, text: str, chat: Any = PROMPTS["chat"]) -> dict[str, float]:
    """The rewards of ``OF`` by their formulas."""
    base, helper = said("base", chat, text), said("chat", chat, text)
    n = len(base)
    return {
        "likelihood": math.fsum(p for p, _ in base) / n,
        "certainty": -math.fsum(h for _, h in base) / n,
        "implicit": math.fsum(p for p, _ in helper) - math.fsum(p for p, _ in base),
    }


def check(said: Said, candidates: Sequence[Candidate]) -> None:
    for candidate in candidates:
        if candidate.text.strip() and candidate.rewards:
            found = {name: candidate.rewards[name] for name in OF}
            assert found == pytest.approx(expected(said, candidate.text), abs=2e-3), candidate


def run(engine: Engine, method: Callable[[Any], Any]) -> Any:
    (result,) = results([partial(engine._launch, Request(model="base", prompt="-"), engine.models, method)])
    return result


# ----------------------------------------------------------------------------------------------- however it was written


SHORT = {("mixture", "lookup")} | {(policy, "plain") for policy in POLICIES}
WRITTEN = [
    pytest.param(policy, draw, marks=[] if (policy, draw) in SHORT else pytest.mark.full)
    for policy in POLICIES
    for draw in DRAWS
    if draw == "plain" or policy != "token reward"  # which are refused together
]


@pytest.mark.parametrize(("policy", "draw"), WRITTEN)
def test_ratings_are_of_the_model_whatever_wrote(
    engine: Engine, said: Said, spelled: dict[str, Any], policy: str, draw: str
) -> None:
    """Where the text is read as the tokens that were written, and (any bytes, a text for a prompt) where it isn't."""
    options = {**OPTIONS, **POLICIES[policy], **DRAWS[draw], "search": BestOfN(2, OF)}
    check(said, engine.generate(PROMPTS["chat"], **options, **spelled).candidates)
    check(said, engine.generate(TEXT, **options).candidates)


SLOW = ("best", "refine")


@pytest.mark.parametrize("search", [pytest.param(s, marks=[pytest.mark.full] * (s in SLOW)) for s in SEARCHES])
def test_ratings_are_to_the_request_s_own_prompt(
    engine: Engine, said: Said, spelled: dict[str, Any], search: str
) -> None:
    """Candidates of some searches are written after prompts of the search's own; they are rated after the user's."""
    result = engine.generate(PROMPTS["chat"], search=SEARCHES[search], **OPTIONS, **spelled)
    assert any(candidate.text and candidate.rewards for candidate in result.candidates)
    check(said, result.candidates)


@pytest.mark.parametrize("stop", [(".",), ("bc", "jk", "lm", "pq", "uv", "xy", "z.", ",b")], ids=["token", "tokens"])
def test_a_stop_that_is_taken_away_is_not_rated(
    engine: Engine, said: Said, spelled: dict[str, Any], stop: tuple[str, ...]
) -> None:
    """Where it stays in the text it is a part of it."""
    options = {**OPTIONS, "max_new_tokens": 40, "stop": stop, "search": BestOfN(4, OF)}
    for include in (False, True):
        found = engine.generate(PROMPTS["chat"], include_stop=include, **options, **spelled).candidates
        assert any(candidate.finish_reason is FinishReason.STOP for candidate in found)
        check(said, found)


def test_what_the_model_said_as_it_wrote_is_not_asked_again(engine: Engine, spelled: dict[str, Any]) -> None:
    """Only where it wrote these very tokens, alone, after the prompt that the reward reads."""

    def asked(prompt: Any, reward: str, **options: Any) -> bool:
        found: list[int] = []
        for objective in ("vowels", reward):
            result = engine.generate(prompt, search=BestOfN(2, objective), **{**OPTIONS, **spelled, **options})
            found.append({m.model: m.forward_passes for m in result.usage.models}["base"])
        return found[1] > found[0]

    chat = PROMPTS["chat"]
    assert not asked(chat, "likelihood")
    assert not asked(TEXT, "plain")
    assert asked(TEXT, "likelihood"), "written after the text, and read after a chat"
    assert asked(chat, "likelihood", **POLICIES["mixture"])
    assert asked(chat, "likelihood", logit_bias={}), "bytes that are no text"


# ------------------------------------------------------------------------------------------------- answers without text


def test_an_answer_that_says_nothing_never_wins(engine: Engine, tiny: Any) -> None:
    """A mean over no tokens would be 0, more than any text can have."""
    stop = tiny.tokenizer().convert_tokens_to_ids("b")
    options = {**OPTIONS, "stop": ("b",), "logit_bias": {stop: 6.0}, "search": BestOfN(8, OF)}
    for seed in range(2):
        found = engine.generate(PROMPTS["chat"], **{**options, "seed": seed})
        empty = [c for c in found.candidates if not c.text.strip()]
        assert empty
        for name in OF:
            best = max(c.rewards[name] for c in found.candidates if c.text.strip())
            assert all(math.isfinite(c.rewards[name]) and c.rewards[name] < best for c in empty)


@pytest.mark.parametrize("reward", ["likelihood", "total", "certainty", "implicit", "per token", "of the helper"])
def test_emptiness_is_one_blind_token(engine: Engine, said: Said, reward: str) -> None:
    """Of a beginning, the first token is expected as the model expects it."""
    chat = (ChatMessage("user", TEXT),)
    model = {"implicit": "chat", "per token": "chat", "of the helper": "chat"}.get(reward, "base")
    (_, entropy), *_ = said(model, PROMPTS["chat"], "x")
    samples = [Sample(chat, "", True), Sample(chat, " \n", True), Sample(chat, "", False), Sample(chat, " ", False)]
    ended, blank, begun, indented = (r.value for r in run(engine, lambda context: rate(context, reward, samples)))
    assert ended == blank != indented
    assert ended == pytest.approx(-math.log(engine._loop.scheduler.models[model].vocabulary.size))
    assert begun == pytest.approx(0.0 if reward in ("implicit", "per token") else -entropy, abs=1e-4)


def test_an_empty_answer_is_scored_by_its_end(engine: Engine, forwards: dict[str, Any], tiny: Any) -> None:
    """The score of a model is a sum of ln p: of the token that ends the answer, if there is none before it."""
    own = tiny.tokenizer()
    ids = own(TEXT, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        row = forwards["base"](input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
    empty, one = engine.score([(TEXT, ""), (TEXT, "x")], model="base")
    assert empty.value == pytest.approx(float(row[own.eos_token_id]), abs=1e-4)
    assert one.value == pytest.approx(float(row[own.convert_tokens_to_ids("x")]), abs=1e-4)
    assert [(t.id, t.author) for t in empty.tokens] == [(own.eos_token_id, "base")]
    assert (empty.token_count, empty.tokens[0].logprob) == (1, empty.value)


# ---------------------------------------------------------------------------------------------- prompts as token ids


@pytest.mark.parametrize("reward", ["likelihood", "plain", "certainty", "implicit", "vowels"])
def test_ids_of_nobody_are_refused_before_anything_runs(engine: Engine, reward: str) -> None:
    before = engine.stats().forward_passes
    with pytest.raises(InvalidRequest) as refused:
        engine.score([(TEXT, "x"), ([5, 6, 7], "x"), ([], "x")], reward=reward)
    assert [violation.field for violation in refused.value.violations] == ["items[1].prompt", "items[2].prompt"]
    assert "accepted: a text or chat messages" in str(refused.value)
    assert engine.stats().forward_passes == before
    assert engine.score([([5, 6, 7], "axe")], reward="never asks")[0].value == 3.0


def test_ids_of_the_requested_model_are_the_text_that_they_stand_for(engine: Engine, said: Said, tiny: Any) -> None:
    ids = tiny.tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
    found = engine.generate(ids, **OPTIONS, search=BestOfN(3, OF))
    check(said, found.candidates)
