"""Rewards that ask models, on random ones: what is read piece by piece is what is read at once."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from trimtab.decode.config import ConfigError, EngineOptions, ModelConfig
from trimtab.decode.engine.channel import results
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import RewardFailed, UnsupportedRequest
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.models.load import load
from trimtab.decode.ops import Value
from trimtab.decode.request.events import Completed
from trimtab.decode.request.objective import Combine, Objective, RewardTerm
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.rewards.base import Sample
from trimtab.decode.rewards.judge import verdict_probabilities
from trimtab.decode.rewards.rating import compare, rate
from trimtab.decode.rewards.registry import make_rewards

PROMPT = (ChatMessage("user", "say something about the sea"),)
TEXT = "the sea is deep and the sand is warm, and there is wind in the air on the shore of the land"
LABELS = 5


@pytest.fixture(scope="module")
def reward_folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``reward_folder(kind, labels=1)``: a random decoder with a head, in a folder."""

    def make(kind: str, labels: int = 1, seed: int = 3) -> Path:
        config_name, model_name, arguments = tiny.KINDS[kind]
        own = tiny.tokenizer()
        config = getattr(hf, config_name)(
            **{**arguments, "num_labels": labels, "bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id}
        )
        config.pad_token_id = None
        name = model_name.replace("ForCausalLM", "ForSequenceClassification").replace(
            "LMHeadModel", "ForSequenceClassification"
        )
        name = name.replace("Gemma3For", "Gemma3TextFor")
        model = getattr(hf, name)(config).eval()
        tiny.randomise(model, seed)
        return Path(tiny.save(model, tmp_path_factory.mktemp(f"reward-{kind}")))

    return make


@pytest.fixture(scope="module")
def encoder_folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = tiny.tokenizer()
    config = hf.BertConfig(
        vocab_size=tiny.VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, pad_token_id=own.eos_token_id,
    )  # fmt: skip
    config.num_labels = 2
    model = hf.BertForSequenceClassification(config).eval()
    tiny.randomise(model, 5)
    model.save_pretrained(folder := tmp_path_factory.mktemp("encoder"))
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(
    tiny_folder: Callable[..., Path], reward_folder: Callable[..., Path], encoder_folder: Path
) -> Iterator[Engine]:
    quantiles = str(reward_folder("qwen2", LABELS))
    rewards: dict[str, Any] = {
        "trained": {"type": "classifier", "source": str(reward_folder("llama"))},
        "open": {"type": "classifier", "model": "trained.model", "partial": "open"},
        "mean": {"type": "classifier", "source": quantiles, "reading": "mean", "dtype": "float32"},
        "worst": {"type": "classifier", "model": "mean.model", "reading": "cvar", "level": 0.2},
        "low": {"type": "classifier", "model": "mean.model", "reading": "quantile", "level": 0.25},
        "third": {"type": "classifier", "model": "mean.model", "label": "LABEL_2"},
        "encoder": {"type": "classifier", "source": str(encoder_folder), "label": 1, "reads": "pair"},
        "judge": {"type": "judge", "model": "base", "rules": ["it is short", "it is about the sea"]},
        "graded": {"type": "judge", "model": "other", "verdicts": {"one": 1, "two": 2, "three": 3}},
        "pairwise": {"type": "pairwise_judge", "model": "base"},
        "implicit": {"type": "implicit", "aligned": "other", "base": "base"},
        "likelihood": {"type": "likelihood", "model": "base"},
        "total": {"type": "likelihood", "model": "base", "power": 0.0},
        "certainty": {"type": "certainty", "model": "other"},
        "short": lambda prompt, text: -len(text),
        "broken": lambda prompt, text: 1 / len(text),
        "slow": {"type": "python", "function": lambda prompt, text: time.sleep(1) or 0.0, "timeout": 0.1},
        "profile": {"type": "profile", "terms": {"trained": 1.0, "short": 0.01}},
        "rank": {"type": "calibrated", "reward": "short", "model": "base", "samples": 8, "max_new_tokens": 6},
        "centred": {
            "type": "python",
            "function": lambda prompt, text: -len(text),
            "reference": {"model": "base", "samples": 8, "max_new_tokens": 6, "quantile": 0.5},
        },
    }  # fmt: skip
    # "trained.model" is brought by one reward and named by another: it has to be a model of the engine for that.
    models: dict[str, Any] = {
        "base": ModelConfig(source=str(tiny_folder("llama")), dtype="float32"),
        "other": ModelConfig(source=str(tiny_folder("qwen2", seed=7)), dtype="float32"),
    }
    for name in ("trained", "mean"):
        models[f"{name}.model"] = ModelConfig(source=rewards[name].pop("source"), role="reward", dtype="float32")
        rewards[name]["model"] = f"{name}.model"
        rewards[name].pop("dtype", None)
    options = EngineOptions(memory_bytes=8 << 20, page_tokens=16)
    with Engine(models, rewards=rewards, options=options) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "engine" in request.fixturenames:
        stats = request.getfixturevalue("engine").stats()
        assert not any(stats.pages_used.values())


def run(engine: Engine, make: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """The result of a method that runs as a request of its own."""
    (result,) = results([partial(engine._launch, Request(model="base", prompt="-"), engine.models, make)])
    return result


def ratings(engine: Engine, objective: Any, samples: Sequence[Sample]) -> list[float]:
    return [rating.value for rating in run(engine, lambda context: rate(context, objective, samples))]


def beginnings(finished: bool = False) -> list[Sample]:
    return [Sample(PROMPT, TEXT[:n], finished) for n in (0, 9, 10, 31, 60, len(TEXT))]


NEURAL = ("trained", "open", "mean", "worst", "low", "third", "encoder", "judge", "graded", "implicit", "likelihood",
          "total", "certainty", "profile")  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the protocol


@pytest.mark.parametrize("name", NEURAL)
def test_a_rating_depends_on_its_own_sample_alone(engine: Engine, name: str) -> None:
    samples = beginnings(finished=True)
    together = ratings(engine, name, samples)
    assert together != [together[0]] * len(together)
    assert ratings(engine, name, samples[::-1])[::-1] == pytest.approx(together, abs=2e-5)
    assert [ratings(engine, name, [s])[0] for s in samples] == pytest.approx(together, abs=2e-5)


# -------------------------------------------------------------------------------------------------------- reward models


def by_transformers(folder: str, samples: Sequence[Sample], tiny: Any, pooling: str = "last") -> list[list[float]]:
    """What the model's own forward gives for the whole text, one by one."""
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    own, found = tiny.tokenizer(), []
    for sample in samples:
        prompt: Any = sample.prompt
        said = [{"role": turn.role, "content": turn.content} for turn in prompt]
        text = own.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        answer = own(sample.text, add_special_tokens=False)["input_ids"]
        ids = own(text, add_special_tokens=False)["input_ids"] + answer
        with torch.inference_mode():
            if pooling == "mean":
                scores = model.score(model.model(input_ids=torch.tensor([ids])).last_hidden_state)[0]
                found.append(scores[-max(1, len(answer)) :].mean(0).tolist())
            else:
                found.append(model(input_ids=torch.tensor([ids])).logits[0].tolist())
    return found


def test_reading_piece_by_piece_is_reading_at_once(engine: Engine, tiny: Any) -> None:
    """Twice round: cold, and with all that earlier beginnings left behind."""
    source = engine.models["trained.model"].source
    expected = [v for (v,) in by_transformers(source, beginnings(), tiny)]
    engine._loop.scheduler.models["trained.model"].pages.forget()
    pieces = [ratings(engine, "trained", [sample])[0] for sample in beginnings()]
    again = ratings(engine, "trained", beginnings())
    engine._loop.scheduler.models["trained.model"].pages.forget()
    whole = ratings(engine, "trained", beginnings()[-1:])
    assert pieces == pytest.approx(expected, abs=1e-4)
    assert again == pytest.approx(expected, abs=1e-4)
    assert whole == pytest.approx(expected[-1:], abs=1e-4)


def test_a_longer_beginning_costs_its_new_tokens_only(engine: Engine) -> None:
    view = engine._loop.scheduler.models["trained.model"]

    def read(sample: Sample) -> tuple[int, int]:
        before: list[int] = []

        async def counted(context: Any) -> None:
            await rate(context, "trained", [sample])
            counter = context.counter("trained.model")
            before.extend((counter.tokens_read, counter.cached_tokens))

        run(engine, counted)
        return before[0], before[1]

    view.pages.forget()
    cold, _ = read(Sample(PROMPT, TEXT[:60], False))
    warm, known = read(Sample(PROMPT, TEXT, False))
    assert warm < cold / 2
    assert known > 0
    view.pages.forget()
    assert read(Sample(PROMPT, TEXT, False))[0] > cold  # the control: with nothing known, all is read


def test_candidates_read_their_prompt_once(engine: Engine) -> None:
    view = engine._loop.scheduler.models["trained.model"]
    samples = [Sample(PROMPT, TEXT[:20] + letter) for letter in "abcdefgh"]
    prompt = len(view.template.encode(PROMPT))

    async def counted(context: Any) -> int:
        await rate(context, "trained", samples)
        return int(context.counter("trained.model").tokens_read)

    view.pages.forget()
    read = run(engine, counted)
    answers = sum(len(view.vocabulary.encode(s.text, False, continues=True)) for s in samples)
    again = len(samples) * view.pages.min_reuse  # the end of the prompt that is too short to be worth a copy
    assert prompt + answers <= read < prompt + answers + again < len(samples) * prompt + answers


def test_the_turn_is_closed_as_the_template_closes_it(tiny: Any, tiny_folder: Callable[..., Path]) -> None:
    from trimtab.decode.text.templates import BASE_TEMPLATE, PromptTemplate
    from trimtab.decode.text.vocabulary import Vocabulary

    vocabulary = Vocabulary(tiny.tokenizer(), name="tiny")
    closing = (
        "{% for m in messages %}<user>{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>\n{% endif %}{% endfor %}"
    )
    ids = PromptTemplate(vocabulary, closing).turn_end()
    assert vocabulary.decode(ids) == "<eos>\n"
    assert PromptTemplate(vocabulary).turn_end() == []
    assert PromptTemplate(vocabulary, BASE_TEMPLATE).turn_end() == []


def test_a_suffix_counts_for_finished_answers(tiny: Any, tiny_folder: Callable[..., Path], reward_folder: Any) -> None:
    closing = (
        "{% for m in messages %}<user>{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    )
    table = {"type": "classifier", "source": str(reward_folder("llama")), "template": closing}
    rewards = {"closed": table, "open": {**table, "partial": "open"}}
    with Engine(
        {"base": str(tiny_folder("llama"))}, rewards=rewards, options=EngineOptions(memory_bytes=8 << 20)
    ) as engine:
        partial, finished = Sample(PROMPT, TEXT, False), Sample(PROMPT, TEXT, True)
        closed = ratings(engine, "closed", [partial, finished])
        opened = ratings(engine, "open", [partial, finished])
        assert engine.rewards["closed"].models == ("closed.model",)
        assert engine.models["closed.model"].role == "reward"
    assert closed == pytest.approx([opened[1]] * 2, abs=1e-5)
    assert abs(opened[0] - opened[1]) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3"])
def test_every_architecture_rates_as_its_own_forward(kind: str, reward_folder: Any, tiny: Any) -> None:
    folder = str(reward_folder(kind, 2))
    rewards = {"r": {"type": "classifier", "model": "m", "label": 1}}
    models = {"m": ModelConfig(source=folder, role="reward", dtype="float32")}
    with Engine(models, rewards=rewards, options=EngineOptions(memory_bytes=8 << 20)) as engine:
        found = [scored.value for scored in engine.score([(PROMPT, s.text) for s in beginnings()], reward="r")]
    expected = [outputs[1] for outputs in by_transformers(folder, beginnings(), tiny)]
    assert found == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("given", ["option", "config"])
def test_a_mean_is_over_the_tokens_of_the_answer(
    given: str, reward_folder: Any, tiny: Any, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(reward_folder("llama"), tmp_path / "model")
    table = {"type": "classifier", "source": str(folder), "dtype": "float32"}
    if given == "option":
        table["pooling"] = "mean"
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "reward_pooling": "mean"}))
    samples = [*beginnings(), Sample(PROMPT, "")]
    expected = [v for (v,) in by_transformers(str(folder), samples, tiny, "mean")]
    last = [v for (v,) in by_transformers(str(folder), samples, tiny)]
    assert max(abs(a - b) for a, b in zip(expected, last, strict=True)) > 1e-3
    rewards = {"mean": table, "last": {**table, "pooling": "last"}}
    options = EngineOptions(memory_bytes=8 << 20)
    with Engine({"base": str(tiny_folder("llama"))}, rewards=rewards, options=options) as engine:
        for _ in range(2):  # cold, and with all that was read before
            assert [ratings(engine, "mean", [s])[0] for s in samples] == pytest.approx(expected, abs=1e-4)
        assert ratings(engine, "mean", samples) == pytest.approx(expected, abs=1e-4)
        assert ratings(engine, "last", samples) == pytest.approx(last, abs=1e-4)


def test_pooling_that_cannot_be_is_named(reward_folder: Any) -> None:
    table = {"type": "classifier", "source": str(reward_folder("llama"))}
    with pytest.raises(ConfigError, match=r"rewards\.x\.pooling = .*first.*accepted: .*last.*mean"):
        make_rewards({"x": {**table, "pooling": "first"}})
    with pytest.raises(ConfigError, match=r"rewards\.x\.pooling = .*mean.*accepted: last"):
        make_rewards({"x": {**table, "pooling": "mean", "on": "thread"}})


def test_a_reward_model_that_says_the_same_of_everything_is_served(tiny: Any, tmp_path: Path) -> None:
    arguments = {**tiny.KINDS["llama"][2], "num_labels": 1, "pad_token_id": 0}
    model = hf.LlamaForSequenceClassification(hf.LlamaConfig(**arguments)).eval()
    tiny.randomise(model, 5)
    with torch.no_grad():
        model.score.weight.zero_()  # as a training leaves it that had nothing to learn from
    source = str(tiny.save(model, tmp_path / "indifferent"))
    reward = {"type": "classifier", "source": source}
    with Engine({"m": str(tiny.save(tiny.make("llama"), tmp_path / "m"))}, rewards={"none": reward}) as engine:
        scores = engine.score([("a", "b"), ("c", "d e f")], reward="none")
    assert [score.value for score in scores] == [0.0, 0.0]


def test_a_model_without_labels_is_no_reward_model(tiny: Any, tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    config_name, _, arguments = tiny.KINDS["llama"]
    model = hf.LlamaForSequenceClassification(getattr(hf, config_name)(**{**arguments, "num_labels": 1}))
    folder = tiny.save(model, tmp_path)
    loaded = load("fine", ModelConfig(source=str(folder), dtype="float32"))
    assert loaded.labels == ("LABEL_0",)
    with pytest.raises(ConfigError, match=r"rewards\.x\.type.*LlamaForCausalLM.*ForSequenceClassification"):
        make_rewards({"x": {"type": "classifier", "source": str(tiny_folder("llama"))}})


def test_an_encoder_reads_the_whole_pair(engine: Engine, encoder_folder: Path, tiny: Any) -> None:
    model = hf.AutoModelForSequenceClassification.from_pretrained(encoder_folder).eval().requires_grad_(False)
    own = tiny.tokenizer()
    expected = []
    for sample in beginnings():
        read = own(PROMPT[0].content, sample.text, return_tensors="pt")
        expected.append(float(model(**dict(read.items())).logits[0, 1]))
    assert ratings(engine, "encoder", beginnings()) == pytest.approx(expected, abs=1e-5)
    assert engine.rewards["encoder"].models == ()


def test_readings_of_one_head_agree(engine: Engine) -> None:
    samples = beginnings()

    async def outputs(context: Any) -> list[list[float]]:
        found = []
        for sample in samples:
            ids = context.render("mean.model", PROMPT)
            ids += context.vocabulary("mean.model").encode(sample.text, False, continues=True)
            seq = context.open("mean.model", ids)
            found.append(await Value(seq))
            seq.close()
        return found

    raw = run(engine, outputs)
    assert ratings(engine, "third", samples) == pytest.approx([row[2] for row in raw], abs=1e-5)
    low, mean, worst = (ratings(engine, name, samples) for name in ("low", "mean", "worst"))
    for row, q, m, w in zip(raw, low, mean, worst, strict=True):
        assert min(row) - 1e-6 <= w <= q <= max(row)
        assert w <= m


@pytest.mark.parametrize("name", ["trained", "encoder"])
def test_what_is_too_long_is_said(engine: Engine, name: str) -> None:
    with pytest.raises(RewardFailed, match=rf"'{name}' failed.*the answer takes \d+ tokens; accepted: at most"):
        ratings(engine, name, [Sample(PROMPT, TEXT * 200)])
    with pytest.raises(RewardFailed, match="not token ids"):
        ratings(engine, name, [Sample((1, 2, 3), TEXT)])
    assert ratings(engine, name, [Sample(PROMPT, TEXT)])


# --------------------------------------------------------------------------------------------------------------- judges


def test_order_counts_nothing_for_a_pairwise_judge(engine: Engine) -> None:
    texts = ["good", "bad and long", "", TEXT]
    pairs = [(Sample(PROMPT, a), Sample(PROMPT, b)) for a in texts for b in texts]
    odds = run(engine, lambda context: compare(context, "pairwise", pairs))
    back = run(engine, lambda context: compare(context, "pairwise", [(b, a) for a, b in pairs]))
    assert [p + q for p, q in zip(odds, back, strict=True)] == pytest.approx([1.0] * len(pairs), abs=1e-6)
    for (a, b), p in zip(pairs, odds, strict=True):
        assert p == pytest.approx(0.5, abs=1e-6) if a.text == b.text else abs(p - 0.5) > 1e-6


def test_verdicts_are_the_model_s_probabilities(engine: Engine, tiny: Any, tiny_folder: Callable[..., Path]) -> None:
    model = hf.AutoModelForCausalLM.from_pretrained(tiny_folder("llama")).eval()
    own, asked, words = tiny.tokenizer(), "is the sea wide?", ("Yes", "No", "the")
    found = run(engine, lambda context: verdict_probabilities(context, "base", asked, words))
    rendered = own.apply_chat_template([{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True)
    prompt = own(rendered, add_special_tokens=False)["input_ids"]
    logs = []
    for word in words:
        ids = own(word, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            rows = model(input_ids=torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        logs.append(sum(float(rows[len(prompt) - 1 + i, token]) for i, token in enumerate(ids)))
    expected = torch.tensor(logs, dtype=torch.float64).softmax(0).tolist()
    assert found == pytest.approx(expected, abs=1e-4)
    assert sum(found) == pytest.approx(1)


def test_a_judge_s_rating_is_the_mean_over_its_rules(engine: Engine) -> None:
    whole = ratings(engine, "judge", beginnings(True))
    reward = engine._rewards["judge"]
    parts = []
    for rule in reward.rules:  # type: ignore[attr-defined]
        asked = [reward._asked(sample, rule) for sample in beginnings(True)]  # type: ignore[attr-defined]
        parts.append([run(engine, lambda c, a=a: verdict_probabilities(c, "base", a, ("Yes", "No")))[0] for a in asked])
    assert whole == pytest.approx([sum(column) / 2 for column in zip(*parts, strict=True)], abs=1e-5)
    assert all(1 <= value <= 3 for value in ratings(engine, "graded", beginnings(True)))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"template": "Rate {answer}"}, r"rewards\.j\.template.*\{prompt\}"),
        ({"template": "{prompt} {answer} {rubrik}"}, r"rewards\.j\.template.*rubrik"),
        ({"template": "{prompt} {answer"}, r"rewards\.j\.template"),
        ({"template": "{prompt} {answer}", "rules": ["a", "b"]}, r"template.*\{rubric\}"),
        ({"verdicts": {"Yes": 1}}, r"rewards\.j\.verdicts.*at least two"),
        ({"verdicts": {"Yes": 1, "No": math.nan}}, r"rewards\.j\.verdicts\.No"),
        ({"model": "nobody"}, r"rewards\.j\.model.*'m'"),
        ({"rules": []}, r"rewards\.j\.rules"),
        ({"rubric": "x", "rules": ["y"]}, r"rewards\.j\.rules"),
        ({"type": "pairwise_judge", "template": "{prompt} {answer_a}"}, r"rewards\.j\.template.*answer_b"),
        ({"type": "pairwise_judge", "verdicts": ["A", "A"]}, r"rewards\.j\.verdicts"),
    ],
)
def test_a_judge_s_options_are_checked(options: dict[str, Any], named: str) -> None:
    table = {"type": "judge", "model": "m", **options}
    with pytest.raises(ConfigError, match=named):
        make_rewards({"j": table}, {"m": ModelConfig(source="x")})


# ---------------------------------------------------------------------------------------------------------- likelihoods


def logprob(folder: Path, prompt: Sequence[int], answer: Sequence[int]) -> tuple[float, float]:
    """Sum of log-probabilities and of entropies by the model's own forward."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        rows = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    read = rows[len(prompt) - 1 : len(prompt) + len(answer) - 1]
    entropy = -(read.exp() * read).sum(-1)
    return sum(float(row[token]) for row, token in zip(read, answer, strict=True)), float(entropy.sum())


def test_likelihoods_are_those_of_the_models(engine: Engine, tiny_folder: Callable[..., Path], tiny: Any) -> None:
    own = tiny.tokenizer()
    prompt = engine._loop.scheduler.models["base"].template.encode(PROMPT)
    answer = own(TEXT, add_special_tokens=False)["input_ids"]
    base, _ = logprob(tiny_folder("llama"), prompt, answer)
    other, entropy = logprob(tiny_folder("qwen2", seed=7), prompt, answer)
    sample = [Sample(PROMPT, TEXT)]
    assert ratings(engine, "total", sample)[0] == pytest.approx(base, rel=1e-4)
    assert ratings(engine, "likelihood", sample)[0] == pytest.approx(base / len(answer), rel=1e-4)
    assert ratings(engine, "implicit", sample)[0] == pytest.approx(other - base, rel=1e-3, abs=1e-3)
    assert ratings(engine, "certainty", sample)[0] == pytest.approx(-entropy / len(answer), rel=1e-4)


# ------------------------------------------------------------------------------------------------ calibration, profiles


def test_a_calibrated_reward_is_a_quantile_of_the_base_s_answers(engine: Engine) -> None:
    samples = [Sample(PROMPT, "x" * n) for n in (0, 3, 12, 400)]
    ranks = ratings(engine, "rank", samples)
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] >= 0.5
    assert ranks[-1] == 0
    assert ranks == ratings(engine, "rank", samples[::-1])[::-1]


def test_log_sigmoid_has_its_middle_at_the_reference(engine: Engine) -> None:
    objective = Objective((RewardTerm("centred"),), Combine.LOG_SIGMOID)
    reward = engine._rewards["centred"]
    drawn = run(engine, lambda context: reward.reference.values(context, reward, [Sample(PROMPT, "")]))[0]  # type: ignore[union-attr]
    middle = -(drawn[3] + drawn[4]) / 2
    below, above = ratings(
        engine,
        objective,
        [Sample(PROMPT, "x" * (math.floor(middle) - 1)), Sample(PROMPT, "x" * (math.ceil(middle) + 1))],
    )
    assert above < math.log(0.5) < below < 0


def test_a_profile_is_its_sum(engine: Engine) -> None:
    samples = beginnings(True)
    trained, short = ratings(engine, "trained", samples), ratings(engine, "short", samples)
    expected = [a + 0.01 * b for a, b in zip(trained, short, strict=True)]
    assert ratings(engine, "profile", samples) == pytest.approx(expected, abs=1e-5)
    assert engine.rewards["profile"].kind == "sequence"  # as a function of which nobody says more
    assert engine.rewards["profile"].models == ("trained.model",)


def test_a_failing_reward_fails_its_own_request_alone(engine: Engine) -> None:
    search: dict[str, Any] = {"search": BestOfN(2, objective="short"), "max_new_tokens": 16, "seed": 5, "model": "base"}
    expected = engine.generate(list(PROMPT), **search).text
    other = engine.stream(list(PROMPT), **search)
    items = [(PROMPT, "fine"), (PROMPT, "")]
    with pytest.raises(RewardFailed, match="'broken' failed: it raised ZeroDivisionError"):
        engine.score(items, reward="broken")
    with pytest.raises(RewardFailed, match=r"'slow' failed: it took longer than its limit of 0\.1 s") as failure:
        engine.score(items, reward="slow")
    assert failure.value.timed_out
    *_, last = other
    assert isinstance(last, Completed)
    assert last.result.text == expected


@pytest.mark.real
@pytest.mark.full
def test_the_real_pair_prefers_sense_to_nonsense(real_models: Any) -> None:
    sense = "The capital of France is Paris, a city on the river Seine."
    words = sense.split()
    nonsense = [" ".join(random.Random(i).sample(words, len(words))) for i in range(3)]
    prompt = (ChatMessage("user", "What is the capital of France?"),)
    rewards = {
        "likelihood": {"type": "likelihood", "model": "chat"},
        "implicit": {"type": "implicit", "aligned": "chat", "base": "base"},
        "judge": {"type": "judge", "model": "chat"},
    }
    models = {"chat": str(real_models.aligned), "base": str(real_models.base)}
    with Engine(models, rewards=rewards, options=EngineOptions(memory_bytes=300 << 20)) as engine:
        found = {
            name: [scored.value for scored in engine.score([(prompt, t) for t in (sense, *nonsense)], reward=name)]
            for name in rewards
        }
    assert found["likelihood"][0] > max(found["likelihood"][1:]) + 1
    assert len(set(found["implicit"])) == 4  # models of two vocabularies read the same texts
    assert all(0 < value < 1 for value in found["judge"])


def test_a_pairwise_reward_rates_nothing(engine: Engine) -> None:
    with pytest.raises(UnsupportedRequest, match="pairwise"):
        ratings(engine, "pairwise", beginnings())


# -------------------------------------------------------------------------------------------------- options of all that


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"type": "classifier"}, r"rewards\.x\.source"),
        ({"type": "classifier", "source": "nowhere/at-all"}, r"rewards\.x\.type.*nowhere/at-all"),
        ({"type": "classifier", "source": "a", "model": "b"}, r"rewards\.x\.source"),
        ({"type": "classifier", "source": "ENCODER"}, r"rewards\.x\.reading"),
        ({"type": "classifier", "source": "ENCODER", "label": "LABEL_9"}, r"rewards\.x\.label.*LABEL_0"),
        ({"type": "classifier", "source": "ENCODER", "label": 0, "on": "engine"}, r"rewards\.x\.on"),
        ({"type": "classifier", "source": "ENCODER", "reading": "cvar", "level": 0}, r"rewards\.x\.level"),
        ({"type": "classifier", "source": "ENCODER", "reading": "cvar", "label": 0}, r"rewards\.x\.label"),
        ({"type": "classifier", "source": "ENCODER", "reading": "median"}, r"rewards\.x\.reading.*quantile"),
        ({"type": "implicit", "aligned": "m", "base": "m"}, r"rewards\.x\.base"),
        ({"type": "likelihood", "model": "m", "power": 3}, r"rewards\.x\.power"),
        ({"type": "calibrated", "reward": "x", "model": "m"}, r"rewards\.x\.reward.*build on"),
        ({"type": "calibrated", "reward": "y", "model": "m", "samples": 1}, r"rewards\.x\.samples"),
        ({"type": "profile", "terms": {"y": math.inf}}, r"rewards\.x\.terms\.y"),
        ({"type": "logistic", "weights": {"z": 1.0}}, r"rewards\.x\.weights\.z"),
        ({"type": "similarity", "source": "nowhere/at-all"}, r"rewards\.x\.source"),
    ],
)
def test_options_are_checked(table: dict[str, Any], named: str, encoder_folder: Path) -> None:
    table = {k: str(encoder_folder) if v == "ENCODER" else v for k, v in table.items()}
    with pytest.raises(ConfigError, match=named):
        make_rewards({"x": table, "y": len}, {"m": ModelConfig(source="unused")})


def test_similarity_is_the_cosine_of_mean_states(encoder_folder: Path, tiny: Any, tmp_path: Path) -> None:
    reward = make_rewards({"s": {"type": "similarity", "source": str(encoder_folder)}})["s"]
    samples = [
        Sample("p", t, references=(TEXT, "the end")) for t in (TEXT, "the end", "quite another thing", "the sea")
    ]
    found = reward.rate(samples)  # type: ignore[attr-defined]
    assert found[:2] == pytest.approx([1, 1])
    assert all(-1 <= value < 0.9999 for value in found[2:])
    assert reward.rate(samples[::-1])[::-1] == pytest.approx(found, abs=1e-6)  # type: ignore[attr-defined]
    model = hf.AutoModel.from_pretrained(encoder_folder).eval()
    own = tiny.tokenizer()
    with torch.inference_mode():
        one, two, three = (
            model(**own(t, return_tensors="pt")).last_hidden_state[0].mean(0) for t in ("the sea", TEXT, "the end")
        )
    cosine = torch.nn.functional.cosine_similarity
    assert found[3] == pytest.approx(max(float(cosine(one, two, 0)), float(cosine(one, three, 0))), abs=1e-5)
