"""Nudging through the engine, against transformers' own forward from an empty cache for every token; and its usage."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nudging_models as nm
import oracle_nudging as oracle
import pytest
import torch
import transformers as hf

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.engine.loop import tick
from trimtab.decode.engine.memory import give_back
from trimtab.decode.engine.request_state import Job, RequestState
from trimtab.decode.engine.scheduler import Scheduler
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Branching, Entropy, TopProb
from trimtab.decode.ops import Extend
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Result
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.text.templates import PromptTemplate
from trimtab.decode.text.vocabulary import Vocabulary
from trimtab.kernels.dispatch import pick
from trimtab.kernels.types import Filters, Key, Pick

BASE = [" the", " a", " sing", " on", "the", "s", "t", ".", "\n", b"\xc3", b"\xa9", " ", "Que"]
NUDGER = [" the", " an", " in", " sin", "and", "g", "s", ".\n", "\n", b"\xc3\xa9", b"\xf0\x9f", b"\x99", b"\x82"]


class Eager:
    """A model as transformers runs it, in float32 and without a cache."""

    def __init__(self, folder: str | Path) -> None:
        self.model = hf.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        eos = self.model.generation_config.eos_token_id
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        self.vocabulary = Vocabulary(tokenizer, eos_token_ids=[eos] if isinstance(eos, int) else eos)
        self.template = PromptTemplate(self.vocabulary)

    @torch.inference_mode()
    def reader(self, filters: Filters, key: Key) -> Callable[..., tuple[int, float, float]]:
        def read(tokens: Sequence[int], position: int, banned: Sequence[int]) -> tuple[int, float, float]:
            with torch.inference_mode():
                logits = self.model(torch.tensor([list(tokens)]), use_cache=False, logits_to_keep=1).logits[:, -1]
            found = pick(logits, [Pick(filters, key, position, list(tokens), banned)])
            return int(found.token[0]), float(found.stats.entropy[0]), float(found.stats.top_prob[0])

        return read


def check(base: Eager, nudger: Eager, engine: Engine, prompt: Any, policy: Nudged, **options: Any) -> Result:
    """The engine's answer equals the oracle's, and its usage adds up."""
    result = ask(engine, prompt, policy, **options)
    compare(
        base, nudger, result, {n: m.max_context_tokens for n, m in engine.models.items()}, prompt, policy, **options
    )
    return result


def ask(engine: Engine, prompt: Any, policy: Nudged, **options: Any) -> Result:
    result: Result = engine.generate(prompt, model="base", policy=policy, **options)
    usage_adds_up(result)
    settled(engine)
    return result


def compare(
    base: Eager, nudger: Eager, result: Result, limits: Mapping[str, int], prompt: Any, policy: Nudged, **options: Any
) -> None:
    """The answer equals the oracle's. Context limits are in tokens."""
    sampling = {k: options[k] for k in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty") if k in options}
    stopping = Stopping(**{k: v for k, v in options.items() if k in Stopping.__dataclass_fields__})
    filters, key = Filters(**sampling), Key(result.seed)
    speakers = [
        oracle.Speaker(
            name,
            eager.vocabulary,
            eager.reader(filters, branch),
            eager.template.encode(prompt),
            limits[name],
            begun=isinstance(prompt, str),
        )
        for name, eager, branch in (("base", base, key), ("chat", nudger, key.child(0, 2**32 - 1)))
    ]
    told = oracle.Oracle(*speakers, policy, stopping, base.template.stops(prompt)).run()
    assert [(token.author, token.id) for token in result.tokens] == told.tokens
    same_reasons(result, told.why)
    assert (result.text, result.finish_reason) == (told.text, told.finish_reason)
    assert result.chosen.stop_match == told.stop_match


def same_reasons(result: Result, expected: Sequence[oracle.Why]) -> None:
    """Each token has its reason, and the base's figures to within rounding."""
    for token, (reason, entropy, top_prob) in zip(result.tokens, expected, strict=True):
        assert token.reason == reason
        assert token.base_entropy == (None if entropy is None else pytest.approx(entropy, abs=2e-3))
        assert token.base_top_prob == (None if top_prob is None else pytest.approx(top_prob, abs=2e-3))


def usage_adds_up(result: Result) -> None:
    usage, models = result.usage, {m.model: m for m in result.usage.models}
    by = {name: sum(token.author == name for token in result.tokens) for name in ("base", "chat")}
    assert usage.nudged_tokens == by["chat"]
    assert usage.returned_tokens == len(result.tokens) == sum(by.values())
    assert usage.generated_tokens >= usage.returned_tokens
    for name, written in by.items():
        if name in models or written:
            assert models[name].tokens_written == written
    # Every token that stands was drawn in a pass of its own; a word of the nudger costs the base one more.
    assert models["base"].forward_passes <= 2 * len(result.tokens) + 2
    assert models["base"].tokens_read >= usage.prompt_tokens - usage.cached_prompt_tokens
    if "chat" in models:
        assert models["chat"].forward_passes >= by["chat"]


def settled(engine: Engine) -> None:
    assert not any(engine.stats().pages_used.values())
    engine.check()


# ------------------------------------------------------------------------------------------------- tiny random models


def _save(tiny: Any, kind: str, seed: int, support: Sequence[bytes | str], folder: Path, tokens: str) -> Path:
    """A random model that prefers ``support``: the other rows of its head are zero."""
    model = tiny.make(kind, seed, vocab_size=nm.vocabulary(tokens).size)
    eos = nm.special(tokens, "<eos>")
    kept = torch.zeros(model.config.vocab_size, 1)
    kept[[nm.token(tokens, piece) for piece in support]] = 2.0
    kept[eos] = 0.7
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(kept)
    model.generation_config = hf.GenerationConfig(eos_token_id=eos)
    model.save_pretrained(folder)
    nm.tokenizer(tokens).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("nudging")
    return {
        "base": _save(tiny, "llama", 1, BASE, where / "base", "base"),
        "chat": _save(tiny, "llama", 2, NUDGER, where / "chat", "nudger"),
        "twin": _save(tiny, "llama", 3, BASE, where / "twin", "base"),
    }


def _engine(folders: dict[str, Path], *names: str, **options: Any) -> Engine:
    configs = {
        name: ModelConfig(source=str(folders[source]), dtype="float32", device="cpu")
        for name, source in zip(("base", "chat"), names, strict=True)
    }
    return Engine(configs, options=EngineOptions(**options))


@pytest.fixture(scope="module")
def tiny_engine(folders: dict[str, Path]) -> Iterator[Engine]:
    with _engine(folders, "base", "chat", page_tokens=8, token_budget=24) as engine:
        yield engine
        settled(engine)


@pytest.fixture(scope="module")
def eager(folders: dict[str, Path]) -> dict[str, Eager]:
    return {name: Eager(folder) for name, folder in folders.items()}


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0, "policy": Nudged("chat", TopProb(0.4))},
    {"temperature": 0.0, "policy": Nudged("chat", Entropy(1.0), 3), "repetition_penalty": 1.3},
    {"temperature": 0.0, "policy": Nudged("chat", Entropy(3.0), 4), "repetition_penalty": 2.5, "max_new_tokens": 90},
    {"temperature": 0.9, "min_p": 0.1, "seed": 3, "policy": Nudged("chat", Branching(3.0))},
    {"temperature": 0.7, "top_k": 8, "seed": 4, "repetition_penalty": 1.2, "policy": Nudged("chat", TopProb(0.9))},
    {
        "temperature": 1.0,
        "min_p": 0.05,
        "top_p": 0.9,
        "seed": 5,
        "stop": ("s t", "é"),
        "policy": Nudged("chat", Entropy(0.3)),
    },
    {"temperature": 0.9, "min_p": 0.1, "seed": 6, "min_new_tokens": 30, "policy": Nudged("chat", TopProb(0.6))},
    {"temperature": 0.9, "min_p": 0.1, "seed": 7, "ignore_eos": True, "policy": Nudged("chat", TopProb(0.6))},
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_tiny_models_equal_the_oracle(eager: dict[str, Eager], tiny_engine: Engine, options: dict[str, Any]) -> None:
    written = set()
    for prompt in ("the sin", [{"role": "user", "content": "sing on"}] if options["temperature"] == 0 else "a\n"):
        if not isinstance(prompt, str):
            nudger = eager["chat"].template
            assert nudger.stops(prompt), "both tiny models take the plain frame"
        result = check(eager["base"], eager["chat"], tiny_engine, prompt, **{"max_new_tokens": 40, **options})
        written |= {token.author for token in result.tokens}
    assert "chat" in written


def test_answers_do_not_depend_on_who_else_is_served(folders: dict[str, Path], tiny_engine: Engine) -> None:
    """All at once, with other pages and budgets, and from a pool so small that requests lose their pages."""
    prompts = ["the sin", "a\n", "sing", "on the on"]
    requests = [
        tiny_engine._preparer.request(p, {"model": "base", **o, "max_new_tokens": 30})
        for p in prompts
        for o in OPTIONS[:4]
    ]
    alone = [tiny_engine.generate(p, model="base", **{**o, "max_new_tokens": 30}) for p in prompts for o in OPTIONS[:4]]
    per_token = 3 * 2 * 2 * 12 * 4  # layers, keys and values, heads, dimension, bytes
    for options in ({}, {"page_tokens": 8, "memory_bytes": 2 * 8 * per_token * 24, "token_budget": 16}):
        with _engine(folders, "base", "chat", **options) as engine:
            answers: list[list[Any]] = [[] for _ in requests]
            jobs = [engine.submit(request, events.append) for request, events in zip(requests, answers, strict=True)]
            for job in jobs:
                assert job.finished.wait(60)
            assert [events[-1].result.text for events in answers] == [result.text for result in alone]
        settled(engine)


@pytest.mark.parametrize("penalty", [1.0, 3.0])
def test_reads_of_one_pass_equal_reads_one_by_one(tiny_engine: Engine, penalty: float) -> None:
    """The repetition penalty too: a read sees the tokens up to its place, not those that were read with it."""
    key = Key(0)
    words = [token.id for token in tiny_engine.generate("the sin", model="base", temperature=0.0).tokens][:40]
    pages = tiny_engine._loop.scheduler.models["base"].pages

    async def at_once(run: RequestState, filters: Filters) -> list[int]:
        seq = run.open("base", words[:3])
        reads = await Extend(seq, words[3:], [Pick(filters, key, i) for i in range(len(words) - 2)])
        return [read.token for read in reads]

    async def singly(run: RequestState, filters: Filters) -> list[int]:
        seq = run.open("base", words[:3])
        reads = await Extend(seq, (), (Pick(filters, key, 0),))
        for i, word in enumerate(words[3:], 1):
            reads += await Extend(seq, (word,), (Pick(filters, key, i),))
        return [read.token for read in reads]

    penalised = Filters(repetition_penalty=penalty)
    found = _run(tiny_engine, lambda run: at_once(run, penalised))
    assert found == _run(tiny_engine, lambda run: singly(run, penalised))
    plain = _run(tiny_engine, lambda run: singly(run, Filters()))
    assert (found != plain) == (penalty != 1.0), "the penalty does change tokens here"
    assert pages.held == 0


def _run(engine: Engine, method: Callable[[RequestState], Any]) -> Any:
    """What a method returns, run on an idle engine's models."""
    models, events = engine._loop.scheduler.models, list[Any]()
    scheduler = Scheduler(models, 4, 64, engine.same_ids, lambda: None)
    job, request = Job("test", lambda: None), Request(model="base", prompt="x")
    scheduler.queue.append(
        RequestState(
            job, 0, request, method, engine._loop.scheduler.models, {}, {}, events.append, scheduler.copies, 0.0
        )
    )
    with torch.inference_mode():
        while not scheduler.idle:
            tick(scheduler)
    return events[-1]


def test_one_vocabulary_through_the_engine(folders: dict[str, Path], eager: dict[str, Eager]) -> None:
    """Never and always: the base alone and the nudger alone; in between, the oracle token by token."""
    with _engine(folders, "base", "twin", page_tokens=8) as engine:
        greedy: Any = {"max_new_tokens": 30, "temperature": 0.0}
        base = [token.id for token in engine.generate("the sin", model="base", **greedy).tokens]
        twin = [token.id for token in engine.generate("the sin", model="chat", **greedy).tokens]
        never = engine.generate("the sin", model="base", policy=Nudged("chat", TopProb(0.0)), **greedy)
        always = engine.generate("the sin", model="base", policy=Nudged("chat", TopProb(1.0)), **greedy)
        until = len(base) - (base[-1] in eager["base"].vocabulary.eos_token_ids)
        assert until > 5
        assert [token.id for token in never.tokens[:until]] == base[:until]
        assert {token.author for token in never.tokens[:until]} == {"base"}
        assert [token.id for token in always.tokens] == twin != base
        assert always.usage.nudged_tokens == len(twin)
        for seed, when in enumerate((TopProb(0.5), Entropy(1.0), Branching(2.5))):
            sampled: Any = {"max_new_tokens": 30, "temperature": 0.8, "min_p": 0.1, "seed": seed}
            result = engine.generate("the sin", model="base", policy=Nudged("chat", when), **sampled)
            tokens, why = _same_vocabulary(eager, "the sin", when, sampled)
            assert [(token.author, token.id) for token in result.tokens] == tokens
            same_reasons(result, why)
            usage_adds_up(result)
            models = {m.model: m for m in result.usage.models}
            assert models["base"].forward_passes == len(result.tokens)
            if result.usage.nudged_tokens:
                assert models["chat"].forward_passes == result.usage.nudged_tokens
                last = max(i for i, token in enumerate(result.tokens) if token.author == "chat")
                prompt_tokens = len(eager["twin"].template.encode("the sin"))
                # The nudger reads its prompt and, in one chunk per turn, what stands before its last token.
                assert models["chat"].tokens_read <= prompt_tokens + last
    settled(engine)


def _same_vocabulary(
    eager: dict[str, Eager], prompt: str, when: Any, options: dict[str, Any]
) -> tuple[list[tuple[str, int]], list[oracle.Why]]:
    """Tokens with their authors, and why each is its author's."""
    filters = Filters(temperature=options["temperature"], min_p=options["min_p"])
    key = Key(options["seed"])
    base, twin = eager["base"], eager["twin"]
    ask = {"base": base.reader(filters, key), "chat": twin.reader(filters, key.child(0, 2**32 - 1))}
    prompts = {"base": base.template.encode(prompt), "chat": twin.template.encode(prompt)}
    tokens: list[tuple[str, int]] = []
    why: list[oracle.Why] = []
    eos = base.vocabulary.eos_token_ids
    while len(tokens) < options["max_new_tokens"]:
        written = [token for _, token in tokens]
        author = "base"
        token, entropy, top_prob = ask["base"]([*prompts["base"], *written], len(tokens), ())
        match when:
            case TopProb(below):
                unsure = top_prob < below
            case Entropy(above):
                unsure = entropy > above
            case Branching(above):
                unsure = math.exp(entropy) > above
        why.append(("base_ends" if token in eos else "unsure" if unsure else "sure", entropy, top_prob))
        if unsure or token in eos:
            author = "chat"
            token, _, _ = ask["chat"]([*prompts["chat"], *written], len(tokens), ())
        tokens.append((author, token))
        if token in eos:
            break
    return tokens, why


# ------------------------------------------------------------------------------------------------------- the real pair

CHAT = [
    "Name two fruits, and say in one sentence which of them you like better.",
    "Was ist die Hauptstadt von Österreich? 答えは日本語で。",
    "Write a Python function that adds two numbers.",
    "Give me a list of three healthy habits.",
    "What is 12 + 30? Think step by step.",
    "Write a haiku about the sea 🌊.",
]


class Case(NamedTuple):
    """A question for the real pair."""

    question: str
    policy: Nudged
    options: dict[str, Any]

    @property
    def prompt(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.question}]


def check_real_pair(real_models: Any, cases: Sequence[Case]) -> list[Result]:
    """Like ``check``. The engine is closed before transformers' models are loaded, for want of memory."""
    sources = {"base": real_models.base, "chat": real_models.aligned}
    models = {name: ModelConfig(source=str(path), dtype="float32", device="cpu") for name, path in sources.items()}
    with Engine(models, options=EngineOptions(memory_bytes=2**27)) as engine:
        results = [ask(engine, case.prompt, case.policy, **case.options) for case in cases]
        limits = {name: model.max_context_tokens for name, model in engine.models.items()}
    gc.collect()
    give_back()
    base = Eager(sources["base"])
    give_back()  # what its loading took
    nudger = Eager(sources["chat"])
    for case, result in zip(cases, results, strict=True):
        compare(base, nudger, result, limits, case.prompt, case.policy, **case.options)
    return results


@pytest.mark.real
def test_the_real_pair_equals_the_oracle(real_models: Any) -> None:
    options = {"temperature": 0.0, "max_new_tokens": 16}
    (greedy,) = check_real_pair(real_models, [Case(CHAT[0], Nudged("chat", TopProb(0.4)), options)])
    assert {token.author for token in greedy.tokens} == {"base", "chat"}


@pytest.mark.real
@pytest.mark.full
def test_more_of_the_real_pair(real_models: Any) -> None:
    policies = [Nudged("chat", TopProb(0.3)), Nudged("chat", Entropy(1.5), 6), Nudged("chat", Branching(8.0))]
    options = {"top_p": 0.95, "repetition_penalty": 1.1, "seed": 7, "max_new_tokens": 40}
    cases = [
        Case(question, policies[i % 3], {**options, "temperature": temperature})
        for i, question in enumerate(CHAT)
        for temperature in (0.0, 0.9)
    ]
    for result in check_real_pair(real_models, cases):
        assert result.usage.nudged_tokens
